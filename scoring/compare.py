"""Submissions beside a reference, and quality beside cost.

A speed-up is the reference's time to target over a submission's, on the workloads where
both reached the target and no held-out variant strikes it out. A time beyond r_max,
which does not count in a score, has a speed-up all the same, but in mode `official`,
which strikes it out. The mean is geometric, its interval that of `scoring.intervals`.

Means that hold misses follow SWE-fficiency (Ma et al. 2025, arXiv:2511.06090): who
misses a target keeps the reference's model, hence has speed-up 1; each speed-up is
divided by the best one on the workload; their harmonic mean punishes what is slow. A
few very large best speed-ups would decide it alone, so they are clamped, and the
geometric mean of the same numbers stands beside it.

Effectiveness at a fixed budget and cost at equal effectiveness are two readings of one
Pareto front of cost and quality.

Dimension key: S submissions, B base workloads, K studies, P points, M measures of a
point, each the better the smaller.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from algoperf.errors import UserError, unknown_name
from algoperf.records import Direction
from scoring import time_to_target
from scoring.intervals import half_width, log_median
from scoring.read import FloatArray, Runs, Trial
from scoring.rules import Goal
from scoring.score import Result, group_trials
from scoring.time_to_target import MISS, SUBMISSION_TIME, Mode, Timing

BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]

BASELINE = "baseline"  # the reference wherever a submission has this name
TIE_TOLERANCE = 0.02  # speed-ups within 2 % tie where there is no interval
CLAMP = 10.0  # the best speed-up on a workload counts as at most this


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """Every submission of a `Result` beside one of them; submissions in its order.

    Ends of intervals are NaN where they are unknown: a single study, a miss, or studies
    that took exactly the same time. The reference's own speed-ups are 1.
    """

    reference: str
    confidence: float  # of each interval, 0.95
    tie_tolerance: float
    clamp: float
    speedup_SB: FloatArray  # over the reference; NaN where one of both missed
    speedup_low_SB: FloatArray
    speedup_high_SB: FloatArray
    mean_speedup_S: FloatArray  # geometric, over the shared workloads; NaN for none
    mean_speedup_low_S: FloatArray
    mean_speedup_high_S: FloatArray
    shared_S: IntArray  # on how many workloads both times are not struck out
    wins_S: IntArray  # faster than the reference, or it alone missed
    ties_S: IntArray  # the interval holds 1; without one, within the tolerance
    losses_S: IntArray
    gated_harmonic_S: FloatArray  # in (0, 1]; NaN if the reference missed everything
    gated_geometric_S: FloatArray


def default_reference(result: Result) -> str | None:
    """Returns 'baseline', else the last of the ranking that scores; None for one alone.

    None as well where no submission has a time that others can be compared with.
    """
    if len(result.submissions) < 2:
        return None
    is_usable_S = _usable(_comparable(result)).any(axis=1) & (result.scores > 0)
    names = [result.submissions[s] for s in result.ranking if is_usable_S[s]]
    if BASELINE in names:
        return BASELINE
    return names[-1] if names else None


def compare_to(
    result: Result,
    reference: str,
    confidence: float = 0.95,
    tie_tolerance: float = TIE_TOLERANCE,
    clamp: float = CLAMP,
) -> Comparison:
    """Compares every submission with `reference`.

    Raises:
      UserError: there is no such submission, or it has no time to compare with.
    """
    if reference not in result.submissions:
        raise unknown_name("reference", reference, result.submissions)
    r = result.submissions.index(reference)
    times_SB = _comparable(result)
    if not _usable(times_SB[r]).any():
        raise UserError(
            f"the reference {reference} has no time to compare with; "
            "choose another with --reference"
        )
    logs_SB, half_SB, mean_S, half_S = _log_speedups(result, times_SB, r, confidence)
    low_SB, high_SB = np.exp(logs_SB - half_SB), np.exp(logs_SB + half_SB)
    wins_SB, ties_SB, losses_SB = win_tie_loss(
        times_SB, r, low_SB, high_SB, tie_tolerance
    )
    gated_SB = gated_speedups(times_SB, r, clamp)
    return Comparison(
        reference=reference,
        confidence=confidence,
        tie_tolerance=tie_tolerance,
        clamp=clamp,
        speedup_SB=np.exp(logs_SB),
        speedup_low_SB=low_SB,
        speedup_high_SB=high_SB,
        mean_speedup_S=np.exp(mean_S),
        mean_speedup_low_S=np.exp(mean_S - half_S),
        mean_speedup_high_S=np.exp(mean_S + half_S),
        shared_S=np.isfinite(logs_SB).sum(axis=1),
        wins_S=wins_SB.sum(axis=1),
        ties_S=ties_SB.sum(axis=1),
        losses_S=losses_SB.sum(axis=1),
        gated_harmonic_S=1 / (1 / gated_SB).mean(axis=1),
        gated_geometric_S=np.exp(np.log(gated_SB).mean(axis=1)),
    )


def _comparable(result: Result) -> FloatArray:
    """Returns times to target, [S, B], a miss where they are struck out."""
    return np.where(np.isfinite(result.ratios), result.times, MISS)


def _usable(times: FloatArray) -> BoolArray:
    """Returns where there is a speed-up over a time: not over a miss, nor over 0."""
    return np.isfinite(times) & (times > 0)


def _log_speedups(
    result: Result, times_SB: FloatArray, r: int, confidence: float
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Returns logs of speed-ups and half widths, [S, B], of means and theirs, [S]."""
    value_SB, variance_SB, freedom_SB = _log_medians(result, times_SB)
    logs_SB = value_SB[r] - value_SB
    is_shared_SB = np.isfinite(logs_SB)
    shared_S = is_shared_SB.sum(axis=1)

    def with_reference(of_SB: FloatArray) -> FloatArray:
        return np.stack(np.broadcast_arrays(of_SB, of_SB[r]), axis=-1)

    variance_SB2, freedom_SB2 = with_reference(variance_SB), with_reference(freedom_SB)
    half_SB = half_width(variance_SB2, freedom_SB2, confidence)
    # The mean is over shared workloads alone; what has no part in it has no variance.
    variance_SB2 = np.where(is_shared_SB[..., None], variance_SB2, 0.0)
    with np.errstate(invalid="ignore"):
        mean_S = np.nansum(logs_SB, axis=1) / shared_S
    half_S = half_width(
        variance_SB2.reshape(len(logs_SB), -1),
        freedom_SB2.reshape(len(logs_SB), -1),
        confidence,
    ) / np.maximum(shared_S, 1)
    half_SB[r], half_S[r] = 0.0, 0.0  # the same runs
    return logs_SB, half_SB, mean_S, half_S


