"""Step times that were measured side by side, in place of those of the records.

A record's step time is what the machine gave to that trial, at that hour. Trials that
ran hours apart, or beside other work, have step times that differ by what else ran, for
all workloads of a submission alike; no statistic over workloads can tell. Steps that
took turns (`algoperf step_times`) can be compared.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from algoperf.errors import UserError
from scoring.parse import one_line
from scoring.read import FloatArray, Runs, Trial
from scoring.rules import Rules

SCHEMA_VERSION = 1
# The standard error of a median of normal noise, over the median absolute deviation.
_MEDIAN_ERROR = 1.4826 * 1.2533


@dataclasses.dataclass(frozen=True)
class StepTime:
    """What a step of a submission takes on a workload.

    Attributes:
      seconds: of a step.
      error: relative standard error of `seconds` beside those of the others.
      sha256: of the submission that was measured.
    """

    seconds: float
    error: float
    sha256: str


StepTimes = Mapping[str, Mapping[str, StepTime]]  # by workload and submission


def load(path: Path) -> StepTimes:
    """Reads what `algoperf step_times` wrote.

    Raises:
      UserError: there is no such file, or it is of another kind.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema_version"] != SCHEMA_VERSION:
            raise UserError(
                f"{path} has schema version {content['schema_version']}, this code "
                f"reads {SCHEMA_VERSION}; measure again with algoperf step_times"
            )
        return {
            workload: of_workload(facts)
            for workload, facts in content["workloads"].items()
        }
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not what algoperf step_times writes: {error!r}"
        ) from error


def of_workload(facts: Mapping[str, Any]) -> dict[str, StepTime]:
    """Returns the step times of submissions that took turns on a workload.

    Raises:
      ValueError: rounds that are no positive numbers, or not as many of each.
    """
    names = list(facts["submissions"])
    rounds = [facts["submissions"][name]["seconds"] for name in names]
    seconds_SR = np.array(rounds, float)
    if seconds_SR.ndim != 2 or not seconds_SR.size:
        raise ValueError("each submission needs the same number of rounds")
    if not (np.isfinite(seconds_SR) & (seconds_SR > 0)).all():
        raise ValueError("seconds of a round are positive numbers")
    seconds_S, errors_S = in_turns(seconds_SR)
    return {
        name: StepTime(float(seconds), float(error), str(facts["sha256"][name]))
        for name, seconds, error in zip(names, seconds_S, errors_S, strict=True)
    }


def in_turns(seconds_SR: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Returns seconds of a step and their relative standard errors, both [S].

    A slow round is slow for all: of the logarithms the median over submissions is taken
    from each round first, then the median over rounds of what is left; the median round
    gives the scale, which all have alike and the errors leave out.
    """
    logs_SR = np.log(seconds_SR)
    rounds_R = np.median(logs_SR, axis=0)
    rest_SR = logs_SR - rounds_R
    own_S = np.median(rest_SR, axis=1)
    deviations_S = np.median(np.abs(rest_SR - own_S[:, None]), axis=1)
    errors_S = _MEDIAN_ERROR * deviations_S / np.sqrt(seconds_SR.shape[1])
    return np.exp(own_S + np.median(rounds_R)), errors_S


def with_step_times(runs: Runs, rules: Rules, step_times: StepTimes) -> Runs:
    """Returns runs whose trials have these step times; those of other workloads stay.

    A warning says whose file has changed since.

    Raises:
      UserError: a trial's submission was not measured on its workload.
    """
    trials, changed = [], set()
    for trial in runs.trials:
        if trial.workload not in rules.goals:
            trials.append(trial)
            continue
        found = step_times.get(trial.workload, {}).get(trial.submission)
        if found is None:
            raise UserError(
                f"no step time of {one_line(trial.submission)} on {trial.workload}; "
                "measure it beside the others: algoperf step_times with all of them"
            )
        trials.append(_with(trial, found))
        theirs = (trial.record or {}).get("submission") or {}
        if theirs.get("sha256") not in (None, found.sha256):
            changed.add(trial.submission)
    warnings = list(runs.warnings)
    if changed:
        names = ", ".join(map(one_line, sorted(changed)))
        warnings.append(f"step times are of another version of the file: {names}")
    return dataclasses.replace(runs, trials=tuple(trials), warnings=tuple(warnings))


def _with(trial: Trial, found: StepTime) -> Trial:
    record = {**(trial.record or {}), "step_time": {"seconds": found.seconds}}
    return dataclasses.replace(trial, record=record)
