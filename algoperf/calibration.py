"""How a workload gets its targets (Dahl et al. 2023, arXiv:2306.07179, section 5.1).

Several training algorithms are tuned by quasi-random search, the best point is repeated
with other seeds. The validation target is the median of the repeats' best metrics; the
test target is the worst test metric among the repeats that reached it, each at its best
validation metric. These runs take TARGET_SETTING_SHARE of the steps that submissions
may plan for: so a submission as good as the one that set the target reaches it in time.

What was run is kept in a store, one file per workload; targets and tables follow from
it.
"""

import dataclasses
import enum
import math
import statistics
from collections.abc import Iterable
from decimal import ROUND_CEILING, ROUND_FLOOR, Context
from typing import Any, TypeVar

from algoperf import records, run_store
from algoperf.errors import UserError
from algoperf.records import Direction
from algoperf.run_store import Run
from algoperf.workload import Workload

TARGET_SETTING_SHARE = 0.75
# A run as good as those that set the target ends at about this share of its budget.
BUDGET_FACTOR = 1.5

W = TypeVar("W", bound=Workload)


class Phase(enum.StrEnum):
    """What a run is for, in the order in which a calibration makes them."""

    SEARCH = "search"  # points of the search spaces
    REPEATS = "repeats"  # of the best point; they set the targets
    FRESH = "fresh"  # the best point, other seeds, the whole hint, to the target
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


def for_target_setting(workload: W, share: float, until: float | None = None) -> W:
    """Returns the workload as calibration sees it.

    Runs plan for this share of the step hint; neither target nor budget ends them.

    Args:
      workload: any.
      share: of the step hint.
      until: a validation metric that ends them all the same, if any.

    Raises:
      UserError: the share leaves no step.
    """
    steps = round(share * workload.step_hint)
    if steps < 1:
        raise UserError(
            f"a share of {share} leaves no step of the {workload.step_hint} that "
            f"{workload.name} may take; give more"
        )
    never = -math.inf if workload.target_direction is Direction.MINIMIZE else math.inf
    return dataclasses.replace(
        workload,
        step_hint=steps,
        validation_target_value=never if until is None else until,
        test_target_value=None if workload.num_test_examples == 0 else never,
        max_allowed_runtime_sec=math.inf,
    )


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


def best_repeats(repeats: Iterable[Run], direction: Direction) -> list[Run]:
    """Returns the repeats of the point whose median is best.

    The best run of a search may have been lucky with its seed; repeats tell. So points
    with fewer repeats than others do not count yet.
    """
    of_point: dict[Any, list[Run]] = {}
    for run in repeats:
        point = run.space, tuple(sorted(run.hyperparameters.items()))
        of_point.setdefault(point, []).append(run)
    sign = 1 if direction is Direction.MINIMIZE else -1

    def median(runs: list[Run]) -> float:
        found = [run.best(direction) for run in runs]
        worst = sign * math.inf
        values = (row["validation"] if row else worst for row in found)
        return sign * statistics.median(values)

    most = max(map(len, of_point.values()), default=0)
    complete = [runs for runs in of_point.values() if len(runs) == most]
    return min(complete, key=median, default=[])


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


def rounded(target: float, direction: Direction) -> float:
    """Returns a target with four digits, none harder: what set it reaches it still."""
    to_easier = ROUND_CEILING if direction is Direction.MINIMIZE else ROUND_FLOOR
    # Of its shortest decimal: 0.8845 is a little less in binary, and stays 0.8845.
    decimal = repr(float(target))
    return float(Context(prec=4, rounding=to_easier).create_decimal(decimal))


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
class Store(run_store.Store):
    """The runs of one workload's calibration, in a file."""

    @property
    def direction(self) -> Direction:
        """Which way the metric improves."""
        return Direction(self.facts["direction"])

    def repeats(self) -> list[Run]:
        """Returns the repeats that count, those of the best point; perhaps none yet."""
        return best_repeats(self.of(Phase.REPEATS), self.direction)

    def targets(self) -> Targets:
        """Returns what the repeats say."""
        return targets(self.repeats(), self.direction)


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
