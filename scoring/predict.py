"""Predicted times to target of trials that were stopped, apart from scores or in them.

A prediction is never part of a score unless `score_predicted` is called: then settled
ones (see `learning_curve`) count as if they had been measured, and are marked. They
stand in for a study without a measured time, never beside one.
"""

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from algoperf import records
from algoperf.errors import UserError
from algoperf.records import Status
from scoring.learning_curve import Prediction, predict_time
from scoring.published import Published
from scoring.read import Runs, Trial
from scoring.rules import Goal, Rules
from scoring.score import Result, group_trials, score_runs
from scoring.time_to_target import SUBMISSION_TIME, budget_of, first_reached
from scoring.words import format_number

MAX_ROWS = 40  # with more trials in all, reasons are counted instead of listed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forecast:
    """What is predicted for a trial that did not reach the target of the rules."""

    trial: Trial
    prediction: Prediction


def predict_runs(
    runs: Runs, rules: Rules, tau: float | None = None, ruleset: str = "external"
) -> tuple[Forecast, ...]:
    """Predicts the time to target of every trial that did not reach it.

    Args:
      runs: what was read; workloads that are not in the rules are left out.
      rules: whose targets.
      tau: see `learning_curve.predict_time`.
      ruleset: whose budgets bound the trials whose records name none.
    """
    rules = rules.within_budgets(ruleset)
    forecasts = []
    for trial in runs.trials:
        if trial.workload not in rules.workloads:
            continue
        goal = rules.goals[trial.workload]
        if first_reached(trial, goal) is None:
            protocol = rules.protocols.get((trial.record or {}).get("ruleset", ""))
            factor = protocol.budget_factor if protocol else 1.0
            prediction = predict_trial(trial, goal, tau, factor)
            forecasts.append(Forecast(trial=trial, prediction=prediction))
    return tuple(forecasts)


def predict_trial(
    trial: Trial, goal: Goal, tau: float | None = None, hint_factor: float = 1.0
) -> Prediction:
    """Predicts the time to target of a trial that did not reach it.

    A trial whose end is a result, because it diverged, failed, had its whole time
    budget or was done, has no prediction, nor has one that would exceed its budget.
    The step hint, times `hint_factor`, stands for the budget of a trial that had none.
    """
    times_E = trial.times
    run = float(times_E[np.isfinite(times_E)].max(initial=0.0))
    limit = "step hint" if trial.has_no_budget else "budget"
    hint = hint_factor * ((trial.record or {}).get("step_hint") or math.inf)
    budget = budget_of(trial, goal)
    if trial.has_no_budget:
        budget = _seconds_of(hint, trial)
    if reason := _ended(trial, budget, hint):
        return Prediction(run=run, reason=reason)
    if goal.column not in trial.columns:
        return Prediction(run=run, reason="no metric", detail=goal.column)
    prediction = predict_time(times_E, trial.columns[goal.column], goal, tau=tau)
    if budget < prediction.seconds < math.inf:
        seconds = format_number(prediction.seconds)
        detail = f"at {seconds} of {format_number(budget)} s"
        return Prediction(run=run, reason=f"after the {limit}", detail=detail)
    return prediction


def _seconds_of(steps: float, trial: Trial) -> float:
    """Returns how long steps take at the pace of a trial; inf if unknown."""
    steps_E = trial.columns.get(records.GLOBAL_STEP, np.empty(0))
    if math.isinf(steps) or not steps_E.size or not steps_E[-1] > 0:
        return math.inf
    return float(trial.times[-1] / steps_E[-1] * steps)


def _ended(trial: Trial, budget: float, hint: float) -> str:
    """Returns why a trial would not have gone on; '' if it was stopped, or unknown.

    Without a record, the budget is spent where it leaves no room for an evaluation
    more, as far from the last as that is from the one before.
    """
    if trial.record is None and trial.times.size > 1:
        before, last = trial.times[-2:]
        if last + (last - before) > budget:
            return "the time budget was spent"
    record: Mapping[str, Any] = trial.record or {}
    max_steps = record.get("max_steps")
    if trial.status is Status.COMPLETED:
        steps = record.get("global_step") or 0
        if trial.has_no_budget and steps >= hint:
            return "the step hint was spent"
        is_cut = max_steps is not None and steps >= max_steps
        return "" if is_cut else "the submission was done"
    reasons = {
        Status.BUDGET: "the time budget was spent",
        Status.DIVERGED: "the run diverged",
        Status.FAILED: "the run failed",
    }
    return reasons.get(trial.status, "") if trial.status is not None else ""


