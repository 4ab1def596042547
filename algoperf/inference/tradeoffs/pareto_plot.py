"""Quality against cost as a picture: a panel for each cost. SVG without a library.

A colour is a submission, a mark a recipe, the line the frontier. Better is up: where
less is better, the vertical axis is turned. No JAX.
"""

import html
import math
from collections.abc import Sequence

from algoperf.inference.tradeoffs.pareto import Point
from algoperf.inference.tradeoffs.pareto_text import Comparison, shown
from algoperf.inference.tradeoffs.pareto_views import AXES, View

_WIDTH, _HEIGHT = 400, 310
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 18, 34, 46
_COLORS = ("#1b6ca8", "#c8553d", "#3a7d44", "#7a4ea3", "#b08900", "#4a4a4a")
_DRAWN = ("train_seconds", "request_seconds", "weight_bytes", "total_dollars")
_LINE = 18  # of the legend
# A cost that spans more than this is drawn on a logarithmic axis.
_WIDE_SPAN = 6.0
# Paths around (0, 0).
_MARKS = (
    "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0",
    "M-4,-4h8v8h-8z",
    "M0,-5L5,4H-5z",
    "M0,-5.5L5.5,0L0,5.5L-5.5,0z",
    "M0,5L5,-4H-5z",
    "M-5,-1.5h3.5v-3.5h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5z",
)


def comparison_svg(comparison: Comparison, y_offset: int = 0) -> str:
    """Returns panels side by side and a legend below, as one SVG element."""
    views = [view for view in comparison.views if view.axis in _DRAWN]
    wide = _WIDTH * len(views)
    high = comparison_height(comparison)
    title = html.escape(f"{comparison.workload}: {comparison.metric} against cost")
    panels = "".join(
        _panel(comparison, view, _WIDTH * number) for number, view in enumerate(views)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" '
        f'y="{y_offset}" width="{wide}" height="{high}" font-family="sans-serif" '
        f'font-size="12" role="img" aria-label="{title}">'
        f'<rect width="100%" height="100%" fill="white"/>{panels}'
        f"{_legend(comparison)}</svg>"
    )


def comparison_height(comparison: Comparison) -> int:
    """Returns the height of its picture, in pixels."""
    lines = max(len(_submissions(comparison)), len(_recipes(comparison)))
    return _HEIGHT + _LINE * lines + 10


def svg_file(comparisons: Sequence[Comparison]) -> str:
    """Returns the pictures of all workloads, one below the other."""
    parts, top, wide = [], 0, 0
    for comparison in comparisons:
        parts.append(comparison_svg(comparison, top))
        top += comparison_height(comparison)
        count = sum(view.axis in _DRAWN for view in comparison.views)
        wide = max(wide, _WIDTH * count)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {top}" '
        f'width="{wide}" height="{top}">{"".join(parts)}</svg>\n'
    )


def _submissions(comparison: Comparison) -> list[str]:
    return sorted({point.submission for point in comparison.points})


def _recipes(comparison: Comparison) -> list[str]:
    return sorted({point.recipe for point in comparison.points})


