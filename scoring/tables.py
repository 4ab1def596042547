"""Results as words, terminal tables, CSV and JSON."""

import csv
import io
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from algoperf.records import Status, finite, write_text
from scoring import evidence
from scoring.compare import AtBudget, Comparison
from scoring.parse import one_line
from scoring.read import Runs, Trial
from scoring.score import Result
from scoring.uncertainty import Uncertainty

NOT_COUNTED = "†"
YOURS = "(yours)"
PREDICTED = "~"


def headline(result: Result, uncertainty: Uncertainty | None = None) -> str:
    """Returns one sentence: who is fastest, by how much, and whether that is sure."""
    sentence = _headline(result, uncertainty)
    return f"With predicted times: {sentence}" if result.predicted else sentence


def _headline(result: Result, uncertainty: Uncertainty | None) -> str:
    first, *others = result.ranking
    name, score = result.submissions[first], result.scores[first]
    reached = int(result.counts[first].sum())
    total = len(result.workloads)
    if score == 0:
        return f"No score: no target of {result.rules.name} was reached."
    if not others:
        return (
            f"{name} reached the target on {reached} of {_workloads(total)}; its score "
            "says nothing yet, there is no other submission to compare it with."
        )
    second = others[0]
    rival, rival_score = result.submissions[second], result.scores[second]
    if rival_score == score:
        return f"{name} and {rival} are equally fast: both score {score:.4f}."
    if rival_score == 0:
        return (
            f"{name} is fastest with a score of {score:.4f}: it alone has times "
            f"that count, on {reached} of {_workloads(total)}."
        )
    equals: list[str] = []
    more = ""
    if uncertainty and evidence.is_known(uncertainty, first):
        equals = evidence.not_different(result, uncertainty, first)
    elif uncertainty:
        more = " How sure that is, so few trials cannot say."
    shared = result.counts[first] & result.counts[second]
    logs = np.log(result.ratios[first, shared] / result.ratios[second, shared])
    factor = math.exp(logs.mean()) if shared.any() else 1.0
    is_fastest = factor <= 1 and not equals
    return (
        f"{name} {'is fastest' if is_fastest else 'ranks first'} with a score of "
        f"{score:.4f}, {_rivals(rival, rival_score, equals)}; "
        f"{_compare(factor, int(shared.sum()), rival if len(equals) > 1 else None)}."
        f"{more}"
    )


def _rivals(rival: str, score: float, equals: Sequence[str]) -> str:
    """Words for the second of the ranking and for those that may be equally good."""
    second = f"{rival} ({score:.4f})"
    if not equals:
        return f"ahead of {second}"
    if rival not in equals:
        same = evidence.some_names(equals)
        return f"ahead of {second}, but not distinguishable from {same}"
    rest = [name for name in equals if name != rival]
    also = f" nor from {evidence.some_names(rest)}" if rest else ""
    return f"not distinguishable from {second}{also}"


def _compare(factor: float, shared: int, rival: str | None = None) -> str:
    """Words for a geometric mean of time ratios over the workloads of both.

    `rival` names the other one, where "both" would not say who that is.
    """
    both = f"it and {rival}" if rival else "both"
    if not shared:
        return f"no workload counts for {both}"
    where = f"on the {_workloads(shared)} that count for {both}"
    if shared == 1:
        where = f"on the one workload that counts for {both}"
    percent = 100 * abs(1 - factor)
    if percent < 0.05:
        return f"{where} it takes the same time"
    word = "less" if factor < 1 else "more"
    mean = "" if shared == 1 else " (geometric mean)"
    return f"{where} it takes {percent:.1f} % {word} time{mean}"


def _workloads(count: int) -> str:
    return "1 workload" if count == 1 else f"{count} workloads"


def format_number(time: float, unit: str = "seconds") -> str:
    """Returns a time for a reader: '12.3', '48,151', 'miss' for infinity."""
    if not math.isfinite(time):
        return "miss"
    is_short = time < 1000 and not (unit == "steps" and time == int(time))
    return f"{time:,.1f}" if is_short else f"{time:,.0f}"


def format_time(result: Result, submission: int, workload: int) -> str:
    """Returns a cell of the score table; a time that does not count has a dagger."""
    text = format_number(result.times[submission, workload], result.timing.unit)
    is_struck = text != "miss" and not result.counts[submission, workload]
    text = _mark(result, submission, result.workloads[workload], text)
    return f"{text} {NOT_COUNTED}" if is_struck else text


def format_held_out(result: Result, submission: int, variant: int) -> str:
    """Returns the time on a held-out variant, marked if it is predicted."""
    time = result.held_out_times[submission, variant]
    text = format_number(time, result.timing.unit)
    return _mark(result, submission, result.held_out[variant], text)


def _mark(result: Result, submission: int, workload: str, text: str) -> str:
    is_predicted = (result.submissions[submission], workload) in result.predicted
    return f"{PREDICTED}{text}" if is_predicted else text


