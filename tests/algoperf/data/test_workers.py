"""Processes that make batches live as long as the run that they make them for."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from sources import Numbers, noisy

from algoperf.data.examples import DataOptions, train_examples
from algoperf.data.pipeline import batches
from algoperf.errors import STOP_SIGNALS

pytestmark = pytest.mark.slow

HELPERS = Path(__file__).resolve().parents[2] / "helpers"


def made_by_workers(workers):
    dataset = train_examples(Numbers(10), 4, 0, DataOptions(), noisy)
    return batches(dataset, workers=workers)


def test_a_signal_that_asks_the_run_to_stop_ends_no_worker():
    before = set(multiprocessing.active_children())
    made = made_by_workers(1)
    next(made)
    (worker,) = set(multiprocessing.active_children()) - before
    assert worker.pid is not None
    for number in STOP_SIGNALS:
        os.kill(worker.pid, number)
    assert len(list(itertools.islice(made, 20))) == 20  # more than had been made
    assert worker.is_alive()
    made.close()
    assert not worker.is_alive()


RUN = """
import multiprocessing
import time

from sources import Numbers, noisy

from algoperf.data.examples import DataOptions, train_examples
from algoperf.data.pipeline import batches

if __name__ == "__main__":
    dataset = train_examples(Numbers(10), 4, 0, DataOptions(), noisy)
    made = batches(dataset, workers=2)
    next(made), next(made)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(600)
"""


def test_workers_of_a_run_that_was_killed_end(tmp_path):
    script = tmp_path / "killed_run.py"
    script.write_text(RUN)
    path = os.pathsep.join([str(HELPERS), *filter(None, sys.path)])
    run = subprocess.Popen(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None
    workers = [psutil.Process(int(pid)) for pid in run.stdout.readline().split()]
    assert len(workers) == 2
    assert all(_is_running(worker) for worker in workers)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    run.stdout.close()
    until = time.monotonic() + 60
    while any(_is_running(worker) for worker in workers):
        if time.monotonic() > until:
            for worker in workers:
                worker.kill()
            pytest.fail("the workers outlived the run")
        time.sleep(0.1)


def _is_running(process):
    """Whether a process is there, and not only its corpse that nobody has buried."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
