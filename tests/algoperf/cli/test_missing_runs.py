"""The loop over missing runs, with records that nobody trained for."""

import signal

import pytest

from algoperf import cli, locks, records
from algoperf.cli import missing_runs
from algoperf.errors import OtherRunError, OtherWriterError, UserError
from algoperf.launch import local
from algoperf.launch.jobs import Job
from algoperf.records import Status
from algoperf.run_store import Store


class Machine:
    """Stands for the processes; leaves records of the statuses given, None for none."""

    def __init__(self, *statuses, code=0):
        self.statuses = list(statuses)
        self.code = code
        self.made = []
        self.is_closed = False

    def run_jobs(self, jobs, should_stop, *_, **__):
        try:
            for job in jobs:
                if should_stop():
                    return
                status = self.statuses.pop(0)
                if status is not None:
                    _leave(job.folder, status)
                self.made.append(job)
                yield job, self.code
        finally:
            self.is_closed = True


def _leave(folder, status):
    folder.mkdir(parents=True)
    row = {records.GLOBAL_STEP: 3, records.SUBMISSION_TIME: 1.0, "validation/loss": 0.5}
    records.write_measurements(folder / records.EVAL_FILE, [row])
    record = {
        "schema_version": records.SCHEMA_VERSION,
        "status": status,
        "message": "because",
        "hyperparameters": {},
        "target": {"metric": "loss"},
        **{name: {} for name in ("host", "devices", "versions")},
    }
    records.write_json(folder / records.RECORD_FILE, record)


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Calls the loop for three runs on a machine; returns outcome and what was said."""

    def run(machine, stop_after=9, **options):
        monkeypatch.setattr(local, "run_jobs", machine.run_jobs)
        store = Store.open(tmp_path / "store.json.xz", {})
        wanted = {
            Job((), tmp_path / f"trial_{number}"): (store, ("a", "b", number))
            for number in (1, 2, 3)
        }
        said = []
        done = missing_runs.make(
            wanted,
            lambda: len(machine.made) >= stop_after,
            lambda count, _, run: said.append((count, run.trial)),
            **options,
        )
        return done, said

    return run


def _numbers(tmp_path):
    return sorted(key[2] for key in Store.read(tmp_path / "store.json.xz").runs)


def test_what_was_stopped_goes_on(call, tmp_path):
    machine = Machine(Status.COMPLETED, Status.PREEMPTED)
    assert call(machine, stop_after=2) == (False, [("1/3", 1)])
    assert machine.is_closed
    assert _numbers(tmp_path) == [1]
    (tmp_path / "trial_2" / records.RECORD_FILE).unlink()
    (tmp_path / "trial_2" / records.EVAL_FILE).unlink()
    (tmp_path / "trial_2").rmdir()
    machine = Machine(Status.REACHED, Status.DIVERGED)
    assert call(machine) == (True, [("1/2", 2), ("2/2", 3)])
    assert _numbers(tmp_path) == [1, 2, 3]
    assert call(Machine()) == (True, [])


@pytest.mark.parametrize(
    ("status", "says"),
    [(None, "run 2 of b left no record"), (Status.FAILED, "is failed because")],
)
def test_a_run_without_a_result_ends_those_beside_it(call, tmp_path, status, says):
    machine = Machine(Status.COMPLETED, status, Status.COMPLETED)
    with pytest.raises(UserError, match=says):
        call(machine)
    assert machine.is_closed
    assert len(machine.made) == 2
    assert _numbers(tmp_path) == [1]  # what was done is kept


def test_the_record_of_another_run_is_not_taken(call, tmp_path):
    _leave(tmp_path / "trial_1", Status.DIVERGED)
    with pytest.raises(UserError, match="trial_1 is not run 1 of b"):
        call(Machine(None, code=OtherRunError.exit_status))
    assert not (tmp_path / "store.json.xz").exists()


def test_a_diverged_run_is_a_result(call, tmp_path):
    call(Machine(*[Status.DIVERGED] * 3, code=1))
    assert _numbers(tmp_path) == [1, 2, 3]


def test_a_run_that_was_told_to_end_before_us_is_not_begun_again(call, tmp_path):
    _leave(tmp_path / "trial_2", Status.COMPLETED)
    machine = Machine(Status.COMPLETED, Status.COMPLETED)
    done, said = call(machine, should_end=lambda job: job.folder.name == "trial_2")
    assert done
    assert said == [("1/3", 2), ("2/3", 1), ("3/3", 3)]
    assert len(machine.made) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["sweep", "--submissions=adamw", "--workloads=ogbg"],
        ["calibrate", "--workload=ogbg", "--points=1"],
        ["numerics", "sweep", "--workloads=ogbg", "--recipes=mxfp8"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_command_that_was_asked_to_stop_says_so(
    arguments, tmp_path, monkeypatch, capsys
):
    def run_jobs(*_, **__):
        signal.raise_signal(signal.SIGINT)
        yield from ()

    monkeypatch.setattr(local, "run_jobs", run_jobs)
    assert cli.main([*arguments, f"--out={tmp_path}"]) == 1
    printed = capsys.readouterr().out
    assert printed.endswith("stopped; the same command goes on with what is missing\n")


@pytest.mark.parametrize(
    ("arguments", "store"),
    [
        (["calibrate", "--workload=ogbg", "--points=1"], "ogbg_mini.json.xz"),
        (
            ["numerics", "sweep", "--workloads=ogbg", "--recipes=mxfp8"],
            "ogbg_mini.json.xz",
        ),
        (["numerics", "scaling"], "scaling.json.xz"),
        (["tune", "adamw", "--workloads=ogbg", "--budget=3"], "tuning.json.xz"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_second_call_beside_the_first_changes_nothing(
    arguments, store, tmp_path, capsys
):
    with locks.hold(tmp_path / store):
        refused = OtherWriterError.exit_status
        assert cli.main([*arguments, f"--out={tmp_path}"]) == refused
        assert f"{store} is being written by process" in capsys.readouterr().err
        assert not [path for path in tmp_path.rglob("*") if "lock" not in path.name]
