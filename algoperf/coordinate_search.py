"""Which points a tuning tries next: quasi-random search, then coordinate descent.

The protocol of Wen et al. 2025, "Fantastic Pretraining Optimizers and Where to Find
Them" (arXiv:2509.02046, section 3), under a budget of trials. The point that the ranges
name as their start and points of a scrambled Halton sequence (Owen 2017,
arXiv:1706.02808) come first. Then, from the best of them, each hyperparameter in turn
tries its neighbours on a grid, and moves on as long as that helps. It ends with the
budget, or when no hyperparameter has a better neighbour.

Scores are those of whole trials, smaller is better. What comes next depends on the
scores of earlier trials and on nothing else: not on how many run at a time, nor on
whether the search was interrupted. Imports nothing that needs JAX.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from algoperf import tuning
from algoperf.errors import UserError

Point = dict[str, Any]
Part = dict[str, Any]  # of the ranges: what one hyperparameter may be

START = "start"  # of a hyperparameter's range: its value in the first trial
INTERVALS = 6  # of the grid over each range
# A move must better the score by more than this. If two neighbours are as good as a
# point, one seems so by its seed alone in 7 % of the cases over two mini workloads, and
# in 20 % over all nine (docs/tuning.md).
LEAST_GAIN = 0.1
DIGITS = 3  # significant ones of every value that is tried
# A last interval shorter than this share of the others is joined to the one before; the
# value itself stands for an end that is so near.
SHORTEST = 0.25


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that decides which points are tried, but for the scores.

    Attributes:
      ranges: of each hyperparameter, as `tuning.load_search_space` reads them.
        Coordinate descent takes them in this order. If those with more than one value
        have a 'start', that is the first trial.
      budget: trials in all.
      search: trials before the descent, from 1 to `budget`: the start, if there is
        one, and the quasi-random search.
      seed: of the Halton sequence.
      intervals: of the grid over a range, linear or logarithmic as the range is.
      least_gain: by how much more than this a neighbour must be better.
    """

    ranges: Mapping[str, Part]
    budget: int
    search: int
    seed: int = 0
    intervals: int = INTERVALS
    least_gain: float = LEAST_GAIN

    @property
    def free(self) -> dict[str, Part]:
        """The ranges of those hyperparameters that have more than one value."""
        return {name: part for name, part in self.ranges.items() if _is_free(part)}

    @property
    def bases(self) -> dict[str, int]:
        """The base of the Halton sequence of each free hyperparameter, as they come."""
        primes = [n for n in range(2, 400) if all(n % p for p in range(2, n))]
        return dict(zip(self.free, primes, strict=False))

    @property
    def start(self) -> Point | None:
        """The point that the ranges name as their start, if they do."""
        if not any(START in part for part in self.free.values()):
            return None
        return {
            name: part[START] if _is_free(part) else only_value(part)
            for name, part in self.ranges.items()
        }

    def spacing(self, name: str) -> str:
        """Says how far neighbours of a hyperparameter are apart, in words."""
        part = self.ranges[name]
        if "feasible_points" in part:
            is_ordered = _is_ordered(part["feasible_points"])
            return "next in the list" if is_ordered else "all others"
        low, high = _ends(part)
        step = (high - low) / self.intervals
        if _is_log(part):
            return f"times {math.exp(step):.3g}"
        return f"plus {step:.3g}"


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A point to try, as trial number `trial` (from 1).

    Attributes:
      changed: the hyperparameter that coordinate descent tries; '' in the search.
      start: the trial whose point it starts from; 0 in the search.
    """

    trial: int
    point: Point
    changed: str = ""
    start: int = 0


def check(plan: Plan) -> None:
    """Raises UserError for a plan that cannot be followed."""
    if not 1 <= plan.search <= plan.budget:
        raise UserError(
            f"the search takes {plan.search} trials of a budget of {plan.budget}; give "
            "--search from 1 to --budget"
        )
    if not plan.free:
        raise UserError(
            "there is nothing to tune: every hyperparameter has one value only"
        )
    starts = [name for name, part in plan.free.items() if START in part]
    for name, part in plan.free.items():
        if starts and START not in part:
            raise UserError(
                f"the range of {starts[0]} has a {START}, that of {name} has none; "
                "give all of them one, or none"
            )
        if starts and not _is_within(part[START], part):
            raise UserError(
                f"the {START} of {name}, {part[START]!r}, is not in its range"
            )


def next_points(plan: Plan, scores: Mapping[int, float]) -> list[Proposal]:
    """Returns what to try next; all of it may run at the same time.

    Args:
      plan: what to follow.
      scores: of the trials that are done, by number; inf for the worst.

    Returns:
      Trials without a score. None, if the search is over.
    """
    return _replay(plan, scores)[1]


def tried(plan: Plan, scores: Mapping[int, float]) -> list[Proposal]:
    """Returns the trials that have scores, in order."""
    return _replay(plan, scores)[0]


def _replay(
    plan: Plan, scores: Mapping[int, float]
) -> tuple[list[Proposal], list[Proposal]]:
    """Follows the plan through the scores; returns trials that have one, and others."""
    check(plan)
    course = _course(plan)
    done: list[Proposal] = []
    batch = next(course)
    while True:
        batch = batch[: plan.budget - len(done)]
        if waiting := [p for p in batch if p.trial not in scores]:
            return [*done, *(p for p in batch if p.trial in scores)], waiting
        done += batch
        if len(done) == plan.budget:
            return done, []
        try:
            batch = course.send([scores[p.trial] for p in batch])
        except StopIteration:
            return done, []


def _course(plan: Plan) -> Generator[list[Proposal], list[float], None]:
    """Yields batches of proposals and is sent their scores.

    Batches may exceed the budget; what is over is for the caller to leave out.
    """
    points = search_points(plan)
    batch = [Proposal(trial, point) for trial, point in enumerate(points, start=1)]
    scores = yield batch
    seen = {_key(p.point) for p in batch}
    best, score = min(zip(batch, scores, strict=True), key=lambda pair: pair[1])
    grids = {name: grid(plan, name, best.point[name]) for name in plan.free}
    trials = len(batch)
    turns = itertools.cycle(grids)
    settled = 0  # hyperparameters in a row that have no better neighbours
    while settled < len(grids):
        name = next(turns)
        settled += 1
        while new := _unseen(best.point, name, grids[name], seen):
            batch = [
                Proposal(trial, point, name, best.trial)
                for trial, point in enumerate(new, start=trials + 1)
            ]
            scores = yield batch
            trials += len(batch)
            seen |= {_key(p.point) for p in batch}
            pairs = zip(batch, scores, strict=True)
            found, least = min(pairs, key=lambda pair: pair[1])
            if not least < score - plan.least_gain:
                break
            best, score, settled = found, least, 1


def _unseen(point: Point, name: str, grid: "Grid", seen: set[str]) -> list[Point]:
    """Returns the neighbours of a point along a hyperparameter that are not tried."""
    points = [{**point, name: value} for value in grid.around(point[name])]
    return [p for p in points if _key(p) not in seen]


def search_points(plan: Plan) -> list[Point]:
    """Returns the start and the points of the quasi-random search, all different.

    Dimensions of the sequence are the hyperparameters with more than one value in the
    order of the ranges, so that all submissions have the same learning rates first.
    """
    fixed = {
        name: only_value(part)
        for name, part in plan.ranges.items()
        if not _is_free(part)
    }
    points = [] if plan.start is None else [plan.start]
    seen = {_key(point) for point in points}
    # Where the ranges have few points, most of the sequence has been seen already.
    for trial in range(1, 20 * plan.search + 1):
        if len(points) == plan.search:
            break
        numbered = {f"{i:03}": part for i, part in enumerate(plan.free.values())}
        values = tuning.trial_point(numbered, plan.seed, trial).values()
        drawn = dict(zip(plan.free, values, strict=True))
        point = {
            name: fixed[name] if name in fixed else rounded(drawn[name], part)
            for name, part in plan.ranges.items()
        }
        if _key(point) not in seen:
            points.append(point)
            seen.add(_key(point))
    return points


@dataclasses.dataclass(frozen=True)
class Grid:
    """The values that coordinate descent may give a hyperparameter.

    Attributes:
      values: of a range in order; of a choice as they are listed.
      is_ordered: whether neighbours are those before and after, else all others.
    """

    values: Sequence[Any]
    is_ordered: bool

    def around(self, value: Any) -> list[Any]:
        """Returns the neighbours of one of the values, lower first."""
        here = [_key(v) for v in self.values].index(_key(value))
        if not self.is_ordered:
            return [v for i, v in enumerate(self.values) if i != here]
        places = (here - 1, here + 1)
        return [self.values[i] for i in places if 0 <= i < len(self.values)]


def grid(plan: Plan, name: str, anchor: Any) -> Grid:
    """Returns the grid of a hyperparameter through one of its values.

    It reaches both ends of the range, but for one that is nearer to the value than a
    quarter of an interval: scores would hardly tell the two apart. Intervals at the
    ends may be up to a quarter longer than the others, or shorter.
    """
    part = plan.ranges[name]
    if "feasible_points" in part:
        points = list({_key(v): v for v in part["feasible_points"]}.values())
        is_ordered = _is_ordered(points)
        return Grid(sorted(points) if is_ordered else points, is_ordered)
    low, high = _ends(part)
    step = (high - low) / plan.intervals
    here = math.log(anchor) if _is_log(part) else float(anchor)
    below = max(math.ceil((here - low) / step - SHORTEST), 0)
    above = max(math.ceil((high - here) / step - SHORTEST), 0)
    places = [here + step * i for i in range(-below, above + 1)]
    if below:
        places[0] = low
    if above:
        places[-1] = high
    values = [rounded(math.exp(x) if _is_log(part) else x, part) for x in places]
    # A neighbour may round to the value itself, as 2000.0 where this is 2000.
    lower, upper = (
        [v for v in side if v != anchor]
        for side in (values[:below], values[below + 1 :])
    )
    return Grid(list(dict.fromkeys([*lower, anchor, *upper])), is_ordered=True)


def rounded(value: Any, part: Part) -> Any:
    """Returns a value of a range with DIGITS significant digits, within the range."""
    if "feasible_points" in part:
        return value
    near = float(f"{value:.{DIGITS - 1}e}")
    return float(min(max(near, part["min"]), part["max"]))


def only_value(part: Part) -> Any:
    """Returns the value of a hyperparameter that has only one."""
    return part["feasible_points"][0] if "feasible_points" in part else part["min"]


def _is_free(part: Part) -> bool:
    if "feasible_points" in part:
        return len({_key(value) for value in part["feasible_points"]}) > 1
    return part["min"] < part["max"]


def _is_within(value: Any, part: Part) -> bool:
    if "feasible_points" in part:
        return _key(value) in map(_key, part["feasible_points"])
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and part["min"] <= value <= part["max"]


def _is_log(part: Part) -> bool:
    return part.get("scaling", "linear") == "log"


def _ends(part: Part) -> tuple[float, float]:
    low, high = part["min"], part["max"]
    return (math.log(low), math.log(high)) if _is_log(part) else (low, high)


def _is_ordered(points: Sequence[Any]) -> bool:
    """Whether a choice is between numbers, which have neighbours."""
    return all(
        isinstance(point, int | float) and not isinstance(point, bool)
        for point in points
    )


def _key(value: Any) -> str:
    """Returns what equal values share; true is not 1."""
    return json.dumps(value, sort_keys=True)
