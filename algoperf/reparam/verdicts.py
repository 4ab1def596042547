"""Whether one method is at least as good as others: differences with a verdict.

Seeds follow from a trial's number. Where settings that are compared have others, as in
the compression study, runs are not paired.
"""

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from scipy import stats

from algoperf.reparam import studies

CONFIRMED, REFUTED, UNDECIDED = "confirmed", "refuted", "undecided"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """One comparison: the method's mean minus another's at one x."""

    other: str
    x: float
    difference: float | None  # None where either has no run with a value
    interval: tuple[float, float] | None
    verdict: str
    collapsed: bool  # all runs of the other: nothing is hard to beat


def difference(
    one: Sequence[float], other: Sequence[float]
) -> tuple[float, tuple[float, float]]:
    """Returns mean(one) - mean(other) and its 95 % interval by Welch's t.

    The degrees of freedom are Welch's and Satterthwaite's (Welch 1947); each has two
    values or more.
    """
    mean = statistics.fmean(one) - statistics.fmean(other)
    parts = [statistics.variance(values) / len(values) for values in (one, other)]
    if sum(parts) == 0.0:
        return mean, (mean, mean)
    sizes = (len(one), len(other))
    spread = sum(part**2 / (n - 1) for part, n in zip(parts, sizes, strict=True))
    quantile = stats.t.ppf(0.5 + studies.CONFIDENCE / 2, sum(parts) ** 2 / spread)
    half = float(quantile) * sum(parts) ** 0.5
    return mean, (mean - half, mean + half)


def verdict(interval: tuple[float, float], margin: float) -> str:
    """Judges, by an interval of the difference, 'no worse than by the margin'."""
    low, high = interval
    if low > -margin:
        return CONFIRMED
    return REFUTED if high < -margin else UNDECIDED


def against(
    rows: Iterable[Mapping[str, Any]],
    method: str,
    others: Iterable[str],
    margin: float,
    column: str = "final",
) -> list[Verdict]:
    """Compares a method with each of the others at each x that both have.

    Args:
      rows: of a study, one for each run.
      method: a series.
      others: series.
      margin: by how much the method may be worse, in units of the column.
      column: of the rows; larger is better. Where a run has none, because it diverged
        say, nothing is decided.
    """
    groups = studies.grouped(rows)
    found = []
    for other in others:
        for (series, x), group in groups.items():
            own = groups.get((method, x))
            if series == other and x is not None and own is not None:
                found.append(_compared(own, group, margin, column))
    return found


def _compared(
    own: Sequence[Mapping[str, Any]],
    group: Sequence[Mapping[str, Any]],
    margin: float,
    column: str,
) -> Verdict:
    series, x = group[0]["series"], group[0]["x"]
    collapsed = all(row.get("collapsed") for row in group)
    is_whole = all(column in row for row in (*own, *group))
    if not is_whole or min(len(own), len(group)) < 2:
        return Verdict(series, x, None, None, UNDECIDED, collapsed)
    mean, interval = difference(
        [row[column] for row in own], [row[column] for row in group]
    )
    judged = verdict(interval, margin)
    return Verdict(series, x, mean, interval, judged, collapsed)


def overall(found: Sequence[Verdict]) -> str:
    """Returns the verdict on all: confirmed if each is, refuted if one is."""
    judged = {one.verdict for one in found}
    if REFUTED in judged:
        return REFUTED
    return CONFIRMED if judged == {CONFIRMED} else UNDECIDED


def text(
    found: Sequence[Verdict], method: str, x_name: str, margin: float, steps: int
) -> str:
    """Returns the comparisons as Markdown, and one line for all."""
    rows = []
    for one in found:
        shown = "" if one.difference is None else f"{one.difference:+.4f}"
        bounds = ""
        if one.interval is not None:
            bounds = "{:+.4f} to {:+.4f}".format(*one.interval)
        note = f"{one.other} collapsed" if one.collapsed else ""
        if one.interval is None:
            note = "too few runs with a value"
        rows.append([one.other, f"{one.x:g}", shown, bounds, one.verdict, note])
    heading = [f"{method} minus", x_name, "difference", "95 %", "verdict", ""]
    numbers = ", ".join(
        f"{sum(one.verdict == kind for one in found)} {kind}"
        for kind in (CONFIRMED, REFUTED, UNDECIDED)
    )
    return (
        f"Is {method} at least as good, but for {margin:g}? Confirmed where the whole "
        "interval says so, refuted where none of it does.\n\n"
        + studies.markdown(heading, rows)
        + f"\nAfter {steps} steps, at least as good as each at every {x_name}: "
        f"{overall(found)} ({numbers}).\n"
    )
