"""Sections of the page that say how sure the scores are; each is '' without its value.

Dimension key: S submissions, in the order of `Result.submissions`; B base workloads;
R values of r_max; K other inputs of a score.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from scoring import export, figures, words
from scoring import page_html as h
from scoring.compare import AtBudget, Comparison
from scoring.figures import Figure
from scoring.page_data import Table, make_table
from scoring.page_html import Style
from scoring.predict import MAX_ROWS, Forecast, worth_a_row
from scoring.read import FloatArray
from scoring.score import Result
from scoring.uncertainty import Uncertainty


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A section with what its figures and its downloads need."""

    html: str
    drawings: dict[str, Figure] = dataclasses.field(default_factory=dict)
    downloads: dict[str, Table] = dataclasses.field(default_factory=dict)


def how_sure(result: Result, uncertainty: Uncertainty | None, style: Style) -> Part:
    """Returns what each workload and the choice of r_max do to the scores."""
    if uncertainty is None:
        return Part(html="")
    lines = words.sensitivity_lines(result, uncertainty)
    found = [_other_r_max(result, uncertainty, style)]
    if len(result.workloads) > 1:
        found.insert(0, _left_out(result, uncertainty, style))
    text = h.section(
        "sure",
        "How sure",
        "".join(h.paragraph(f"{line}.") for line in lines),
        *(part.html for part in found),
    )
    return Part(
        html=text,
        drawings={k: v for part in found for k, v in part.drawings.items()},
        downloads={k: v for part in found for k, v in part.downloads.items()},
    )


def _left_out(result: Result, uncertainty: Uncertainty, style: Style) -> Part:
    order = result.ranking
    scores_SK = uncertainty.leave_one_out_scores_BS.T
    notes = [f"without {workload}" for workload in result.workloads]
    drawing = figures.spread_figure(
        style, result.scores[order], scores_SK[order], notes
    )
    table = make_table(
        ["submission", "with all", *notes],
        ([result.submissions[s], result.scores[s], *scores_SK[s]] for s in order),
    )
    text = (
        "<h3>One workload left out</h3>"
        + h.paragraph(
            "Each dot is the score with one workload left out, the upright mark the "
            "score with all. Where dots of two submissions overlap, their order may "
            "hang on one workload."
        )
        + h.figure("left-out", "scores with one workload left out", _rows(len(style)))
        + _left_out_table(result, uncertainty, style)
    )
    return Part(
        html=text, drawings={"left-out": drawing}, downloads={"left_out": table}
    )


def _left_out_table(result: Result, uncertainty: Uncertainty, style: Style) -> str:
    scores_SK = uncertainty.leave_one_out_scores_BS.T
    ranks_SK = uncertainty.leave_one_out_ranks_BS.T
    header = [h.heading("submission")]
    header += [h.heading(f"without {name}", "number") for name in result.workloads]
    rows = []
    for s in result.ranking:
        cells = [
            h.cell(f"{score:.4f} (rank {rank:.0f})", "number", score)
            for score, rank in zip(scores_SK[s], ranks_SK[s], strict=True)
        ]
        rows.append([row_heading(result, s, style), *cells])
    body = h.table("scores with one workload left out", header, rows, "first")
    return (
        "<details><summary>Scores and ranks with one workload left out</summary>"
        f"<div>{h.download('left_out')}{body}</div></details>"
    )


def _other_r_max(result: Result, uncertainty: Uncertainty, style: Style) -> Part:
    r_max_R, order = uncertainty.r_max_R, result.ranking
    scores_SR = uncertainty.r_max_scores_RS.T
    drawing = figures.sensitivity_figure(
        style, r_max_R, scores_SR[order], result.rules.r_max
    )
    table = make_table(
        ["r_max", *(result.submissions[s] for s in order)],
        ([r_max, *scores_SR[order, r]] for r, r_max in enumerate(r_max_R)),
    )
    text = (
        "<h3>Another r_max</h3>"
        + h.paragraph(
            "A time above r_max times the best does not count. The dashed line is the "
            f"r_max of these rules, {result.rules.r_max:g}. Where lines cross, another "
            "choice would change the order."
        )
        + h.legend(style)
        + h.figure("sensitivity", "score against r_max")
        + h.download("sensitivity")
    )
    return Part(
        html=text, drawings={"sensitivity": drawing}, downloads={"sensitivity": table}
    )


