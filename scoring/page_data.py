"""The numbers that the page carries: for its figures, its tables and its downloads.

Each block is JSON, gzipped and in base64; the page unpacks it when it is needed. The
plotting library is packed the same way, which makes it less than half as large.

Dimension key: S submissions, B base workloads, V held-out variants, E evaluations.
"""

import base64
import gzip
import html
import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from algoperf import records
from algoperf.records import Direction
from scoring import figures, guards, words
from scoring.page_html import Style
from scoring.read import FloatArray, Runs, Trial, read_hyperparameters
from scoring.rules import Goal, Rules
from scoring.score import Result, group_trials
from scoring.time_to_target import Mode, Timing, first_reached, preference

EXACT_UP_TO = 50_000  # evaluations in all; beyond, curves are rounded to DIGITS
DIGITS = 7

Table = dict[str, Any]  # {"columns": names, "rows": lists of values}


def packed(anchor: str, text: str) -> str:
    """Returns a script element that holds `text`, gzipped and in base64."""
    # No time stamp: the same records give the same bytes.
    content = base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()
    return f'<script type="text/plain" id="{anchor}">{content}</script>'


def packed_json(name: str, value: Any) -> str:
    """Returns the block `data-<name>`."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return packed(f"data-{name}", text)


def plain(value: Any) -> Any:
    """Returns a value for JSON and CSV: 'inf' for infinity, None for NaN."""
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return None if math.isnan(value) else str(value)


def make_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """Returns a table for the download; a miss is 'inf', as in `scores.csv`."""
    return {"columns": list(columns), "rows": [[plain(v) for v in row] for row in rows]}


def times_table(result: Result) -> Table:
    """Returns a row per submission and workload, held-out variants after the rest."""
    rows: list[list[Any]] = []
    for s in result.ranking:
        name = result.submissions[s]
        for w, workload in enumerate(result.workloads):
            ratio, counts = result.ratios[s, w], bool(result.counts[s, w])
            time = result.times[s, w]
            rows.append([name, workload, "base", time, ratio, str(counts).lower()])
            rows[-1].append(_is_predicted(result, name, workload))
        for v, workload in enumerate(result.held_out):
            time = result.held_out_times[s, v]
            rows.append([name, workload, "held-out", time, None, None])
            rows[-1].append(_is_predicted(result, name, workload))
    columns = ["submission", "workload", "kind", result.timing.unit, "ratio", "counts"]
    return make_table([*columns, "predicted"], rows)


def _is_predicted(result: Result, submission: str, workload: str) -> str:
    return str((submission, workload) in result.predicted).lower()


def profile_table(result: Result) -> Table:
    """Returns tau and the height of each profile there, best submission first."""
    taus, rho = result.profile()
    names = [result.submissions[s] for s in result.ranking]
    rows = ([tau, *rho[result.ranking, t]] for t, tau in enumerate(taus))
    return make_table(["tau", *names], rows)


_TRIAL_COLUMNS = (
    "submission",
    "workload",
    "study",
    "trial",
    "framework",  # only where there are two
    "status",
    "seconds to target",
    "steps to target",
    "metric",
    "best",
    "last",
    "evaluations",
    "seconds",
    "steps",
)


def trials_table(runs: Runs, rules: Rules) -> Table:
    """Returns a row per trial, with a column for each hyperparameter of any.

    The last column marks trials that other load may have slowed (see `guards`).
    """
    settings = [read_hyperparameters(trial) or {} for trial in runs.trials]
    names = sorted({name for values in settings for name in values})
    is_mixed = len({trial.framework for trial in runs.trials}) > 1
    rows = [
        [
            *_trial_row(trial, rules.goals.get(trial.workload), is_mixed),
            *(_setting(values.get(name)) for name in names),
            words.message(trial) or None,
            _contended(trial),
        ]
        for trial, values in zip(runs.trials, settings, strict=True)
    ]
    return make_table([*_TRIAL_COLUMNS, *names, "message", "note"], rows)


def _contended(trial: Trial) -> str | None:
    if not guards.is_contended(trial):
        return None
    return f"contended: up to {100 * guards.contention(trial):.0f} % of its time"


def _trial_row(trial: Trial, goal: Goal | None, is_mixed: bool) -> list[Any]:
    status = None if trial.status is None else str(trial.status)
    start: list[Any] = [trial.submission, trial.workload, trial.study, trial.trial]
    start += [trial.framework if is_mixed else None, status]
    count = int(trial.times.size)
    steps_E = trial.columns.get(records.GLOBAL_STEP, np.empty(0))
    end = [count, *(_last(trial.times), _last(steps_E))]
    values_E = np.empty(0) if goal is None else trial.columns.get(goal.column)
    if goal is None:
        return [*start, None, None, None, None, None, *end]
    hit = first_reached(trial, goal)
    reached: list[Any] = [math.inf, None]
    if hit is not None:
        reached = [trial.times[hit], _whole(steps_E[hit])]
    best, last = None, None
    if values_E is not None and values_E.size:
        best, last = goal_best(values_E, goal), values_E[-1]
    return [*start, *reached, goal.metric, best, last, *end]


def goal_best(values_E: FloatArray, goal: Goal) -> float | None:
    """Returns the best finite value of a metric; None if there is none."""
    finite = values_E[np.isfinite(values_E)]
    if not finite.size:
        return None
    is_falling = goal.direction is Direction.MINIMIZE
    return float(finite.min() if is_falling else finite.max())


def _last(values_E: FloatArray) -> float | int | None:
    return _whole(values_E[-1]) if values_E.size else None


def _whole(value: float) -> float | int:
    value = float(value)
    return int(value) if value.is_integer() else value


def _setting(value: Any) -> Any:
    """Returns a hyperparameter as a number or as text."""
    is_plain = isinstance(value, int | float | str) and not isinstance(value, bool)
    return value if is_plain or value is None else json.dumps(value)


def curves_json(
    groups: Mapping[str, Sequence[Trial]], result: Result, style: Style
) -> str:
    """Returns the block of the training curves as JSON, every evaluation of a trial.

    Written by hand where the numbers are: there may be hundreds of thousands.
    """
    ranks = {name: rank for rank, name in enumerate(style)}
    submissions = [
        {"name": name, "label": html.escape(name), "look": look}
        for name, look in style.items()
    ]
    digits = None if is_exact(groups) else DIGITS
    workloads = []
    for name, trials in groups.items():
        goal = result.rules.goals[name]
        facts = json.dumps(_workload_facts(name, trials, goal))
        best = best_of_studies(trials, goal, result.mode, result.timing)
        curves = (_curve_json(t, goal, ranks, digits, t in best) for t in trials)
        workloads.append(f'{facts[:-1]},"trials":[{",".join(curves)}]}}')
    return (
        f'{{"submissions":{json.dumps(submissions)},'
        f'"workloads":[{",".join(workloads)}]}}'
    )


def best_of_studies(
    trials: Sequence[Trial], goal: Goal, mode: Mode, timing: Timing
) -> set[Trial]:
    """Returns the trial that counts of each study of each submission.

    Where none reached the target, that is the one with the best value.
    """
    sign = 1 if goal.direction is Direction.MINIMIZE else -1

    def order(trial: Trial) -> tuple[float, ...]:
        key = preference(trial, goal, mode, timing)
        if math.isfinite(key[0]):
            return key
        value = goal_best(trial.columns.get(goal.column, np.empty(0)), goal)
        return math.inf, math.inf if value is None else sign * value, trial.trial

    best: dict[tuple[str, int], Trial] = {}
    judged, _ = group_trials(trials)
    for trial in itertools.chain(*judged.values()):
        key = (trial.submission, trial.study)
        best[key] = min(best.get(key, trial), trial, key=order)
    return set(best.values())


def is_exact(groups: Mapping[str, Sequence[Trial]]) -> bool:
    """Whether the page holds curves with all digits of the records."""
    return sum(t.times.size for ts in groups.values() for t in ts) <= EXACT_UP_TO


def _workload_facts(name: str, trials: Sequence[Trial], goal: Goal) -> dict[str, Any]:
    longest = max((figures.last(trial.times) for trial in trials), default=0.0)
    seconds, unit = figures.time_unit(longest)
    return {
        "name": name,
        "metric": goal.metric,
        "unit": unit,
        "unit_seconds": seconds,
        "few_trials": figures.FEW_TRIALS,
        "most_points": figures.MAX_POINTS,
        "layout": figures.curves_layout(trials, goal),
        "near": figures.near_target(trials, goal),
    }


def _curve_json(
    trial: Trial,
    goal: Goal,
    ranks: Mapping[str, int],
    digits: int | None,
    is_best: bool,
) -> str:
    values_E = trial.columns.get(goal.column, np.full(trial.times.size, np.nan))
    hit = first_reached(trial, goal)
    return (
        f'{{"rank":{ranks[trial.submission]},"study":{trial.study},'
        f'"trial":{trial.trial},"best":{str(is_best).lower()},'
        f'"hit":{-1 if hit is None else hit},'
        f'"steps":{_numbers(trial.columns[records.GLOBAL_STEP], 15)},'
        f'"seconds":{_numbers(trial.times, digits)},'
        f'"values":{_numbers(values_E, digits)}}}'
    )


def _numbers(values_E: FloatArray, digits: int | None) -> str:
    """Returns a JSON list with so many digits, or all; what is not finite is null."""
    values = values_E.tolist()
    if digits is None:
        text = ",".join(map(repr, values))
    else:
        text = ",".join([f"%.{digits}g"] * len(values)) % tuple(values)
    if "n" in text:  # of nan and inf
        text = text.replace("nan", "null").replace("-inf", "null")
        text = text.replace("inf", "null")
    return f"[{text}]"
