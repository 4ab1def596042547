"""`run`, `sweep` and `score` together, on a real workload."""

import importlib
import json
import math
import signal
import subprocess
import sys
import time

import pytest
from absl import flags

from algoperf import cli, records, registry, speed
from algoperf.errors import OtherRunError
from algoperf.records import Status

RESNET = "imagenet_resnet"
QUICK = ("--max_steps=4", "--eval_period_steps=2")


def _folder(out, submission="adamw", trial=1):
    return records.trial_folder(out, submission, 0, f"{RESNET}_mini", trial)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Records of a sweep of two submissions."""
    out = tmp_path_factory.mktemp("sweep")
    arguments = ["--submissions=adamw,momentum", f"--workloads={RESNET}", *QUICK]
    assert cli.main(["sweep", *arguments, f"--out={out}"]) == 0
    return out


def test_sweep_leaves_records(out):
    for submission in ("adamw", "momentum"):
        record = records.read_record(_folder(out, submission))
        assert record["status"] is Status.COMPLETED
        rows = records.read_measurements(_folder(out, submission) / records.EVAL_FILE)
        assert [row["global_step"] for row in rows] == [0, 2, 4]


def test_sweep_again_changes_nothing(out, capfd):
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    arguments = ["--submissions=adamw,momentum", f"--workloads={RESNET}", *QUICK]
    assert cli.main(["sweep", *arguments, f"--out={out}"]) == 0
    assert "2 completed" in capfd.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}


def test_run_refuses_a_folder_that_holds_a_run(out, capsys):
    before = (_folder(out) / records.RECORD_FILE).read_bytes()
    arguments = ["run", "--submission=adamw", f"--workload={RESNET}", f"--out={out}"]
    assert cli.main([*arguments, *QUICK]) == 1
    assert "--resume" in capsys.readouterr().err
    for flag, says in (("--seed=1", "seeds"), ("--step_hint=7", "step_hint")):
        status = cli.main([*arguments, *QUICK, "--resume", flag])
        assert status == OtherRunError.exit_status
        assert f"holds another run: its {says} is" in capsys.readouterr().err
    assert (_folder(out) / records.RECORD_FILE).read_bytes() == before


def test_score_of_the_sweep(out, tmp_path, capsys):
    page, table = tmp_path / "page.html", tmp_path / "csv"
    arguments = ["score", str(out), f"--report={page}", f"--csv={table}"]
    assert cli.main([*arguments, f"--json={tmp_path}/scores.json"]) == 0
    text = capsys.readouterr().out
    assert "adamw" in text
    assert "momentum" in text
    assert str(page) in text
    assert "<html" in page.read_text()
    assert (table / "scores.csv").read_text().count("\n") >= 3
    assert (table / "performance_profile.csv").exists()
    assert json.loads((tmp_path / "scores.json").read_text())


def test_a_csv_folder_that_cannot_be_made_is_one_line(out, tmp_path, capsys):
    (tmp_path / "file").write_text("precious")
    assert cli.main(["score", str(out), f"--csv={tmp_path}/file"]) == 1
    assert "cannot make" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "precious"


def test_an_unreadable_record_is_named_and_gives_a_bad_status(out, tmp_path, capsys):
    broken = _folder(tmp_path, "lamb")
    broken.mkdir(parents=True)
    columns = "global_step,accumulated_submission_time"
    (broken / records.EVAL_FILE).write_text(f"{columns}\n1\n")
    assert cli.main(["score", str(out), str(tmp_path)]) == 1
    assert "1 cells, the header has 2" in capsys.readouterr().err


@pytest.mark.slow
def test_a_bad_trial_does_not_stop_the_others(tmp_path, capfd):
    bad = tmp_path / "bad.py"
    bad.write_text(
        "from algoperf.submission import from_optax\n"
        "import optax\n"
        "def build(workload, hyperparameters):\n"
        "    if hyperparameters.learning_rate > 0.5:\n"
        "        raise RuntimeError('this rate is too high')\n"
        "    return optax.sgd(hyperparameters.learning_rate)\n"
        "(get_batch_size, init_optimizer_state, update_params, prepare_for_eval,\n"
        " data_selection) = from_optax(build)\n"
    )
    space = tmp_path / "space.json"
    space.write_text('[{"learning_rate": 1.0}, {"learning_rate": 0.1}]')
    arguments = [f"--submission={bad}", f"--workload={RESNET}", "--trials=2", *QUICK]
    where = [f"--tuning_search_space={space}", f"--out={tmp_path}/runs"]
    assert cli.main(["run", *arguments, *where]) == 1
    first = records.read_record(_folder(tmp_path / "runs", "bad", 1))
    assert first["status"] is Status.FAILED
    assert "this rate is too high" in first["message"]
    assert "bad.py:5" in first["message"]
    assert "this rate is too high" in capfd.readouterr().out
    second = records.read_record(_folder(tmp_path / "runs", "bad", 2))
    assert second["status"] is Status.COMPLETED


def test_a_missing_hyperparameter_is_one_line(tmp_path, capsys):
    space = tmp_path / "space.json"
    space.write_text('[{"learning_rate": 1.0}]')
    arguments = ["--submission=adamw", f"--workload={RESNET}", *QUICK]
    where = [f"--tuning_search_space={space}", f"--out={tmp_path}/runs"]
    assert cli.main(["run", *arguments, *where]) == 1
    error = capsys.readouterr().err
    assert "'warmup_factor'" in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.glob("runs/**/*.json"))


def _wait_for_evaluation(process, folder, step):
    """Waits until the evaluation at `step` is recorded."""
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        assert process.poll() is None
        if (folder / records.EVAL_FILE).exists():
            rows = records.read_measurements(folder / records.EVAL_FILE)
            if rows[-1]["global_step"] >= step:
                return
        time.sleep(0.05)
    raise AssertionError("no evaluation in time")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 75)])
def test_a_signal_saves_a_checkpoint_and_ends_the_run(tmp_path, number, code):
    """Cleanly; after Ctrl-C, what a script has next must not run."""
    arguments = ["--submission=adamw", f"--workload={RESNET}", "--max_steps=400"]
    command = [sys.executable, "-m", "algoperf", "run", *arguments]
    command += ["--eval_period_steps=5", f"--out={tmp_path}"]
    process = subprocess.Popen(command)
    try:
        _wait_for_evaluation(process, _folder(tmp_path), 5)
        process.send_signal(number)
        assert process.wait(120) == code
    finally:
        process.kill()  # nothing is left behind by a test that failed
        process.wait()
    record = records.read_record(_folder(tmp_path))
    assert record["status"] is Status.PREEMPTED
    step = record["global_step"]
    assert (_folder(tmp_path) / f"checkpoint_{step}").is_dir()
    assert step < 400


@pytest.mark.slow
def test_a_killed_trial_of_a_sweep_is_failed_and_the_next_one_runs(tmp_path):
    suicide = tmp_path / "suicide.py"
    suicide.write_text(
        "import os, signal\n"
        "import optax\n"
        "from algoperf.submission import from_optax\n"
        "(get_batch_size, init_optimizer_state, update_params, prepare_for_eval,\n"
        " data_selection) = from_optax(lambda workload, point: optax.sgd(0.1))\n"
        "def data_selection(workload, queue, *unused):\n"
        "    if unused[4] == 3:  # the global step\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return next(queue)\n"
    )
    out = tmp_path / "runs"
    arguments = [f"--submissions={suicide},momentum", f"--workloads={RESNET}", *QUICK]
    (tmp_path / "tuning_search_space.json").write_text('[{"learning_rate": 1.0}]')
    assert cli.main(["sweep", *arguments, f"--out={out}"]) == 1
    record = records.read_record(_folder(out, "suicide"))
    assert record["status"] is Status.FAILED
    assert "SIGKILL" in record["message"]
    assert "memory" in record["message"]
    assert records.read_record(_folder(out, "momentum"))["status"] is Status.COMPLETED


@pytest.mark.parametrize(("scale", "ratio"), [("mini", 3.0), ("full", 1.0)])
def test_budgets_of_mini_are_stretched_on_a_slow_machine(
    tmp_path, monkeypatch, scale, ratio
):
    run = importlib.import_module("algoperf.cli.run")  # cli.run is the entry point
    values = flags.FlagValues()
    run.define_flags(values)
    arguments = ["--submission=adamw", f"--workload={RESNET}", f"--out={tmp_path}"]
    values(["run", *arguments, f"--scale={scale}"])
    monkeypatch.setattr(speed, "budget_ratio", lambda: 3.0)
    (config,) = run.trial_configs(values)
    budget = registry.find_workload(RESNET, scale).max_allowed_runtime_sec
    assert config.budget_ratio == ratio
    assert config.budget_sec == ratio * budget


def test_steps_alone_end_a_trial_that_ignores_its_budget(tmp_path, monkeypatch):
    """Nor is the machine timed for its budget; a missed target has an end."""
    run = importlib.import_module("algoperf.cli.run")  # cli.run is the entry point
    values = flags.FlagValues()
    run.define_flags(values)
    arguments = ["--submission=adamw", f"--workload={RESNET}", f"--out={tmp_path}"]
    values(["run", *arguments, "--ignore_budget"])
    monkeypatch.setattr(speed, "budget_ratio", lambda: pytest.fail("was timed"))
    (config,) = run.trial_configs(values)
    assert config.budget_sec == math.inf
    target = registry.find_workload(RESNET, "mini").validation_target_value
    assert config.workload.validation_target_value == target
    assert config.max_steps == config.workload.step_hint
    hint = config.workload.step_hint
    for name, value, wanted in (
        ("ruleset", "self", 1.5 * hint),
        ("step_hint", 100, 150),
        ("target_setting", 0.75, 75),
        ("max_steps", 7, 7),
    ):
        values[name].value = value
        assert run.trial_configs(values)[0].max_steps == wanted
