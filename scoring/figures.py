"""Figures as plain plotly dictionaries, without colours of text and paper.

The page sets those, so that a figure suits a light and a dark screen. Names come from
users, and plotly reads markup in them: they are escaped.
"""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from algoperf.records import Direction
from scoring.read import FloatArray, Trial
from scoring.rules import Goal
from scoring.score import Result

Figure = dict[str, Any]

# Chosen by search, so that any two differ by 0.11 or more in OKLab also for readers
# with protanopia, deuteranopia or tritanopia, and stand out on white and on near-black
# (contrast of 3 or more). After the last come the same again with dashes.
COLORS = (
    "#872dff",
    "#e1781e",
    "#00785a",
    "#b41eb4",
    "#2da596",
    "#d20f00",
    "#b478f0",
)
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
HEAT, BEST = "#1d5fb8", "#164a92"  # of the map of times, on white
TIMES_SIGN = "\N{MULTIPLICATION SIGN}"
MAX_POINTS = 400  # of one training curve; more cannot be seen
FEW_TRIALS = 30  # up to here lines of a figure are thick
LOG_FROM = 8.0  # a falling metric that spans a factor of this is drawn on a log axis


def styles(result: Result) -> dict[str, dict[str, str]]:
    """Returns colour and dash of each submission, by rank."""
    return {
        result.submissions[s]: {
            "color": COLORS[rank % len(COLORS)],
            "dash": DASHES[rank // len(COLORS) % len(DASHES)],
        }
        for rank, s in enumerate(result.ranking)
    }


def profile_figure(result: Result) -> Figure:
    """Returns the performance profiles as step lines, best submission first."""
    taus, rho = result.profile()
    style = styles(result)
    traces: list[Figure] = []
    for rank, s in enumerate(result.ranking):
        name = result.submissions[s]
        traces.append(
            {
                "type": "scatter",
                "meta": {"rank": rank},
                "mode": "lines",
                "name": html.escape(name),
                "x": _numbers(taus),
                "y": _numbers(rho[s]),
                "line": {"shape": "hv", "width": 2.5, **style[name]},
                "hovertemplate": "%{y:.1%} within %{x:.2f} times the best",
            }
        )
    layout = _layout("time, as a multiple of the best", "share of workloads")
    layout["xaxis"] |= {"range": [1, result.rules.r_max]}
    layout["yaxis"] |= {"range": [-0.02, 1.02], "tickformat": ".0%"}
    return {"data": traces, "layout": layout}


def heat_share(ratio: float, r_max: float) -> float:
    """Returns how much of the heat map's colour a ratio to the best time gets.

    From a half just above 1 to almost nothing at r_max, even in log ratio; the rest is
    paper. Below a half, dark text stays readable; the best has a colour of its own.
    """
    place = math.log(max(ratio, 1.0)) / math.log(r_max)
    return 0.5 - 0.42 * min(place, 1.0)


def curves_layout(trials: Sequence[Trial], goal: Goal) -> Figure:
    """Returns the axes of training curves, with the target as a dashed line."""
    layout = _layout("", html.escape(goal.metric))
    layout["yaxis"] |= log_axis(trials, goal)
    layout["xaxis"]["rangemode"] = "tozero"
    layout["shapes"] = [_line("y", goal.target, "dash")]
    return layout


def forest_figure(
    labels: Sequence[str],
    speedups_B: FloatArray,
    lows_B: FloatArray,
    highs_B: FloatArray,
    look: Mapping[str, str],
) -> Figure:
    """Returns speed-ups with whiskers, one row each, first row at the top.

    Args:
      labels: names of the rows.
      speedups_B: how many times faster than the reference; NaN where not known.
      lows_B: lower ends of the whiskers; NaN for none.
      highs_B: upper ends.
      look: colour of the submission.
    """
    arms: Figure = {
        "type": "data",
        "symmetric": False,
        "array": _numbers(highs_B - speedups_B),
        "arrayminus": _numbers(speedups_B - lows_B),
        "thickness": 1.8,
        "width": 4,
    }
    trace = {
        "type": "scatter",
        "mode": "markers",
        "x": _numbers(speedups_B),
        "y": [html.escape(label) for label in labels],
        "customdata": list(zip(_numbers(lows_B), _numbers(highs_B), strict=True)),
        "error_x": arms | {"color": look["color"]},
        "marker": {"size": 9, "color": look["color"], "line": {"width": 1}},
        "hovertemplate": "%{x:.3f} (%{customdata[0]:.3f} to %{customdata[1]:.3f})"
        "<extra>%{y}</extra>",
    }
    layout = _layout("speed-up", "")
    shown = np.concatenate([[1.0], speedups_B, lows_B, highs_B])
    shown = shown[np.isfinite(shown) & (shown > 0)]
    low, high = shown.min() / 1.1, shown.max() * 1.1
    layout["xaxis"] |= _log_range(low, high)
    # All rows are named, also one that has no number.
    layout["yaxis"] |= {
        "type": "category",
        "categoryorder": "array",
        "categoryarray": [html.escape(label) for label in reversed(labels)],
        "range": [-0.6, len(labels) - 0.4],
        "showgrid": False,
    }
    layout["shapes"] = [_line("x", 1.0, "dash")]
    return {"data": [trace], "layout": layout}


def spread_figure(
    style: Mapping[str, Mapping[str, str]],
    scores_S: FloatArray,
    others_SK: FloatArray,
    notes_K: Sequence[str],
) -> Figure:
    """Returns each submission's score as a bar mark among K scores of other inputs.

    Args:
      style: submissions, best first, in the order of the rows.
      scores_S: the score itself.
      others_SK: the scores that other inputs give, such as one workload left out.
      notes_K: what the input of each was, for the tooltip.
    """
    names = [html.escape(name) for name in style]
    traces = []
    for rank, (name, look) in enumerate(style.items()):
        common: Figure = {
            "type": "scatter",
            "mode": "markers",
            "name": html.escape(name),
            "meta": {"rank": rank},
        }
        traces.append(
            common
            | {
                "x": _numbers(others_SK[rank]),
                "y": [names[rank]] * len(notes_K),
                "customdata": [html.escape(note) for note in notes_K],
                "marker": {
                    "size": 9,
                    "color": look["color"],
                    "opacity": 0.75,
                    "line": {"width": 1},
                },
                "hovertemplate": "%{x:.4f} %{customdata}",
            }
        )
        traces.append(
            common
            | {
                "x": _numbers(scores_S[rank : rank + 1]),
                "y": [names[rank]],
                "marker": {
                    "symbol": "line-ns-open",
                    "size": 20,
                    "color": look["color"],
                    "line": {"width": 3},
                },
                "hovertemplate": "%{x:.4f} with all",
            }
        )
    layout = _layout("score", "")
    layout["yaxis"] |= {
        "type": "category",
        "categoryorder": "array",
        "categoryarray": names[::-1],
        "range": [-0.6, len(names) - 0.4],
    }
    return {"data": traces, "layout": layout}


def sensitivity_figure(
    style: Mapping[str, Mapping[str, str]],
    r_max_R: FloatArray,
    scores_SR: FloatArray,
    r_max: float,
) -> Figure:
    """Returns the score against r_max, with a line at the r_max of the rules.

    `scores_SR` has a row per submission of `style`, in its order.
    """
    traces: list[Figure] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": html.escape(name),
            "meta": {"rank": rank},
            "x": _numbers(r_max_R),
            "y": _numbers(scores_SR[rank]),
            "line": {"width": 2.5, **look},
            "hovertemplate": "%{y:.4f} at r_max %{x:.3g}",
        }
        for rank, (name, look) in enumerate(style.items())
    ]
    layout = _layout("r_max", "score")
    layout["shapes"] = [_line("x", r_max, "dash")]
    return {"data": traces, "layout": layout}


