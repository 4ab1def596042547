"""From evaluations to one time per submission and workload, and which times count.

Rules: Dahl et al. 2023 (arXiv:2306.07179), section 4, and DOCUMENTATION.md of MLCommons
AlgoPerf ("Scoring"). A study takes the fastest of its trials, a workload the median of
its studies; a miss is an infinite time and takes part in both. With held-out workloads,
a base workload counts only where its variant is reached within r_max times the best.

Mode `documented` does what these documents say. Mode `official` repeats what the
official code does instead (scoring/performance_profile.py), to reproduce published
scores: a study takes the trial with the smallest evaluation index, and times are struck
out in the order of `official_counted_times`.

Dimension key: S submissions, B base workloads, V held-out variants, E evaluations.
"""

import enum
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from algoperf.records import Direction
from scoring.read import FloatArray, Trial
from scoring.rules import Goal

MISS = float("inf")


class Mode(enum.StrEnum):
    """Whose reading of the rules to judge by."""

    DOCUMENTED = "documented"
    OFFICIAL = "official"


def first_reached(trial: Trial, goal: Goal) -> int | None:
    """Returns the index of the first evaluation at least as good as the target.

    Equality reaches, NaN never does, nor does an evaluation without a finite time.
    """
    values_E = trial.columns.get(goal.column)
    if values_E is None:
        return None
    if goal.direction is Direction.MINIMIZE:
        is_reached_E = values_E <= goal.target
    else:
        is_reached_E = values_E >= goal.target
    hits = np.flatnonzero(is_reached_E & np.isfinite(trial.times))
    return int(hits[0]) if hits.size else None


def trial_time(trial: Trial, goal: Goal) -> float:
    """Returns the submission time to the target in seconds; infinite for a miss."""
    index = first_reached(trial, goal)
    return MISS if index is None else float(trial.times[index])


def study_time(
    trials: Iterable[Trial], goal: Goal, mode: Mode = Mode.DOCUMENTED
) -> float:
    """Returns the time of a study in seconds: that of its best trial.

    `official` takes the first trial with the smallest evaluation index instead, which
    need not be the fastest.
    """
    if mode is Mode.DOCUMENTED:
        return min((trial_time(trial, goal) for trial in trials), default=MISS)
    hits = [
        (index, trial.trial, float(trial.times[index]))
        for trial in trials
        if (index := first_reached(trial, goal)) is not None
    ]
    return min(hits)[2] if hits else MISS


def workload_time(
    trials: Iterable[Trial], goal: Goal, mode: Mode = Mode.DOCUMENTED
) -> float:
    """Returns the median over studies in seconds; no study at all is a miss.

    The median of an even number of studies is the mean of the two in the middle, hence
    infinite if one of them missed.
    """
    studies: dict[int, list[Trial]] = defaultdict(list)
    for trial in trials:
        studies[trial.study].append(trial)
    if not studies:
        return MISS
    times = [study_time(study, goal, mode) for study in studies.values()]
    return float(np.median(times))


def counted_times(
    base_SB: FloatArray,
    variant_SV: FloatArray,
    base_of_V: Sequence[int],
    r_max: float,
    mode: Mode = Mode.DOCUMENTED,
) -> FloatArray:
    """Strikes out base times that the held-out variants do not vouch for.

    Args:
      base_SB: time to target on each base workload, in seconds.
      variant_SV: the same on each held-out variant.
      base_of_V: index of the base workload of each variant.
      r_max: how much slower than the best still counts.
      mode: see the module.

    Returns:
      `base_SB` with what does not count made infinite, [S, B].
    """
    if mode is Mode.OFFICIAL:
        return official_counted_times(base_SB, variant_SV, base_of_V, r_max)
    counted_SB = base_SB.copy()
    vouched_SV = _within(variant_SV, r_max)
    for variant, base in enumerate(base_of_V):
        counted_SB[~np.isfinite(vouched_SV[:, variant]), base] = MISS
    return counted_SB


def official_counted_times(
    base_SB: FloatArray,
    variant_SV: FloatArray,
    base_of_V: Sequence[int],
    r_max: float,
) -> FloatArray:
    """Strikes out times in the order of the official code, [S, B].

    A variant is struck out where its base is missed; then every time above r_max times
    the best of its column, where the best of a base workload may yet be struck out
    itself; then every base whose variant is missed.
    """
    variant_SV = variant_SV.copy()
    for variant, base in enumerate(base_of_V):
        variant_SV[~np.isfinite(base_SB[:, base]), variant] = MISS
    counted_SB = _within(base_SB, r_max)
    return counted_times(counted_SB, variant_SV, base_of_V, r_max, Mode.DOCUMENTED)


def _within(times: FloatArray, r_max: float) -> FloatArray:
    """Makes times infinite that exceed r_max times the best of their column."""
    best = times.min(axis=0, initial=MISS)
    return np.where(times > r_max * best, MISS, times)
