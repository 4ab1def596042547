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
from scoring.time_to_target import TimeKind, evaluation_times, first_reached

Figure = dict[str, Any]

# Readable on white and on near-black; after the last, the same again with dashes.
COLORS = (
    "#3b7dd8",
    "#e0702c",
    "#2f9e63",
    "#c8507e",
    "#8a63d2",
    "#b08a17",
    "#2aa3b5",
    "#d0443e",
    "#7d8a3a",
    "#a56a43",
    "#6d7f9b",
    "#c06bc9",
)
DASHES = ("solid", "dash", "dot", "dashdot")
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
    for s in result.ranking:
        name = result.submissions[s]
        traces.append(
            {
                "type": "scatter",
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


def curves_figure(
    trials: Sequence[Trial],
    goal: Goal,
    style: Mapping[str, Mapping[str, str]],
    kind: TimeKind = TimeKind.SUBMISSION,
) -> Figure:
    """Returns the validation metric against time of a kind, with the target.

    A submission is one trace, its trials separated by gaps; a dot marks where a trial
    reached the target.
    """
    ends = (_last(evaluation_times(trial, kind)) for trial in trials)
    size, unit = _time_unit(max(ends, default=0.0), kind)
    is_crowded = len(trials) > FEW_TRIALS
    traces: list[Figure] = []
    for name, look in style.items():
        mine = [t for t in trials if t.submission == name and goal.column in t.columns]
        if not mine:
            continue
        line, dots = _curves(mine, goal, kind, size)
        common: Figure = {
            "type": "scatter",
            "name": html.escape(name),
            "hovertemplate": "%{y:.5g} at %{x:.4g} " + unit + ", %{customdata}",
        }
        width = 1 if is_crowded else 2
        opacity = 0.55 if is_crowded else 1
        traces.append(
            common
            | line
            | {"mode": "lines", "line": {"width": width, **look}, "opacity": opacity}
        )
        marker = {"size": 5 if is_crowded else 8, "color": look["color"]}
        traces.append(common | dots | {"mode": "markers", "marker": marker})
    label = unit if kind is TimeKind.STEPS else f"{kind.label} ({unit})"
    layout = _layout(label, html.escape(goal.metric))
    layout["yaxis"] |= _log_axis(trials, goal)
    layout["xaxis"]["rangemode"] = "tozero"
    layout["shapes"] = [
        {
            "type": "line",
            "xref": "paper",
            "x0": 0,
            "x1": 1,
            "y0": goal.target,
            "y1": goal.target,
            "line": {"dash": "dash", "width": 1.5},
        }
    ]
    return {"data": traces, "layout": layout}


def _curves(
    trials: Sequence[Trial], goal: Goal, kind: TimeKind, size: float
) -> tuple[Figure, Figure]:
    """Returns the points of the lines and of the dots of one submission."""
    line: Figure = {"x": [], "y": [], "customdata": []}
    dots: Figure = {"x": [], "y": [], "customdata": []}
    for trial in trials:
        times_E = evaluation_times(trial, kind) / size
        values_E = trial.columns[goal.column]
        label = f"study {trial.study} trial {trial.trial}"
        hit = first_reached(trial, goal, kind)
        chosen = _thinned(len(times_E), hit)
        line["x"] += [*_numbers(times_E[chosen]), None]
        line["y"] += [*_numbers(values_E[chosen]), None]
        line["customdata"] += [*[label] * len(chosen), None]
        if hit is not None:
            dots["x"] += _numbers(times_E[hit : hit + 1])
            dots["y"] += _numbers(values_E[hit : hit + 1])
            dots["customdata"].append(label)
    return line, dots


def _thinned(count: int, hit: int | None) -> np.ndarray:
    """Returns indices of at most about MAX_POINTS evaluations, `hit` among them."""
    if count <= MAX_POINTS:
        return np.arange(count)
    even = np.linspace(0, count - 1, MAX_POINTS).astype(int)
    return np.unique(even if hit is None else np.append(even, hit))


def _log_axis(trials: Sequence[Trial], goal: Goal) -> Figure:
    """Returns a log axis for a falling metric whose end would be a flat line; or {}."""
    values = [t.columns[goal.column] for t in trials if goal.column in t.columns]
    pool = np.concatenate([np.array([goal.target]), *values])
    pool = pool[np.isfinite(pool)]
    is_falling = goal.direction is Direction.MINIMIZE and pool.min() > 0
    if not is_falling or pool.max() / pool.min() <= LOG_FROM:
        return {}
    # A run that explodes must not flatten all others: it leaves the figure at the top.
    top = min(pool.max(), 10 * np.quantile(pool, 0.98))
    low, high = np.log10([pool.min() / 1.2, top * 1.2]).tolist()
    decades = range(math.floor(low), math.ceil(high))
    digits = (1, 2, 5) if len(decades) <= 4 else (1,)
    ticks = [float(f"{digit}e{decade}") for decade in decades for digit in digits]
    axis = {"type": "log", "range": [low, high]}
    return axis | {"tickmode": "array", "tickvals": ticks}


def _last(times_E: FloatArray) -> float:
    finite = times_E[np.isfinite(times_E)]
    return float(finite.max()) if finite.size else 0.0


def _time_unit(longest: float, kind: TimeKind) -> tuple[float, str]:
    """Returns the size and the name of a unit that suits a time axis."""
    if kind is TimeKind.STEPS:
        return 1.0, "steps"
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
