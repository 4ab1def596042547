"""Recipes compared: steps relative to a baseline's, against modelled cost.

Pure functions over runs of `algoperf numerics sweep`. Dimension key: K seeds, P points.
"""

import dataclasses
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from scoring.compare import pareto
from scoring.intervals import half_width, log_median, student_quantile


@dataclasses.dataclass(frozen=True)
class RecipeRun:
    """One run.

    Attributes:
      workload, recipe, seed: which run.
      steps: to the target; inf where it missed.
      level_steps: to the baseline's level; inf where it never got there.
      final: the target's metric at the last evaluation.
    """

    workload: str
    recipe: str
    seed: int
    steps: float
    level_steps: float
    final: float


class Ratio(NamedTuple):
    """Median steps over the baseline's.

    inf where half of the runs or more missed, NaN where the baseline's did. The ends of
    its interval are NaN where they are unknown.
    """

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Row:
    """What the runs of a recipe on a workload say.

    Attributes:
      workload, recipe: which.
      runs, reached: how many, and how many of them reached the target.
      steps: median steps to the target; inf where half of them or more missed.
      to_target, to_level: steps over the baseline's.
      final: median of the last metric.
    """

    workload: str
    recipe: str
    runs: int
    reached: int
    steps: float
    to_target: Ratio
    to_level: Ratio
    final: float


@dataclasses.dataclass(frozen=True)
class Point:
    """A recipe over all workloads: what it costs and what it achieves.

    Attributes:
      recipe: its name.
      cost: modelled bit operations of a step, as a share of float32's.
      ratio: geometric mean over workloads of the ratios of steps to the baseline's
        level; inf where one never got there.
      on_front: whether no other recipe is as good in both and better in one.
    """

    recipe: str
    cost: float
    ratio: float
    on_front: bool = False


def summarise(
    runs: Iterable[RecipeRun], baseline: str, confidence: float = 0.95
) -> list[Row]:
    """Returns a row for each workload and recipe, in the order of the runs.

    Intervals of the ratio are those of `intervals`: Student's t on logarithms.
    """
    groups: dict[tuple[str, str], list[RecipeRun]] = {}
    for run in runs:
        groups.setdefault((run.workload, run.recipe), []).append(run)
    rows = []
    for (workload, recipe), own in groups.items():
        base = groups.get((workload, baseline), [])
        to_target, to_level = (
            _ratio(
                np.array([getattr(run, name) for run in own]),
                np.array([getattr(run, name) for run in base]),
                confidence,
            )
            for name in ("steps", "level_steps")
        )
        if recipe == baseline:
            to_target = to_target._replace(low=math.nan, high=math.nan)
            to_level = to_level._replace(low=math.nan, high=math.nan)
        steps_K = np.array([run.steps for run in own])
        rows.append(
            Row(
                workload=workload,
                recipe=recipe,
                runs=len(own),
                reached=int(np.isfinite(steps_K).sum()),
                steps=float(np.median(steps_K)),
                to_target=to_target,
                to_level=to_level,
                final=float(np.median([run.final for run in own])),
            )
        )
    return rows


def _ratio(steps_K, base_K, confidence: float) -> Ratio:
    """Returns the ratio of medians and its interval."""
    unknown = math.nan
    if not len(base_K) or not np.isfinite(np.median(base_K)):
        return Ratio(unknown, unknown, unknown)
    if not np.isfinite(np.median(steps_K)):
        return Ratio(math.inf, unknown, unknown)
    parts = [log_median(a) for a in (steps_K, base_K)]
    log_ratio = float(parts[0].value - parts[1].value)
    half = float(
        half_width(
            np.array([part.variance for part in parts]),
            np.array([part.freedom for part in parts]),
            confidence,
        )
    )
    return Ratio(
        math.exp(log_ratio), math.exp(log_ratio - half), math.exp(log_ratio + half)
    )


