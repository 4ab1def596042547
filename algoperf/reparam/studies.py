"""Studies of what small training costs in quality: settings, tables, plots.

A study trains one workload at several values of one thing, the rank say, with several
methods (series) and seeds. Trials leave ordinary records; a table and a plot are made
of those.
"""

import dataclasses
import importlib.util
import itertools
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from algoperf import records
from algoperf.errors import UserError
from algoperf.records import Direction, Status

CONFIDENCE = 0.95
LINEAR = ("expansion ratio", "parameters")  # all other axes are logarithmic
BASELINE_STYLES = ("--", ":", "-.")
MARKERS = "os^vDP*X"
LARGEST_R = 1 - 1e-9  # z of 1 is infinite
BAD = (Status.FAILED, Status.DIVERGED)
# Columns of a summary that a table shows where there are any, and their headings.
SIZES = {
    "trainable_parameters": "parameters",
    "stored_bytes": "stored, bytes",
    "compression_ratio": "bytes of all over stored",
    "optimizer_state_bytes": "optimizer state, bytes",
}
FARTHEST = 3.0  # that a plot shows, in median distances from the best


@dataclasses.dataclass(frozen=True)
class Series:
    """One method of a study: a submission, and the hyperparameter that is varied.

    `inverse` is for studies over compression c, where the hyperparameter is 1 / c.
    Values that are not `above` are left out, where the series is the baseline itself.
    `also` gives further hyperparameters that follow from the value. Without a
    hyperparameter the series is a baseline: one setting.
    """

    name: str
    submission: str
    varied: str | None
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    inverse: bool = False
    above: float = 0.0
    also: Callable[[float], Mapping[str, Any]] | None = None


@dataclasses.dataclass(frozen=True)
class Setting:
    """One trial's place in a study."""

    series: str
    submission: str
    x: float | None  # of the varied thing; None for a baseline
    changes: Mapping[str, Any]  # to the first point of the submission's search space
    trial: int  # from 1, within the submission


def settings(series: Iterable[Series], values: Sequence[float]) -> list[Setting]:
    """Returns the settings of a study; a submission's are numbered as its trials."""
    numbers: dict[str, int] = {}
    found = []
    for one in series:
        own = [x for x in values if x > one.above]
        for x in own if one.varied is not None else [None]:
            changes = dict(one.fixed)
            if one.varied is not None and x is not None:
                changes[one.varied] = 1.0 / x if one.inverse else float(x)
                changes |= one.also(x) if one.also is not None else {}
            number = numbers.get(one.submission, 0) + 1
            numbers[one.submission] = number
            found.append(Setting(one.name, one.submission, x, changes, number))
    return found


