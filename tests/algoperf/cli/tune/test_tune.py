"""`tune` on trials whose curves follow from their hyperparameters, and on real ones."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import random
import signal
from pathlib import Path

import pytest
from synthetic import BATCH_NORM, SYNTHETIC

from algoperf import cli, hardware, records, registry, tuning
from algoperf.cli import tune
from algoperf.cli.tune import report
from algoperf.cli.tune.report import draw
from algoperf.errors import OtherRunError
from algoperf.launch import local
from algoperf.records import Status
from algoperf.run_store import Store
from algoperf.trials import Seeds
from scoring import stopping

RANGES = {
    "learning_rate": {"min": 1e-4, "max": 1.0, "scaling": "log"},
    "momentum": {"feasible_points": [0.0, 0.9]},
}
WORKLOADS = [
    dataclasses.replace(workload, validation_target_value=0.8)
    for workload in (SYNTHETIC, BATCH_NORM)
]
BEST = {"synthetic_mini": 0.03, "synthetic_bn_mini": 0.01}  # learning rates


def sha256_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Machine:
    """Stands for the processes: accuracy rises the faster, the better the rate.

    Attributes:
      finished: the runs, in the order in which they ended.
      stop_after: ask this process to stop after so many runs.
      lag: evaluations that a run still makes after it was told to end.
      optax, revision: the versions that its records name.
      platform, cores: what its records say of devices and host.
      flags: of each run, as they came.
    """

    def __init__(self):
        self.finished = []
        self.stop_after = math.inf
        self.lag = 1
        self.status = None
        self.forget = False
        self.optax = hardware.describe_versions()["optax"]
        self.revision = hardware.git_revision()
        self.platform, self.cores = "cpu", hardware.core_count()
        self.flags = []

    def run_jobs(self, jobs, should_stop, side_by_side=1, should_end=lambda _: False):
        jobs = list(jobs)
        random.Random(side_by_side).shuffle(jobs)
        for job in jobs:
            if should_stop():
                return
            self._run(job, should_end)
            self.finished.append((job.folder.parent.name, job.folder.name))
            yield job, 0
            if len(self.finished) == self.stop_after:
                signal.raise_signal(signal.SIGTERM)

    def _run(self, job, should_end):
        if self.forget:
            return
        flags = dict(
            argument[2:].split("=") for argument in job.arguments if "=" in argument
        )
        assert "--ignore_budget" in job.arguments
        self.flags.append(flags)
        space = tuning.load_search_space(Path(flags["tuning_search_space"]))
        point = tuning.trial_point(space, 0, int(flags["trial_index"]))
        workload = job.folder.parent.name.removesuffix("_jax")
        off = abs(math.log10(point["learning_rate"] / BEST[workload]))
        pace = 0.12 * 0.3**off * (1.0 + 0.5 * (point["momentum"] == 0.9))
        job.folder.mkdir(parents=True, exist_ok=True)
        rows, left, status = [], self.lag, Status.COMPLETED
        for step in range(0, int(flags["max_steps"]) + 1, 4):
            accuracy = 0.9 - 0.8 * math.exp(-pace * step)
            rows.append(
                {
                    records.GLOBAL_STEP: step,
                    records.SUBMISSION_TIME: 0.1 * step,
                    "validation/accuracy": accuracy,
                }
            )
            if accuracy >= 0.8:
                status = Status.REACHED
                break
            if step >= 24:  # before, nothing is hopeless
                records.write_measurements(job.folder / records.EVAL_FILE, rows)
                if should_end(job):
                    if left == 0:
                        status = Status.PREEMPTED
                        break
                    left -= 1
        records.write_measurements(job.folder / records.EVAL_FILE, rows)
        (job.folder / "checkpoint_4").mkdir(exist_ok=True)
        record = {
            "schema_version": records.SCHEMA_VERSION,
            "status": self.status or status,
            "message": "because",
            "hyperparameters": point,
            "target": {"metric": "accuracy"},
            "submission": {"sha256": sha256_of(Path(flags["submission"]))},
            "seeds": dataclasses.asdict(
                Seeds.derive(int(flags["seed"]), 0, int(flags["trial_index"]))
            ),
            "git_revision": self.revision,
            "versions": {"optax": self.optax},
            "step_hint": int(flags["step_hint"]),
            "host": {"cores": self.cores},
            "devices": {"platform": self.platform},
        }
        records.write_json(job.folder / records.RECORD_FILE, record)


@pytest.fixture
def machine(monkeypatch):
    machine = Machine()
    monkeypatch.setattr(local, "run_jobs", machine.run_jobs)
    monkeypatch.setattr(registry, "select_workloads", lambda *_: WORKLOADS)
    monkeypatch.setattr(report, "draw", lambda *_: False)  # takes a second
    return machine


@pytest.fixture
def figures(machine, monkeypatch):
    monkeypatch.setattr(report, "draw", draw)


@pytest.fixture
def adam(tmp_path, write_submission):
    """The path of a submission with ranges beside it."""
    folder = tmp_path / "adam"
    folder.mkdir()
    source = write_submission().path.read_text()
    (folder / "submission.py").write_text(source)
    (folder / tune.RANGES_FILE).write_text(json.dumps(RANGES))
    return folder


@pytest.fixture
def call(tmp_path, adam):
    """Calls the command; returns exit status and output folder."""

    def run(*more, out="out", budget=14):
        arguments = ["tune", str(adam), "--workloads=a,b", f"--budget={budget}"]
        return cli.main([*arguments, f"--out={tmp_path / out}", *more])

    return run


def outcome(folder):
    """What must not depend on how a tuning was run: all that it writes."""
    paths = [path for path in folder.iterdir() if path.is_file()]
    return {path.name: path.read_bytes() for path in paths}


def test_a_tuning_from_end_to_end(call, machine, figures, tmp_path, capsys):
    assert call("--search=4") == 0
    out = tmp_path / "out"
    printed = capsys.readouterr().out
    assert "14 trials, 4 of them search, on synthetic_mini, synth" in printed
    assert "at most 100 steps each, 1,400 in all; 0 trials are done" in printed
    points = tuning.load_search_space(out / tune.SPACE_FILE)
    assert len(points) == 5
    assert f"{json.dumps(points[0])}\nwrote" in printed
    # The optimum lies between those of the workloads, with momentum.
    assert points[0]["momentum"] == 0.9
    assert 0.005 < points[0]["learning_rate"] < 0.06
    assert len({json.dumps(point) for point in points}) == 5

    report = (out / tune.REPORT_FILE).read_text()
    trials = len(tuning.load_search_space(out / "points.json"))
    assert f"{trials} of 14 trials" in report
    assert "bases of the Halton sequence: learning_rate 2, momentum 3" in report
    assert "learning_rate | 0.0001 to 1, log | times 4.64" in report
    assert "| moved there |" in report
    assert "submission_sha256" in report
    assert (out / tune.FIGURE_FILE).read_text().startswith("<?xml")
    assert len(machine.finished) == 2 * trials
    store = Store.read(out / tune.STORE_FILE)
    assert len(store.runs) == 2 * trials
    assert not list(out.rglob("checkpoint_*"))


def test_a_second_call_runs_nothing_and_writes_the_same(
    call, machine, figures, tmp_path
):
    assert call() == 0
    before, runs = outcome(tmp_path / "out"), len(machine.finished)
    assert call() == 0
    assert len(machine.finished) == runs
    assert outcome(tmp_path / "out") == before


@pytest.mark.parametrize("early_stop", [False, True])
@pytest.mark.parametrize("side_by_side", [1, 3])
def test_interruption_and_order_change_nothing(
    call, machine, tmp_path, early_stop, side_by_side, capsys
):
    more = ["--early_stop"] * early_stop
    assert call(*more, out="whole") == 0
    whole, machine.finished = machine.finished, []
    for stop_after in (1, 4, 9):
        machine.stop_after = stop_after
        assert call(*more, f"--side_by_side={side_by_side}") == 1
        assert "the same command goes on" in capsys.readouterr().out
    machine.stop_after = math.inf
    assert call(*more, f"--side_by_side={side_by_side}") == 0
    # A run that was done when we were stopped is asked for again, and is there.
    assert set(machine.finished) == set(whole)
    assert len(machine.finished) <= len(whole) + 3
    assert outcome(tmp_path / "out") == outcome(tmp_path / "whole")


def test_a_greater_budget_goes_on(call, machine, tmp_path):
    assert call("--search=3", budget=5) == 0
    runs = len(machine.finished)
    assert call("--search=3", budget=9) == 0
    assert len(machine.finished) > runs
    assert call("--search=3", budget=9, out="whole") == 0
    assert outcome(tmp_path / "out") == outcome(tmp_path / "whole")


def test_hopeless_runs_are_stopped_and_never_count(call, machine, tmp_path):
    assert call("--early_stop", "--search=8") == 0
    store = Store.read(tmp_path / "out" / tune.STORE_FILE)
    stopped = [run for run in store.runs.values() if run.status == "stopped"]
    assert 0 < len(stopped) < len(store.runs)
    for run in stopped:
        last = run.evaluations[-1]
        assert stopping.SEEN * 50 <= last["step"] < 50
        folder = records.trial_folder(
            tmp_path / "out" / "runs", "adam", 0, run.space, run.trial
        )
        rows = records.read_measurements(folder / records.EVAL_FILE)
        assert rows[-1][records.GLOBAL_STEP] == min(last["step"] + 4, 48)  # the lag
        record = records.read_record(folder)
        assert record["status"] is Status.COMPLETED
        was_told = rows[-1][records.GLOBAL_STEP] < 48
        assert ("stopped by algoperf tune" in record["message"]) == was_told
    report = (tmp_path / "out" / tune.REPORT_FILE).read_text()
    assert f"runs stopped early, as hopeless: {len(stopped)}" in report
    run = min(stopped, key=lambda run: run.trial)
    step = f"{run.evaluations[-1]['step']:.0f}"
    assert f"trial {run.trial} on {run.space}, at step {step} of 50" in report


def test_how_soon_a_stopped_run_ends_changes_nothing(call, machine, tmp_path):
    """The verdict is of the curve up to there, though the target came after it."""
    assert call("--early_stop", out="soon") == 0
    machine.lag = 100  # it never hears of it
    assert call("--early_stop", out="late") == 0
    soon, late = outcome(tmp_path / "soon"), outcome(tmp_path / "late")
    assert soon == late
    assert call(out="without") == 0
    assert outcome(tmp_path / "without") != soon


def test_results_go_beside_the_submission(call, machine, adam):
    assert call("--write", budget=6) == 0
    store = Store.read(adam / tune.STORE_FILE)
    assert store.facts["submission"] == "adam"
    assert len(tuning.load_search_space(adam / tune.SPACE_FILE)) == 5
    assert call("--write", out="again", budget=6) == 0  # from the same ranges
    assert Store.read(adam / tune.STORE_FILE).runs == store.runs


@pytest.mark.parametrize("is_given", [False, True])
def test_ranges_that_points_replace_are_kept(call, machine, adam, tmp_path, is_given):
    (adam / tune.RANGES_FILE).rename(adam / tune.SPACE_FILE)
    ranges = (adam / tune.SPACE_FILE).read_bytes()
    (tmp_path / "mine.json").write_bytes(ranges)
    given = [f"--ranges={tmp_path / 'mine.json'}"] if is_given else []
    assert call("--write", *given, budget=6) == 0
    assert (adam / tune.RANGES_FILE).read_bytes() == ranges
    assert len(tuning.load_search_space(adam / tune.SPACE_FILE)) == 5
    assert call("--write", budget=6) == 0  # the same command goes on


def test_without_matplotlib_there_is_no_figure(
    call, machine, figures, tmp_path, monkeypatch
):
    import builtins

    find = builtins.__import__

    def without(name, *rest):
        if name == "matplotlib":
            raise ImportError(name)
        return find(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    assert call(budget=1) == 0
    assert not (tmp_path / "out" / tune.FIGURE_FILE).exists()
    assert "![" not in (tmp_path / "out" / tune.REPORT_FILE).read_text()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--budget=0"], "budget"),
        (["--budget=4", "--search=5"], "--search from 1 to --budget"),
        (["--step_factor=0"], "leaves no step"),
        (["--ranges=none.json"], "at none.json; give a file with --ranges"),
        (["--early"], "early"),
        (["other"], "give one submission"),
        (["--out=gs://bucket/x"], "gs://bucket/x is no folder"),
        (["--out=/dev/null/x"], "cannot make /dev/null/x: Not a directory; choose"),
    ],
)
def test_mistakes_are_named_in_one_line(call, machine, capsys, more, says):
    assert call(*more) != 0
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert machine.finished == []


@pytest.mark.parametrize(
    ("ranges", "space", "says"),
    [
        ({"x": {"min": 2, "max": 1}}, None, "min 2 is above max 1"),
        ({"x": {"min": 1, "max": 1}}, None, "nothing to tune"),
        ({"x": {"feasible_points": []}}, None, "non-empty list"),
        ([{"x": 1}], None, "lists points; a tuning needs ranges"),
        (None, [{"x": 1}], "lists points, no ranges: write tuning_ranges.json"),
        (None, None, "a submission without hyperparameters is not tuned"),
    ],
)
def test_ranges_that_do_not_do(call, machine, adam, capsys, ranges, space, says):
    (adam / tune.RANGES_FILE).unlink()
    for name, value in ((tune.RANGES_FILE, ranges), (tune.SPACE_FILE, space)):
        if value is not None:
            (adam / name).write_text(json.dumps(value))
    assert call() == 1
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_a_search_space_with_ranges_will_do(call, machine, adam):
    (adam / tune.RANGES_FILE).rename(adam / tune.SPACE_FILE)
    assert call(budget=2) == 0
    assert len(machine.finished) == 4


def test_an_unknown_workload_is_named(adam, capsys):
    assert cli.main(["tune", str(adam), "--workloads=ogbb", "--budget=2"]) == 1
    assert "did you mean ogbg" in capsys.readouterr().err
    arguments = ["--workloads=ogbg,ogbg", "--budget=2"]
    assert cli.main(["tune", str(adam), *arguments]) == 1
    assert "named twice" in capsys.readouterr().err


def test_other_facts_are_not_mixed(call, machine, capsys):
    assert call(budget=3) == 0
    assert call("--seed=1", budget=3) == 1
    assert "begun with seed 0, which is 1 now" in capsys.readouterr().err


def test_runs_of_another_version_of_the_file_are_not_mixed(call, machine, adam, capsys):
    assert call("--search=4", budget=4) == 0
    file = adam / "submission.py"
    source = file.read_text()
    file.write_text(source + "# another\n")
    assert call("--search=4", budget=5) == 1
    error = capsys.readouterr().err
    assert "has runs of another version of" in error
    assert len(machine.finished) == 8  # four trials, two workloads
    file.write_text(source)
    assert call("--search=4", budget=5) == 0


def test_runs_with_another_version_of_a_package_are_not_mixed(
    call, machine, capsys, monkeypatch
):
    machine.optax = "0.1.0"
    with monkeypatch.context() as patch:  # it is installed at first
        patch.setattr(hardware, "describe_versions", lambda: {"optax": "0.1.0"})
        assert call("--search=4", budget=4) == 0
    assert call("--search=4", budget=5) == 1
    assert "has runs with optax 0.1.0, and" in capsys.readouterr().err
    assert len(machine.finished) == 8


def test_runs_of_another_commit_are_told(call, machine, caplog):
    machine.revision = "8034bf5"
    assert call("--search=4", budget=4) == 0
    assert "has runs of commit" not in caplog.text
    assert call("--search=4", budget=5) == 0
    assert "has runs of commit 8034bf5, and this is" in caplog.text


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_runs_on_another_number_of_cores_are_told(
    call, machine, caplog, monkeypatch, platform
):
    """A CPU rounds otherwise there, though the same again on as many."""
    monkeypatch.setattr(hardware, "usable_cores", lambda: [0, 1, 2, 3])
    monkeypatch.setattr(hardware, "core_count", lambda: 4)
    machine.platform, machine.cores = platform, 2
    assert call("--search=4", "--side_by_side=2", budget=4) == 0
    assert call("--search=4", "--side_by_side=2", budget=5) == 0
    assert "cores each" not in caplog.text
    assert call("--search=4", budget=5) == 0
    says = "has runs on 2 cores each, and those to come have 4: XLA rounds"
    assert (says in caplog.text) == (platform == "cpu")


def test_schedules_plan_for_the_steps_that_a_run_may_take(call, machine, capsys):
    assert call("--step_factor=0.5", budget=2) == 0
    assert "at most 50 steps each, 100 in all" in capsys.readouterr().out
    found = {(flags["step_hint"], flags["max_steps"]) for flags in machine.flags}
    assert found == {("25", "25")}
    assert call("--max_steps=25", budget=2) == 1  # cut, of a plan for 50
    assert "begun with step_factor 0.5, which is 1.0 now" in capsys.readouterr().err
    assert call("--max_steps=25", budget=2, out="other") == 0
    assert machine.flags[-1]["step_hint"] == "50"
    assert machine.flags[-1]["max_steps"] == "25"


def test_no_run_of_a_sweep_is_one_of_a_tuning(call, machine, tmp_path):
    assert call(budget=2) == 0
    tuned = [
        records.read_record(path.parent)["seeds"]["trial_seed"]
        for path in (tmp_path / "out").rglob(records.RECORD_FILE)
    ]
    swept = [
        Seeds.derive(seed, study, trial).trial_seed
        for seed, study, trial in itertools.product(range(2), range(3), range(1, 6))
    ]
    assert len(tuned) == 4
    assert not set(tuned) & set(swept)


def test_another_run_in_the_folder_is_refused(call, machine, tmp_path, capsys):
    assert call(budget=3) == 0
    (tmp_path / "out" / tune.STORE_FILE).unlink()
    for path in (tmp_path / "out").rglob(records.RECORD_FILE):
        record = records.read_record(path.parent)
        record["hyperparameters"]["learning_rate"] = 7.0
        records.write_json(path, record)
    machine.forget = True  # the child refuses too, and leaves the folder as it is
    assert call(budget=3) == OtherRunError.exit_status
    assert "holds another run; give another --out" in capsys.readouterr().err


@pytest.mark.parametrize("early_stop", [False, True])
@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"submission": {"sha256": "0"}}, "another version of the submission; give"),
        ({"seeds": {"seed": 1}}, "another --seed; give"),
        ({"versions": {"optax": "0.1.0"}}, "optax 0.1.0, and"),
        ({"step_hint": 49}, "another --step_factor; give"),
        ({}, None),
    ],
)
def test_runs_of_other_code_that_a_moved_store_has_left_are_not_taken(
    call, machine, tmp_path, capsys, facts, says, early_stop
):
    """No process looks at those that are hopeless, nor at the versions of any."""
    assert call("--early_stop") == 0
    store = tmp_path / "out" / tune.STORE_FILE
    before = store.read_bytes()
    store.unlink()
    for path in (tmp_path / "out").rglob(records.RECORD_FILE):
        records.write_json(path, records.read_record(path.parent) | facts)
    machine.forget = True  # all are there, and none is made
    assert call(*["--early_stop"] * early_stop) == (
        OtherRunError.exit_status if says else 0
    )
    if says is not None:
        assert f"holds a run of {says}" in capsys.readouterr().err
        assert not store.exists()
    elif early_stop:
        assert store.read_bytes() == before


@pytest.mark.parametrize("status", [Status.FAILED, Status.PREEMPTED])
def test_a_failed_run_ends_the_tuning_with_its_message(call, machine, capsys, status):
    machine.status = status
    assert call() == 1
    error = capsys.readouterr().err
    assert f"is {status} because" in error
    assert len(machine.finished) == 1


def test_a_run_without_a_record_ends_the_tuning(call, machine, capsys):
    machine.forget = True
    assert call() == 1
    assert "left no record" in capsys.readouterr().err


@pytest.fixture
def in_process(monkeypatch):
    """Runs real trials on the synthetic workloads in this process."""
    easy = {
        workload.name: dataclasses.replace(workload, validation_target_value=0.75)
        for workload in WORKLOADS
    }

    def run_jobs(jobs, should_stop, side_by_side=1, should_end=lambda _: False):
        for job in jobs:
            if should_stop():
                return
            yield job, cli.main(["run", *job.arguments, "--resume"])

    monkeypatch.setattr(local, "run_jobs", run_jobs)
    monkeypatch.setattr(registry, "select_workloads", lambda *_: [easy[SYNTHETIC.name]])
    monkeypatch.setattr(registry, "find_workload", lambda name, _: easy[name])


@pytest.mark.slow
def test_real_trials(tmp_path, adam, in_process, capsys):
    arguments = ["tune", str(adam), "--workloads=a", "--budget=4", "--search=3"]
    ranges = tmp_path / "ranges.json"
    span = {"min": 1e-4, "max": 0.3, "scaling": "log"}
    ranges.write_text(json.dumps({"learning_rate": span}))
    arguments.append(f"--ranges={ranges}")
    assert cli.main([*arguments, f"--out={tmp_path / 'one'}"]) == 0
    assert "reached at step" in capsys.readouterr().out
    store = Store.read(tmp_path / "one" / tune.STORE_FILE)
    statuses = {run.status for run in store.runs.values()}
    assert statuses == {"reached", "completed"}
    for run in store.runs.values():
        assert run.evaluations[-1]["step"] <= 52
        reached = any(row["validation"] >= 0.75 for row in run.evaluations)
        assert reached == (run.status == "reached")
    # The same again, but for the times.
    assert cli.main([*arguments, f"--out={tmp_path / 'two'}"]) == 0
    one, two = (
        (tmp_path / name / tune.SPACE_FILE).read_bytes() for name in ("one", "two")
    )
    assert one == two


@pytest.mark.slow
def test_processes_and_early_stopping(tmp_path, monkeypatch):
    """A real process is asked to end, and its run is taken as it stands."""
    monkeypatch.setattr(
        stopping,
        "first_hopeless",
        lambda steps, *_: 1 if len(steps) > 1 else None,
    )
    arguments = ["tune", "sgd", "--workloads=imagenet_resnet", "--budget=1"]
    arguments += ["--max_steps=400", "--early_stop", f"--out={tmp_path}"]
    with contextlib.suppress(SystemExit):
        assert cli.main(arguments) == 0
    (run,) = Store.read(tmp_path / tune.STORE_FILE).runs.values()
    assert run.status == "stopped"
    assert [row["step"] for row in run.evaluations] == [0, 80]
    (path,) = tmp_path.rglob(records.RECORD_FILE)
    record = records.read_record(path.parent)
    assert record["status"] is Status.COMPLETED
    assert record["global_step"] < 400