def footnotes(result: Result) -> list[str]:
    """Returns what the marks in the score table mean, as far as they occur."""
    lines = []
    struck = np.isfinite(result.times) & ~result.counts
    if struck.any():
        why = f"more than {result.rules.r_max:g} times the best counted time"
        if result.held_out:
            why += ", or the target on the held-out variant was missed"
        lines.append(f"{NOT_COUNTED} reached, but does not count: {why}")
    if result.predicted:
        lines.append(f"{PREDICTED} predicted, not measured: a run in it was stopped")
    return lines


def label(result: Result, submission: int) -> str:
    """Returns a submission's name; beside published ones, yours are marked."""
    name = result.submissions[submission]
    is_mine = result.published and name not in result.published
    return f"{name} {YOURS}" if is_mine else name


def standings(result: Result) -> list[str]:
    """Returns where each of your submissions stands among the published ones."""
    lines = []
    for s in result.ranking:
        if not result.published or result.submissions[s] in result.published:
            continue
        place = 1 + int((result.scores > result.scores[s]).sum())
        lines.append(
            f"{result.submissions[s]} stands in place {place} of "
            f"{len(result.submissions)}, with a score of {result.scores[s]:.4f}."
        )
    return lines


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
    for w in columns:
        heading = Text(result.workloads[w].replace("_", "_\n"))
        table.add_column(heading, justify="right", no_wrap=True)
    for s in result.ranking:
        table.add_row(
            Text(label(result, s)),
            f"{result.scores[s]:.4f}",
            *(_intervals(uncertainty, s) if uncertainty else ()),
            *(format_time(result, s, w) for w in columns),
        )
    return table


def _intervals(uncertainty: Uncertainty, s: int) -> tuple[str, str]:
    u = uncertainty
    return (
        evidence.format_interval(u.score_low_S[s], u.score_high_S[s]),
        evidence.format_ranks(u.rank_low_S[s], u.rank_high_S[s]),
    )


def unfinished(runs: Runs) -> list[Trial]:
    """Returns the trials that failed, diverged, or have not finished yet."""
    good = (None, Status.REACHED, Status.BUDGET, Status.COMPLETED)
    return [trial for trial in runs.trials if trial.status not in good]


def trial_table(trials: Iterable[Trial]) -> Table:
    """Returns the status and message of each trial."""
    table = Table(title="Trials without a result", box=box.SIMPLE_HEAD)
    for column in ("submission", "trial", "status", "message"):
        table.add_column(column, overflow="fold")
    for trial in trials:
        table.add_row(
            Text(trial.submission),
            Text(trial.place),
            str(trial.status or ""),
            Text(message(trial)),
        )
    return table


def message(trial: Trial) -> str:
    """Returns what the record of a trial says about its end, in one line, or ''."""
    return one_line(str((trial.record or {}).get("message") or ""))


def status_counts(runs: Runs) -> dict[str, int]:
    """Returns how many trials have which status; 'unknown' in official logs."""
    return dict(Counter(str(trial.status or "unknown") for trial in runs.trials))


def print_report(
    runs: Runs,
    result: Result,
    console: Console | None = None,
    *,
    uncertainty: Uncertainty | None = None,
    comparison: Comparison | None = None,
    at_budget: AtBudget | None = None,
) -> None:
    """Prints headline, scores, trials without a result, warnings and skipped paths.

    With `uncertainty` come intervals and what the first place hangs on, with
    `comparison` a table of speed-ups, with `at_budget` one of metrics.

    On a terminal, a score table that is too wide is split by workloads; anywhere else
    lines are as long as they need to be.
    """
    console = console or Console(highlight=False)
    for line in (headline(result, uncertainty), *standings(result)):
        _print_line(console, line)
    rules = f"rules {result.rules.name}, {result.ruleset} tuning, {result.mode} mode"
    _print_line(console, f"{rules}; time to target in {result.timing}")
    _print_scores(console, result, range(len(result.workloads)), uncertainty)
    for line in footnotes(result):
        _print_line(console, line)
    if uncertainty:
        for line in evidence.sensitivity_lines(result, uncertainty):
            _print_line(console, line)
    if comparison:
        _print_table(console, evidence.comparison_table(result, comparison))
        for line in evidence.comparison_lines(comparison):
            _print_line(console, line)
    if at_budget:
        _print_line(console, evidence.budget_line(at_budget))
        _print_table(console, evidence.budget_table(result, at_budget))
    if trials := unfinished(runs):
        _print_table(console, trial_table(trials))
    for warning in (*result.warnings, *(uncertainty.notes if uncertainty else ())):
        _print_line(console, f"warning: {warning}")
    for line in skipped_lines(runs):
        _print_line(console, line)