def result_row(
    setting: Setting,
    study: int,
    folder: Path,
    metric: str,
    direction: Direction,
    target: float,
    sizes: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Returns what one trial's record says.

    'final' is the validation metric of the last evaluation, of a run that came to its
    end: that is what methods are compared by, since an earlier one may be of a network
    that was not yet pruned. 'best' is the best of all, 'steps_to_target' the steps to
    the first that was as good as the target; 'sizes' of the record are columns of their
    own. `sizes` go before those, where the state of a submission does not tell what it
    is left with.
    """
    row: dict[str, Any] = {"series": setting.series, "study": study}
    if setting.x is not None:
        row["x"] = setting.x
    if not (folder / records.RECORD_FILE).exists():
        return {**row, "status": "missing"}
    record = records.read_record(folder)
    row |= {"status": str(record["status"]), **record.get("sizes", {}), **(sizes or {})}
    if "learning_rate" in record.get("hyperparameters", {}):
        row["learning_rate"] = record["hyperparameters"]["learning_rate"]
    if not (folder / records.EVAL_FILE).exists():  # it failed before the first
        return row
    evaluations = records.read_measurements(folder / records.EVAL_FILE)
    found = {
        e[records.GLOBAL_STEP]: e[f"validation/{metric}"]
        for e in evaluations
        if f"validation/{metric}" in e
    }
    if found:
        row["best"] = (min if direction is Direction.MINIMIZE else max)(found.values())
        if row["status"] not in BAD:
            row["final"] = found[max(found)]
    reached = [s for s, x in found.items() if records.reaches(x, target, direction)]
    if reached:
        row["steps_to_target"] = min(reached)
    return row


def summary(
    rows: Iterable[Mapping[str, Any]], column: str = "best"
) -> list[dict[str, Any]]:
    """Returns a row for each series and x: means over studies, with intervals.

    'low' and 'high' are the 95 % interval of Student's t for the mean of `column`,
    where there are two values or more, 'runs' the number of values; 'reached' counts
    studies that reached the target. 'notes' tells of runs without a value, and of those
    that collapsed.
    """
    found = []
    for (series, x), group in grouped(rows).items():
        line: dict[str, Any] = {"series": series, "studies": len(group)}
        if x is not None:
            line["x"] = x
        line["reached"] = sum("steps_to_target" in row for row in group)
        for name in ("steps_to_target", *SIZES):
            values = [row[name] for row in group if name in row]
            if values:
                line[name] = statistics.fmean(values)
        values = [row[column] for row in group if column in row]
        line["runs"] = len(values)
        if values:
            line[column] = statistics.fmean(values)
        if len(values) >= 2:
            line["low"], line["high"] = interval(values)
        line["notes"] = _notes(group, column)
        found.append(line)
    return found


def _notes(group: Iterable[Mapping[str, Any]], column: str) -> str:
    """Returns such as '1 diverged, 2 collapsed'."""
    odd = Counter(
        row.get("status", "missing") if column not in row else "collapsed"
        for row in group
        if column not in row or row.get("collapsed")
    )
    return ", ".join(f"{number} {what}" for what, number in odd.items())


def grouped(
    rows: Iterable[Mapping[str, Any]],
) -> dict[tuple[Any, Any], list[Mapping[str, Any]]]:
    """Returns the rows of each series and x, all studies together."""
    groups: dict[tuple[Any, Any], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["series"], row.get("x")), []).append(row)
    return groups


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Returns the 95 % interval of Student's t for a mean of two values or more."""
    mean, spread = statistics.fmean(values), statistics.stdev(values)
    quantile = stats.t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1)
    half = float(quantile) * spread / len(values) ** 0.5
    return mean - half, mean + half


def correlation(
    curves: Iterable[tuple[Sequence[float], Sequence[float]]],
) -> tuple[float, tuple[float, float] | None] | None:
    """Returns the correlation over studies, and its 95 % interval.

    Of each study Pearson's r, Fisher's z = artanh r, the mean of z and Student's t
    interval for it, all as r again (Fisher 1921). Without two studies no interval;
    None where no study's values vary.

    Args:
      curves: (x, y) of each study.
    """
    found = []
    for x, y in curves:
        if len(x) < 3 or len(set(x)) < 2 or len(set(y)) < 2:
            continue
        r = statistics.correlation(list(x), list(y))
        found.append(math.atanh(max(-LARGEST_R, min(LARGEST_R, r))))
    if not found:
        return None
    mean = math.tanh(statistics.fmean(found))
    if len(found) < 2:
        return mean, None
    low, high = interval(found)
    return mean, (math.tanh(low), math.tanh(high))


def table(
    lines: Sequence[Mapping[str, Any]],
    x_name: str,
    metric: str,
    has_target: bool = True,
    column: str = "best",
) -> str:
    """Returns the summary of `column` as Markdown.

    `has_target` tells who reached it. Sizes and notes are there if any line has some.
    """
    sizes = {key: name for key, name in SIZES.items() if any(key in x for x in lines)}
    has_notes = any(line.get("notes") for line in lines)
    heading = ["series", x_name, metric, "95 %", "runs", *sizes.values()]
    heading += ["reached", "steps"] if has_target else []
    heading += ["notes"] if has_notes else []
    rows = []
    for line in lines:
        bounds = ""
        if "low" in line:
            bounds = f"{line['low']:.4g} to {line['high']:.4g}"
        cells = [
            line["series"],
            _number(line.get("x")),
            _number(line.get(column)),
            bounds,
            _number(line.get("runs"), "{:.0f}"),
        ]
        cells += [
            _number(line.get(key), "{:.2f}" if key.endswith("ratio") else "{:.0f}")
            for key in sizes
        ]
        if has_target:
            cells.append(f"{line['reached']} of {line['studies']}")
            cells.append(_number(line.get("steps_to_target")))
        cells += [line.get("notes", "")] if has_notes else []
        rows.append(cells)
    return markdown(heading, rows)


