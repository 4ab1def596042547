"""Runs each trial of a sweep in a process of its own, on this machine.

A process that is killed, by the kernel when memory runs out say, takes no other trial
with it. One after another, each trial has the machine's devices to itself; with several
accelerators each process may have one of them; side by side without, each has its share
of the cores, and its times mean little.
"""

import contextlib
import dataclasses
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path

from algoperf import hardware, locks
from algoperf.errors import OtherWriterError, UserError
from algoperf.launch.jobs import Job, mark_killed

__all__ = [
    "Job",
    "PARENT",
    "accelerators",
    "choose_devices",
    "cores_of_each",
    "is_left_behind",
    "run_jobs",
]

# Names the process that a trial belongs to: without it the trial stops as on SIGTERM,
# so that a sweep that was killed leaves nothing behind that runs on.
PARENT = "ALGOPERF_PARENT"
LEAVE_SEC = 5.0  # that what a trial's process left running has to end


@dataclasses.dataclass(frozen=True)
class _Place:
    """What one process has of the machine."""

    cores: set[int] | None  # None: all of them
    environment: Mapping[str, str]


def run_jobs(
    jobs: Sequence[Job],
    should_stop: Callable[[], bool],
    side_by_side: int = 1,
    devices: Sequence[str] = (),
    notice: Callable[[str], None] = lambda _: None,
    should_end: Callable[[Job], bool] = lambda _: False,
) -> Generator[tuple[Job, int], None, None]:
    """Runs the jobs in turn; yields each with the exit status of its process.

    Finished trials are passed over by `algoperf run` itself. A trial that another
    process runs is waited for. When stopped, the running trials save a checkpoint and
    the rest is not begun; likewise when the iterator is closed.

    Args:
      jobs: what to run.
      should_stop: asked twice a second.
      side_by_side: how many run at a time, each on its share of the cores.
      devices: accelerators as `choose_devices` returns them, each for one process at a
        time, instead of `side_by_side`.
      notice: called with a line on what is waited for.
      should_end: asked as often as `should_stop` of each running job; where it is true,
        that one saves a checkpoint, and the others go on.
    """
    waiting = deque(jobs)
    places = _places(side_by_side, devices)
    running: dict[int, tuple[Job, subprocess.Popen[bytes]]] = {}
    noticed: set[str] = set()
    signalled: set[int] = set()
    try:
        while waiting or running:
            if should_stop():
                waiting.clear()
                _end(running.values(), signalled)
            _end([pair for pair in running.values() if should_end(pair[0])], signalled)
            for place, share in enumerate(places):
                if place in running and running[place][1].poll() is not None:
                    job, process = running.pop(place)
                    code = process.returncode
                    _end_what_it_left(process.pid)
                    # Another process was first, by a moment; it may be done by now, so
                    # that who holds the lock does not say that one did.
                    if code == OtherWriterError.exit_status or (
                        code > 0 and _owner_of(job) is not None  # took it over
                    ):
                        waiting.append(job)
                        continue
                    if code < 0 and process.pid not in signalled:
                        mark_killed(job, -code)
                    yield job, code
                if place not in running and waiting and not should_stop():
                    owner = _bring_a_free_one_first(waiting, alone=len(places) == 1)
                    if owner is None:
                        job = waiting.popleft()
                        running[place] = job, _start(job, share)
                    elif str(owner) not in noticed:
                        noticed.add(str(owner))
                        notice(f"waiting for {owner}, which runs {waiting[0].folder}")
            if waiting or running:
                _wait([process for _, process in running.values()])
    finally:  # also where whoever asked has met an error
        _end(running.values(), signalled)
        for _, process in running.values():
            process.wait()
            _end_what_it_left(process.pid)


def _end(
    running: Iterable[tuple[Job, "subprocess.Popen[bytes]"]], signalled: set[int]
) -> None:
    """Asks processes to save and end, once."""
    for _, process in running:
        if process.pid not in signalled:
            process.send_signal(signal.SIGTERM)
            signalled.add(process.pid)


def _end_what_it_left(leader: int) -> None:
    """Ends the processes that a trial's process started, once that one is gone.

    If it was killed, those that made its batches live on and keep their memory, which
    may be what ran out. All are of its session, and so of its process group. They are
    asked before they are killed: Python's resource tracker, which passes over SIGTERM,
    then sees all others go, and removes the shared memory that they have left.
    """
    deadline = time.monotonic() + LEAVE_SEC
    # Nobody is left; or only corpses, as macOS has it.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGTERM)
        while time.monotonic() < deadline:
            os.killpg(leader, 0)
            time.sleep(0.05)
        os.killpg(leader, signal.SIGKILL)