def _line(axis: str, value: float, dash: str) -> Figure:
    """Returns a straight line across the figure at `value` of an axis."""
    other = "x" if axis == "y" else "y"
    return {
        "type": "line",
        f"{other}ref": "paper",
        f"{other}0": 0,
        f"{other}1": 1,
        f"{axis}0": value,
        f"{axis}1": value,
        "line": {"dash": dash, "width": 1.5},
    }


def heat_color(ratio: float, r_max: float) -> str:
    """Returns the colour of a ratio to the best time on white, as the page has it."""
    share = heat_share(ratio, r_max)
    parts = (int(HEAT[i : i + 2], 16) for i in (1, 3, 5))
    mixed = (round(share * part + (1 - share) * 255) for part in parts)
    return "#" + "".join(f"{part:02x}" for part in mixed)


def near_target(trials: Sequence[Trial], goal: Goal) -> list[float]:
    """Returns the range of the metric that holds the target and the better half."""
    values = [t.columns[goal.column] for t in trials if goal.column in t.columns]
    pool = np.concatenate([np.array([goal.target]), *values])
    pool = pool[np.isfinite(pool)]
    is_falling = goal.direction is Direction.MINIMIZE
    kept = (
        pool[pool <= np.median(pool)] if is_falling else pool[pool >= np.median(pool)]
    )
    low, high = min(kept.min(), goal.target), max(kept.max(), goal.target)
    pad = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return _rounded([low - pad, high + pad])


