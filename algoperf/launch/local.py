"""Runs each trial of a sweep in a process of its own.

A process that is killed, by the kernel when memory runs out say, takes no other trial
with it. One after another, each trial has the machine's devices to itself; side by
side, each has its share of the cores, and its times mean little.
"""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path

from algoperf import records
from algoperf.records import Status


@dataclasses.dataclass(frozen=True)
class Job:
    """One trial of a sweep: the arguments of `algoperf run`, and its record's place."""

    arguments: tuple[str, ...]
    folder: Path


def run_jobs(
    jobs: Sequence[Job],
    should_stop: Callable[[], bool],
    side_by_side: int = 1,
    should_end: Callable[[Job], bool] = lambda _: False,
) -> Generator[tuple[Job, int], None, None]:
    """Runs the jobs in turn; yields each with the exit status of its process.

    Finished trials are passed over by `algoperf run` itself. When stopped, the running
    trials save a checkpoint and the rest is not begun; likewise when the iterator is
    closed.

    Args:
      jobs: what to run.
      should_stop: asked twice a second.
      side_by_side: how many run at a time, each on its share of the cores.
      should_end: asked as often of each running job; where it is true, that one saves
        a checkpoint, and the others go on.
    """
    waiting = list(reversed(jobs))
    shares = _shares_of_cores(side_by_side)
    running: dict[int, tuple[Job, subprocess.Popen[bytes]]] = {}
    signalled: set[int] = set()
    try:
        while waiting or running:
            if should_stop():
                waiting.clear()
                _end(running.values(), signalled)
            _end([pair for pair in running.values() if should_end(pair[0])], signalled)
            for place in range(side_by_side):
                if place in running and running[place][1].poll() is not None:
                    job, process = running.pop(place)
                    if process.returncode < 0:
                        _mark_killed(job, -process.returncode)
                    yield job, process.returncode
                if place not in running and waiting and not should_stop():
                    job = waiting.pop()
                    running[place] = job, _start(job, shares[place])
            if running:
                _wait(next(iter(running.values()))[1])
    finally:  # also where whoever asked has met an error
        _end(running.values(), signalled)
        for _, process in running.values():
            process.wait()


def _end(
    running: Iterable[tuple[Job, "subprocess.Popen[bytes]"]], signalled: set[int]
) -> None:
    """Asks processes to save and end, once: a second signal would kill them."""
    for _, process in running:
        if process.pid not in signalled:
            process.send_signal(signal.SIGTERM)
            signalled.add(process.pid)


def _start(job: Job, cores: set[int] | None) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "algoperf", "run", *job.arguments, "--resume"]
    # A session of its own: Ctrl-C on the terminal comes to the child once, from here.
    process = subprocess.Popen(command, start_new_session=True)
    if cores is not None:  # JAX looks at the affinity when it starts its threads
        os.sched_setaffinity(process.pid, cores)
    return process


def _wait(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)


def _shares_of_cores(count: int) -> list[set[int] | None]:
    """Returns which cores each of the processes gets; None where all are free to it."""
    if count == 1 or not hasattr(os, "sched_getaffinity"):
        return [None] * count
    cores = sorted(os.sched_getaffinity(0))
    return [set(cores[place::count] or cores) for place in range(count)]


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