def mean_ratio(ratios: Iterable[float], confidence: float = 0.95) -> Ratio:
    """Returns the geometric mean of the finite ratios, and its interval.

    Student's t on logarithms; NaN where there are fewer than two, or none.
    """
    logs = np.log([ratio for ratio in ratios if math.isfinite(ratio)])
    if not len(logs):
        return Ratio(math.nan, math.nan, math.nan)
    mean = float(logs.mean())
    if len(logs) < 2:
        return Ratio(math.exp(mean), math.nan, math.nan)
    error = float(logs.std(ddof=1)) / math.sqrt(len(logs))
    freedom = np.array(float(len(logs) - 1))
    half = error * float(student_quantile(0.5 + confidence / 2, freedom))
    return Ratio(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def points(rows: Sequence[Row], costs: Mapping[str, float]) -> list[Point]:
    """Returns the recipes over all workloads, the cheapest first.

    Args:
      rows: of `summarise`; recipes that lack a workload that another has are left out.
      costs: of each recipe.
    """
    workloads = {row.workload for row in rows}
    found = []
    for recipe, cost in costs.items():
        ratios = [row.to_level.value for row in rows if row.recipe == recipe]
        if len(ratios) < len(workloads) or any(map(math.isnan, ratios)):
            continue
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        found.append(Point(recipe, cost, mean))
    places_P2 = np.array([(p.cost, p.ratio) for p in found]).reshape(-1, 2)
    marked = [
        dataclasses.replace(p, on_front=bool(is_front))
        for p, is_front in zip(found, pareto(places_P2), strict=True)
    ]
    return sorted(marked, key=lambda p: (p.cost, p.ratio))


WIDTH, HEIGHT, MARGIN = 640, 420, 60
LABEL = (130, 13)  # of a recipe's name, about


def svg(found: Sequence[Point], baseline: str) -> str:
    """Returns a picture of the points, and of the front as a line."""
    shown = [p for p in found if math.isfinite(p.ratio)]
    if not shown:
        return _document(["<text x='20' y='40'>no recipe reached the targets</text>"])
    x_of = _axis([p.cost for p in shown], MARGIN, WIDTH - MARGIN)
    y_of = _axis([p.ratio for p in shown], HEIGHT - MARGIN, MARGIN)
    parts = [
        f"<path d='M{MARGIN} {MARGIN}V{HEIGHT - MARGIN}H{WIDTH - MARGIN}' "
        "fill='none' stroke='#888'/>",
        f"<text x='{WIDTH / 2:.0f}' y='{HEIGHT - 12}' text-anchor='middle'>"
        "modelled bit operations of a step, share of float32</text>",
        f"<text x='16' y='{HEIGHT / 2:.0f}' text-anchor='middle' transform='rotate(-90 "
        f"16 {HEIGHT / 2:.0f})'>steps to the level of {html.escape(baseline)}, "
        "times its own</text>",
    ]
    for value, place in ((p.cost, x_of(p.cost)) for p in _ends(shown, "cost")):
        parts.append(
            f"<text x='{place:.1f}' y='{HEIGHT - MARGIN + 18}' text-anchor='middle'>"
            f"{value:.3g}</text>"
        )
    for value, place in ((p.ratio, y_of(p.ratio)) for p in _ends(shown, "ratio")):
        parts.append(
            f"<text x='{MARGIN - 8}' y='{place:.1f}' text-anchor='end'>"
            f"{value:.3g}</text>"
        )
    line = " ".join(
        f"{x_of(p.cost):.1f},{y_of(p.ratio):.1f}" for p in shown if p.on_front
    )
    parts.append(f"<polyline points='{line}' fill='none' stroke='#00785a'/>")
    taken: list[tuple[float, float]] = []
    for p in shown:
        x, y = x_of(p.cost), y_of(p.ratio)
        color = "#00785a" if p.on_front else "#b41eb4"
        parts.append(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='5' fill='{color}'/>")
        places = [(x + 8, y + shift) for shift in (-6, 12, -20, 26)]
        place = next((at for at in places if _is_free(at, taken)), places[0])
        taken.append(place)
        parts.append(
            f"<text x='{place[0]:.1f}' y='{place[1]:.1f}'>{html.escape(p.recipe)}"
            "</text>"
        )
    return _document(parts)


def _is_free(place: tuple[float, float], taken: Sequence[tuple[float, float]]) -> bool:
    """Whether a label there leaves others readable."""
    return not any(
        abs(place[0] - x) < LABEL[0] and abs(place[1] - y) < LABEL[1] for x, y in taken
    )


def _ends(shown: Sequence[Point], name: str) -> list[Point]:
    """Returns the points with the least and the greatest coordinate."""
    key = lambda p: getattr(p, name)  # noqa: E731
    return list(dict.fromkeys((min(shown, key=key), max(shown, key=key))))


def _axis(values: Sequence[float], start: float, stop: float):
    """Returns a map from values to places, even in their logarithms."""
    logs = [math.log(value) for value in values]
    low, span = min(logs), (max(logs) - min(logs)) or 1.0
    return lambda value: start + (math.log(value) - low) / span * (stop - start)


def _document(parts: Sequence[str]) -> str:
    head = (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {WIDTH} {HEIGHT}' "
        f"width='{WIDTH}' height='{HEIGHT}' font-family='sans-serif' font-size='12'>"
        "<rect width='100%' height='100%' fill='white'/>"
    )
    return "\n".join([head, *parts, "</svg>"]) + "\n"
