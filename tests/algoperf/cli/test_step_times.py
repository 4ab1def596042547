"""`algoperf step_times` from outside."""

import json
from pathlib import Path

import pytest

from algoperf import cli, step_times
from algoperf.errors import UserError

SUBMISSIONS = Path(__file__).resolve().parents[1] / "submissions"
FEW = ["--workloads=criteo1tb", "--rounds=2", "--steps=2"]


def test_submissions_take_turns_and_are_not_measured_twice(
    tmp_path, capsys, monkeypatch
):
    out = tmp_path / "new" / "times.json"
    command = ["step_times", "--submissions=sgd,adamw", *FEW, f"--out={out}"]
    assert cli.main(command) == 0
    told = capsys.readouterr().out
    assert "criteo1tb_mini: adamw is set up (2 of 2)" in told
    assert "criteo1tb_mini: round 2 of 2" in told
    assert f"written: {out}" in told
    found = json.loads(out.read_text())["workloads"]["criteo1tb_mini"]
    assert all(len(x["seconds"]) == 2 for x in found["submissions"].values())
    # Two moments of each parameter and one counter, or two; SGD keeps a counter.
    moments = found["submissions"]["adamw"]["state_bytes"]
    assert 0 < moments - 2 * found["parameter_bytes"] <= 16
    assert found["submissions"]["sgd"]["state_bytes"] <= 16

    monkeypatch.setattr(step_times, "measure", None)
    assert cli.main(command) == 0
    assert "is set up" not in capsys.readouterr().out
    space = tmp_path / "space.json"
    space.write_text('[{"learning_rate": 1}]')
    for changed in ("--rounds=3", "--ruleset=self", f"--tuning_search_space={space}"):
        with pytest.raises(TypeError):  # is measured anew
            cli.main([*command, changed])
    capsys.readouterr()
    assert cli.main([*command, "--submissions=adamw"]) == 1
    assert "has times of sgd too, which would be lost" in capsys.readouterr().err


def test_what_refuses_a_workload_is_left_out(tmp_path, capsys, monkeypatch):
    set_up = step_times.set_up

    def refusing(submission, workload, point):
        if submission.name == "sgd":
            raise UserError("it is for another workload")
        return set_up(submission, workload, point)

    monkeypatch.setattr(step_times, "set_up", refusing)
    out = f"--out={tmp_path / 'times.json'}"
    assert cli.main(["step_times", "--submissions=adamw,sgd", *FEW, out]) == 0
    assert "Left out: sgd: it is for another workload\n" in capsys.readouterr().out
    other = f"--out={tmp_path / 'other.json'}"
    assert cli.main(["step_times", "--submissions=sgd", *FEW, other]) == 1
    told = capsys.readouterr().err
    assert "nothing to time on criteo1tb_mini: sgd: it is for another workload" in told


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--submissions=adamx"], "adamx"),
        (["--submissions="], "--submissions names none"),
        (["--submissions=sgd,sgd"], "two submissions are named sgd"),
        (["--submissions=sgd", "--suite=mini", "--workloads=wmt"], "not both"),
        (["--submissions=sgd", "--ruleset=self", "--tuning_search_space=a"], "leave"),
    ],
)
def test_bad_flags_are_one_line(tmp_path, capsys, flags, says):
    command = ["step_times", f"--out={tmp_path / 'times.json'}", *flags]
    assert cli.main(command) == 1
    told = capsys.readouterr().err
    assert says in told
    assert told.count("\n") == 1


def test_another_file_is_not_overwritten(tmp_path, capsys):
    out = tmp_path / "times.json"
    out.write_text("mine")
    assert cli.main(["step_times", "--submissions=sgd", *FEW, f"--out={out}"]) == 1
    assert "is not what algoperf step_times writes" in capsys.readouterr().err
    assert out.read_text() == "mine"


def test_submissions_are_driven_as_in_a_trial(tmp_path, capsys):
    """One asks for the train state and logs, and one fails."""
    official = SUBMISSIONS / "official_train_state"
    failing = tmp_path / "failing"
    failing.mkdir()
    text = (SUBMISSIONS / "adam.py").read_text()
    text += "\n\ndef update_params(**arguments):\n    raise RuntimeError('not today')\n"
    (failing / "submission.py").write_text(text)
    (failing / "tuning_search_space.json").write_text('[{"learning_rate": 1}]')
    out = tmp_path / "times.json"
    command = ["step_times", f"--submissions={official},{failing}", *FEW]
    assert cli.main([*command, f"--out={out}"]) == 0
    told = capsys.readouterr().out
    assert "official_train_state is set up" in told
    assert "Left out: failing: RuntimeError: not today" in told