def _log_medians(
    result: Result, times_SB: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Returns log time, its variance and degrees of freedom, [S, B] each.

    A time without studies, such as a published one, has an unknown variance.
    """
    with np.errstate(divide="ignore"):
        value_SB = np.log(np.where(times_SB < MISS, times_SB, np.nan))
    value_SB[~np.isfinite(value_SB)] = np.nan  # a target reached at time 0
    variance_SB = np.full(times_SB.shape, np.nan)
    freedom_SB = np.ones(times_SB.shape)
    for s, b in np.argwhere(np.isfinite(value_SB)).tolist():
        key = (result.submissions[s], result.workloads[b])
        studies = result.studies.get(key, ())
        if len(studies) > 1:
            found = log_median(np.array([times_T[0] for times_T in studies]))
            variance_SB[s, b], freedom_SB[s, b] = found.variance, found.freedom
    return value_SB, variance_SB, freedom_SB


def win_tie_loss(
    times_SB: FloatArray,
    reference: int,
    low_SB: FloatArray,
    high_SB: FloatArray,
    tolerance: float = TIE_TOLERANCE,
) -> tuple[BoolArray, BoolArray, BoolArray]:
    """Returns where submissions win, tie and lose against row `reference`, [S, B] each.

    A workload that both missed is none of these.

    Args:
      times_SB: inf for a miss.
      reference: a row.
      low_SB: lower end of the speed-up over the reference; NaN if unknown.
      high_SB: upper end.
      tolerance: without an interval, speed-ups from 1 / (1 + tolerance) to
        1 + tolerance tie.
    """
    reached_SB = np.isfinite(times_SB)
    both_SB = reached_SB & reached_SB[reference]
    slack = 1 + tolerance
    is_known_SB = np.isfinite(low_SB) & np.isfinite(high_SB)
    ratio_SB = np.ones(times_SB.shape)
    is_positive_SB = both_SB & (times_SB > 0)
    np.divide(times_SB[reference], times_SB, out=ratio_SB, where=is_positive_SB)
    ratio_SB[both_SB & (times_SB == 0) & (times_SB[reference] > 0)] = np.inf
    faster_SB = np.where(is_known_SB, low_SB > 1, ratio_SB > slack)
    slower_SB = np.where(is_known_SB, high_SB < 1, ratio_SB < 1 / slack)
    wins_SB = (both_SB & faster_SB) | (reached_SB & ~reached_SB[reference])
    losses_SB = (both_SB & slower_SB) | (~reached_SB & reached_SB[reference])
    return wins_SB, both_SB & ~wins_SB & ~losses_SB, losses_SB


def gated_speedups(times_SB: FloatArray, reference: int, clamp: float) -> FloatArray:
    """Returns speed-ups as a share of the best one, with misses, [S, B'].

    min(speed-up, clamp) / min(best speed-up, clamp), where a miss has speed-up 1 (a
    time slower than the reference counts as it is, hence for less than a miss: read
    this beside wins and losses). Workloads that the reference missed are left out.
    """
    has_reference_B = _usable(times_SB[reference])
    times_SB = times_SB[:, has_reference_B]
    with np.errstate(divide="ignore"):
        speedup_SB = times_SB[reference] / times_SB
    speedup_SB[np.isinf(times_SB)] = 1.0
    speedup_SB = np.minimum(speedup_SB, clamp)
    return speedup_SB / speedup_SB.max(axis=0)


def at_budget(
    trials: Iterable[Trial],
    goal: Goal,
    budget: float,
    timing: Timing = SUBMISSION_TIME,
) -> float:
    """Returns the best validation metric within a budget, in units of the metric.

    The best of each study, then the median over studies, of which one without any value
    counts as the worst; NaN if that is the median.

    Args:
      trials: those of one submission on one workload.
      goal: names the metric and its direction; the target plays no part.
      budget: in `timing.unit`, for each trial.
      timing: which time is spent.
    """
    sign = -1.0 if goal.direction is Direction.MINIMIZE else 1.0
    best: dict[int, float] = defaultdict(lambda: -np.inf)
    for trial in trials:
        times_E = time_to_target.evaluation_times(trial, timing.kind)
        values_E = trial.columns.get(goal.column, np.full(times_E.shape, np.nan))
        usable_E = sign * values_E[(times_E <= budget) & np.isfinite(values_E)]
        best[trial.study] = max(best[trial.study], usable_E.max(initial=-np.inf))
    median = float(np.median(list(best.values()))) if best else -np.inf
    return sign * median if np.isfinite(median) else float("nan")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class AtBudget:
    """What the submissions of a `Result`, in its order, had after the same time."""

    budget: float  # for each trial
    unit: str  # 'seconds' or 'steps'
    best_SB: FloatArray  # best validation metric, see `at_budget`; NaN for none
    share_S: FloatArray  # of the targets that were reached by then


def field_at_budget(runs: Runs, result: Result, budget: float) -> AtBudget:
    """Returns what every submission had reached within a budget.

    Raises:
      UserError: the budget is not positive.
    """
    if not budget > 0:
        raise UserError(f"a budget must be positive, not {budget:g}")
    groups, _ = group_trials(runs.trials)
    best_SB = [
        [
            at_budget(
                groups.get((submission, workload), ()),
                result.rules.goals[workload],
                budget,
                result.timing,
            )
            for workload in result.workloads
        ]
        for submission in result.submissions
    ]
    measured_SB = result.times.copy()
    for submission, workload in result.predicted:
        s = result.submissions.index(submission)
        measured_SB[s, result.workloads.index(workload)] = np.inf
    return AtBudget(
        budget=budget,
        unit=result.timing.unit,
        best_SB=np.array(best_SB),
        share_S=share_within(measured_SB, budget),
    )


def share_within(times_SB: FloatArray, budget_B: FloatArray | float) -> FloatArray:
    """Returns the share of targets within a budget, for all or per workload, [S]."""
    return np.asarray((times_SB <= budget_B).mean(axis=1))


def cost_to_reach(
    trials: Iterable[Trial],
    goal: Goal,
    target: float,
    mode: Mode = Mode.DOCUMENTED,
    timing: Timing = SUBMISSION_TIME,
) -> float:
    """Returns the time of a submission on a workload to another target; inf for a miss.

    The same medians and minima as for the target of the rules, in `timing.unit`.
    """
    changed = dataclasses.replace(goal, target=target)
    return time_to_target.workload_time(trials, changed, mode, timing)


def pareto(points_PM: FloatArray) -> BoolArray:
    """Returns which points no other point dominates, [P].

    A point dominates another that it equals or undercuts in every measure, and
    undercuts in one. Equal points stand or fall together; a point with NaN or an
    infinite measure is never on the front.
    """
    is_usable_P = np.isfinite(points_PM).all(axis=1)
    usable = points_PM[is_usable_P]
    is_front_P = np.zeros(len(points_PM), bool)
    is_front_P[is_usable_P] = [
        not ((usable <= point).all(axis=1) & (usable < point).any(axis=1)).any()
        for point in usable
    ]
    return is_front_P


def hypervolume(points_P2: FloatArray, reference_2: FloatArray) -> float:
    """Returns the area that points in two measures dominate, up to a reference point.

    Points that are not better than the reference in both measures add nothing.
    """
    front = points_P2[pareto(points_P2)]
    front = front[(front < reference_2).all(axis=1)]
    front = front[np.argsort(front[:, 0], kind="stable")]
    right = np.append(front[1:, 0], reference_2[0])
    return float(((right - front[:, 0]) * (reference_2[1] - front[:, 1])).sum())
