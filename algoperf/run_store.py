"""Runs that are done, as searches over many of them keep them: one small file.

What stands in the records of a search's runs follows from this file, so a search that
is begun on one machine is finished on another. Imports nothing that needs JAX.
"""

import contextlib
import dataclasses
import json
import lzma
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from algoperf import locks, records
from algoperf.errors import UserError
from algoperf.records import Direction, Row, Status

S = TypeVar("S", bound="Store")


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a search, as far as its outcome needs it.

    Attributes:
      phase: what it is for.
      space: the name of the search space that its point is from, or of the workload.
      trial: its number among the points of that space in this phase.
      hyperparameters: its point.
      status: how it ended.
      evaluations: steps, submission time (s), training loss, and the target's metric
        on validation and test.
      step_sec: median seconds of a step, None if unknown.
      compile_sec: seconds of compilation in submission time.
    """

    phase: str
    space: str
    trial: int
    hyperparameters: Mapping[str, Any]
    status: str
    evaluations: Sequence[Row]
    step_sec: float | None
    compile_sec: float

    @property
    def key(self) -> tuple[str, str, int]:
        """Which run of a search it is."""
        return self.phase, self.space, self.trial

    def best(self, direction: Direction) -> Row | None:
        """Returns the evaluation with the best finite validation metric, if any."""
        finite = [row for row in self.evaluations if math.isfinite(row["validation"])]
        if not finite:
            return None
        sign = 1 if direction is Direction.MINIMIZE else -1
        return min(finite, key=lambda row: sign * row["validation"])

    def reached(self, target: float, direction: Direction) -> Row | None:
        """Returns the first evaluation that reaches a validation target, if any."""
        for row in self.evaluations:
            if records.reaches(row["validation"], target, direction):
                return row
        return None

    def steps_to(self, target: float, direction: Direction) -> float | None:
        """Returns the step at which the target is reached; None if it is not.

        On a straight line between the first evaluation that reaches it and the one
        before; 1 at least.
        """
        before = None
        for row in self.evaluations:
            if not records.reaches(row["validation"], target, direction):
                before = row
                continue
            if before is None or not math.isfinite(before["validation"]):
                return max(float(row["step"]), 1.0)
            part = target - before["validation"]
            part /= row["validation"] - before["validation"]
            step = before["step"] + part * (row["step"] - before["step"])
            return max(step, 1.0)
        return None


def read_run(folder: Path, phase: str, space: str, trial: int) -> Run:
    """Reads the record of a finished run.

    Raises:
      UserError: it is not finished, or failed.
    """
    record = records.read_record(folder)
    status = record["status"]
    if not status.is_final or status is Status.FAILED:
        raise UserError(
            f"{folder} is {status} {record['message']}; repair, remove it, and give "
            "the same command again"
        )
    metric = record["target"]["metric"]
    names = {
        "step": records.GLOBAL_STEP,
        "time": records.SUBMISSION_TIME,
        "train_loss": "train/loss",
        "validation": f"validation/{metric}",
        "test": f"test/{metric}",
    }
    rows = records.read_measurements(folder / records.EVAL_FILE)
    step_time = record.get("step_time") or {}
    return Run(
        phase=phase,
        space=space,
        trial=trial,
        hyperparameters=record["hyperparameters"],
        status=str(status),
        evaluations=[
            {ours: row.get(theirs, math.nan) for ours, theirs in names.items()}
            for row in rows
        ],
        step_sec=step_time.get("seconds"),
        compile_sec=(record.get("compile") or {}).get("submission", 0.0),
    )


def environment(folder: Path) -> dict[str, Any]:
    """Returns the machine and the versions that a record names."""
    record = records.read_record(folder)
    return {name: record[name] for name in ("host", "devices", "versions")}


@dataclasses.dataclass
class Store:
    """Runs that count together, in a file.

    Attributes:
      path: the file, compressed JSON; need not exist.
      facts: what must stay equal for the runs to count together; of JSON's types.
      runs: by their keys.
      environments: machines and versions that made them.
      lock: while it is held.
    """

    path: Path
    facts: Mapping[str, Any]
    runs: dict[tuple[str, str, int], Run] = dataclasses.field(default_factory=dict)
    environments: list[Mapping[str, Any]] = dataclasses.field(default_factory=list)
    lock: locks.Lock | None = dataclasses.field(default=None, compare=False)

    @classmethod
    def read(cls: type[S], path: Path) -> S:
        """Reads a store.

        Raises:
          UserError: the file is missing or is none.
        """
        try:
            value = json.loads(lzma.decompress(path.read_bytes()))
            runs = [_read_stored(run) for run in value["runs"]]
            facts, environments = value["facts"], value["environments"]
        except (OSError, ValueError, TypeError, KeyError, lzma.LZMAError) as error:
            raise UserError(f"{path} is no store of runs: {error!r}") from error
        return cls(path, facts, {run.key: run for run in runs}, environments)

    @classmethod
    def open(cls: type[S], path: Path, facts: Mapping[str, Any]) -> S:
        """Reads a store, or begins one.

        Raises:
          UserError: the file's runs have other facts.
        """
        if not path.exists():
            return cls(path, facts)
        store = cls.read(path)
        for name in sorted(facts.keys() | store.facts.keys()):
            before, now = store.facts.get(name), facts.get(name)
            if before != now:
                raise UserError(
                    f"{path} was begun with {name} {_said(before)}, which is "
                    f"{_said(now)} now; move it away to begin anew"
                )
        return store

    def add(self, run: Run, environment: Mapping[str, Any]) -> None:
        """Adds a run and writes the file; the same runs give the same bytes.

        Raises:
          UserError: the file cannot be written, or is another's by now.
        """
        if self.lock is not None:
            self.lock.check()
        self.runs[run.key] = run
        if environment not in self.environments:
            self.environments.append(environment)
        value = {
            "facts": self.facts,
            "environments": self.environments,
            "runs": [dataclasses.asdict(self.runs[key]) for key in sorted(self.runs)],
        }
        text = json.dumps(records.finite(value), separators=(",", ":"), sort_keys=True)
        records.make_folder(self.path.parent)
        records.write_bytes(self.path, lzma.compress(text.encode(), preset=6))

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other processes from adding runs; knows all that they have added.

        Raises:
          UserError: another process holds it.
        """
        with locks.hold(self.path) as lock:
            if self.path.exists():
                written = type(self).open(self.path, self.facts)
                self.runs.update(written.runs)
                self.environments = written.environments
            self.lock = lock
            try:
                yield
            finally:
                self.lock = None

    def of(self, phase: str) -> list[Run]:
        """Returns the runs of a phase, by space and number."""
        return [self.runs[key] for key in sorted(self.runs) if key[0] == phase]


def _said(value: Any) -> str:
    return "not given" if value is None else str(value)


def _read_stored(value: Mapping[str, Any]) -> Run:
    rows = [
        {name: math.nan if x is None else x for name, x in row.items()}
        for row in value["evaluations"]
    ]
    return Run(**{**value, "evaluations": rows})