def is_left_behind(parent: str | None) -> bool:
    """Whether the sweep that this process belongs to, if any, is gone."""
    return parent is not None and os.getppid() != int(parent)


def _bring_a_free_one_first(waiting: deque[Job], alone: bool) -> locks.Owner | None:
    """Turns the queue until its first trial is nobody's; else returns who is at it.

    Alone on its machine, a trial of another process of this machine is waited for: two
    at a time would spoil the times of both.
    """
    first = None
    for _ in range(len(waiting)):
        owner = _owner_of(waiting[0])
        if owner is None or (alone and owner.is_here):
            return owner
        first = first or owner
        waiting.rotate(-1)
    return first


def _owner_of(job: Job) -> locks.Owner | None:
    """Returns who runs the trial; None also if its lock cannot be read.

    The trial's own process then says so and ends; the others go on.
    """
    try:
        return locks.owner_of(job.folder)
    except UserError:
        return None


def _start(job: Job, place: _Place) -> "subprocess.Popen[bytes]":
    # A session of its own: Ctrl-C on the terminal comes to the child once, from here,
    # and what the child leaves behind is found by its group.
    process = subprocess.Popen(
        job.command(),
        start_new_session=True,
        env={**os.environ, **place.environment, PARENT: str(os.getpid())},
    )
    if place.cores is not None:  # JAX looks at the affinity when it starts its threads
        os.sched_setaffinity(process.pid, place.cores)
    return process


def _wait(processes: "Sequence[subprocess.Popen[bytes]]") -> None:
    """Waits half a second, or until the first of the processes has ended."""
    if not processes:
        time.sleep(0.5)
        return
    with contextlib.suppress(subprocess.TimeoutExpired):
        processes[0].wait(timeout=0.5)


def _places(side_by_side: int, devices: Sequence[str]) -> list[_Place]:
    count = len(devices) or side_by_side
    return [
        _Place(cores, _only(devices[number]) if devices else {})
        for number, cores in enumerate(_shares_of_cores(count))
    ]


def _shares_of_cores(count: int) -> list[set[int] | None]:
    """Returns which cores each of the processes gets; None where all are free to it.

    As many each, at least one, though some may be left over: records name the number,
    and those of one workload with different ones do not compare.
    """
    if count == 1 or not hasattr(os, "sched_setaffinity"):
        return [None] * count
    cores = hardware.usable_cores()
    size = max(1, len(cores) // count)
    return [set(cores[place % len(cores) :: count][:size]) for place in range(count)]


def cores_of_each(count: int) -> int:
    """Returns how many cores each of so many processes side by side may keep busy."""
    share = _shares_of_cores(count)[0]
    cores = hardware.core_count()
    return cores if share is None else min(cores, len(share))


def accelerators(root: Path = Path("/dev")) -> list[str]:
    """Returns the GPUs or TPU chips of this machine, as `gpu:0` or `tpu:0`.

    Of GPUs those in CUDA_VISIBLE_DEVICES, if it is set. JAX is not asked: it would take
    hold of them.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [f"gpu:{name.strip()}" for name in visible.split(",") if name.strip()]
    for kind, prefix in (("gpu", "nvidia"), ("tpu", "accel")):
        names = (path.name.removeprefix(prefix) for path in root.glob(f"{prefix}*"))
        numbers = sorted(int(name) for name in names if name.isdigit())
        if numbers:
            return [f"{kind}:{number}" for number in numbers]
    return []


def choose_devices(wish: str, known: Sequence[str]) -> list[str]:
    """Returns the accelerators for one process each; none: a trial has all of them.

    Args:
      wish: `all`, `each`, or numbers of accelerators with commas between.
      known: what `accelerators` returns.

    Raises:
      UserError: a number is not there, or is there twice.
    """
    if wish == "all" or (wish == "each" and not known):
        return []
    if wish == "each":
        return list(known)
    names = {name.partition(":")[2]: name for name in known}
    wanted = [number.strip() for number in wish.split(",")]
    for number in wanted:
        if number not in names or wanted.count(number) > 1:
            found = ", ".join(names) or "none"
            raise UserError(
                f"--devices {wish}: give each, all, or different accelerators of this "
                f"machine, which has {found}"
            )
    return [names[number] for number in wanted]


def _only(device: str) -> dict[str, str]:
    """Returns the environment in which JAX sees one accelerator alone."""
    kind, _, number = device.partition(":")
    if kind == "gpu":
        return {"CUDA_VISIBLE_DEVICES": number}
    one = "1,1,1"
    bounds = {"TPU_CHIPS_PER_PROCESS_BOUNDS": one, "TPU_PROCESS_BOUNDS": one}
    return {"TPU_VISIBLE_CHIPS": number, **bounds}
