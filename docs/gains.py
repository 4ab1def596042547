"""Speed-ups over a reference with intervals, and how well two orders agree."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

import scoring
from scoring import recipes
from scoring.read import FloatArray

RESAMPLES = 2_000
CONFIDENCE = 0.95


def log_ratios(
    times_SB: FloatArray, reference: int, r_max: float, with_misses: bool = True
) -> FloatArray:
    """Returns the logs of times over the reference's, [S, B].

    `with_misses`, ratios end at `r_max` and its inverse, which misses count as: of a
    submission the one, of the reference the other. NaN where both missed; without them,
    where one of the two did.
    """
    with np.errstate(invalid="ignore"):
        ratios_SB = times_SB / times_SB[reference]
    both_missed_SB = np.isinf(times_SB) & np.isinf(times_SB[reference])
    ratios_SB[both_missed_SB] = np.nan
    if with_misses:
        return np.log(np.clip(ratios_SB, 1 / r_max, r_max))
    reached_SB = np.isfinite(times_SB) & np.isfinite(times_SB[reference])
    return np.log(np.where(reached_SB, ratios_SB, np.nan))


@dataclasses.dataclass(frozen=True)
class Gain:
    """A geometric mean of speed-ups over workloads, with its interval.

    The ends and the p-value are NaN where nothing says how sure it is: of fewer than
    three workloads, or where all are alike.
    """

    value: float
    low: float
    high: float
    count: int  # of workloads
    p_value: float  # that of no gain, two-sided

    def __str__(self) -> str:
        interval = f"{self.low:.2f} to {self.high:.2f}; "
        if math.isnan(self.low):
            interval = ""
        return f"{self.value:.2f} ({interval}{self.count})"


def gain(logs_B: FloatArray) -> Gain | None:
    """Averages logs of speed-ups; None of fewer than two.

    The interval is Student's t, hence speaks of new workloads like these.
    """
    count = logs_B.size
    if count < 2:
        return None
    mean = recipes.mean_ratio(np.exp(logs_B), CONFIDENCE)
    if count < 3 or np.ptp(logs_B) == 0:
        return Gain(mean.value, math.nan, math.nan, count, math.nan)
    p_value = stats.ttest_1samp(logs_B, 0.0).pvalue
    return Gain(*mean, count, float(p_value))


def over(
    result: scoring.Result,
    reference: str,
    workloads: Sequence[str],
    with_misses: bool = False,
) -> dict[str, Gain]:
    """Returns each other submission's speed-up over a reference on some workloads.

    Only where both reach the target; or `with_misses` everywhere, where one that a
    single one of them misses counts as `r_max`, and one that both miss as 1.
    """
    index = result.submissions.index(reference)
    logs_SB = -log_ratios(result.times, index, result.rules.r_max, with_misses)
    if with_misses:
        logs_SB = np.where(np.isnan(logs_SB), 0.0, logs_SB)
    logs_SB = logs_SB[:, [result.workloads.index(name) for name in workloads]]
    found = {
        name: gain(logs_B[~np.isnan(logs_B)])
        for name, logs_B in zip(result.submissions, logs_SB, strict=True)
        if name != reference
    }
    return {name: value for name, value in found.items() if value is not None}


def sure(found: Mapping[str, Gain]) -> set[str]:
    """Returns whose gain or loss is beyond chance, with all of them looked at.

    Holm 1979: of n p-values the k-th smallest, from 0, is held against 0.05 / (n - k),
    until the first that is not below. One that is unknown counts among the n.
    """
    p_values = {name: np.nan_to_num(g.p_value, nan=1.0) for name, g in found.items()}
    names: set[str] = set()
    for k, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        if p_values[name] >= (1 - CONFIDENCE) / (len(p_values) - k):
            break
        names.add(name)
    return names


@dataclasses.dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation with an interval over resampled workloads."""

    rho: float
    low: float
    high: float
    count: int  # of pairs

    def __str__(self) -> str:
        return f"{self.rho:.2f} ({self.low:.2f} to {self.high:.2f}; n = {self.count})"


def correlations(ours_SB: FloatArray, theirs_SB: FloatArray) -> dict[str, Correlation]:
    """Correlates log ratios of S submissions on B workloads here and there.

    Intervals are of resampled workloads, the submissions stay the same; a resample
    without an order (all equal) has no correlation and is left out.
    """
    known_SB = np.isfinite(ours_SB) & np.isfinite(theirs_SB)

    def pooled(chosen_B: np.ndarray) -> tuple[FloatArray, FloatArray]:
        is_known = known_SB[:, chosen_B]
        return ours_SB[:, chosen_B][is_known], theirs_SB[:, chosen_B][is_known]

    def averaged(chosen_B: np.ndarray) -> tuple[FloatArray, FloatArray]:
        weights_SB = known_SB[:, chosen_B].astype(float)
        count_S = weights_SB.sum(axis=1)
        is_known_S = count_S > 0
        ours_S, theirs_S = (
            np.where(weights_SB > 0, values_SB[:, chosen_B], 0.0).sum(axis=1)
            / np.maximum(count_S, 1)
            for values_SB in (ours_SB, theirs_SB)
        )
        return ours_S[is_known_S], theirs_S[is_known_S]

    rng = np.random.default_rng(0)
    num_workloads = ours_SB.shape[1]
    draws_RB = rng.integers(num_workloads, size=(RESAMPLES, num_workloads))
    found = {}
    for name, pairs in {"each workload": pooled, "the mean": averaged}.items():
        all_pairs = pairs(np.arange(num_workloads))
        resampled_R = np.array([spearman(*pairs(draw_B)) for draw_B in draws_RB])
        ends = np.nanquantile(resampled_R, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        found[name] = Correlation(
            spearman(*all_pairs), float(ends[0]), float(ends[1]), all_pairs[0].size
        )
    return found


def spearman(x_N: FloatArray, y_N: FloatArray) -> float:
    """Returns the rank correlation, ties at their mean rank; NaN without an order."""
    ranks_2N = np.stack([stats.rankdata(x_N), stats.rankdata(y_N)])
    if x_N.size < 2 or (np.ptp(ranks_2N, axis=1) == 0).any():
        return math.nan
    return float(np.corrcoef(ranks_2N)[0, 1])
