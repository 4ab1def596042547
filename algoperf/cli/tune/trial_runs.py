"""The runs of `algoperf tune`: when one is to be stopped, and what its record says."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging

from algoperf import hardware, records, run_store, tuned
from algoperf.errors import OtherRunError, UserError
from algoperf.launch.local import Job
from algoperf.run_store import Run, Store
from algoperf.tuned import Goal
from scoring import stopping
from scoring.rules import Goal as Target

if TYPE_CHECKING:
    from algoperf.loading import Submission


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


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads runs that have ended.

    Attributes:
      points: the point of each trial.
      goals: of the workloads whose runs may be stopped, by their names in records.
      sha256: of the submission's file.
      seed: of all runs.
      step_hints: that schedules plan for, by workload.
    """

    points: Mapping[int, Mapping[str, Any]]
    goals: Mapping[str, Goal]
    sha256: str
    seed: int
    step_hints: Mapping[str, int]

    def read(
        self, folder: Path, key: tuple[str, str, int]
    ) -> tuple[Run, dict[str, Any]]:
        """Returns a run and its environment; a hopeless one ends where it was so first.

        The verdict is of the evaluations up to there. So it does not matter how soon
        the process ended after it, nor what it still reached.

        Raises:
          OtherRunError: the record is of another run.
          UserError: the run failed.
        """
        _, workload, trial = key
        record = records.read_record(folder)
        self._check(folder, record, workload, trial)
        goal = self.goals.get(workload)
        found = None if goal is None else hopeless_at(folder, goal)
        if found is not None and not record["status"].is_final:
            record["status"] = records.Status.COMPLETED
            record["message"] = "target not reached: stopped by algoperf tune"
            records.write_json(folder / records.RECORD_FILE, record)
        run = run_store.read_run(folder, *key)
        if found is not None:
            evaluations = run.evaluations[: found + 1]
            run = dataclasses.replace(
                run, status=tuned.STOPPED, evaluations=evaluations
            )
        code = {
            "submission_sha256": record["submission"]["sha256"],
            "git_revision": record.get("git_revision"),
        }
        return run, run_store.environment(folder) | code

    def _check(
        self, folder: Path, record: Mapping[str, Any], workload: str, trial: int
    ) -> None:
        """Raises OtherRunError unless the record is of the run that is asked for.

        The run's own process looks too, at more than this. But none is started for one
        that is hopeless already, and none compares versions: who moved the store away
        after a change may have left the records of what was before.
        """
        from algoperf.trials import Seeds

        if record["hyperparameters"] != self.points[trial]:
            raise OtherRunError(f"{folder} holds another run; give another --out")
        seeds = dataclasses.asdict(Seeds.derive(self.seed, 0, trial))
        hint = self.step_hints[workload]
        if record["submission"]["sha256"] != self.sha256:
            what = "another version of the submission"
        elif record.get("seeds", seeds) != seeds:
            what = "another --seed"
        elif record.get("step_hint", hint) != hint:
            what = "another --step_factor"
        elif other := _other_version(record["versions"]):
            what = other
        else:
            return
        raise OtherRunError(
            f"{folder} holds a run of {what}; give another --out, or remove the folder"
        )


def _other_version(versions: Mapping[str, str | None]) -> str | None:
    """Returns the first package that is not installed as it was, and both versions."""
    installed = hardware.describe_versions()
    for package, version in versions.items():
        if version != installed.get(package):
            return f"{package} {version}, and {installed.get(package)} is installed now"
    return None


def check_origin(store: Store, submission: "Submission", cores: int) -> None:
    """Warns if runs in the store are of another commit or on more or fewer cores.

    Neither is a reason to refuse: much of a commit changes no number, and of how many
    cores a CPU has nothing but rounding depends.

    Args:
      store: of the tuning.
      submission: that is tuned.
      cores: that each run has from now on.

    Raises:
      UserError: they are of another version of the submission's files or of a package.
    """
    known = {environment.get("submission_sha256") for environment in store.environments}
    if known - {submission.sha256}:
        raise UserError(
            f"{store.path} has runs of another version of {submission.path}; give "
            "another --out, or move it away to begin anew"
        )
    for environment in store.environments:
        if other := _other_version(environment["versions"]):
            raise UserError(
                f"{store.path} has runs with {other}; give another --out, or move it "
                "away to begin anew"
            )
    revision = hardware.git_revision()
    before = {environment.get("git_revision") for environment in store.environments}
    if others := before - {revision, None}:
        logging.warning(
            "%s has runs of commit %s, and this is %s: if what they share with the "
            "submission has changed, give another --out",
            store.path,
            ", ".join(sorted(map(str, others))),
            revision,
        )
    hosts = [e["host"] for e in store.environments if _is_cpu(e["devices"])]
    if others := {host.get("cores") for host in hosts} - {cores, None}:
        logging.warning(
            "%s has runs on %s cores each, and those to come have %d: XLA rounds "
            "otherwise there, so they are not those that the same cores would have "
            "made; give another --side_by_side, or another --out",
            store.path,
            ", ".join(map(str, sorted(others))),
            cores,
        )


def _is_cpu(devices: Mapping[str, Any]) -> bool:
    return devices.get("platform") == "cpu"
