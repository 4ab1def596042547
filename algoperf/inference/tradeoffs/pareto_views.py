"""Frontiers and views of points: the best within a budget, the cheapest of a quality.

Both read one frontier, see `quality`; here points have names. No JAX.
"""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

from algoperf.errors import UserError, unknown_name
from algoperf.inference.tradeoffs import quality as curves
from algoperf.inference.tradeoffs.pareto import Point
from algoperf.records import Direction

# What a point costs: name -> (what to call it, unit).
AXES = {
    "train_seconds": ("training", "s"),
    "seconds_to_target": ("time to target", "s"),
    "request_seconds": ("idealized request", "s"),
    "weight_bytes": ("weights", "bytes"),
    "step_bytes": ("moved by a decoding step", "bytes"),
    "request_dollars": ("a request", "$"),
    "total_dollars": ("training and all requests", "$"),
}


@dataclasses.dataclass(frozen=True)
class View:
    """What points look like along one cost.

    Attributes:
      axis: the cost, one of `AXES`.
      frontier: points that none beats, the cheapest first.
      budget: of the fixed-budget view.
      best: the best points within it; empty where none is.
      goal: of the fixed-quality view.
      cheapest: the cheapest points at least as good; empty where none is.
    """

    axis: str
    frontier: tuple[Point, ...]
    budget: float
    best: tuple[Point, ...]
    goal: float
    cheapest: tuple[Point, ...]


def views(
    points: Sequence[Point],
    direction: Direction,
    target: float | None,
    budgets: Mapping[str, float] | None = None,
    goal: float | None = None,
) -> list[View]:
    """Returns a view along every cost that points have.

    Args:
      points: of one workload.
      direction: which way quality improves.
      target: the workload's, the goal where none is given and a point reaches it.
      budgets: by the names in `AXES`; the median of the points' costs where not given.
      goal: of the fixed-quality view; without one and a target that is reached, the
        median of the points' qualities.

    Raises:
      UserError: a budget for what is no cost.
    """
    given = dict(budgets or {})
    for name in given:
        if name not in AXES:
            raise unknown_name("cost", name, AXES)
    if goal is None:
        goal = _default_goal(points, direction, target)
    found = []
    for axis in AXES:
        counted = [p for p in points if math.isfinite(p.values[axis])]
        if not counted:
            if axis in given:
                raise UserError(
                    f"--budgets {axis}: no point has this cost; dollars need "
                    "--dollars_per_hour"
                )
            continue
        budget = given.get(axis, statistics.median(p.values[axis] for p in counted))
        found.append(_view(axis, counted, direction, budget, goal))
    return found


def _default_goal(
    points: Sequence[Point], direction: Direction, target: float | None
) -> float:
    sign = _sign(direction)
    qualities = [sign * p.values["quality"] for p in points]
    if target is not None and max(qualities) >= sign * target:
        return target
    return sign * statistics.median_low(qualities)


def _view(
    axis: str,
    points: Sequence[Point],
    direction: Direction,
    budget: float,
    goal: float,
) -> View:
    sign = _sign(direction)

    def at(point: Point) -> curves.Point:
        return point.values[axis], sign * point.values["quality"]

    places = [at(point) for point in points]
    unbeaten = curves.pareto(places)
    best = curves.at_budget(places, budget)
    least = curves.cost_to_reach(places, sign * goal)
    return View(
        axis=axis,
        frontier=tuple(
            sorted((p for p in points if at(p) in unbeaten), key=lambda p: at(p)[0])
        ),
        budget=budget,
        best=tuple(p for p in points if at(p)[0] <= budget and at(p)[1] == best),
        goal=goal,
        cheapest=tuple(
            p for p in points if at(p)[0] == least and at(p)[1] >= sign * goal
        ),
    )


def _sign(direction: Direction) -> int:
    return 1 if direction is Direction.MAXIMIZE else -1
