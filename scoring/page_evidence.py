"""Sections of the page that say how sure the scores are; each is drawn if it is given.

The numbers come as plain arrays: this module knows nothing of how they are made.

Dimension key: S submissions, in the order of `Result.submissions`; B base workloads;
R values of r_max; K other inputs.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scoring import figures, tables
from scoring import page_html as h
from scoring.figures import Figure
from scoring.page_data import Table, make_table
from scoring.page_html import Style
from scoring.read import FloatArray
from scoring.score import Result


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Intervals:
    """Confidence intervals of scores and ranks."""

    level: float  # 0.95
    score_low: FloatArray  # [S]
    score_high: FloatArray  # [S]
    rank_low: FloatArray | None = None  # [S], best rank
    rank_high: FloatArray | None = None  # [S], worst rank
    method: str = ""  # one sentence for the reader


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LeftOut:
    """Scores with one workload left out at a time."""

    workloads: Sequence[str]  # K, the one left out
    scores: FloatArray  # [S, K]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Sensitivity:
    """Scores at other values of r_max."""

    r_max: FloatArray  # [R]
    scores: FloatArray  # [S, R]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """How many times as fast as a reference submission the others are."""

    reference: str
    level: float
    speedups: FloatArray  # [S, B]; NaN where not known
    low: FloatArray  # [S, B]
    high: FloatArray  # [S, B]
    overall: FloatArray | None = None  # [S], geometric mean
    overall_low: FloatArray | None = None  # [S]
    overall_high: FloatArray | None = None  # [S]
    verdicts: Sequence[str] | None = None  # S: 'faster on 5, slower on 1'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """When a trial that is not there yet should reach its target."""

    submission: str
    workload: str
    study: int
    trial: int
    seconds: float  # inf: never, as far as one can tell
    low: float
    high: float
    note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """What the page shows beside the scores; all of it may be missing."""

    intervals: Intervals | None = None
    left_out: LeftOut | None = None
    sensitivity: Sensitivity | None = None
    comparison: Comparison | None = None
    predictions: Sequence[Prediction] = ()
    prediction_level: float = 0.95
    notes: Sequence[str] = ()
    # By submission and `Trial.place`: a remark, such as that the machine was busy.
    trial_notes: Mapping[tuple[str, str], str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A section with what its figures and its downloads need."""

    html: str
    drawings: dict[str, Figure] = dataclasses.field(default_factory=dict)
    downloads: dict[str, Table] = dataclasses.field(default_factory=dict)


def percent(level: float) -> str:
    """Returns '95 %'."""
    return f"{100 * level:g} %"


def how_sure(result: Result, evidence: Evidence, style: Style) -> Part:
    """Returns what each workload and the choice of r_max do to the scores."""
    parts, drawings, data = [], {}, {}
    if evidence.left_out is not None:
        left_out = evidence.left_out
        order = result.ranking
        notes = [f"without {workload}" for workload in left_out.workloads]
        drawings["left-out"] = figures.spread_figure(
            style, result.scores[order], left_out.scores[order], notes
        )
        data["left_out"] = make_table(
            ["submission", "with all", *notes],
            (
                [result.submissions[s], result.scores[s], *left_out.scores[s]]
                for s in order
            ),
        )
        parts += [
            "<h3>One workload left out</h3>",
            h.paragraph(
                "Each dot is the score with one workload left out, the upright mark "
                "the score with all. Where dots of two submissions overlap, their "
                "order may hang on one workload."
            ),
            h.figure(
                "left-out", "scores with one workload left out", _rows(len(style))
            ),
            _left_out_table(result, left_out, style),
        ]
    if evidence.sensitivity is not None:
        other = evidence.sensitivity
        drawings["sensitivity"] = figures.sensitivity_figure(
            style, other.r_max, other.scores[result.ranking], result.rules.r_max
        )
        names = [result.submissions[s] for s in result.ranking]
        data["sensitivity"] = make_table(
            ["r_max", *names],
            (
                [tau, *other.scores[result.ranking, r]]
                for r, tau in enumerate(other.r_max)
            ),
        )
        parts += [
            "<h3>Another r_max</h3>",
            h.paragraph(
                "A time above r_max times the best does not count. The dashed line is "
                f"the r_max of these rules, {result.rules.r_max:g}. Where lines cross, "
                "another choice would change the order."
            ),
            h.legend(style),
            h.figure("sensitivity", "score against r_max"),
            h.download("sensitivity"),
        ]
    if not parts:
        return Part(html="")
    text = h.section("sure", "How sure", *parts)
    return Part(html=text, drawings=drawings, downloads=data)


def _left_out_table(result: Result, left_out: LeftOut, style: Style) -> str:
    ranks_SK = 1 + (left_out.scores[None] > left_out.scores[:, None]).sum(axis=1)
    header = [h.heading("submission")]
    header += [h.heading(f"without {name}", "number") for name in left_out.workloads]
    rows = []
    for s in result.ranking:
        name = result.submissions[s]
        cells = [
            h.cell(f"{score:.4f} (rank {rank})", "number", score)
            for score, rank in zip(left_out.scores[s], ranks_SK[s], strict=True)
        ]
        rows.append([h.row_heading(name, style[name]), *cells])
    body = h.table("scores with one workload left out", header, rows, "first")
    return (
        "<details><summary>Scores and ranks with one workload left out</summary>"
        f"<div>{h.download('left_out')}{body}</div></details>"
    )


