"""A sweep that is killed or stopped, and where it may write."""

import importlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from absl import flags
from synthetic import without_times

from algoperf import cli, locks, records
from algoperf.cli import common
from algoperf.cli.common import StopRequest
from algoperf.launch import jobs
from algoperf.records import Status

ROOT = Path(__file__).resolve().parents[3]
SWEEP = ["sweep", "--submissions=adamw,momentum", "--workloads=criteo1tb"]
QUICK = ["--max_steps=3", "--eval_period_steps=1", "--checkpoint_period_sec=0"]


@pytest.mark.parametrize(
    "arguments", [SWEEP, ["run", "--submission=adamw", "--workload=criteo1tb"]]
)
def test_an_address_is_no_folder(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*arguments, "--out=gs://bucket/runs"]) == 1
    error = capsys.readouterr().err
    assert "gs://bucket/runs is no folder" in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--cluster=c.json"], "--cluster is for --executor slurm or kubernetes"),
        (
            ["--benchmark=mini_fast"],
            "--benchmark is for --executor slurm or kubernetes",
        ),
        (
            ["--devices=0", "--executor=slurm"],
            "--devices is for --executor local or kubernetes",
        ),
        (["--kind=jobset"], "--kind is for --executor kubernetes"),
        (
            ["--kind=jobset", "--executor=slurm"],
            "--kind is for --executor kubernetes",
        ),
    ],
)
def test_flags_of_another_executor_are_refused(flags, says, capsys, tmp_path):
    assert cli.main([*SWEEP, f"--out={tmp_path / 'runs'}", *flags]) == 1
    assert says in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_what_run_and_sweep_share_is_passed_on():
    sweep = importlib.import_module("algoperf.cli.sweep")
    values = flags.FlagValues()
    common.define_run_flags(values)
    assert set(values) == set(sweep._PASSED_ON)


def test_a_suite_has_a_scale_of_its_own(capsys, tmp_path):
    arguments = ["sweep", "--submissions=adamw", "--suite=mini_fast", "--scale=full"]
    assert cli.main([*arguments, f"--out={tmp_path / 'runs'}"]) == 1
    assert "mini_fast is of --scale mini" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_sweep_is_not_done_while_a_trial_has_no_result(tmp_path, monkeypatch, capsys):
    """A trial that alone was asked to stop has saved, and its process gave 0."""
    out = tmp_path / "runs"
    left = {"adamw": Status.PREEMPTED, "momentum": Status.COMPLETED}

    def command(job):
        status = left[job.folder.relative_to(out).parts[0]]
        content = {"schema_version": 1, "status": status, "message": ""}
        job.folder.mkdir(parents=True, exist_ok=True)
        records.write_json(job.folder / records.RECORD_FILE, content)
        return ["true"]

    monkeypatch.setattr(jobs.Job, "command", command)
    assert cli.main([*SWEEP, f"--out={out}"]) == 1
    assert capsys.readouterr().out.endswith(
        "1 preempted, 1 completed\n1 without a result; the same command goes on with "
        "them\n"
    )
    left["adamw"] = Status.COMPLETED
    assert cli.main([*SWEEP, f"--out={out}"]) == 0
    assert capsys.readouterr().out.endswith("2 completed\n")


@pytest.fixture
def interruptible():
    """Has Ctrl-C do what it does on a terminal; in the background it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2]
)
def test_signals_that_ask_to_stop(number, interruptible):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        os.kill(os.getpid(), number)
        assert stop.is_asked
        # Slurm may send one after the other while the checkpoint is written.
        for other in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(os.getpid(), other)
        with pytest.raises(KeyboardInterrupt):  # an impatient user
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(number) is before


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Starts a sweep in a process of its own."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def run(out):
        command = [sys.executable, "-m", "algoperf", *SWEEP, *QUICK, f"--out={out}"]
        return subprocess.Popen(command)

    return run


@pytest.mark.slow
def test_a_sweep_that_was_killed_is_completed_by_the_next_call(start, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert start(whole).wait(400) == 0
    process = start(out)
    # After the first trial has ended, or while it runs, or before.
    first, second = (out / f.relative_to(whole) for f in jobs.trial_folders(whole))
    target = random.choice([first, second])
    while not (target / records.RECORD_FILE).exists():
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(random.uniform(0, 2))
    before = {f: _state(f) for f in (first, second)}
    process.send_signal(signal.SIGKILL)
    process.wait()
    # The trial that ran stops by itself, and nobody else writes there until then.
    assert start(out).wait(400) == 0
    for folder in (first, second):
        record = records.read_record(folder)
        assert record["status"] is Status.COMPLETED
        assert locks.owner_of(folder) is None
        assert record["preemption_count"] <= 1
        if before[folder] is not None and before[folder][0]:
            assert _state(folder) == before[folder]  # not run again
        twin = whole / folder.relative_to(out)
        assert _rows(folder) == _rows(twin)


def _state(folder):
    """Returns whether a trial had ended, and when its files were written."""
    if not (folder / records.RECORD_FILE).exists():
        return None
    is_final = records.read_record(folder)["status"].is_final
    files = {p: p.stat().st_mtime_ns for p in folder.glob("*.*")}
    return is_final, files if is_final else None


def _rows(folder):
    return without_times(records.read_measurements(folder / records.EVAL_FILE))
