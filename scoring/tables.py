"""The report on a terminal: headline, tables, footnotes, warnings."""

import math
from collections.abc import Callable, Iterable, Sequence

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from scoring import words
from scoring.assessment import Assessment
from scoring.compare import AtBudget, Comparison
from scoring.predict import MAX_ROWS, Forecast, worth_a_row
from scoring.read import Trial
from scoring.score import Result
from scoring.uncertainty import Uncertainty


def print_report(assessment: Assessment, console: Console | None = None) -> None:
    """Prints headline, scores, all that was assessed, warnings and skipped paths.

    On a terminal, a score table that is too wide is split by workloads; anywhere else
    lines are as long as they need to be.
    """
    console = console or Console(highlight=False)
    result, uncertainty = assessment.result, assessment.uncertainty
    _print_lines(console, [words.headline(result, uncertainty)])
    _print_lines(console, [*words.standings(result), words.rules_line(result)])
    _print_scores(console, result, uncertainty)
    if result.held_out:
        variants = range(len(result.held_out))
        _print_parts(console, lambda part: held_out_table(result, part), variants)
    _print_lines(console, words.footnotes(result))
    if uncertainty:
        _print_lines(console, words.sensitivity_lines(result, uncertainty))
    if assessment.comparison:
        _print_table(console, comparison_table(result, assessment.comparison))
        _print_lines(console, [words.comparison_line(result, assessment.comparison)])
    if assessment.at_budget:
        _print_lines(console, [words.budget_line(assessment.at_budget)])
        _print_table(console, budget_table(result, assessment.at_budget))
    if assessment.forecasts is not None:
        print_predictions(assessment.forecasts, console)
    if trials := words.unfinished(assessment.runs):
        _print_table(console, trial_table(trials))
    warnings = (*result.warnings, *(uncertainty.notes if uncertainty else ()))
    _print_lines(console, [f"warning: {warning}" for warning in warnings])
    _print_lines(console, words.skipped_lines(assessment.runs))