def _rows(count: int) -> int:
    """Height in pixels of a figure of so many rows."""
    return 70 + 30 * count


def comparison(result: Result, given: Comparison | None, style: Style) -> Part:
    """Returns a figure of speed-ups for each submission but the reference."""
    if given is None:
        return Part(html="")
    drawings, places, rows = {}, [], []
    for s in result.ranking:
        name = result.submissions[s]
        if name == given.reference:
            continue
        labels, values_B, low_B, high_B = _speedup_rows(result, given, s)
        anchor = f"forest-{s}"
        drawings[anchor] = figures.forest_figure(
            labels, values_B, low_B, high_B, style[name]
        )
        verdict = given.verdicts[s] if given.verdicts is not None else ""
        places.append(
            f"<div><h3>{h.swatch(style[name])}{h.escape(name)}</h3>"
            f'<div class="goal">{h.escape(verdict)}</div>'
            f"{h.figure(anchor, f'speed-ups of {name}', _rows(len(labels)))}</div>"
        )
        aligned = (labels, values_B, low_B, high_B)
        rows += [[name, *row] for row in zip(*aligned, strict=True)]
    columns = ["submission", "workload", "speed-up", "low", "high"]
    text = h.section(
        "comparison",
        f"Comparison with {given.reference}",
        h.paragraph(
            f"How many times as fast as {given.reference} each submission reaches the "
            "target: right of the dashed line is faster. Whiskers are "
            f"{percent(given.level)} intervals."
        ),
        f'<div class="tools">{h.download("comparison")}</div>',
        f'<div class="grid">{"".join(places)}</div>',
    )
    return Part(
        html=text,
        drawings=drawings,
        downloads={"comparison": make_table(columns, rows)},
    )


def _speedup_rows(
    result: Result, given: Comparison, s: int
) -> tuple[list[str], FloatArray, FloatArray, FloatArray]:
    labels = list(result.workloads)
    arrays = [given.speedups[s], given.low[s], given.high[s]]
    if given.overall is not None:
        labels.append("geometric mean")
        nothing = np.full(len(result.submissions), np.nan)
        for i, extra in enumerate(
            (given.overall, given.overall_low, given.overall_high)
        ):
            extra_S = nothing if extra is None else extra
            arrays[i] = np.append(arrays[i], extra_S[s])
    return labels, arrays[0], arrays[1], arrays[2]


def predictions(given: Sequence[Prediction], level: float, style: Style) -> Part:
    """Returns a table of expected times to target."""
    if not given:
        return Part(html="")
    columns = ["submission", "workload", "study", "trial", "expected (s)"]
    header = [
        h.heading(name, "" if c < 2 else "number") for c, name in enumerate(columns)
    ]
    header += [h.heading(f"{percent(level)} interval", "number"), h.heading("note")]
    rows, values = [], []
    for p in given:
        interval = f"{tables.format_number(p.low)} to {tables.format_number(p.high)}"
        rows.append(
            [
                h.row_heading(p.submission, style.get(p.submission)),
                h.cell(p.workload),
                h.cell(p.study, "number", p.study),
                h.cell(p.trial, "number", p.trial),
                h.cell(tables.format_number(p.seconds), "number", p.seconds),
                h.cell(interval, "number", p.low),
                h.cell(p.note, "text"),
            ]
        )
        values.append(list(dataclasses.astuple(p)))
    names = [field.name for field in dataclasses.fields(Prediction)]
    text = h.section(
        "predictions",
        "Predictions",
        h.paragraph(
            "When trials that have not reached the target should reach it, by the "
            "curve so far. A prediction is no result: it changes no score."
        ),
        f'<div class="tools">{h.download("predictions")}</div>',
        h.table("predictions", header, rows, "first"),
    )
    return Part(html=text, downloads={"predictions": make_table(names, values)})


def score_cells(intervals: Intervals | None, s: int) -> list[str]:
    """Returns the cells with intervals of the score table; none without any."""
    if intervals is None:
        return []
    low, high = intervals.score_low[s], intervals.score_high[s]
    cells = [h.cell(f"{low:.3f} to {high:.3f}", "number", low)]
    if intervals.rank_low is not None and intervals.rank_high is not None:
        best, worst = int(intervals.rank_low[s]), int(intervals.rank_high[s])
        text = str(best) if best == worst else f"{best} to {worst}"
        cells.append(h.cell(text, "number", best))
    return cells


def score_headings(intervals: Intervals | None) -> list[str]:
    """Returns the headings of `score_cells`."""
    if intervals is None:
        return []
    names = [f"{percent(intervals.level)} interval"]
    if intervals.rank_low is not None and intervals.rank_high is not None:
        names.append("rank, interval")
    return [h.heading(name, "number") for name in names]


def score_columns(intervals: Intervals | None) -> list[str]:
    """Returns the columns of `score_values`."""
    if intervals is None:
        return []
    return ["score_low", "score_high", "rank_low", "rank_high"]


def score_values(intervals: Intervals | None, s: int) -> list[Any]:
    """Returns the intervals of a submission for the download."""
    if intervals is None:
        return []
    ranks = (intervals.rank_low, intervals.rank_high)
    return [
        intervals.score_low[s],
        intervals.score_high[s],
        *(None if rank is None else rank[s] for rank in ranks),
    ]