def _panel(comparison: Comparison, view: View, offset: int) -> str:
    counted = [p for p in comparison.points if math.isfinite(p.values[view.axis])]
    costs = [p.values[view.axis] for p in counted]
    is_log = min(costs) > 0 and max(costs) / min(costs) > _WIDE_SPAN
    x_ticks = _log_ticks(costs) if is_log else _ticks(0.0, max(costs))
    qualities = [p.values["quality"] for p in counted]
    y_ticks = _ticks(min(qualities), max(qualities))
    scale = math.log if is_log else float
    x_low, x_high = scale(x_ticks[0]), scale(x_ticks[-1])
    is_better_low = comparison.direction == "minimize"

    def at(cost: float, quality: float) -> tuple[float, float]:
        right = (scale(cost) - x_low) / (x_high - x_low)
        up = (quality - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        up = 1 - up if is_better_low else up
        x = offset + _LEFT + right * (_WIDTH - _LEFT - _RIGHT)
        y = _TOP + (1 - up) * (_HEIGHT - _TOP - _BOTTOM)
        return round(x, 1), round(y, 1)

    name = AXES[view.axis][0]
    label = f"{name}, logarithmic" if is_log else name
    parts = [_text(offset + _LEFT, 18, f"{comparison.metric} against {name}", "start")]
    left, right = offset + _LEFT, offset + _WIDTH - _RIGHT
    for tick in y_ticks:
        _, y = at(x_ticks[-1], tick)
        parts.append(f'<path d="M{left} {y}H{right}" stroke="#ddd"/>')
        parts.append(_text(left - 6, y + 4, f"{tick:.5g}", "end"))
    bottom = _HEIGHT - _BOTTOM
    for tick in x_ticks:
        x, _ = at(tick, y_ticks[0])
        text = shown(view.axis, tick) if tick else "0"
        parts.append(_text(x, bottom + 17, text, "middle"))
    parts.append(_text((left + right) / 2, bottom + 36, label, "middle"))
    places = [at(p.values[view.axis], p.values["quality"]) for p in view.frontier]
    parts.append(_stairs(places, right))
    parts += [
        _mark(comparison, p, *at(p.values[view.axis], p.values["quality"]))
        for p in counted
    ]
    return "".join(parts)


def _stairs(places: Sequence[tuple[float, float]], right: float) -> str:
    """What a budget buys: level up to the next point of the frontier."""
    x, y = places[0]
    path = f"M{x} {y}"
    for x, y in places[1:]:
        path += f"H{x}V{y}"
    return f'<path d="{path}H{right}" fill="none" stroke="#888" stroke-width="1.5"/>'


def _mark(comparison: Comparison, point: Point, x: float, y: float) -> str:
    color = _COLORS[_submissions(comparison).index(point.submission) % len(_COLORS)]
    path = _MARKS[_recipes(comparison).index(point.recipe) % len(_MARKS)]
    quality = f"{comparison.metric} {point.values['quality']:.5g}"
    return (
        f'<path class="point" d="{path}" transform="translate({x} {y})" fill="{color}" '
        f'fill-opacity=".85"><title>{html.escape(f"{point.name}: {quality}")}</title>'
        "</path>"
    )


def _legend(comparison: Comparison) -> str:
    parts = []
    for number, name in enumerate(_submissions(comparison)):
        y = _HEIGHT + _LINE * number
        color = _COLORS[number % len(_COLORS)]
        parts.append(f'<rect x="{_LEFT}" y="{y - 9}" width="14" height="9" ')
        parts.append(f'fill="{color}"/>{_text(_LEFT + 22, y, name, "start")}')
    for number, name in enumerate(_recipes(comparison)):
        y = _HEIGHT + _LINE * number
        path = _MARKS[number % len(_MARKS)]
        x = _LEFT + 220
        parts.append(f'<path d="{path}" transform="translate({x} {y - 4})" ')
        parts.append(f'fill="#555"/>{_text(x + 14, y, name, "start")}')
    return "".join(parts)


def _ticks(low: float, high: float) -> list[float]:
    """Returns 4 to 9 round numbers that hold a span."""
    span = high - low or abs(high) or 1.0
    rough = span / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= rough)
    first = math.floor(low / step)
    last = max(math.ceil(high / step), first + 1)
    return [number * step for number in range(first, last + 1)]


def _log_ticks(values: Sequence[float]) -> list[float]:
    """Returns numbers 1, 2 and 5 times powers of ten that hold the values, few."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    factors = (1, 2, 5) if high - low <= 1 else (1, 3) if high - low == 2 else (1,)
    every = [f * 10.0**power for power in range(low, high + 1) for f in factors]
    # A value may be next to a power of ten, on the wrong side of its logarithm.
    first = max((i for i, tick in enumerate(every) if tick <= min(values)), default=0)
    last = [i for i, tick in enumerate(every) if tick >= max(values)]
    found = every[first : min(last, default=len(every)) + 1]
    if len(found) <= 8:
        return found
    return [*found[: -1 : max(1, len(found) // 6)], found[-1]]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="#333">'
        f"{html.escape(text)}</text>"
    )
