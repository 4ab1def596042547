"""From evaluations to one time per submission and workload, and which times count.

Rules: Dahl et al. 2023 (arXiv:2306.07179), section 4, and DOCUMENTATION.md of MLCommons
AlgoPerf ("Scoring"). A study takes the fastest of its trials, a workload the median of
its studies; a miss is an infinite time and takes part in both. With held-out workloads,
a base workload counts only where its variant is reached within r_max times the best.

Mode `documented` does what these documents say. Mode `official` repeats what the
official code does instead (scoring/performance_profile.py), to reproduce published
scores: a study takes the trial with the smallest evaluation index, times are struck
out in the order of `official_counted_times`, and no time is compared with the budget.

A time is submission time unless `Timing` says otherwise: steps, or steps times the
uncontended step time of the trial (docs/rules.md, "The clock").

Dimension key: S submissions, B base workloads, V held-out variants, E evaluations,
T trials of a study. Tables of times may have more dimensions before these.
"""

import dataclasses
import enum
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from algoperf.records import GLOBAL_STEP, Direction
from scoring.read import FloatArray, Trial
from scoring.rules import Goal

MISS = float("inf")


class Mode(enum.StrEnum):
    """Whose reading of the rules to judge by."""

    DOCUMENTED = "documented"
    OFFICIAL = "official"


class TimeKind(enum.StrEnum):
    """What a time to target is made of."""

    SUBMISSION = "submission"  # the clock of the trial
    IDEALIZED = "idealized"  # steps times the uncontended step time of the trial
    STEPS = "steps"

    @property
    def unit(self) -> str:
        """The unit of the time: 'seconds' or 'steps'."""
        return "steps" if self is TimeKind.STEPS else "seconds"

    @property
    def label(self) -> str:
        """What is measured, without its unit: 'submission time', 'steps'."""
        return "steps" if self is TimeKind.STEPS else f"{self} time"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """How the time to a target is read off the evaluations of a trial."""

    kind: TimeKind = TimeKind.SUBMISSION
    in_turns: bool = False  # steps were timed by `algoperf step_times`, not in trials
    interpolate: bool = False  # between the last evaluation before and the first after

    @property
    def unit(self) -> str:
        """'seconds' or 'steps'."""
        return self.kind.unit

    def __str__(self) -> str:
        """Words for the time: 'seconds of submission time', 'steps, interpolated'."""
        kind = self.kind
        words = kind.label if kind is TimeKind.STEPS else f"{kind.unit} of {kind.label}"
        words += ", steps timed in turns" if self.in_turns else ""
        return f"{words}, interpolated" if self.interpolate else words


SUBMISSION_TIME = Timing()


def step_seconds(trial: Trial) -> float | None:
    """Returns the uncontended step time of a trial; None if its record has none.

    What was measured in turns comes before what the trial says of itself.
    """
    summary = (trial.record or {}).get("step_time")
    if not isinstance(summary, dict):
        return None
    seconds = summary.get("seconds_in_turns", summary.get("seconds"))
    if not isinstance(seconds, int | float) or isinstance(seconds, bool):
        return None
    return float(seconds) if 0 < seconds < sys.float_info.max else None


def evaluation_times(trial: Trial, kind: TimeKind = TimeKind.SUBMISSION) -> FloatArray:
    """Returns the time of each evaluation, [E], in `kind.unit`; NaN if unknown."""
    if kind is TimeKind.SUBMISSION:
        return trial.times
    steps_E = trial.columns.get(GLOBAL_STEP, np.full(trial.times.shape, np.nan))
    if kind is TimeKind.STEPS:
        return steps_E
    return steps_E * (step_seconds(trial) or np.nan)


def budget_of(trial: Trial, goal: Goal) -> float:
    """Returns the submission time that a trial may take, in seconds; inf for no limit.

    That is the budget of its record, which may be none; where the record does not say,
    that of the goal, stretched for machines of another speed.
    """
    if trial.has_no_budget:
        return MISS
    record = trial.record or {}
    budget: float | None = record.get("budget_sec")
    return (
        goal.limit_sec * (record.get("budget_ratio") or 1) if budget is None else budget
    )


def first_reached(
    trial: Trial, goal: Goal, kind: TimeKind = TimeKind.SUBMISSION
) -> int | None:
    """Returns the index of the first evaluation at least as good as the target.

    Equality reaches, NaN never does, nor does an evaluation without a finite time or
    after the limit of the goal. A record that says which budget its run had, or that it
    had none, needs no limit: the run ended there.
    """
    values_E = trial.columns.get(goal.column)
    if values_E is None:
        return None
    if goal.direction is Direction.MINIMIZE:
        is_reached_E = values_E <= goal.target
    else:
        is_reached_E = values_E >= goal.target
    is_reached_E &= np.isfinite(evaluation_times(trial, kind))
    hits = np.flatnonzero(is_reached_E)
    if not hits.size or _is_late(trial, goal, hits[0]):
        return None
    return int(hits[0])


def _is_late(trial: Trial, goal: Goal, index: int) -> bool:
    if goal.limit_sec == MISS or (trial.record or {}).get("budget_sec") is not None:
        return False
    return bool(trial.times[index] > budget_of(trial, goal))


def trial_time(trial: Trial, goal: Goal, timing: Timing = SUBMISSION_TIME) -> float:
    """Returns the time to the target in `timing.unit`; infinite for a miss."""
    index = first_reached(trial, goal, timing.kind)
    return MISS if index is None else _time_at(trial, goal, timing, index)


