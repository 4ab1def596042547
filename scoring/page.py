"""The result as one HTML file that needs no network: tables, figures, every trial.

Every text that comes from a record or a rules file is escaped.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

from algoperf.records import write_text
from scoring import figures, page_evidence, page_trials, words
from scoring import page_data as data
from scoring import page_html as h
from scoring.assessment import Assessment
from scoring.page_evidence import Part
from scoring.page_html import Style
from scoring.read import Runs, Trial
from scoring.rules import Rules
from scoring.score import Result
from scoring.time_to_target import TimeKind
from scoring.uncertainty import Uncertainty, ranks

_FOLDER = Path(__file__).parent
_SECTIONS = {
    "scores": "Scores",
    "performance": "Performance profile",
    "times": "Times to target",
    "sure": "How sure",
    "comparison": "Comparison",
    "budget": "At a budget",
    "predictions": "Predictions",
    "curves": "Training curves",
    "trials": "Trials",
    "environment": "Hardware and versions",
    "notes": "Notes",
}


def write_page(path: str | Path, assessment: Assessment) -> None:
    """Writes the page.

    Args:
      path: where to; a file that is there is replaced.
      assessment: what to show.

    Raises:
      UserError: the file cannot be written.
    """
    # Most commands that score draw nothing.
    from plotly.offline import get_plotlyjs

    runs, result, rules = assessment.runs, assessment.result, assessment.rules
    style = figures.styles(result)
    groups = _trials_by_workload(runs, rules)
    parts = (
        _scores(result, assessment.uncertainty, style),
        _profile(result, style),
        _times(result, style),
        page_evidence.how_sure(result, assessment.uncertainty, style),
        page_evidence.comparison(result, assessment.comparison, style),
        page_evidence.at_budget(result, assessment.at_budget, style),
        page_evidence.predictions(result, assessment.forecasts, style),
        Part(html=_curves(groups, result, style)),
        Part(html=page_trials.trials(runs)),
        Part(html=page_trials.environments(runs)),
        Part(html=page_trials.notes(assessment)),
    )
    blocks = (
        data.packed_json("tables", _merged(part.downloads for part in parts)),
        data.packed_json("figures", _merged(part.drawings for part in parts)),
        data.packed_json("trials", data.trials_table(runs, rules)),
        data.packed("data-curves", data.curves_json(groups, result, style)),
        data.packed("plotly", get_plotlyjs()),
    )
    body = "\n".join(part.html for part in parts if part.html)
    text = Template(_read("page.html")).substitute(
        title=h.escape(f"AlgoPerf scores, {rules.name}"),
        style=_read("page.css"),
        body=f"{_introduction(assessment, body)}<main>{body}</main>",
        data="\n".join(blocks),
        script=_read("page.js"),
    )
    write_text(Path(path), text)


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8").rstrip()


def _merged(groups: Iterator[dict[str, Any]]) -> dict[str, Any]:
    return {name: value for group in groups for name, value in group.items()}


def _trials_by_workload(runs: Runs, rules: Rules) -> dict[str, list[Trial]]:
    """Groups the trials that have evaluations, in the order of the rules."""
    groups: dict[str, list[Trial]] = {workload: [] for workload in rules.workloads}
    for trial in runs.trials:
        if trial.workload in groups and trial.times.size:
            groups[trial.workload].append(trial)
    return {workload: trials for workload, trials in groups.items() if trials}


def _introduction(assessment: Assessment, body: str) -> str:
    runs, result = assessment.runs, assessment.result
    facts = [
        f"Rules {result.rules.name}",
        f"{result.ruleset} tuning",
        f"{result.mode} mode",
        f"time to target in {result.timing}",
        h.count(len(result.submissions), "submission"),
        h.count(len(runs.trials), "trial"),
    ]
    if skipped := sum(not item.is_read for item in runs.skipped):
        facts.append(f"{h.count(skipped, 'path')} skipped (see the notes)")
    headlines = [
        words.headline(result, assessment.uncertainty),
        *words.standings(result),
    ]
    links = "".join(
        f'<li><a href="#{anchor}">{title}</a></li>'
        for anchor, title in _SECTIONS.items()
        if f'<section id="{anchor}"' in body
    )
    return (
        '<a class="skip" href="#scores">Skip to the scores</a>'
        '<header><div class="top"><h1>AlgoPerf scores</h1>'
        '<button type="button" class="plain" id="theme">Dark theme</button></div>'
        f'<p class="headline">{h.escape(" ".join(headlines))}</p>'
        f'<p class="soft">{h.escape(" · ".join(facts))}</p>'
        f'<nav aria-label="Contents"><ul>{links}</ul></nav></header>'
    )


def _scores(result: Result, uncertainty: Uncertainty | None, style: Style) -> Part:
    header = [
        h.heading("submission"),
        h.heading("score", "number", sorted_by="descending"),
        *page_evidence.score_headings(uncertainty),
        h.heading("targets", "number", "that count"),
    ]
    rows, values = [], []
    places_S = ranks(result.scores[None])[0]
    for s in result.ranking:
        name, score = result.submissions[s], float(result.scores[s])
        counted, total = int(result.counts[s].sum()), len(result.workloads)
        rows.append(
            [
                page_evidence.row_heading(result, s, style),
                f'<td class="number"{h.sort_key(score)}><b>{score:.4f}</b>'
                f"{_meter(score, uncertainty, s)}</td>",
                *page_evidence.score_cells(uncertainty, s),
                h.cell(f"{counted} of {total}", "number", counted),
            ]
        )
        extra = page_evidence.score_values(uncertainty, s)
        values.append([int(places_S[s]), name, score, *extra, counted, total])
    columns = ["rank", "submission", "score", *page_evidence.score_columns(uncertainty)]
    text = h.section(
        "scores",
        "Scores",
        h.paragraph(
            "The score is the mean height of the performance profile: 1 for a "
            "submission that is fastest on every workload, 0 for one that reaches no "
            "target in time."
        ),
        page_evidence.method(uncertainty),
        f'<div class="tools">{h.download("scores")}</div>',
        h.table("scores", header, rows, "first"),
    )
    table = data.make_table([*columns, "targets", "workloads"], values)
    return Part(html=text, downloads={"scores": table})


def _meter(score: float, uncertainty: Uncertainty | None, s: int) -> str:
    """Returns a bar with the interval as a whisker, which an unknown one has not."""
    whisker = ""
    if uncertainty is not None and words.is_known(uncertainty, s):
        low, high = uncertainty.score_low_S[s], uncertainty.score_high_S[s]
        whisker = (
            f'<b style="left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%"></b>'
        )
    return (
        f'<span class="meter"><i style="width:{100 * score:.1f}%"></i>{whisker}</span>'
    )


def _times(result: Result, style: Style) -> Part:
    timing = str(result.timing)
    notes = [
        f"{timing[0].upper()}{timing[1:]}; below, how many times the best that is."
    ]
    notes += [f"{note}." for note in words.footnotes(result)]
    text = h.section(
        "times",
        f"Times to target, {result.timing.unit}",
        h.paragraph(" ".join(notes)),
        f'<div class="tools">{h.download("times")}<div class="scale">'
        '<span><i class="one"></i>fastest</span><span><i class="ramp"></i>'
        f"1 to {result.rules.r_max:g} times the fastest</span>"
        '<span><i class="none"></i>does not count</span></div></div>',
        _heat_map(result, style),
        _held_out(result, style),
    )
    return Part(html=text, downloads={"times": data.times_table(result)})


def _heat_map(result: Result, style: Style) -> str:
    goals = result.rules.goals
    header = [h.heading("submission")]
    header += [h.heading(w, "number", goals[w]) for w in result.workloads]
    rows = [
        [
            page_evidence.row_heading(result, s, style),
            *(_heat_cell(result, s, w) for w in range(len(result.workloads))),
        ]
        for s in result.ranking
    ]
    return h.table("times to target", header, rows, "first heat")


def _heat_cell(result: Result, s: int, w: int) -> str:
    text = words.format_time(result, s, w)
    key = h.sort_key(float(result.times[s, w]))
    if not result.counts[s, w]:
        return f'<td class="miss"{key}>{h.escape(text)}</td>'
    ratio = float(result.ratios[s, w])
    css = "first-place" if ratio == 1 else "counted"
    share = figures.heat_share(ratio, result.rules.r_max)
    return (
        f'<td class="{css}" style="--share:{100 * share:.0f}%"{key}>{h.escape(text)}'
        f"<small>{figures.TIMES_SIGN}{ratio:.2f}</small></td>"
    )


def _held_out(result: Result, style: Style) -> str:
    if not result.held_out:
        return ""
    goals = result.rules.goals
    header = [h.heading("submission")]
    header += [h.heading(name, "number", goals[name]) for name in result.held_out]
    rows = []
    for s in result.ranking:
        times = (
            h.cell(words.format_held_out(result, s, v), "number", time)
            for v, time in enumerate(result.held_out_times[s].tolist())
        )
        rows.append([page_evidence.row_heading(result, s, style), *times])
    table = h.table("held-out variants", header, rows, "first")
    return (
        "<details><summary>Held-out variants: a workload counts only where its variant "
        "is reached too, within r_max times the best</summary>"
        f"<div>{table}</div></details>"
    )


def _profile(result: Result, style: Style) -> Part:
    text = h.section(
        "performance",
        "Performance profile",
        h.paragraph(
            "The share of workloads on which a submission is at most so many times "
            "slower than the fastest one. Higher and further left is better."
        ),
        f'<div class="tools">{h.download("profile")}</div>',
        h.legend(style),
        h.figure("profile", "performance profiles; the download has the numbers"),
    )
    return Part(
        html=text,
        drawings={"profile": figures.profile_figure(result)},
        downloads={"profile": data.profile_table(result)},
    )


def _curves(groups: Mapping[str, Sequence[Trial]], result: Result, style: Style) -> str:
    if not groups:
        return ""
    digits = "" if data.is_exact(groups) else f" ({data.DIGITS} digits)"
    places = []
    for number, workload in enumerate(groups):
        label = f"training curves of {workload}; the download has the numbers"
        button = h.download("curves", "CSV", number, f"curves_{workload}")
        places.append(
            f"<div>{button}<h3>{h.escape(workload)}</h3>"
            f'<div class="goal">{h.escape(result.rules.goals[workload])}</div>'
            f'<div class="figure" id="curves-{number}" data-curves="{number}" '
            f'role="img" aria-label="{h.escape(label)}"></div></div>'
        )
    return h.section(
        "curves",
        "Training curves",
        h.paragraph(
            "The validation metric of each trial. The dashed line is the target; a dot "
            "marks the evaluation that reached it."
        ),
        f'<div class="tools">{_curve_switches(groups, result)}'
        f"{h.download('curves', f'Download all as CSV{digits}')}</div>",
        h.legend(style),
        f'<div class="grid">{"".join(places)}</div>',
    )


def _curve_switches(groups: Mapping[str, Sequence[Trial]], result: Result) -> str:
    in_steps = result.timing.kind is TimeKind.STEPS
    is_crowded = any(len(ts) > figures.FEW_TRIALS for ts in groups.values())
    return (
        h.switch(
            "Against",
            "abscissa",
            {"time": "submission time", "step": "steps"},
            "step" if in_steps else "time",
        )
        + h.switch(
            "Trials",
            "trials",
            {"best": "best of each study", "all": "all"},
            "best" if is_crowded else "all",
        )
        + h.switch(
            "Range", "ordinate", {"whole": "whole", "near": "near the target"}, "whole"
        )
    )
