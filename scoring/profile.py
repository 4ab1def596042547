"""Performance ratios, performance profiles and the benchmark score.

A profile rho(tau) is the share of workloads on which a submission is at most tau times
slower than the fastest one; the score is its mean over 1 <= tau <= r_max (Dolan and
More 2002; Dahl et al. 2023, arXiv:2306.07179, section 4.2 and appendix B).

Dimension key: S submissions, B base workloads, T points of a profile. Tables of times
and ratios may have more dimensions before these.
"""

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

OFFICIAL_POINTS = 100  # of the grid on which the official code samples a profile


def performance_ratios(times_SB: FloatArray) -> FloatArray:
    """Divides times by the best of their column, [..., S, B]; a miss has ratio inf.

    Times are non-negative, inf for a miss. The best has ratio 1, even at zero seconds.
    """
    best_B = times_SB.min(axis=-2, initial=np.inf, keepdims=True)
    ratios_SB = np.full(times_SB.shape, np.inf)
    is_slower_SB = np.isfinite(times_SB) & (best_B > 0)
    np.divide(times_SB, best_B, out=ratios_SB, where=is_slower_SB)
    ratios_SB[np.isfinite(times_SB) & (times_SB == best_B)] = 1.0
    return ratios_SB


def performance_profile(ratios_SB: FloatArray, taus_T: FloatArray) -> FloatArray:
    """Returns rho(tau), the share of workloads with a ratio of at most tau, [S, T]."""
    return (ratios_SB[:, :, None] <= taus_T).mean(axis=1)


def breakpoints(ratios_SB: FloatArray, r_max: float) -> FloatArray:
    """Returns every tau in [1, r_max] at which some profile steps, and both ends."""
    inside = ratios_SB[(ratios_SB >= 1) & (ratios_SB <= r_max)]
    return np.unique(np.concatenate([[1.0, r_max], inside]))


def official_grid(r_max: float) -> FloatArray:
    """Returns the evenly spaced taus of the official code, [T]."""
    return np.linspace(1.0, r_max, OFFICIAL_POINTS)


def exact_scores(ratios_SB: FloatArray, r_max: float) -> FloatArray:
    """Integrates the profiles over [1, r_max], divided by r_max - 1, [S].

    A profile is a sum of steps; the one of a workload with ratio r covers r_max - r.
    """
    return exact_areas(ratios_SB, r_max).mean(axis=-1)


def exact_areas(ratios_SB: FloatArray, r_max: float) -> FloatArray:
    """Returns the score on each workload alone, [..., S, B]; the score is the mean."""
    return np.clip(r_max - ratios_SB, 0.0, r_max - 1.0) / (r_max - 1.0)


def official_areas(ratios_SB: FloatArray, r_max: float) -> FloatArray:
    """Returns the same by the trapezoids of the official code, [..., S, B].

    A step lies within one trapezoid, which counts half; a ratio of 1 has no step.
    """
    intervals = OFFICIAL_POINTS - 1
    first = np.searchsorted(official_grid(r_max), ratios_SB)  # point at full height
    covered = np.where(first == 0, intervals, intervals - first + 0.5)
    return np.where(first > intervals, 0.0, covered / intervals)


def official_scores(ratios_SB: FloatArray, r_max: float) -> FloatArray:
    """Integrates as the official code does, [S]: trapezoids on 100 points."""
    taus_T = official_grid(r_max)
    rho_ST = performance_profile(ratios_SB, taus_T)
    return np.asarray(np.trapezoid(rho_ST, taus_T, axis=1)) / (r_max - 1.0)