def _rows(count: int) -> int:
    """Height in pixels of a figure of so many rows."""
    return 100 + 30 * count  # ticks and title of the axis take the rest


def row_heading(result: Result, s: int, style: Style) -> str:
    """Returns the first cell of a submission's row, with the mark of yours."""
    return h.row_heading(words.label(result, s), style[result.submissions[s]])


def comparison(result: Result, given: Comparison | None, style: Style) -> Part:
    """Returns a figure of speed-ups for each submission but the reference."""
    if given is None or len(result.submissions) < 2:
        return Part(html="")
    drawings, places = {}, []
    for s in result.ranking:
        name = result.submissions[s]
        if name == given.reference:
            continue
        labels, anchor = [*result.workloads, export.MEAN], f"forest-{s}"
        drawings[anchor] = figures.forest_figure(
            labels,
            np.append(given.speedup_SB[s], given.mean_speedup_S[s]),
            np.append(given.speedup_low_SB[s], given.mean_speedup_low_S[s]),
            np.append(given.speedup_high_SB[s], given.mean_speedup_high_S[s]),
            style[name],
        )
        places.append(
            f"<div><h3>{h.swatch(style[name])}{h.escape(words.label(result, s))}</h3>"
            f'<div class="goal">{h.escape(_verdict(given, s))}</div>'
            f"{h.figure(anchor, f'speed-ups of {name}', _rows(len(labels)))}</div>"
        )
    text = h.section(
        "comparison",
        f"Comparison with {given.reference}",
        h.paragraph(
            f"How many times as fast as {given.reference} each submission reaches the "
            "target: right of the dashed line is faster. Whiskers are "
            f"{words.percent(given.confidence)} intervals; where there are none, they "
            "are unknown. The geometric mean is over the workloads where "
            f"{words.compared_where(result)}."
        ),
        f'<div class="tools">{h.download("comparison")}</div>',
        f'<div class="grid">{"".join(places)}</div>',
    )
    columns, *rows = export.speedup_rows(result, given)
    return Part(
        html=text,
        drawings=drawings,
        downloads={"comparison": make_table(columns, rows)},
    )


def _verdict(given: Comparison, s: int) -> str:
    """Returns mean speed-up, its interval, and wins, ties and losses, in words."""
    mean = given.mean_speedup_S[s]
    counts = (
        f"faster on {given.wins_S[s]}, tied on {given.ties_S[s]}, "
        f"slower on {given.losses_S[s]}"
    )
    if np.isnan(mean):
        return f"no workload to compare on; {counts}"
    interval = words.format_interval(
        given.mean_speedup_low_S[s], given.mean_speedup_high_S[s], 2
    )
    return f"{mean:.2f} times as fast (interval {interval}); {counts}"


def at_budget(result: Result, found: AtBudget | None, style: Style) -> Part:
    """Returns a table of the targets and the best metrics within a budget."""
    if found is None:
        return Part(html="")
    goals = result.rules.goals
    header = [h.heading("submission"), h.heading("targets", "number", "reached")]
    header += [h.heading(w, "number", goals[w]) for w in result.workloads]
    rows = [
        [
            row_heading(result, s, style),
            h.cell(f"{found.share_S[s]:.0%}", "number", found.share_S[s]),
            *(_metric_cell(value) for value in found.best_SB[s].tolist()),
        ]
        for s in result.ranking
    ]
    table = make_table(
        ["submission", "share_of_targets", *result.workloads],
        (
            [result.submissions[s], found.share_S[s], *found.best_SB[s]]
            for s in result.ranking
        ),
    )
    text = h.section(
        "budget",
        "At a budget",
        h.paragraph(
            "Targets reached, and best validation metric (the median over studies), "
            f"within {found.budget:,g} {found.unit} of each trial."
        ),
        f'<div class="tools">{h.download("budget")}</div>',
        h.table("metrics at a budget", header, rows, "first"),
    )
    return Part(html=text, downloads={"budget": table})


