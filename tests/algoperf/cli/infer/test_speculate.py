"""`algoperf infer speculate` from outside."""

import csv
import json

import pytest

from algoperf import cli

TINY = (
    "--train_steps=2",
    "--tune_steps=2",
    "--guesses=2",
    "--thresholds=0.5",
    "--num_prompts=1",
    "--rounds=3",
    "--seconds=0",
    "--cores=0",
)


@pytest.mark.slow
def test_speculate_writes_its_figures_and_goes_on(tmp_path, capsys):
    command = ["infer", "speculate", f"--out={tmp_path}", *TINY]
    assert cli.main([*command, "--json=-"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert "training: distilled_head" in captured.err
    assert found["rounds"] == 3
    folder = tmp_path / "finewebedu_lm_mini_speculate"
    with open(folder / "strategies.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["draft"], r["strategy"]) for r in rows[:6]] == [
        ("", "plain"),
        ("draft", "alone"),
        ("draft", "length"),
        ("draft", "threshold"),
        ("draft", "head"),
        ("draft", "oracle"),
    ]
    assert float(rows[5]["discard_rate"]) == 0.0
    assert float(rows[0]["speed_up"]) == 1.0
    assert "draft oracle" in (folder / "strategies.md").read_text()
    assert (folder / "strategies.svg").read_text().startswith("<svg")

    # The pair and three rounds are there; a fourth is asked for.
    again = [part for part in command if not part.startswith("--rounds")]
    again = [part for part in again if not part.startswith("--seconds")]
    assert cli.main([*again, "--rounds=4", "--json=-"]) == 0
    captured = capsys.readouterr()
    assert "training" not in captured.err
    assert json.loads(captured.out)["rounds"] == 4
    for other, says in (("--output=20", "other prompts"), ("--prompt=8", "settings")):
        assert cli.main([*command, other]) == 1
        assert says in capsys.readouterr().err
    stored = json.loads((folder / "rounds.json").read_text())
    stored["hardware"]["cpu"] = "Another"
    (folder / "rounds.json").write_text(json.dumps(stored))
    assert cli.main(command) == 1
    assert "holds rounds of another machine; take" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["x", "y"], "give one workload"),
        (["finewebedu"], "did you mean"),
        (["imagenet_vit"], "no decoder-only"),
        (["--draft_width=33"], "multiple"),
        (["--guesses=0"], "at least 1"),
        (["--guesses=a"], "give whole numbers"),
        (["--thresholds=1.5"], "probabilities"),
        (["--prompt=60"], "shorten"),
        (["--divergence=kl"], "divergence"),
    ],
)
def test_a_mistake_is_one_line(arguments, says, tmp_path, capsys):
    command = ["infer", "speculate", f"--out={tmp_path / 'out'}", "--cores=0"]
    assert cli.main([*command, *arguments]) == 1
    error = capsys.readouterr().err
    assert says in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("action", ["speculate", "first_token"])
def test_the_data_of_scale_full_is_where_the_flag_says(action, tmp_path, capsys):
    command = ["infer", action, "--scale=full", "--draft_width=128", "--cores=0"]
    command += [f"--out={tmp_path / 'out'}", f"--data_dir={tmp_path / 'sets'}"]
    assert cli.main(command) == 1
    assert f"is missing in {tmp_path / 'sets'}: " in capsys.readouterr().err
