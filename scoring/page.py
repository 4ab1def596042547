"""The result as one HTML file that needs no network: tables, figures, every trial.

Every text that comes from a record or a rules file is escaped.
"""

import html
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from plotly.offline import get_plotlyjs

from algoperf.records import write_text
from scoring import figures, tables
from scoring.read import Runs, Trial, read_hyperparameters
from scoring.rules import Rules
from scoring.score import Result
from scoring.time_to_target import Timing, trial_time

_TEMPLATE = Path(__file__).with_name("page.html")
_ENVIRONMENT = (
    "host",
    "devices",
    "hardware",
    "environment",
    "versions",
    "git_revision",
)
_OPEN_UP_TO = 40  # with more trials in all, the tables of trials start folded


def write_page(path: str | Path, runs: Runs, rules: Rules, result: Result) -> None:
    """Writes the page; `result` is what `score_runs` made of `runs` by `rules`.

    Raises:
      UserError: the file cannot be written.
    """
    curves = _trials_by_workload(runs, rules)
    style = figures.styles(result)
    drawings = {"profile": figures.profile_figure(result)}
    for number, (workload, trials) in enumerate(curves.items()):
        drawings[f"curves-{number}"] = figures.curves_figure(
            trials, rules.goals[workload], style, result.timing.kind
        )
    sections = (
        _introduction(runs, result),
        _scores(result, style),
        _profile(style),
        _curves(curves, rules, style, result.timing),
        _trials(runs, rules, result.timing),
        _environments(runs),
        _notes(runs, result),
    )
    text = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=_escape(f"AlgoPerf scores, {rules.name}"),
        body="\n".join(sections),
        figures=_script_json(drawings),
        plotly=get_plotlyjs(),
    )
    write_text(Path(path), text)


def _escape(value: object) -> str:
    return html.escape(str(value), quote=True)


