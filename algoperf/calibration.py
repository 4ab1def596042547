"""How a workload gets its targets (Dahl et al. 2023, arXiv:2306.07179, section 5.1).

Several training algorithms are tuned by quasi-random search, the best point is repeated
with other seeds. The validation target is the median of the repeats' best metrics; the
test target is the worst test metric among the repeats that reached it, each at its best
validation metric. These runs take TARGET_SETTING_SHARE of the steps that submissions
may plan for: so a submission as good as the one that set the target reaches it in time.
"""

import dataclasses
import json
import lzma
import math
import statistics
from collections.abc import Iterable, Mapping
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


def for_target_setting(workload: W) -> W:
    """Returns the workload as target-setting runs see it.

    They plan for TARGET_SETTING_SHARE of the step hint, and neither target nor budget
    ends them.
    """
    never = -math.inf if workload.target_direction is Direction.MINIMIZE else math.inf
    return dataclasses.replace(
        workload,
        step_hint=round(TARGET_SETTING_SHARE * workload.step_hint),
        validation_target_value=never,
        test_target_value=None if workload.num_test_examples == 0 else never,
        max_allowed_runtime_sec=math.inf,
    )


@dataclasses.dataclass(frozen=True)
class Run:
    """One target-setting run, as far as targets need it.

    Attributes:
      space: the name of the search space that its point is from.
      trial: its number there, or among the repeats.
      hyperparameters: its point.
      status: how it ended.
      evaluations: steps, submission time (s), training loss, and the target's metric
        on validation and test.
      step_sec: median seconds of a step, None if unknown.
      compile_sec: seconds of compilation.
    """

    space: str
    trial: int
    hyperparameters: Mapping[str, Any]
    status: str
    evaluations: list[Row]
    step_sec: float | None
    compile_sec: float

    def best(self, direction: Direction) -> Row | None:
        """Returns the evaluation with the best finite validation metric, if any."""
        finite = [row for row in self.evaluations if math.isfinite(row["validation"])]
        if not finite:
            return None
        sign = 1 if direction is Direction.MINIMIZE else -1
        return min(finite, key=lambda row: sign * row["validation"])


def read_run(folder: Path, space: str) -> Run:
    """Reads the record of a finished target-setting run.

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
    rows = records.read_measurements(folder / records.EVAL_FILE)
    names = {
        "step": records.GLOBAL_STEP,
        "time": records.SUBMISSION_TIME,
        "train_loss": "train/loss",
        "validation": f"validation/{metric}",
        "test": f"test/{metric}",
    }
    step_time = record.get("step_time") or {}
    return Run(
        space=space,
        trial=record["trial"],
        hyperparameters=record["hyperparameters"],
        status=str(status),
        evaluations=[
            {ours: row.get(theirs, math.nan) for ours, theirs in names.items()}
            for row in rows
        ],
        step_sec=step_time.get("seconds"),
        compile_sec=sum((record.get("compile") or {}).values()),
    )


def best_run(runs: Iterable[Run], direction: Direction) -> Run:
    """Returns the run with the best validation metric at any of its evaluations.

    Raises:
      UserError: all diverged.
    """
    sign = 1 if direction is Direction.MINIMIZE else -1
    scored = [(run.best(direction), run) for run in runs]
    finite = [(sign * best["validation"], run) for best, run in scored if best]
    if not finite:
        raise UserError("every run of the search diverged; lower its learning rates")
    return min(finite, key=lambda pair: pair[0])[1]


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


def save(path: Path, value: Mapping[str, Any]) -> None:
    """Writes JSON, compressed; the same value gives the same bytes."""
    text = json.dumps(records.finite(value), separators=(",", ":"), sort_keys=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(lzma.compress(text.encode(), preset=9))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def load(path: Path) -> dict[str, Any]:
    """Reads what `save` wrote."""
    try:
        return json.loads(lzma.decompress(path.read_bytes()))
    except (OSError, ValueError, lzma.LZMAError) as error:
        raise UserError(f"{path} is no calibration: {error}") from error