def _rounded(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


def log_axis(trials: Sequence[Trial], goal: Goal) -> Figure:
    """Returns a log axis for a falling metric whose end would be a flat line; or {}."""
    values = [t.columns[goal.column] for t in trials if goal.column in t.columns]
    pool = np.concatenate([np.array([goal.target]), *values])
    pool = pool[np.abs(pool) < 1e100]  # finite, and so is what is computed from them
    is_falling = goal.direction is Direction.MINIMIZE and (pool > 1e-100).all()
    if not is_falling or not pool.size or pool.max() / pool.min() <= LOG_FROM:
        return {}
    # A run that explodes must not flatten all others: it leaves the figure at the top.
    top = min(pool.max(), 10 * np.quantile(pool, 0.98))
    return _log_range(pool.min() / 1.2, top * 1.2)


def _log_range(low: float, high: float) -> Figure:
    """Returns a log axis between two values, with ticks at round numbers."""
    low, high = np.log10([low, high]).tolist()
    decades = range(math.floor(low), math.ceil(high))
    digits: tuple[float, ...] = (1, 2, 5) if len(decades) <= 4 else (1,)
    if high - low < 1:
        digits = (1, 1.5, 2, 3, 5, 7)
    if high - low < 0.4:
        digits = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
    if high - low < 0.15:
        return {"type": "log", "range": [low, high], "nticks": 5}
    ticks = [float(f"{digit}e{decade}") for decade in decades for digit in digits]
    axis = {"type": "log", "range": [low, high]}
    return axis | {"tickmode": "array", "tickvals": ticks}


def last(times_E: FloatArray) -> float:
    """Returns the longest finite time; 0 if there is none."""
    finite = times_E[np.isfinite(times_E)]
    return float(finite.max()) if finite.size else 0.0


def time_unit(longest: float) -> tuple[float, str]:
    """Returns the seconds of a unit that suits a time axis, and the unit's name."""
    if longest > 3 * 3600:
        return 3600.0, "hours"
    if longest > 5 * 60:
        return 60.0, "minutes"
    return 1.0, "seconds"


def _numbers(values: FloatArray) -> list[float | None]:
    """Returns six significant digits of each number; None for NaN and infinity."""
    return [
        float(f"{value:.6g}") if np.isfinite(value) else None
        for value in values.tolist()
    ]


def _layout(x: str, y: str) -> Figure:
    return {
        "xaxis": {"title": {"text": x}, "automargin": True, "zeroline": False},
        "yaxis": {"title": {"text": y}, "automargin": True, "zeroline": False},
        "showlegend": False,
        "hovermode": "closest",
        "margin": {"l": 8, "r": 12, "t": 12, "b": 8},
    }