def _metric_cell(value: float) -> str:
    text = "none" if np.isnan(value) else f"{value:.4g}"
    return h.cell(text, "number", float("inf") if np.isnan(value) else value)


def predictions(
    result: Result, forecasts: Sequence[Forecast] | None, style: Style
) -> Part:
    """Returns a table of expected times to target; the download has every trial."""
    if forecasts is None:
        return Part(html="")
    shown, reasons = worth_a_row(forecasts)
    header = [h.heading("submission"), h.heading("trial")]
    header += [h.heading(c, "number") for c in ("run (s)", "predicted (s)", "interval")]
    rows = []
    for item in shown:
        prediction, name = item.prediction, item.trial.submission
        seconds, interval, settled = words.prediction_cells(prediction)
        rows.append(
            [
                h.row_heading(name, style.get(name)),
                h.cell(item.trial.place),
                h.cell(words.format_number(prediction.run), "number", prediction.run),
                h.cell(seconds, "number", prediction.seconds),
                h.cell(interval, "number", prediction.low),
                h.cell(settled, "text"),
            ]
        )
    values = export.predictions_json(forecasts)
    columns = list(values[0]) if values else []
    body = ""
    if rows:
        body = h.table("predictions", [*header, h.heading("settled")], rows, "first")
    if len(rows) > MAX_ROWS:
        count = h.count(len(rows), "trial")
        body = f"<details><summary>{count}</summary><div>{body}</div></details>"
    role = "They change no score."
    if result.predicted:
        role = (
            "Settled ones count in the score where no trial of the study reached the "
            f"target, marked with {words.PREDICTED}."
        )
    text = h.section(
        "predictions",
        "Predictions",
        h.paragraph(
            "Submission time at which trials that missed the target would have reached "
            f"it, by their curve so far: predicted, not measured. {role}"
        ),
        f'<div class="tools">{h.download("predictions")}</div>',
        body,
        *map(h.paragraph, words.prediction_lines(len(forecasts), reasons)),
    )
    table = make_table(columns, (list(value.values()) for value in values))
    return Part(html=text, downloads={"predictions": table})


def score_cells(uncertainty: Uncertainty | None, s: int) -> list[str]:
    """Returns the cells with intervals of the score table; none without any."""
    if uncertainty is None:
        return []
    low, high = uncertainty.score_low_S[s], uncertainty.score_high_S[s]
    best, worst = uncertainty.rank_low_S[s], uncertainty.rank_high_S[s]
    return [
        _interval_cell(words.format_interval(low, high), low),
        _interval_cell(words.format_ranks(best, worst), best),
    ]


def _interval_cell(text: str, low: float) -> str:
    return h.cell(text, "number", float("inf") if np.isnan(low) else low)


def score_headings(uncertainty: Uncertainty | None) -> list[str]:
    """Returns the headings of `score_cells`."""
    if uncertainty is None:
        return []
    percent = words.percent(uncertainty.confidence)
    names = (f"{percent} interval", f"rank, {percent} interval")
    return [h.heading(name, "number") for name in names]


def score_columns(uncertainty: Uncertainty | None) -> list[str]:
    """Returns the columns of `score_values`."""
    if uncertainty is None:
        return []
    return ["score_low", "score_high", "rank_low", "rank_high"]


def score_values(uncertainty: Uncertainty | None, s: int) -> list[Any]:
    """Returns the intervals of a submission for the download; NaN if unknown."""
    if uncertainty is None:
        return []
    ends_S: tuple[FloatArray, ...] = (
        uncertainty.score_low_S,
        uncertainty.score_high_S,
        uncertainty.rank_low_S,
        uncertainty.rank_high_S,
    )
    return [end_S[s] for end_S in ends_S]


def method(uncertainty: Uncertainty | None) -> str:
    """Returns a paragraph on how the intervals of the scores were made; '' for none."""
    if uncertainty is None:
        return ""
    units = "studies, and trials within them" if uncertainty.with_trials else "studies"
    text = (
        f"Intervals hold {words.percent(uncertainty.confidence)} of "
        f"{uncertainty.resamples:,} resamples of {units}."
    )
    return h.paragraph(text, "soft")
