"""Two pictures of 'On the Efficiency of Convolutional Neural Networks', as SVG.

Efficiency gap (arXiv:2404.03617): ideal and measured time on a logarithmic axis; the
distance between them is 1 / efficiency. Waterline: the kernels of one program side by
side, each as wide as moving its bytes takes and as high as its FLOPs per byte over
those of the machine. Water stands at 1. A column above it is bound by FLOPs, one below
by bytes, and columns and the water on them have together the area of the ideal time.
"""

import dataclasses
import html
import math
from collections.abc import Iterable, Sequence

from algoperf.inference.rooflines.roofline import Peak
from algoperf.inference.rooflines.roofline_report import Row
from algoperf.inference.timing.hlo import Kernel

_WIDTH = 860
_LEFT, _RIGHT, _TOP, _BOTTOM = 250, 90, 56, 44
_BAR = 24
_IDEAL, _GAP, _WATER, _DRY = "#1b6ca8", "#c8553d", "#9ecae1", "#c8553d"
_HIGH = 300
# Columns that are narrower, in pixels, are drawn as one.
_NARROWEST = 0.5


def efficiency_gap_svg(rows: Sequence[Row]) -> str:
    """Returns bars from the ideal to the measured time, one for each measured row."""
    found = [row for row in rows if row.measured_seconds]
    if not found:
        return _svg(_TOP + _BOTTOM, [_text(20, 22, "Nothing was measured.")])
    times = [t for r in found for t in (r.ideal_seconds, r.measured_seconds or 1.0)]
    low, high = math.floor(math.log10(min(times))), math.ceil(math.log10(max(times)))
    high = max(high, low + 1)
    bottom = _TOP + _BAR * len(found)

    def at(seconds: float) -> float:
        share = (math.log10(seconds) - low) / (high - low)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    parts = [
        _text(
            20, 22, "Ideal (blue) and measured time; the bar is the gap", "start", True
        )
    ]
    for power in range(low, high + 1):
        x = at(10.0**power)
        parts.append(_line(x, _TOP - 8, x, bottom))
        parts.append(_text(x, bottom + 18, _time(10.0**power), "middle"))
    for number, row in enumerate(found):
        y = _TOP + _BAR * (number + 0.5)
        start, end = at(row.ideal_seconds), at(row.measured_seconds or 1.0)
        parts.append(_text(_LEFT - 12, y + 4, f"{row.workload} {row.program}", "end"))
        parts.append(
            f'<rect x="{start:.1f}" y="{y - 4:.1f}" width="{max(end - start, 0):.1f}" '
            f'height="8" fill="{_GAP}" opacity="0.35"/>'
        )
        parts.append(_dot(start, y, _IDEAL))
        parts.append(_dot(end, y, _GAP))
        share = f"{100 * (row.efficiency or 0.0):.0f} %"
        parts.append(_text(max(start, end) + 10, y + 4, share))
    return _svg(bottom + _BOTTOM, parts)


@dataclasses.dataclass(frozen=True)
class Column:
    """A kernel in a waterline plot.

    Attributes:
      name: of the kernel.
      seconds: that moving its bytes takes, repeats included: the width.
      height: FLOPs per byte over the machine's: above 1, FLOPs take longer.
    """

    name: str
    seconds: float
    height: float

    @property
    def area(self) -> float:
        """Seconds that the kernel takes at least: width x max(height, 1)."""
        return self.seconds * max(self.height, 1.0)


def columns(kernels: Iterable[Kernel], peak: Peak) -> list[Column]:
    """Returns the columns of a program, the highest first.

    Kernels that move nothing have none.
    """
    found = []
    for kernel in kernels:
        moving = peak.memory_seconds(kernel)
        if moving > 0:
            height = kernel.flops / peak.flops / moving
            found.append(Column(kernel.name, kernel.repeats * moving, height))
    return sorted(found, key=lambda column: -column.height)


def waterline_svg(title: str, kernels: Iterable[Kernel], peak: Peak) -> str:
    """Returns the waterline plot of a program."""
    found = columns(kernels, peak)
    width, bottom = _WIDTH - 60 - 30, _TOP + _HIGH
    total = sum(column.seconds for column in found) or 1.0
    top = max([2.0, *(column.height for column in found)])
    water = bottom - _HIGH / top
    ideal = sum(column.area for column in found)
    parts = [
        _text(20, 22, title, "start", True),
        _text(20, 42, f"ideal time {_time(ideal)}: columns, and the water on them"),
        _rect(60, water, width, bottom - water, _WATER),
    ]
    x = 60.0
    for column in merged(found, _NARROWEST * total / width):
        wide = width * column.seconds / total
        high = _HIGH * column.height / top
        is_dry = column.height > 1
        color = _DRY if is_dry else _IDEAL
        parts.append(
            f"<g><title>{html.escape(column.name)}: {column.height:.3g}</title>"
            f"{_rect(x, bottom - high, wide, high, color)}</g>"
        )
        x += wide
    parts.append(_line(60, water, 60 + width, water, "#08519c"))
    parts.append(_text(54, water + 4, "1", "end"))
    parts.append(_text(54, _TOP + 4, f"{top:.3g}", "end"))
    parts.append(
        _text(60, bottom + 18, f"time to move the bytes, in all {_time(total)}")
    )
    parts.append(
        _text(60 + width, bottom + 18, "height: FLOPs per byte / the machine's", "end")
    )
    return _svg(bottom + _BOTTOM, parts)


def merged(found: Sequence[Column], least: float) -> list[Column]:
    """Joins neighbours on the same side of the water that are too narrow to see.

    Their height is the mean by width, so that the area above or below the water stays.
    """
    joined: list[Column] = []
    for column in found:
        last = joined[-1] if joined else None
        if (
            last is not None
            and last.seconds < least
            and (last.height > 1) == (column.height > 1)
        ):
            seconds = last.seconds + column.seconds
            area = last.seconds * last.height + column.seconds * column.height
            joined[-1] = Column(f"{last.name}, ...", seconds, area / seconds)
        else:
            joined.append(column)
    return joined


def _svg(height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:g}" '
        f'width="{_WIDTH}" height="{height:g}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="white"/>'
        f"{''.join(parts)}</svg>\n"
    )


def _rect(x: float, y: float, width: float, height: float, color: str) -> str:
    return (
        f'<rect x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}" '
        f'fill="{color}"/>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, color: str = "#ddd") -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{color}"/>'


def _dot(x: float, y: float, color: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{color}"/>'


def _text(
    x: float, y: float, text: str, anchor: str = "start", is_bold: bool = False
) -> str:
    weight = ' font-weight="bold"' if is_bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#333"{weight}>'
        f"{html.escape(text)}</text>"
    )


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= 0.999 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-9:.3g} ns"
