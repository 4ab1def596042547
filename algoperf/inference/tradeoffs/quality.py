"""Quality against cost: frontiers, views at a budget, speed-ups of changed code.

Two views of one frontier: the best quality within a budget, and the least cost of a
quality. Higher quality is better, lower cost is.
"""

import math
from collections.abc import Iterable, Sequence

from algoperf.errors import UserError

Point = tuple[float, float]  # cost, quality


def pareto(points: Iterable[Point]) -> list[Point]:
    """Returns the points that none beats, by ascending cost; of equals, one.

    A point beats another if it costs no more, is no worse, and is better in one.
    """
    frontier: list[Point] = []
    for cost, quality in sorted(points, key=lambda point: (point[0], -point[1])):
        if not frontier or quality > frontier[-1][1]:
            frontier.append((cost, quality))
    return frontier


def at_budget(points: Iterable[Point], budget: float) -> float:
    """Returns the best quality that costs at most `budget`; -inf where none does."""
    return max((q for cost, q in points if cost <= budget), default=-math.inf)


def cost_to_reach(points: Iterable[Point], quality: float) -> float:
    """Returns the least cost of at least `quality`; inf where none has it."""
    return min((cost for cost, q in points if q >= quality), default=math.inf)


def hypervolume(points: Iterable[Point], cost: float, quality: float) -> float:
    """Returns the area between the frontier and a worst corner.

    Args:
      points: (cost, quality); those worse than the corner add nothing.
      cost: of the corner, the highest.
      quality: of the corner, the lowest.
    """
    area, right = 0.0, cost
    for left, height in reversed(pareto(points)):
        if left < right and height > quality:
            area += (right - left) * (height - quality)
            right = left
    return area


def speed_up_ratio(
    before: float, after: float, best_after: float, is_correct: bool = True
) -> float:
    """Returns (before / after) / (before / best): how near to an expert's speed-up.

    A wrong or missing change leaves the time as it was, so it scores best / before
    (SWE-fficiency; its released scorer).

    Args:
      before: seconds before the change.
      after: seconds after it; does not count when wrong.
      best_after: seconds after the expert's.
      is_correct: whether all tests pass.

    Raises:
      UserError: a time is not positive.
    """
    times = (before, after, best_after) if is_correct else (before, best_after)
    if not all(seconds > 0 for seconds in times):
        raise UserError(f"times {times} must be above 0 seconds")
    return best_after / (after if is_correct else before)


def harmonic_mean(ratios: Sequence[float], smallest: float = 0.0) -> float:
    """Returns the harmonic mean, ratios below `smallest` taken for it.

    One tiny ratio rules a harmonic mean: report it with a clamp, or beside
    `geometric_mean`.
    """
    return len(ratios) / math.fsum(1 / max(ratio, smallest) for ratio in ratios)


def geometric_mean(ratios: Sequence[float]) -> float:
    """Returns the geometric mean."""
    return math.exp(math.fsum(math.log(ratio) for ratio in ratios) / len(ratios))
