"""How a workload gets its targets (Dahl et al. 2023, arXiv:2306.07179, section 5.1).

Several training algorithms are tuned by quasi-random search, the best point is repeated
with other seeds. The validation target is the median of the repeats' best metrics; the
test target is the worst test metric among the repeats that reached it, each at its best
validation metric. These runs take TARGET_SETTING_SHARE of the steps that submissions
may plan for: so a submission as good as the one that set the target reaches it in time.

What was run is kept in a store, one file per workload; targets and tables follow from
it, so a store that is begun on one machine is finished on another.
"""

import dataclasses
import enum
import json
import lzma
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from algoperf import records
from algoperf.errors import UserError
from algoperf.records import Direction, Row, Status
from algoperf.workload import Workload

TARGET_SETTING_SHARE = 0.75
# A run as good as those that set the target ends at about this share of its budget.
BUDGET_FACTOR = 1.5

W = TypeVar("W", bound=Workload)


class Phase(enum.StrEnum):
    """What a run is for, in the order in which a calibration makes them."""

    SEARCH = "search"  # points of the search spaces
    REPEATS = "repeats"  # of the best point; they set the targets
    FRESH = "fresh"  # the best point with other seeds and the whole step hint
    WEAK = "weak"  # what must miss the target: no momentum, a rate ten times off
    TIMED = "timed"  # the best point with the machine to itself, for the budget

    @property
    def share(self) -> float:
        """The share of the step hint that these runs take."""
        whole = (Phase.FRESH, Phase.WEAK)
        return 1.0 if self in whole else TARGET_SETTING_SHARE

    @property
    def seed(self) -> int:
        """The seed of these runs: no phase repeats another's."""
        return list(Phase).index(self)


def for_target_setting(workload: W, share: float) -> W:
    """Returns the workload as calibration sees it.

    Runs plan for this share of the step hint; neither target nor budget ends them.
    """
    never = -math.inf if workload.target_direction is Direction.MINIMIZE else math.inf
    return dataclasses.replace(
        workload,
        step_hint=round(share * workload.step_hint),
        validation_target_value=never,
        test_target_value=None if workload.num_test_examples == 0 else never,
        max_allowed_runtime_sec=math.inf,
    )


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a calibration, as far as targets need it.

    Attributes:
      phase: what it is for.
      space: the name of the search space that its point is from.
      trial: its number among the points of that space in this phase.
      hyperparameters: its point.
      status: how it ended.
      evaluations: steps, submission time (s), training loss, and the target's metric
        on validation and test.
      step_sec: median seconds of a step, None if unknown.
      compile_sec: seconds of compilation.
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
        """Which run of a calibration it is."""
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


def read_run(folder: Path, phase: str, space: str, trial: int) -> Run:
    """Reads the record of a finished run.

    Raises:
      UserError: it is not finished, or failed.
    """
    record = records.read_record(folder)
    status = record["status"]
    if not status.is_final or status is Status.FAILED:
        raise UserError(
            f"{folder} is {status} {record['message']}; repair and calibrate again"
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
        compile_sec=sum((record.get("compile") or {}).values()),
    )


def environment(folder: Path) -> dict[str, Any]:
    """Returns the machine and the versions that a record names."""
    record = records.read_record(folder)
    return {name: record[name] for name in ("host", "devices", "versions")}


def ranked(runs: Iterable[Run], direction: Direction) -> list[Run]:
    """Returns the runs by their best validation metrics, the best run first.

    Those that never had a finite one are left out.
    """
    sign = 1 if direction is Direction.MINIMIZE else -1
    scored = [(run.best(direction), run) for run in runs]
    finite = [(sign * best["validation"], run) for best, run in scored if best]
    return [run for _, run in sorted(finite, key=lambda pair: pair[0])]


def best_run(runs: Iterable[Run], direction: Direction) -> Run:
    """Returns the run with the best validation metric at any of its evaluations.

    Raises:
      UserError: all diverged.
    """
    order = ranked(runs, direction)
    if not order:
        raise UserError("every run of the search diverged; lower its learning rates")
    return order[0]


@dataclasses.dataclass(frozen=True)
class Targets:
    """What the repeats of the best point say."""

    validation: float
    test: float | None  # None without a test split
    spread: tuple[float, float]  # of the repeats' best validation metrics


