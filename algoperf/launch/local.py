"""Runs each trial of a sweep in a process of its own, one after another.

A process that is killed, by the kernel when memory runs out say, takes no other trial
with it; and each trial has the machine's devices to itself.
"""

import dataclasses
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from algoperf import records
from algoperf.records import Status


@dataclasses.dataclass(frozen=True)
class Job:
    """One trial of a sweep: the arguments of `algoperf run`, and its record's place."""

    arguments: tuple[str, ...]
    folder: Path


def run_jobs(
    jobs: Sequence[Job], should_stop: Callable[[], bool]
) -> Iterator[tuple[Job, int]]:
    """Runs the jobs in turn; yields each with the exit status of its process.

    Finished trials are passed over by `algoperf run` itself. When stopped, the running
    trial saves a checkpoint and the rest is not begun.
    """
    for job in jobs:
        if should_stop():
            return
        yield job, _run(job, should_stop)


def _run(job: Job, should_stop: Callable[[], bool]) -> int:
    command = [sys.executable, "-m", "algoperf", "run", *job.arguments, "--resume"]
    # A session of its own: Ctrl-C on the terminal comes to the child once, from here.
    process = subprocess.Popen(command, start_new_session=True)
    asked = False
    while True:
        try:
            code = process.wait(timeout=0.5)
            break
        except subprocess.TimeoutExpired:
            if should_stop() and not asked:
                process.send_signal(signal.SIGTERM)
                asked = True
    if code < 0:
        _mark_killed(job, -code)
    return code


def _mark_killed(job: Job, number: int) -> None:
    """Gives the trial of a process that a signal ended its result."""
    if not (job.folder / records.RECORD_FILE).exists():
        return  # it never began
    record = records.read_record(job.folder)
    if record["status"].is_final:
        return
    name = signal.Signals(number).name
    hint = ", perhaps because memory ran out" if name == "SIGKILL" else ""
    record["status"], record["message"] = Status.FAILED, f"killed by {name}{hint}"
    records.write_json(job.folder / records.RECORD_FILE, record)