def _time_at(trial: Trial, goal: Goal, timing: Timing, index: int) -> float:
    """Returns the time to the target, which evaluation `index` is the first to reach.

    Interpolation is linear in the metric and starts at the last evaluation before that
    has a value; without one, or from there to an infinite value, it changes nothing.
    """
    times_E, values_E = evaluation_times(trial, timing.kind), trial.columns[goal.column]
    end = float(times_E[index])
    if not timing.interpolate or not np.isfinite(values_E[index]):
        return end
    is_usable = np.isfinite(times_E[:index]) & np.isfinite(values_E[:index])
    before = np.flatnonzero(is_usable)
    if not before.size:
        return end
    start, value = float(times_E[before[-1]]), float(values_E[before[-1]])
    share = (goal.target - value) / (float(values_E[index]) - value)
    return start + share * (end - start)


def preference(
    trial: Trial,
    goal: Goal,
    mode: Mode = Mode.DOCUMENTED,
    timing: Timing = SUBMISSION_TIME,
) -> tuple[float, int, float]:
    """Returns a key that is least for the trial of a study that counts.

    It begins with the time, or in mode `official` the evaluation index, infinite for a
    miss. The number of the trial follows, then the time, in `timing.unit`.
    """
    index = first_reached(trial, goal, timing.kind)
    if index is None:
        return MISS, trial.trial, MISS
    time = _time_at(trial, goal, timing, index)
    return (index if mode is Mode.OFFICIAL else time), trial.trial, time


def study_times(
    trials: Iterable[Trial],
    goal: Goal,
    mode: Mode = Mode.DOCUMENTED,
    timing: Timing = SUBMISSION_TIME,
) -> FloatArray:
    """Returns the times of the trials of one study, the one that counts first, [T].

    Trials stand in the order of `preference`, misses last; in mode `official` the first
    need not be the fastest.
    """
    keys = sorted(preference(trial, goal, mode, timing) for trial in trials)
    return np.array([time for _, _, time in keys])


Studies = tuple[FloatArray, ...]  # of each study what `study_times` returns


def workload_studies(
    trials: Iterable[Trial],
    goal: Goal,
    mode: Mode = Mode.DOCUMENTED,
    timing: Timing = SUBMISSION_TIME,
) -> Studies:
    """Returns the times of each study of a submission on a workload, by number."""
    studies: dict[int, list[Trial]] = defaultdict(list)
    for trial in trials:
        studies[trial.study].append(trial)
    return tuple(
        study_times(studies[number], goal, mode, timing) for number in sorted(studies)
    )


def median_time(studies: Studies) -> float:
    """Returns the median over studies of the trial that counts; no study is a miss.

    The median of an even number of studies is the mean of the two in the middle, hence
    infinite if one of them missed.
    """
    if not studies:
        return MISS
    times = sorted(float(times_T[0]) for times_T in studies)
    middle = len(times) // 2
    return (times[middle] + times[~middle]) / 2


def workload_time(
    trials: Iterable[Trial],
    goal: Goal,
    mode: Mode = Mode.DOCUMENTED,
    timing: Timing = SUBMISSION_TIME,
) -> float:
    """Returns the time of a submission on a workload, in `timing.unit`."""
    return median_time(workload_studies(trials, goal, mode, timing))


def counted_times(
    base_SB: FloatArray,
    variant_SV: FloatArray,
    base_of_V: Sequence[int],
    r_max: float,
    mode: Mode = Mode.DOCUMENTED,
) -> FloatArray:
    """Strikes out base times that the held-out variants do not vouch for.

    Args:
      base_SB: time to target on each base workload, [..., S, B].
      variant_SV: the same on each held-out variant.
      base_of_V: index of the base workload of each variant.
      r_max: how much slower than the best still counts.
      mode: see the module.

    Returns:
      `base_SB` with what does not count made infinite, [..., S, B].
    """
    if mode is Mode.OFFICIAL:
        return official_counted_times(base_SB, variant_SV, base_of_V, r_max)
    counted_SB = base_SB.copy()
    vouched_SV = _within(variant_SV, r_max)
    for variant, base in enumerate(base_of_V):
        is_struck_S = ~np.isfinite(vouched_SV[..., variant])
        counted_SB[..., base][is_struck_S] = MISS
    return counted_SB


def official_counted_times(
    base_SB: FloatArray,
    variant_SV: FloatArray,
    base_of_V: Sequence[int],
    r_max: float,
) -> FloatArray:
    """Strikes out times in the order of the official code, [..., S, B].

    A variant is struck out where its base is missed; then every time above r_max times
    the best of its column, where the best of a base workload may yet be struck out
    itself; then every base whose variant is missed.
    """
    variant_SV = variant_SV.copy()
    for variant, base in enumerate(base_of_V):
        variant_SV[..., variant][~np.isfinite(base_SB[..., base])] = MISS
    counted_SB = _within(base_SB, r_max)
    return counted_times(counted_SB, variant_SV, base_of_V, r_max, Mode.DOCUMENTED)


def _within(times: FloatArray, r_max: float) -> FloatArray:
    """Makes times infinite that exceed r_max times the best of their column."""
    best = times.min(axis=-2, initial=MISS, keepdims=True)
    return np.where(times > r_max * best, MISS, times)
