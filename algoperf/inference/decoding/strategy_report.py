"""Measured decoding strategies as a table and a picture (SVG without a library)."""

import html
import math
from collections.abc import Sequence

from algoperf.inference.decoding.strategy_bench import Row

COLUMNS = (
    "draft", "strategy", "value", "tokens_per_second", "tokens_per_second_low",
    "tokens_per_second_high", "speed_up", "speed_up_low", "speed_up_high",
    "acceptance", "tokens_per_round", "discard_rate", "verification_rate",
    "modelled_speed_up", "speed_up_at_ratio",
)  # fmt: skip
_COLORS = {"length": "#1b6ca8", "threshold": "#3a7d44", "head": "#c8553d"}
_OTHER_COLOR = "#4a4a4a"
_PLANE, _LINE = 360, 17  # height of the plane, of a line of the list
_WIDTH, _LEFT = 470, 56


def values(row: Row) -> list[str | float]:
    """Returns a row's cells in the order of `COLUMNS`; NaN where nothing is known."""
    known = {"draft": row.cell.draft, "strategy": row.cell.kind}
    value = math.nan if row.cell.value is None else row.cell.value
    return [
        known[c] if c in known else value if c == "value" else getattr(row, c)
        for c in COLUMNS
    ]


def markdown(rows: Sequence[Row], title: str, facts: Sequence[str]) -> str:
    """Returns a page: title, a list of facts, and the table."""
    head = (
        "strategy", "tokens / s (95 %)", "speed-up (95 %)", "accepted",
        "tokens a round", "discard rate", "verification rate", "modelled speed-up",
        "at the ratio",
    )  # fmt: skip
    lines = [f"# {title}", "", *(f"- {fact}" for fact in facts), ""]
    lines += [_line(head), _line(["---"] + ["---:"] * (len(head) - 1))]
    for row in rows:
        rate = (
            f"{row.tokens_per_second:.0f} ({row.tokens_per_second_low:.0f} to "
            f"{row.tokens_per_second_high:.0f})"
        )
        faster = (
            f"{row.speed_up:.2f} ({row.speed_up_low:.2f} to {row.speed_up_high:.2f})"
        )
        rates = (
            row.acceptance, row.tokens_per_round, row.discard_rate,
            row.verification_rate, row.modelled_speed_up, row.speed_up_at_ratio,
        )  # fmt: skip
        lines.append(_line([row.cell.name, rate, faster, *map(_short, rates)]))
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _short(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def svg(rows: Sequence[Row], title: str) -> str:
    """Returns two panels: discards against verifications, and measured speed-ups.

    Down and to the left is better in the first, the plane of SpecDec++
    (arXiv:2405.19715): fewer guesses thrown away, fewer passes of the target. Hollow
    points are of the distilled draft.
    """
    height = max(_PLANE, 60 + _LINE * len(rows)) + 20
    body = _plane([row for row in rows if not math.isnan(row.discard_rate)])
    body += _list(rows)
    label = html.escape(title)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * _WIDTH} {height}" '
        f'width="{2 * _WIDTH}" height="{height}" font-family="sans-serif" '
        f'font-size="12" role="img" aria-label="{label}">'
        f'<rect width="100%" height="100%" fill="white"/>{body}</svg>\n'
    )


def _plane(rows: Sequence[Row]) -> str:
    """Every strategy at (discard rate, verification rate), families joined."""
    wide, high = _WIDTH - _LEFT - 20, _PLANE - 90
    most = max([row.discard_rate for row in rows], default=0.0) or 1.0

    def at(row: Row) -> tuple[float, float]:
        x = _LEFT + wide * row.discard_rate / (1.05 * most)
        return round(x, 1), round(34 + high * (1 - row.verification_rate), 1)

    parts = [_text(_LEFT, 18, "Passes of the target against guesses thrown away")]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = 34 + high * (1 - share)
        parts.append(f'<path d="M{_LEFT} {y}h{wide}" stroke="#ddd"/>')
        parts.append(_text(_LEFT - 6, y + 4, f"{share:g}", "end"))
        x = _LEFT + wide * share / 1.05
        parts.append(_text(x, 34 + high + 16, f"{share * most:.2g}", "middle"))
    parts.append(
        _text(_LEFT + wide / 2, 34 + high + 34, "discards for each token", "middle")
    )
    families: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        families.setdefault((row.cell.draft, row.cell.kind), []).append(row)
    for (draft, kind), members in families.items():
        color = _COLORS.get(kind, _OTHER_COLOR)
        points = [at(row) for row in members]
        path = " ".join(f"{x},{y}" for x, y in points)
        dash = ' stroke-dasharray="4 3"' if draft == "distilled" else ""
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}"{dash}/>')
        fill = "white" if draft == "distilled" else color
        parts += [
            f'<circle cx="{x}" cy="{y}" r="3.5" fill="{fill}" stroke="{color}"/>'
            for x, y in points
        ]
    for number, (kind, color) in enumerate([*_COLORS.items(), ("oracle", "#4a4a4a")]):
        x = _LEFT + 90 * number
        parts.append(_text(x, 34 + high + 52, kind, color=color))
    return "".join(parts)


def _list(rows: Sequence[Row]) -> str:
    """Every cell's speed-up with its interval, 1 marked."""
    left, wide = _WIDTH + 150, _WIDTH - 170
    most = max([1.0, *(row.speed_up_high for row in rows)]) * 1.05
    bottom = 34 + _LINE * len(rows)
    parts = [_text(_WIDTH + 20, 18, "Measured speed-up over the target alone")]
    for tick in range(math.floor(2 * most) + 1):
        x = round(left + wide * tick / 2 / most, 1)
        color = "#888" if tick == 2 else "#ddd"
        parts.append(f'<path d="M{x} 28V{bottom}" stroke="{color}"/>')
        parts.append(_text(x, bottom + 16, f"{tick / 2:g}", "middle"))
    for number, row in enumerate(rows):
        y = 40 + _LINE * number
        color = _COLORS.get(row.cell.kind, _OTHER_COLOR)
        low, x, high = (
            round(left + wide * value / most, 1)
            for value in (row.speed_up_low, row.speed_up, row.speed_up_high)
        )
        parts.append(_text(left - 8, y + 4, row.cell.name, "end", color))
        parts.append(f'<path d="M{low} {y}H{high}" stroke="{color}" stroke-width="2"/>')
        parts.append(f'<circle cx="{x}" cy="{y}" r="3.5" fill="{color}"/>')
    return "".join(parts)


def _text(
    x: float, y: float, text: str, anchor: str = "start", color: str = "#333"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}">'
        f"{html.escape(text)}</text>"
    )