def _print_lines(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def _print_scores(
    console: Console, result: Result, uncertainty: Uncertainty | None
) -> None:
    columns = range(len(result.workloads))
    if uncertainty and _is_too_wide(console, score_table(result, None, uncertainty)):
        _print_table(console, score_table(result, (), uncertainty))
        uncertainty = None
    _print_parts(console, lambda part: score_table(result, part, uncertainty), columns)


def _print_parts(
    console: Console, make: Callable[[Sequence[int]], Table], columns: Sequence[int]
) -> None:
    """Prints a table of these columns, in halves where it is too wide."""
    table = make(columns)
    if _is_too_wide(console, table) and len(columns) > 1:
        middle = (len(columns) + 1) // 2
        _print_parts(console, make, columns[:middle])
        _print_parts(console, make, columns[middle:])
    else:
        _print_table(console, table)


def _is_too_wide(console: Console, table: Table) -> bool:
    return console.is_terminal and _width(console, table) > console.width


def _print_table(console: Console, table: Table) -> None:
    if not console.is_terminal:
        width = _width(console, table)
        console = Console(file=console.file, width=width, highlight=False)
    console.print(table)


def _width(console: Console, table: Table) -> int:
    unlimited = console.options.update(max_width=10_000)
    return Measurement.get(console, unlimited, table).maximum


def score_table(
    result: Result,
    workloads: Sequence[int] | None = None,
    uncertainty: Uncertainty | None = None,
) -> Table:
    """Returns score and time to target per workload, best submission first.

    Args:
      result: what to show.
      workloads: indices of the columns to show; all by default.
      uncertainty: adds the intervals of score and rank.
    """
    columns = range(len(result.workloads)) if workloads is None else workloads
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("submission", no_wrap=True)
    table.add_column("score", justify="right", no_wrap=True)
    if uncertainty:
        percent = f"{100 * uncertainty.confidence:g} %"
        for noun in ("score", "rank"):
            table.add_column(f"{noun},\n{percent}", justify="right", no_wrap=True)
    _add_workloads(table, [result.workloads[w] for w in columns])
    for s in result.ranking:
        table.add_row(
            Text(words.label(result, s)),
            f"{result.scores[s]:.4f}",
            *(_intervals(uncertainty, s) if uncertainty else ()),
            *(words.format_time(result, s, w) for w in columns),
        )
    return table


def held_out_table(result: Result, variants: Sequence[int]) -> Table:
    """Returns the time to target on held-out variants, best submission first."""
    table = Table(title="Held-out variants", box=box.SIMPLE_HEAD)
    table.add_column("submission", no_wrap=True)
    _add_workloads(table, [result.held_out[v] for v in variants])
    for s in result.ranking:
        times = (words.format_held_out(result, s, v) for v in variants)
        table.add_row(Text(words.label(result, s)), *times)
    return table


def _add_workloads(table: Table, names: Iterable[str]) -> None:
    for name in names:
        heading = Text(name.replace("_", "_\n"))
        table.add_column(heading, justify="right", no_wrap=True)


def _intervals(uncertainty: Uncertainty, s: int) -> tuple[str, str]:
    u = uncertainty
    return (
        words.format_interval(u.score_low_S[s], u.score_high_S[s]),
        words.format_ranks(u.rank_low_S[s], u.rank_high_S[s]),
    )


def trial_table(trials: Iterable[Trial]) -> Table:
    """Returns the status and message of each trial."""
    table = Table(
        title="Trials that failed, diverged or are not finished", box=box.SIMPLE_HEAD
    )
    for column in ("submission", "trial", "status", "message"):
        table.add_column(column, overflow="fold")
    for trial in trials:
        table.add_row(
            Text(trial.submission),
            Text(trial.place),
            str(trial.status or ""),
            Text(words.message(trial)),
        )
    return table


def comparison_table(result: Result, comparison: Comparison) -> Table:
    """Returns speed-ups over the reference, best submission first."""
    percent = f"{100 * comparison.confidence:g} %"
    table = Table(
        title=Text(f"Speed-up over {comparison.reference}"), box=box.SIMPLE_HEAD
    )
    table.add_column("submission", no_wrap=True)
    for heading in (
        "mean",
        percent,
        "work-\nloads",
        "win/tie\n/loss",
        "har-\nmonic",
        "geo-\nmetric",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for s in result.ranking:
        low, high = comparison.mean_speedup_low_S[s], comparison.mean_speedup_high_S[s]
        is_reference = result.submissions[s] == comparison.reference
        counts = (
            f"{n[s]}"
            for n in (comparison.wins_S, comparison.ties_S, comparison.losses_S)
        )
        table.add_row(
            Text(words.label(result, s)),
            _number(comparison.mean_speedup_S[s]),
            "reference" if is_reference else words.format_interval(low, high, 2),
            f"{comparison.shared_S[s]}",
            "" if is_reference else "/".join(counts),
            _number(comparison.gated_harmonic_S[s]),
            _number(comparison.gated_geometric_S[s]),
        )
    return table


def budget_table(result: Result, found: AtBudget) -> Table:
    """Returns targets and best metrics within a budget, best submission first."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("submission", no_wrap=True)
    table.add_column("targets", justify="right", no_wrap=True)
    for workload in result.workloads:
        heading = f"{workload}\n{result.rules.goals[workload].metric}"
        table.add_column(Text(heading.replace("_", "_\n")), justify="right")
    for s in result.ranking:
        table.add_row(
            Text(words.label(result, s)),
            f"{found.share_S[s]:.0%}",
            *(f"{v:.4g}" if math.isfinite(v) else "none" for v in found.best_SB[s]),
        )
    return table


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "none"


def prediction_table(forecasts: Sequence[Forecast]) -> Table:
    """Returns time run, predicted time and interval of each trial, or the reason."""
    table = Table(
        title="Predicted, not measured: seconds to the target of trials that missed it",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("submission")
    table.add_column("trial")
    for column in ("run", "predicted", "interval"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("settled")
    for item in forecasts:
        prediction = item.prediction
        table.add_row(
            Text(item.trial.submission),
            Text(item.trial.place),
            words.format_number(prediction.run),
            *map(Text, words.prediction_cells(prediction)),
        )
    return table


def print_predictions(
    forecasts: Sequence[Forecast], console: Console | None = None
) -> None:
    """Prints the table of predictions and what it means.

    Of more than `predict.MAX_ROWS` trials, those without a prediction are counted; of
    more predictions than that, settled ones come first and the rest is counted.
    """
    console = console or Console(highlight=False)
    shown, reasons = worth_a_row(forecasts)
    hidden = len(shown) - MAX_ROWS
    if hidden > 0:
        shown = sorted(shown, key=lambda item: not item.prediction.is_settled)
    if shown:
        _print_table(console, prediction_table(shown[:MAX_ROWS]))
    if hidden > 0:
        _print_lines(console, [f"and {hidden} more: --report and --json have them all"])
    _print_lines(console, words.prediction_lines(len(forecasts), reasons))
