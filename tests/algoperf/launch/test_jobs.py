"""The plan of a sweep, and how its trials stand."""

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from algoperf import cli, locks, records
from algoperf.errors import UserError
from algoperf.launch import jobs
from algoperf.records import Status


def job(out, trial=1, *arguments):
    folder = records.trial_folder(out, "adamw", 0, "wmt_mini", trial)
    return jobs.Job(("--workload=wmt_mini", "--max_steps=4", *arguments), folder)


def record(folder, status, step=None, **facts):
    """Writes what a trial has left after so many steps."""
    folder.mkdir(parents=True, exist_ok=True)
    row = {
        records.GLOBAL_STEP: step or 0,
        records.SUBMISSION_TIME: 2.5,
        "validation/bleu": 30.0,
    }
    records.write_measurements(folder / records.EVAL_FILE, [row])
    content = {
        "schema_version": records.SCHEMA_VERSION,
        "status": status,
        "message": "",
        "target": {"metric": "bleu"},
        **({} if step is None else {"global_step": step}),
        **facts,
    }
    records.write_json(folder / records.RECORD_FILE, content)


def test_a_plan_grows_and_is_written_only_when_it_does(tmp_path):
    first, second = job(tmp_path, 1), job(tmp_path, 2)
    jobs.plan(tmp_path, [first])
    jobs.plan(tmp_path, [first, second])
    path = tmp_path / jobs.FOLDER / "trials.json"
    before = path.stat().st_mtime_ns, path.stat().st_ino
    jobs.plan(tmp_path, [second])
    assert before == (path.stat().st_mtime_ns, path.stat().st_ino)
    assert jobs.trial_folders(tmp_path) == [first.folder, second.folder]
    other = records.trial_folder(tmp_path, "sgd", 1, "wmt_mini", 1)
    record(other, Status.REACHED)
    assert jobs.trial_folders(tmp_path)[2:] == [other]


def test_processes_that_plan_at_once_lose_nothing(tmp_path):
    """As the pods of one sweep, which may all have the same process id."""
    wanted = [job(tmp_path, trial) for trial in range(1, 17)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda one: jobs.plan(tmp_path, [one]), wanted))
    planned = jobs.trial_folders(tmp_path)
    assert sorted(planned) == sorted(one.folder for one in wanted)
    assert [path.name for path in (tmp_path / jobs.FOLDER).iterdir()] == ["trials.json"]


def test_other_results_are_refused_in_one_folder(tmp_path):
    jobs.plan(tmp_path, [job(tmp_path)])
    other = jobs.Job(("--max_steps=5",), job(tmp_path).folder)
    with pytest.raises(UserError, match="planned with --max_steps=4, asked for is"):
        jobs.plan(tmp_path, [other])
    other = job(tmp_path, 1, "--microbatches=2")
    with pytest.raises(UserError, match="no --microbatches, asked for is --micro"):
        jobs.plan(tmp_path, [other])
    other = job(tmp_path, 1, "--ignore_budget=True")
    with pytest.raises(UserError, match="no --ignore_budget, asked for is --ignore"):
        jobs.plan(tmp_path, [other])
    jobs.plan(tmp_path, [job(tmp_path, 1, "--ignore_budget=False")])
    jobs.plan(tmp_path, [job(tmp_path, 1, "--data_dir=elsewhere")])


def test_a_broken_plan_is_one_line(tmp_path):
    jobs.plan(tmp_path, [job(tmp_path)])
    (tmp_path / jobs.FOLDER / "trials.json").write_text("{}[")
    with pytest.raises(UserError, match="remove it"):
        jobs.trial_folders(tmp_path)