def skipped_lines(runs: Runs, at_most: int = 3) -> list[str]:
    """Returns a line per skipped path; of more with the same reason, a count."""
    paths: dict[str, list[Path]] = defaultdict(list)
    for item in runs.skipped:
        paths[item.reason].append(item.path)
    lines = []
    for reason, places in paths.items():
        lines += [f"skipped: {path}: {reason}" for path in places[:at_most]]
        if len(places) > at_most:
            lines.append(f"skipped: {len(places) - at_most} more: {reason}")
    return lines


def _print_line(console: Console, line: str) -> None:
    console.print(Text(line), soft_wrap=True)


def _print_scores(
    console: Console,
    result: Result,
    columns: Sequence[int],
    uncertainty: Uncertainty | None,
) -> None:
    table = score_table(result, columns, uncertainty)
    too_wide = console.is_terminal and _width(console, table) > console.width
    if too_wide and uncertainty:
        _print_table(console, score_table(result, (), uncertainty))
        _print_scores(console, result, columns, None)
    elif too_wide and len(columns) > 1:
        middle = (len(columns) + 1) // 2
        _print_scores(console, result, columns[:middle], None)
        _print_scores(console, result, columns[middle:], None)
    else:
        _print_table(console, table)


def _print_table(console: Console, table: Table) -> None:
    if not console.is_terminal:
        width = _width(console, table)
        console = Console(file=console.file, width=width, highlight=False)
    console.print(table)


def _width(console: Console, table: Table) -> int:
    unlimited = console.options.update(max_width=10_000)
    return Measurement.get(console, unlimited, table).maximum


def write_scores_csv(
    path: Path, result: Result, uncertainty: Uncertainty | None = None
) -> None:
    """Writes submission, score and time per workload ('inf' for a miss).

    A column of times has its unit after the name: 'ogbg_seconds', 'ogbg_steps'. With
    `uncertainty`, the ends of the interval of the score follow it ('nan': unknown).
    """
    unit = result.timing.unit
    header = ["submission", "score", *(f"{w}_{unit}" for w in result.workloads)]
    rows: list[list[Any]] = [
        [result.submissions[s], float(result.scores[s]), *result.times[s].tolist()]
        for s in result.ranking
    ]
    if uncertainty:
        header[2:2] = ["score_low", "score_high"]
        for s, row in zip(result.ranking, rows, strict=True):
            low, high = uncertainty.score_low_S[s], uncertainty.score_high_S[s]
            row[2:2] = [float(low), float(high)]
    if result.published:
        header.append("is_published")
        for row in rows:
            row.append(str(row[0] in result.published).lower())
    if result.predicted:  # a column that names the workloads whose time is predicted
        header.append("predicted")
        for row in rows:
            row.append(" ".join(sorted(w for s, w in result.predicted if s == row[0])))
    _write_csv(path, header, rows)


def write_profile_csv(path: Path, result: Result) -> None:
    """Writes tau and the profile of each submission, one row per step."""
    taus, rho = result.profile()
    order = result.ranking
    rows = [
        [float(tau), *rho[order, t].tolist()] for t, tau in enumerate(taus.tolist())
    ]
    _write_csv(path, ["tau", *(result.submissions[s] for s in order)], rows)


def _write_csv(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([header, *rows])
    write_text(path, buffer.getvalue())


def to_json(
    result: Result,
    uncertainty: Uncertainty | None = None,
    comparison: Comparison | None = None,
    at_budget: AtBudget | None = None,
) -> dict[str, Any]:
    """Returns the result as plain values; a miss, or what is unknown, is None.

    Times are under the name of their unit: 'seconds' or 'steps'.
    """
    unit = result.timing.unit

    def workloads(s: int) -> dict[str, Any]:
        return {
            workload: {
                unit: float(result.times[s, w]),
                "ratio": float(result.ratios[s, w]),
                "counts": bool(result.counts[s, w]),
            }
            for w, workload in enumerate(result.workloads)
        }

    value: dict[str, Any] = {
        "rules": result.rules.name,
        "ruleset": result.ruleset,
        "mode": str(result.mode),
        "time": str(result.timing.kind),
        "unit": unit,
        "interpolate": result.timing.interpolate,
        "headline": headline(result, uncertainty),
        "submissions": [
            {
                "submission": result.submissions[s],
                "is_published": result.submissions[s] in result.published,
                "score": float(result.scores[s]),
                "workloads": workloads(s),
                f"held_out_{unit}": {
                    variant: float(result.held_out_times[s, v])
                    for v, variant in enumerate(result.held_out)
                },
            }
            for s in result.ranking
        ],
        "predicted": [list(pair) for pair in sorted(result.predicted)],
        "warnings": list(result.warnings),
    }
    if uncertainty:
        value["uncertainty"] = evidence.uncertainty_json(result, uncertainty)
    if comparison:
        value["comparison"] = evidence.comparison_json(result, comparison)
    if at_budget:
        value["at_budget"] = evidence.budget_json(result, at_budget)
    return finite(value)