def _script_json(value: Any) -> str:
    """Returns JSON that cannot end the script element that holds it."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def _trials_by_workload(runs: Runs, rules: Rules) -> dict[str, list[Trial]]:
    """Groups the trials that have evaluations, in the order of the rules."""
    groups: dict[str, list[Trial]] = {workload: [] for workload in rules.workloads}
    for trial in runs.trials:
        if trial.workload in groups and trial.times.size:
            groups[trial.workload].append(trial)
    return {workload: trials for workload, trials in groups.items() if trials}


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], css: str = "") -> str:
    """Returns a table of cells that are `<td>` or `<th>` elements already."""
    lines = [f"<tr>{''.join(header)}</tr>"]
    lines += [f"<tr>{''.join(row)}</tr>" for row in rows]
    return (
        f'<div class="wide"><table class="{css}">' + "\n".join(lines) + "</table></div>"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _cell(value: object, css: str = "") -> str:
    return f'<td class="{css}">{_escape(value)}</td>'


def _heading(value: object, css: str = "", goal: object = "") -> str:
    below = f'<span class="goal">{_breakable(goal)}</span>' if goal else ""
    return f'<th class="{css}">{_breakable(value)}{below}</th>'


def _breakable(value: object) -> str:
    """Escapes a text whose lines may break after an underscore."""
    return _escape(value).replace("_", "_<wbr>")


def _swatch(look: Mapping[str, str]) -> str:
    kind = {"solid": "solid", "dot": "dotted"}.get(look["dash"], "dashed")
    return (
        f'<i class="swatch" style="border-color:{look["color"]};'
        f'border-top-style:{kind}"></i>'
    )


def _legend(style: Mapping[str, Mapping[str, str]]) -> str:
    entries = (
        f"<span>{_swatch(look)}{_escape(name)}</span>" for name, look in style.items()
    )
    return f'<div class="legend">{"".join(entries)}</div>'


def _introduction(runs: Runs, result: Result) -> str:
    facts = [
        f"Rules {result.rules.name}",
        f"{result.ruleset} tuning",
        f"{result.mode} mode",
        _count(len(result.submissions), "submission"),
        _count(len(runs.trials), "trial"),
    ]
    if runs.skipped:
        facts.append(f"{_count(len(runs.skipped), 'path')} skipped (see the notes)")
    return (
        f'<h1>AlgoPerf scores</h1><p class="headline">'
        f"{_escape(tables.headline(result))}</p>"
        f'<p class="soft">{_escape(" · ".join(facts))}</p>'
    )


def _scores(result: Result, style: Mapping[str, Mapping[str, str]]) -> str:
    goals = result.rules.goals
    header = [
        _heading("submission"),
        _heading("score", "number"),
        _heading("targets", "number"),
        *(_heading(name, "number", goals[name]) for name in result.workloads),
    ]
    rows = []
    for s in result.ranking:
        name, score = result.submissions[s], result.scores[s]
        meter = f'<span class="meter"><i style="width:{100 * score:.1f}%"></i></span>'
        targets = f"{int(result.counts[s].sum())} of {len(result.workloads)}"
        times = (_time_cell(result, s, w) for w in range(len(result.workloads)))
        rows.append(
            [
                f"<td>{_swatch(style[name])}{_breakable(name)}</td>",
                f'<td class="number"><b>{score:.4f}</b>{meter}</td>',
                _cell(targets, "number"),
                *times,
            ]
        )
    notes = [
        f"Time to target in {result.timing}; bold is the best that counts.",
        *tables.footnotes(result),
    ]
    return (
        "<h2>Scores</h2>"
        + _table(header, rows, "scores")
        + f'<p class="soft">{_escape(" ".join(notes))}</p>'
        + _held_out(result)
    )


def _time_cell(result: Result, s: int, w: int) -> str:
    if result.ratios[s, w] == 1:
        css = "number best"
    else:
        css = "number" if result.counts[s, w] else "number miss"
    return _cell(tables.format_time(result, s, w), css)


def _held_out(result: Result) -> str:
    if not result.held_out:
        return ""
    goals = result.rules.goals
    header = [_heading("submission")]
    header += [_heading(name, "number", goals[name]) for name in result.held_out]
    rows = []
    for s in result.ranking:
        times = (
            tables.format_number(time, result.timing.unit)
            for time in result.held_out_times[s]
        )
        rows.append(
            [
                f"<td>{_breakable(result.submissions[s])}</td>",
                *(_cell(time, "number") for time in times),
            ]
        )
    return (
        "<details><summary>Held-out variants: a workload counts only where its variant "
        f"is reached too</summary>{_table(header, rows, 'scores')}</details>"
    )


def _profile(style: Mapping[str, Mapping[str, str]]) -> str:
    return (
        "<h2>Performance profile</h2><p>The share of workloads on which a submission "
        "is at most so many times slower than the fastest one. Higher and further left "
        f"is better; the score is the mean height.</p>{_legend(style)}"
        '<div class="figure" id="profile"></div>'
    )


def _curves(
    curves: Mapping[str, Sequence[Trial]],
    rules: Rules,
    style: Mapping[str, Mapping[str, str]],
    timing: Timing,
) -> str:
    parts = [
        "<h2>Training curves</h2><p>The validation metric of each trial against its "
        f"{timing.kind.label}. The dashed line is the target; a dot marks the "
        f"evaluation that reached it.</p>{_legend(style)}",
        '<div class="grid">',
    ]
    for number, workload in enumerate(curves):
        parts.append(
            f"<div><h3>{_escape(workload)}</h3>"
            f'<div class="goal">{_escape(rules.goals[workload])}</div>'
            f'<div class="figure" id="curves-{number}"></div></div>'
        )
    return "".join(parts) + "</div>"


def _trials(runs: Runs, rules: Rules, timing: Timing) -> str:
    groups: dict[str, list[Trial]] = defaultdict(list)
    for trial in runs.trials:
        groups[trial.submission].append(trial)
    counts = ", ".join(f"{n} {s}" for s, n in tables.status_counts(runs).items())
    parts = [f"<h2>Trials</h2><p>{_escape(counts)}</p>"]
    if bad := tables.unfinished(runs):
        items = "".join(
            f"<li>{_escape(trial.submission)}, {_escape(trial.place)}: "
            f'<span class="{trial.status}">{_escape(trial.status)}</span> '
            f"{_escape(tables.message(trial))}</li>"
            for trial in bad
        )
        parts.append(f"<h3>Without a result</h3><ul>{items}</ul>")
    is_open = " open" if len(runs.trials) <= _OPEN_UP_TO else ""
    for submission, trials in groups.items():
        parts.append(
            f"<details{is_open}><summary>{_escape(submission)}, "
            f"{_count(len(trials), 'trial')}</summary>"
            f"{_trial_table(trials, rules, timing)}</details>"
        )
    return "".join(parts)


def _trial_table(trials: Sequence[Trial], rules: Rules, timing: Timing) -> str:
    columns = (
        "trial",
        "status",
        f"time to target ({timing.unit})",
        "last evaluation",
        "hyperparameters",
    )
    header = [_heading(name) for name in columns]
    rows = []
    for trial in trials:
        cells = zip(columns, _trial_row(trial, rules, timing), strict=True)
        # On a narrow screen cells stand below each other, each with its label.
        rows.append(
            [
                f'<td class="{css}" data-label="{label}">{_escape(text)}</td>'
                for label, (text, css) in cells
            ]
        )
    return _table(header, rows, "stack")


def _trial_row(trial: Trial, rules: Rules, timing: Timing) -> Iterator[tuple[str, str]]:
    """Yields text and class of each cell."""
    goal = rules.goals.get(trial.workload)
    status = str(trial.status or "unknown")
    yield trial.place, ""
    yield status, status
    if goal is None:
        yield "not in the rules", "miss"
        yield "", ""
    else:
        time = tables.format_number(trial_time(trial, goal, timing), timing.unit)
        yield time, "miss" if time == "miss" else ""
        values = trial.columns.get(goal.column, np.empty(0))
        yield f"{goal.metric} {values[-1]:.5g}" if values.size else "none", ""
    hyperparameters = read_hyperparameters(trial) or {}
    yield ", ".join(f"{k} {v}" for k, v in hyperparameters.items()), "text"


def _environments(runs: Runs) -> str:
    """Lists each different environment once, with the trials that ran there."""
    groups: dict[str, list[Trial]] = defaultdict(list)
    for trial in runs.trials:
        record = trial.record or {}
        facts = {key: record[key] for key in _ENVIRONMENT if record.get(key)}
        if facts:
            groups[json.dumps(facts, sort_keys=True, default=str)].append(trial)
    if not groups:
        return ""
    parts = ["<h2>Hardware and versions</h2>"]
    for text, trials in groups.items():
        names = ", ".join(sorted({trial.submission for trial in trials}))
        entries = "".join(
            f"<dt>{_escape(key)}</dt><dd>{_escape(value)}</dd>"
            for key, value in _flat(json.loads(text))
        )
        parts.append(
            f"<p>{_count(len(trials), 'trial')} of {_escape(names)}</p>"
            f"<dl>{entries}</dl>"
        )
    return "".join(parts)


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the leaves of nested objects with their keys joined by spaces."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(item, f"{prefix} {key}".strip())
    elif isinstance(value, list):
        yield prefix, ", ".join(map(str, value))
    elif value is not None:
        yield prefix, value


def _notes(runs: Runs, result: Result) -> str:
    lines = [*result.warnings, *tables.skipped_lines(runs, at_most=len(runs.skipped))]
    if not lines:
        return ""
    items = "".join(f"<li>{_escape(line)}</li>" for line in lines)
    return f"<h2>Notes</h2><ul>{items}</ul>"