def worth_a_row(
    forecasts: Sequence[Forecast],
) -> tuple[Sequence[Forecast], dict[str, int]]:
    """Returns what a table has rows for, and reasons of the others with their number.

    Of more than MAX_ROWS trials, those without a prediction are counted by reason.
    """
    if len(forecasts) <= MAX_ROWS:
        return forecasts, {}
    shown = [item for item in forecasts if not item.prediction.reason]
    reasons = (item.prediction.reason for item in forecasts)
    counts = Counter(reason for reason in reasons if reason)
    return shown, dict(counts.most_common())


def score_predicted(
    runs: Runs,
    rules: Rules,
    forecasts: Sequence[Forecast],
    measured: Result,
    published: Published | None = None,
) -> Result:
    """Scores runs again, with settled predictions where a study missed.

    Args:
      runs: what was read.
      rules: what to judge by.
      forecasts: what `predict_runs` made of them.
      measured: what `score_runs` made of them; ruleset and mode are taken from it.
      published: as `score_runs` was given it.

    Returns:
      A result whose `predicted` names the times that differ from the measured ones, as
      does a warning per submission.

    Raises:
      UserError: times are not submission times, which alone are predicted.
    """
    if measured.timing != SUBMISSION_TIME:
        raise UserError(
            f"predictions are of {SUBMISSION_TIME}; leave out --score_predicted, or "
            "--time and --interpolate"
        )
    longer = _with_predictions(runs, measured.rules, forecasts)
    mixed = score_runs(
        longer, rules, measured.ruleset, measured.mode, published, measured.timing
    )
    names = (*mixed.workloads, *mixed.held_out)
    is_other = np.hstack(
        [
            mixed.times != measured.times,
            mixed.held_out_times != measured.held_out_times,
        ]
    )
    predicted: dict[str, list[str]] = defaultdict(list)
    for s, w in np.argwhere(is_other):
        predicted[mixed.submissions[s]].append(names[w])
    warnings = [
        f"predicted, not measured: the time of {submission} on {', '.join(workloads)}"
        for submission, workloads in predicted.items()
    ]
    pairs = frozenset((s, w) for s, workloads in predicted.items() for w in workloads)
    return dataclasses.replace(
        mixed, predicted=pairs, warnings=(*warnings, *mixed.warnings)
    )


def _with_predictions(runs: Runs, rules: Rules, forecasts: Sequence[Forecast]) -> Runs:
    """Returns runs in which predicted trials have a last evaluation more: the target.

    Studies with a measured time stay as they are: the index of a predicted evaluation,
    by which mode `official` would choose, says nothing about its time. Among the
    predictions of a study, indices are in the order of their times for that reason.
    """
    reached = _reached_studies(runs, rules)
    studies: dict[tuple[str, str, int], list[Forecast]] = defaultdict(list)
    for item in forecasts:
        if item.prediction.is_settled and _study(item.trial) not in reached:
            studies[_study(item.trial)].append(item)
    longer: dict[Trial, Trial] = {}
    for found in studies.values():
        most = max(item.trial.times.size for item in found)
        found.sort(key=lambda item: item.prediction.seconds)
        for index, item in enumerate(found, start=most):
            goal = rules.goals[item.trial.workload]
            longer[item.trial] = _longer(item, goal, index)
    trials = tuple(longer.get(trial, trial) for trial in runs.trials)
    return dataclasses.replace(runs, trials=trials)


def _reached_studies(runs: Runs, rules: Rules) -> set[tuple[str, str, int]]:
    """Returns the studies of which a trial that is judged reached the target."""
    groups, _ = group_trials(runs.trials)
    return {
        _study(trial)
        for (_, workload), trials in groups.items()
        if workload in rules.workloads
        for trial in trials
        if first_reached(trial, rules.goals[workload]) is not None
    }


def _study(trial: Trial) -> tuple[str, str, int]:
    return trial.submission, trial.workload, trial.study


def _longer(forecast: Forecast, goal: Goal, index: int) -> Trial:
    """Returns the trial with the target at evaluation `index`, and NaN up to there."""
    added = {
        records.SUBMISSION_TIME: forecast.prediction.seconds,
        goal.column: goal.target,
    }
    columns = {}
    for name, values_E in forecast.trial.columns.items():
        columns[name] = np.full(index + 1, np.nan)
        columns[name][: values_E.size] = values_E
        columns[name][index] = added.get(name, np.nan)
    return dataclasses.replace(forecast.trial, columns=columns)
