"""The runs of `algoperf tune`: when one is to be stopped, and what its record says."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from algoperf import records, run_store, tuned
from algoperf.coordinate_search import Proposal
from algoperf.errors import UserError
from algoperf.launch.local import Job
from algoperf.run_store import Run
from algoperf.tuned import Goal
from scoring import stopping
from scoring.rules import Goal as Target


def watcher(goals: Mapping[str, Goal]) -> Callable[[Job], bool]:
    """Returns whether a run is to be stopped; it looks only at what has changed.

    Args:
      goals: of the workloads whose runs may be stopped, by their names in records.
    """
    known: dict[Path, tuple[int, bool]] = {}

    def is_hopeless(job: Job) -> bool:
        goal = goals.get(job.folder.parent.name.removesuffix("_jax"))
        path = job.folder / records.EVAL_FILE
        if goal is None or not path.exists():
            return False
        changed = path.stat().st_mtime_ns
        if known.get(path, (0, False))[0] != changed:
            known[path] = changed, hopeless_at(job.folder, goal) is not None
        return known[path][1]

    return is_hopeless


def hopeless_at(folder: Path, goal: Goal) -> int | None:
    """Returns the first evaluation of a record at which the run is hopeless, if any."""
    rows = records.read_measurements(folder / records.EVAL_FILE)
    steps = np.array([row[records.GLOBAL_STEP] for row in rows])
    target = Target(metric=goal.metric, direction=goal.way, target=goal.target)
    values = np.array([row.get(target.column, math.nan) for row in rows])
    return stopping.first_hopeless(steps, values, target, goal.steps)


def read(folder: Path, proposal: Proposal, workload: str, goal: Goal | None) -> Run:
    """Returns a run that has ended; one that was hopeless ends where it was so first.

    The verdict is of the evaluations up to there. So it does not matter how soon the
    process ended after it, nor what it still reached.

    Args:
      folder: its record.
      proposal: the trial that it is of.
      workload: its name in records.
      goal: of the workload, if its runs may be stopped.

    Raises:
      UserError: there is no record, or one of another run, or the run failed.
    """
    if not (folder / records.RECORD_FILE).exists():
        raise UserError(
            f"trial {proposal.trial} on {workload} left no record; what it printed "
            "says why"
        )
    record = records.read_record(folder)
    if record["hyperparameters"] != proposal.point:
        raise UserError(f"{folder} holds another run; give another --out")
    found = None if goal is None else hopeless_at(folder, goal)
    if found is not None and not record["status"].is_final:
        record["status"] = records.Status.COMPLETED
        record["message"] = "target not reached: stopped by algoperf tune"
        records.write_json(folder / records.RECORD_FILE, record)
    run = run_store.read_run(folder, tuned.PHASE, workload, proposal.trial)
    if found is None:
        return run
    return dataclasses.replace(
        run, status=tuned.STOPPED, evaluations=run.evaluations[: found + 1]
    )


def environment(folder: Path) -> dict[str, Any]:
    """Returns machine, versions and what the submission's file was."""
    sha256 = records.read_record(folder)["submission"]["sha256"]
    return run_store.environment(folder) | {"submission_sha256": sha256}