def markdown(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _number(value: float | None, form: str = "{:.4g}") -> str:
    return "" if value is None else form.format(value)


def worst_shown(values: Sequence[float], direction: Direction) -> float:
    """Returns the worst value that a plot shows, so that good ones can be told apart.

    Three times as far from the best as the median is, or the worst if it is nearer.
    """
    ordered = sorted(values, reverse=direction is Direction.MAXIMIZE)
    best, worst = ordered[0], ordered[-1]
    reach = FARTHEST * abs(statistics.median(ordered) - best)
    if reach == 0.0 or abs(worst - best) <= reach:
        return worst
    return best + math.copysign(reach, worst - best)


def find_matplotlib() -> None:
    """Raises a UserError if there is no matplotlib, which `plot` needs."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError(
            "a plot needs matplotlib: pip install matplotlib, or give --noplot"
        )


def plot(
    lines: Sequence[Mapping[str, Any]],
    x_name: str,
    y_name: str,
    path: Path,
    column: str = "best",
    direction: Direction | None = None,
) -> None:
    """Draws `column` against x, a line for each series; baselines are horizontal.

    Bars are the 95 % intervals. With a `direction`, values beyond `worst_shown` are
    triangles at the edge.

    Raises:
      UserError: matplotlib is missing.
    """
    find_matplotlib()
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "algoperf"  # the same runs, the same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 4), layout="constrained")
    styles, markers = itertools.cycle(BASELINE_STYLES), itertools.cycle(MARKERS)
    shown = [line for line in lines if column in line]
    for name in dict.fromkeys(line["series"] for line in shown):
        own = [line for line in shown if line["series"] == name]
        if "x" not in own[0]:
            height, style = own[0][column], next(styles)
            axes.axhline(height, color="black", linestyle=style, label=name)
            continue
        own = sorted(own, key=lambda line: line["x"])
        ys = [line[column] for line in own]
        lows = [y - line.get("low", y) for line, y in zip(own, ys, strict=True)]
        highs = [line.get("high", y) - y for line, y in zip(own, ys, strict=True)]
        axes.errorbar(
            [line["x"] for line in own],
            ys,
            [lows, highs],
            marker=next(markers),
            markersize=4,
            elinewidth=0.8,
            capsize=2,
            label=name,
        )
    axes.set(xlabel=x_name, ylabel=y_name)
    if x_name not in LINEAR:
        axes.set_xscale("log", base=2)
    if direction is not None and shown:
        _limit(axes, shown, column, direction)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=8, loc="outside right center")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _limit(
    axes: Any, lines: Sequence[Mapping[str, Any]], column: str, direction: Direction
) -> None:
    """Limits the y axis to what is worth showing, and marks what lies beyond."""
    values = [line[column] for line in lines]
    is_max = direction is Direction.MAXIMIZE
    best, worst = max(values) if is_max else min(values), worst_shown(values, direction)
    margin = 0.08 * abs(best - worst)
    low, high = min(best, worst) - margin, max(best, worst) + margin
    if low == high:
        return
    axes.set_ylim(low, high)
    beyond = [x for x in lines if "x" in x and not low <= x[column] <= high]
    edge, marker = (low, "v") if is_max else (high, "^")
    xs = [line["x"] for line in beyond]
    ys = [edge] * len(xs)
    axes.plot(xs, ys, marker, color="black", mfc="white", clip_on=False, zorder=3)
