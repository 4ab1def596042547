"""Sections of the page about trials: each one's end, where they ran, what to know."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from scoring import page_html as h
from scoring import words
from scoring.assessment import Assessment
from scoring.read import Runs, Trial

_ENVIRONMENT = (
    "host",
    "devices",
    "hardware",
    "environment",
    "versions",
    "git_revision",
)
_OPEN_UP_TO = 40  # with more trials in all, the tables of trials start folded


def trials(runs: Runs) -> str:
    """Returns a table of trials per submission, and those that did not end well."""
    numbers: dict[str, int] = defaultdict(int)
    for trial in runs.trials:
        numbers[trial.submission] += 1
    status = words.status_counts(runs)
    parts = []
    if set(status) != {"unknown"}:
        parts.append(h.paragraph(", ".join(f"{n} {s}" for s, n in status.items())))
    if bad := words.unfinished(runs):
        items = "".join(
            f"<li>{h.escape(trial.submission)}, {h.escape(trial.place)}: "
            f'<span class="{trial.status}">{h.escape(trial.status)}</span> '
            f"{h.escape(words.message(trial))}</li>"
            for trial in bad
        )
        parts.append(
            f'<h3>Failed, diverged or not finished</h3><ul class="lines">{items}</ul>'
        )
    parts.append(f'<div class="tools">{h.download("trials")}</div>')
    is_open = " open" if len(runs.trials) <= _OPEN_UP_TO else ""
    parts += [
        f'<details data-trials="{h.escape(submission)}"{is_open}><summary>'
        f"{h.escape(submission)}, {h.count(number, 'trial')}</summary></details>"
        for submission, number in numbers.items()
    ]
    return h.section("trials", "Trials", *parts)


def environments(runs: Runs) -> str:
    """Returns what all trials share, then what differs, with the trials that had it."""
    groups: dict[str, list[Trial]] = defaultdict(list)
    for trial in runs.trials:
        record = trial.record or {}
        facts = {key: record[key] for key in _ENVIRONMENT if record.get(key)}
        if facts:
            groups[json.dumps(facts, sort_keys=True, default=str)].append(trial)
    title = "Hardware and versions"
    if not groups:
        text = h.paragraph("These records do not say what they ran on.")
        return h.section("environment", title, text)
    found = [dict(_flat(json.loads(text))) for text in groups]
    shared = {k: v for k, v in found[0].items() if all(f.get(k) == v for f in found)}
    known = sum(map(len, groups.values()))
    parts = [h.paragraph(_whose(known, len(runs.trials))), _facts(shared)]
    for facts, trials in zip(found, groups.values(), strict=True):
        if own := {k: v for k, v in facts.items() if k not in shared}:
            names = ", ".join(sorted({trial.submission for trial in trials}))
            parts.append(h.paragraph(f"{h.count(len(trials), 'trial')} of {names}"))
            parts.append(_facts(own))
    return h.section("environment", title, *parts)


def _whose(known: int, total: int) -> str:
    if known == total:
        return "Of all trials"
    return f"Of the {known} of {total} trials that say what they ran on"


def _facts(facts: Mapping[str, Any]) -> str:
    entries = "".join(
        f"<div><dt>{h.escape(key)}</dt><dd>{h.escape(value)}</dd></div>"
        for key, value in facts.items()
    )
    return f"<dl>{entries}</dl>"


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the leaves of nested objects with their keys joined by spaces."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(item, f"{prefix} {key}".strip())
    elif isinstance(value, list):
        yield prefix, ", ".join(map(str, value))
    elif value is not None:
        yield prefix, value


def notes(assessment: Assessment) -> str:
    """Returns warnings, what intervals cannot know, what was skipped; '' for none."""
    runs, uncertainty = assessment.runs, assessment.uncertainty
    lines = [*assessment.result.warnings, *(uncertainty.notes if uncertainty else ())]
    lines += words.skipped_lines(runs, at_most=len(runs.skipped))
    if not lines:
        return ""
    items = "".join(f"<li>{h.escape(line)}</li>" for line in lines)
    return h.section("notes", "Notes", f'<ul class="lines">{items}</ul>')
