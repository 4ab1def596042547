"""A sweep on a real Slurm: an array, a job requeued, one cancelled, scoring at the end.

The Slurm is Debian's, runs in the test's folder and ends with it.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import slurm_here
from synthetic import without_times

from algoperf import cli, records
from algoperf.launch import jobs, slurm
from algoperf.records import Status

pytest.importorskip("submitit")
ROOT = Path(__file__).resolve().parents[3]
WORKLOADS = ("criteo1tb", "criteo1tb_layernorm", "criteo1tb_resnet")
SWEEP = [
    "sweep",
    "--submissions=adamw,momentum",
    f"--workloads={','.join(WORKLOADS)}",
    "--trials=2",
    "--max_steps=3",
    "--eval_period_steps=1",
    "--checkpoint_period_sec=0",
]


@pytest.fixture
def squeue(tmp_path, monkeypatch):
    """Starts Slurm; returns a function that lists its jobs as {id: state}."""
    missing = set(slurm_here.PROGRAMS) - set(slurm_here.find_programs())
    if missing or os.geteuid() != 0:
        pytest.skip(
            "needs root, and Debian's munge, slurmctld, slurmd and slurm-client"
        )
    # What is compiled once serves all trials, here and below Slurm.
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with slurm_here.running_slurm(tmp_path / "slurm") as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

        def list_jobs():
            text = _run("squeue", "--noheader", "--array", "--format=%i %T")
            return dict(line.split() for line in text.splitlines())

        yield list_jobs


def _run(*command):
    return subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=60
    ).stdout


def _wait_until(is_so, what, timeout_sec=1500):
    deadline = time.monotonic() + timeout_sec
    while not is_so():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.1)


def _runs(folder):
    """Whether the trial of a folder has begun, and has no result yet."""
    if not (folder / records.RECORD_FILE).exists():
        return False
    return records.read_record(folder)["status"] is Status.RUNNING


def _logs(out):
    return "\n".join(p.read_text() for p in (out / ".sweep" / "logs").glob("*.out"))


@pytest.mark.slurm
@pytest.mark.timeout(2400)
def test_a_sweep_on_slurm_scores_as_one_here(squeue, tmp_path, capfd):
    there, here = tmp_path / "there", tmp_path / "here"
    command = [*SWEEP, f"--out={there}", "--executor=slurm"]
    assert cli.main(command) == 0
    state = json.loads((there / jobs.FOLDER / slurm.STATE).read_text())
    assert len(state) == 13
    assert set(squeue()) == set(state.values())
    first, *_, last = jobs.trial_folders(there)

    # One is put back in the queue while it trains.
    _wait_until(lambda: _runs(first), "the first trial trains")
    running = state[str(first.relative_to(there))]
    _run("scontrol", "requeue", running)
    # One is cancelled while it waits, and the second call submits it alone.
    cancelled = state[str(last.relative_to(there))]
    _run("scancel", cancelled)
    _wait_until(lambda: cancelled not in squeue(), "the job is cancelled")
    capfd.readouterr()
    assert cli.main(command) == 0
    assert "submitted 1 trials" in capfd.readouterr().out
    assert cli.main(command) == 0
    assert "nothing to submit" in capfd.readouterr().out
    _wait_until(lambda: not squeue(), "all jobs have ended")
    assert cli.main(["status", str(there)]) == 0
    assert "12 completed" in capfd.readouterr().out, _logs(there)
    assert records.read_record(first)["preemption_count"] == 1
    assert (first / "meta_data_1.json").exists()

    assert cli.main([*SWEEP, f"--out={here}"]) == 0
    score = [sys.executable, "-m", "algoperf", "score", str(here)]
    _run(*score, f"--csv={here}-csv", f"--json={here}.json")
    for folder in jobs.trial_folders(here):
        twin = there / folder.relative_to(here)
        assert _results(folder) == _results(twin)
    assert (tmp_path / "there-score.html").exists(), _logs(there)
    tables = [tmp_path / "there-score-csv", tmp_path / "here-csv"]
    one, two = ((table / "scores.csv").read_text() for table in tables)
    assert one == two


def _results(folder):
    return without_times(records.read_measurements(folder / records.EVAL_FILE))