def test_how_a_trial_stands(tmp_path):
    folder = job(tmp_path).folder
    assert jobs.standing(folder).status == "waiting"
    with locks.hold(folder):
        starting = jobs.standing(folder)
        assert (starting.status, starting.owner.pid) == ("running", os.getpid())
        assert starting.step is None
        record(folder, Status.RUNNING, 40)
        running = jobs.standing(folder)
        assert (running.status, running.step) == ("running", 40)
        assert (running.metric, running.value) == ("validation/bleu", 30.0)
        assert running.owner.pid == os.getpid()
    assert jobs.standing(folder).status == "interrupted"
    record(folder, Status.PREEMPTED, 40)
    assert jobs.standing(folder).status == "preempted"
    with locks.hold(folder):  # goes on
        assert jobs.standing(folder).status == "running"
    record(folder, Status.REACHED, 50, clock={"submission": 3.0}, message="m")
    ended = jobs.standing(folder)
    assert (ended.status, ended.seconds, ended.message) == ("reached", 3.0, "m")
    assert ended.owner is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_asks_to_stop_is_no_failure(tmp_path, number):
    wanted = job(tmp_path)
    record(wanted.folder, Status.PREEMPTED, 40)
    jobs.mark_killed(wanted, number)
    assert records.read_record(wanted.folder)["status"] is Status.PREEMPTED


def test_a_killed_trial_that_another_process_took_over_is_not_marked(tmp_path):
    wanted = job(tmp_path)
    record(wanted.folder, Status.RUNNING, 40)
    with locks.hold(wanted.folder):
        jobs.mark_killed(wanted, signal.SIGKILL)
    assert records.read_record(wanted.folder)["status"] is Status.RUNNING


@pytest.fixture
def sweep(tmp_path):
    """A sweep with a finished trial, one that runs and one that waits."""
    jobs.plan(tmp_path, [job(tmp_path, trial) for trial in (1, 2, 3)])
    record(job(tmp_path, 1).folder, Status.COMPLETED, 4)
    record(job(tmp_path, 2).folder, Status.RUNNING, 2)
    with locks.hold(job(tmp_path, 2).folder):
        yield tmp_path


def test_status_shows_every_trial(sweep, capsys):
    assert cli.main(["status", str(sweep)]) == 0
    text = capsys.readouterr().out
    lines = [line for line in text.splitlines() if "trial_" in line]
    for line, word in zip(lines, ("completed", "running", "waiting"), strict=True):
        assert word in line
    assert f" {os.getpid()} " in lines[1]
    assert text.endswith("1 completed, 1 running, 1 waiting\n")


def test_status_as_json(sweep, capsys):
    assert cli.main(["status", str(sweep), "--json=-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [trial["status"] for trial in found] == ["completed", "running", "waiting"]
    assert found[1]["owner"]["pid"] == os.getpid()


def test_status_is_watched_until_nothing_is_left(sweep, monkeypatch, capsys):
    def finish(_):
        for trial in (2, 3):
            record(job(sweep, trial).folder, Status.REACHED, 4)

    monkeypatch.setattr("time.sleep", finish)
    assert cli.main(["status", str(sweep), "--watch"]) == 0
    assert "2 reached" in capsys.readouterr().out


def test_a_broken_record_hides_no_other(sweep, capsys):
    first = jobs.trial_folders(sweep)[0]
    first.mkdir(parents=True, exist_ok=True)
    (first / records.RECORD_FILE).write_text("{")
    assert cli.main(["status", str(sweep)]) == 1
    printed = capsys.readouterr().out
    assert "1 unreadable" in printed
    assert "record.json cannot be read" in printed
    names = [str(folder.relative_to(sweep)) for folder in jobs.trial_folders(sweep)]
    assert len(names) > 1
    assert all(name in printed for name in names)


def test_a_broken_lock_hides_no_other_trial(sweep, capsys):
    second = jobs.trial_folders(sweep)[1]
    lock = locks.path_of(second)
    before = lock.read_text()
    lock.write_text("")
    assert cli.main(["status", str(sweep)]) == 1
    lock.write_text(before)
    printed = capsys.readouterr().out
    assert "1 completed, 1 unreadable, 1 waiting" in printed
    assert "is no lock of ours" in printed


def test_a_plan_in_what_is_no_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("precious")
    out = tmp_path / "file"
    with pytest.raises(UserError, match=r"cannot make .*choose another --out"):
        jobs.plan(out, [job(out)])


@pytest.mark.parametrize("make", [False, True])
def test_no_sweep_is_one_line(tmp_path, capsys, make):
    folder = tmp_path / "none"
    if make:
        folder.mkdir()
    assert cli.main(["status", str(folder)]) == 1
    assert "--out" in capsys.readouterr().err