def targets(repeats: Iterable[Run], direction: Direction) -> Targets:
    """Returns the targets that repeats of one point set.

    Raises:
      UserError: all diverged.
    """
    rows = [row for row in (run.best(direction) for run in repeats) if row]
    if not rows:
        raise UserError("every repeat diverged")
    # Of an even number, the middle one that more of them reach.
    minimize = direction is Direction.MINIMIZE
    median = statistics.median_high if minimize else statistics.median_low
    validation = median([row["validation"] for row in rows])
    reached = [
        row["test"]
        for row in rows
        if records.reaches(row["validation"], validation, direction)
    ]
    worst = max if minimize else min
    ordered = sorted(row["validation"] for row in rows)
    return Targets(
        validation=validation,
        test=worst(reached) if all(map(math.isfinite, reached)) else None,
        spread=(ordered[0], ordered[-1]),
    )


def budget_sec(timed: Run) -> float:
    """Returns the budget (s) that a run with the machine to itself sets.

    Its time is that of its steps undisturbed, and of compilation.

    Raises:
      UserError: it was too short for a step time.
    """
    if timed.step_sec is None:
        raise UserError("the timed run was too short to know what a step takes")
    seconds = timed.evaluations[-1]["step"] * timed.step_sec + timed.compile_sec
    return BUDGET_FACTOR * seconds


@dataclasses.dataclass
class Store:
    """The runs of one workload's calibration, in a file.

    Attributes:
      path: the file, compressed JSON; need not exist.
      facts: of the workload: what must stay equal for its runs to count together.
      runs: by their keys.
    """

    path: Path
    facts: Mapping[str, Any]
    runs: dict[tuple[str, str, int], Run] = dataclasses.field(default_factory=dict)
    environments: list[Mapping[str, Any]] = dataclasses.field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> "Store":
        """Reads a store.

        Raises:
          UserError: the file is missing or is none.
        """
        try:
            value = json.loads(lzma.decompress(path.read_bytes()))
            runs = [_read_stored(run) for run in value["runs"]]
            facts, environments = value["facts"], value["environments"]
        except (OSError, ValueError, TypeError, KeyError, lzma.LZMAError) as error:
            raise UserError(f"{path} is no calibration: {error!r}") from error
        return cls(path, facts, {run.key: run for run in runs}, environments)

    @classmethod
    def open(cls, path: Path, facts: Mapping[str, Any]) -> "Store":
        """Reads a store, or begins one.

        Raises:
          UserError: the file is of a workload with other facts.
        """
        if not path.exists():
            return cls(path, facts)
        store = cls.read(path)
        for name in sorted(facts.keys() | store.facts.keys()):
            before, now = store.facts.get(name), facts.get(name)
            if before != now:
                raise UserError(
                    f"{path} was calibrated with {name} {before}, which is {now} now; "
                    "move it away to calibrate anew"
                )
        return store

    def add(self, run: Run, environment: Mapping[str, Any]) -> None:
        """Adds a run and writes the file; the same runs give the same bytes."""
        self.runs[run.key] = run
        if environment not in self.environments:
            self.environments.append(environment)
        value = {
            "facts": self.facts,
            "environments": self.environments,
            "runs": [dataclasses.asdict(self.runs[key]) for key in sorted(self.runs)],
        }
        text = json.dumps(records.finite(value), separators=(",", ":"), sort_keys=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        records.write_bytes(self.path, lzma.compress(text.encode(), preset=6))

    def of(self, phase: Phase) -> list[Run]:
        """Returns the runs of a phase, by space and number."""
        return [self.runs[key] for key in sorted(self.runs) if key[0] == phase]

    @property
    def direction(self) -> Direction:
        """Which way the metric improves."""
        return Direction(self.facts["direction"])

    def targets(self) -> Targets:
        """Returns what the repeats say."""
        return targets(self.of(Phase.REPEATS), self.direction)


def facts_of(workload: Workload) -> dict[str, Any]:
    """Returns what a calibration depends on, for `Store.facts`."""
    names = (
        *("name", "step_hint", "eval_period_steps", "default_batch_size"),
        *("num_train_examples", "num_validation_examples", "num_test_examples"),
        "num_parameters",
    )
    return {
        **{name: getattr(workload, name) for name in names},
        "metric": workload.target_metric_name,
        "direction": str(workload.target_direction),
    }


def _read_stored(value: Mapping[str, Any]) -> Run:
    rows = [
        {name: math.nan if x is None else x for name, x in row.items()}
        for row in value["evaluations"]
    ]
    return Run(**{**value, "evaluations": rows})
