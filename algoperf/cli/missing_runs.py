"""The loop of every search over many runs: make those that its store lacks.

Hold the stores (`Store.held`) around it, and before the points of runs are written.
"""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from algoperf import records, run_store
from algoperf.errors import OtherRunError, UserError
from algoperf.launch import local
from algoperf.run_store import Run, Store

if TYPE_CHECKING:
    from algoperf.launch.local import Job

Key = tuple[str, str, int]  # of a run: phase, space, number
Read = Callable[[Path, Key], tuple[Run, Mapping[str, Any]]]


def read(folder: Path, key: Key) -> tuple[Run, Mapping[str, Any]]:
    """Returns the run of a record, and its machine and versions."""
    return run_store.read_run(folder, *key), run_store.environment(folder)


def make(
    wanted: "Mapping[Job, tuple[Store, Key]]",
    should_stop: Callable[[], bool],
    say: "Callable[[str, Job, Run], None]",
    side_by_side: int = 1,
    read: Read = read,
    should_end: "Callable[[Job], bool]" = lambda _: False,
) -> bool:
    """Makes the runs that their stores lack, and adds each when it has ended.

    Args:
      wanted: which run of which store each job makes.
      should_stop: asked twice a second.
      say: called with "done/missing", job and run of each that was added.
      side_by_side: runs at a time.
      read: what a record, and what the environment of a run is.
      should_end: whether one run is to end early; asked before it begins too.

    Returns:
      Whether the stores have all.

    Raises:
      UserError: a run failed, left no record or found another's. The runs beside it
        save and end.
    """
    missing = [job for job, (store, key) in wanted.items() if key not in store.runs]
    done = 0

    def add(job: "Job", code: int = 0) -> None:
        nonlocal done
        store, key = wanted[job]
        if not (job.folder / records.RECORD_FILE).exists():
            raise UserError(
                f"run {key[2]} of {key[1]} left no record in {job.folder}; what it "
                "printed says why"
            )
        if code == OtherRunError.exit_status:
            raise UserError(
                f"{job.folder} is not run {key[2]} of {key[1]}; what it printed says "
                "why: give another --out, or remove the folder"
            )
        run, environment = read(job.folder, key)
        store.add(run, environment)
        done += 1
        say(f"{done}/{len(missing)}", job, run)

    ended = [job for job in missing if should_end(job)]  # then we were stopped
    for job in ended:
        add(job)
    runs = local.run_jobs(
        [job for job in missing if job not in ended],
        should_stop,
        side_by_side,
        should_end=should_end,
    )
    with contextlib.closing(runs):
        for job, code in runs:
            if not should_stop():
                add(job, code)
    return not should_stop()
