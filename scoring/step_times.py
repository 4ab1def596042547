"""Step times that were measured side by side, in place of those of the records.

A record's step time is what the machine gave to that trial, at that hour. Trials that
ran hours apart, or beside other work, have step times that differ by what else ran, for
all workloads of a submission alike; no statistic over workloads can tell. Steps that
took turns (`algoperf step_times`) can be compared.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from algoperf.errors import UserError
from scoring import guards
from scoring.parse import one_line
from scoring.read import FloatArray, Runs, Trial
from scoring.rules import Rules

SCHEMA_VERSION = 1
# The standard error of a median of normal noise, over the median absolute deviation.
_MEDIAN_ERROR = 1.4826 * 1.2533
# Of fewer submissions, or rounds, nothing says how far their medians are off.
_FEWEST = 3


@dataclasses.dataclass(frozen=True)
class StepTime:
    """What a step of a submission takes.

    Attributes:
      seconds: of a step.
      error: relative standard error of `seconds` beside those of the others; NaN where
        too few took turns.
      sha256: of the submission that was measured.
    """

    seconds: float
    error: float
    sha256: str


@dataclasses.dataclass(frozen=True)
class StepTimes:
    """What took turns on a workload.

    Attributes:
      of: step times by submission.
      left_out: why others have none.
      hardware: in the words of `guards.hardware`.
    """

    of: Mapping[str, StepTime]
    left_out: Mapping[str, str]
    hardware: str


def load(path: Path) -> dict[str, StepTimes]:
    """Reads what `algoperf step_times` wrote, by workload.

    Raises:
      UserError: there is no such file, or it is of another kind.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema_version"] != SCHEMA_VERSION:
            raise UserError(
                f"{path} has schema version {content['schema_version']}, this code "
                f"reads {SCHEMA_VERSION}; measure again, into another file"
            )
        return {name: parsed(facts) for name, facts in content["workloads"].items()}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not what algoperf step_times writes: {error!r}"
        ) from error


def parsed(facts: Mapping[str, Any]) -> StepTimes:
    """Returns the step times of a workload.

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
    of = {
        name: StepTime(float(seconds), float(error), str(facts["sha256"][name]))
        for name, seconds, error in zip(names, seconds_S, errors_S, strict=True)
    }
    return StepTimes(of, dict(facts["left_out"]), guards.hardware_words(facts))


def in_turns(seconds_SR: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Returns seconds of a step and their relative standard errors, both [S].

    A slow round is slow for all. Of the logarithms each submission's median over rounds
    is taken out, then the median over submissions of what is left is the round; each
    submission's median without the rounds is its own. Errors are NaN where fewer than
    three submissions or rounds would have to say how slow a round was.
    """
    logs_SR = np.log(seconds_SR)
    rounds_R = np.median(logs_SR - np.median(logs_SR, axis=1, keepdims=True), axis=0)
    rest_SR = logs_SR - rounds_R
    own_S = np.median(rest_SR, axis=1)
    deviations_S = np.median(np.abs(rest_SR - own_S[:, None]), axis=1)
    errors_S = _MEDIAN_ERROR * deviations_S / math.sqrt(logs_SR.shape[1])
    if min(logs_SR.shape) < _FEWEST:
        errors_S = np.full(len(own_S), np.nan)
    return np.exp(own_S), errors_S


def with_step_times(
    runs: Runs, rules: Rules, step_times: Mapping[str, StepTimes]
) -> Runs:
    """Returns runs whose trials have these step times; those of other workloads stay.

    Warnings say whose file has changed since, and what was measured on other hardware.

    Raises:
      UserError: a trial's submission was not measured on its workload, or the trial has
        no record of ours.
    """
    trials, changed, elsewhere = [], set(), set()
    for trial in runs.trials:
        if trial.workload not in rules.workloads:
            trials.append(trial)
            continue
        if trial.record is None:
            raise UserError(
                f"{one_line(str(trial.path))} is an official log, which step times "
                "cannot be put into; score it by --time submission or steps"
            )
        measured = step_times.get(trial.workload)
        found = measured.of.get(trial.submission) if measured else None
        if measured is None or found is None:
            raise _missing(trial, measured)
        trials.append(_with(trial, found))
        theirs = trial.record.get("submission") or {}
        if theirs.get("sha256") not in (None, found.sha256):
            changed.add(trial.submission)
        if guards.hardware(trial) not in (guards.UNKNOWN, measured.hardware):
            elsewhere.add(trial.workload)
    warnings = list(runs.warnings)
    for what, names in (
        ("step times are of another version of the file: ", changed),
        ("step times were measured on other hardware than trials ran on: ", elsewhere),
    ):
        if names:
            warnings.append(what + ", ".join(map(one_line, sorted(names))))
    return dataclasses.replace(runs, trials=tuple(trials), warnings=tuple(warnings))


def _missing(trial: Trial, measured: StepTimes | None) -> UserError:
    where = f"{one_line(trial.submission)} on {trial.workload}"
    if measured is not None and trial.submission in measured.left_out:
        reason = one_line(measured.left_out[trial.submission])
        return UserError(f"no step time of {where}, which was left out: {reason}")
    return UserError(
        f"no step time of {where}; measure it beside the others: algoperf step_times "
        "with all of them"
    )


def _with(trial: Trial, found: StepTime) -> Trial:
    assert trial.record is not None
    own = trial.record.get("step_time") or {}
    record = {**trial.record, "step_time": {**own, "seconds_in_turns": found.seconds}}
    return dataclasses.replace(trial, record=record)
