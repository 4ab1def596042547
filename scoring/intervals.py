"""Intervals for speed-ups: Student's t on the logarithms of study times.

A time on a workload is the median over a few studies. Percentile bootstrap intervals
over 3 to 5 studies miss their level on both sides: the medians of resamples are few and
far apart, which is too wide for log-normal times and too narrow for skewed ones. In
samples this small, t intervals do better (Hesterberg 2015, "What Teachers Should Know
about the Bootstrap", The American Statistician 69, 371-386). Hence:

- The variance of a log median is the sample variance of the logs of study times, times
  that of the median of K standard normals: exact for log-normal times, too large for
  most skewed ones.
- Variances of several workloads and submissions add up, and so do their few degrees of
  freedom, by Welch's formula (1947, "The Generalization of Student's Problem when
  Several Different Population Variances are Involved", Biometrika 34, 28-35). That of
  Satterthwaite (1946), better known, underestimates them where each variance has two to
  four, as here.
- A study that missed is at least as slow as the slowest that did not: it is given the
  time that mirrors the fastest about the median, and costs a degree of freedom.

How often the intervals hold the truth is measured by
`tests/benchmarks/bootstrap_coverage.py`: 95 % within a percent or so for log-normal and
mildly skewed times. Where times have two peaks, as when one trial in five is good, a
few studies do not show it, and intervals are too narrow.

Dimension key: K studies, N independent estimates.
"""

import dataclasses
import functools
import math

import numpy as np

from scoring.read import FloatArray

_POINTS = 2001  # of a grid of angles
_MANY = 1e6  # degrees of freedom from which Student's t is a normal distribution


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LogMedian:
    """The log of a median over studies, and how well it is known; shapes are equal."""

    value: FloatArray  # NaN for a miss
    variance: FloatArray  # of `value`; NaN if unknown: one study, or a miss
    freedom: FloatArray  # degrees of freedom of `variance`, at least 1


def log_median(times_K: FloatArray) -> LogMedian:
    """Returns the log of the median of study times, [..., K] in any unit.

    Of times that are 0 the variance is unknown; inf is a study that missed.
    """
    count = times_K.shape[-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        logs_K = np.log(np.sort(times_K, axis=-1))
        value = np.log(np.median(times_K, axis=-1))
        is_miss_K = np.isposinf(logs_K)
        slowest = np.where(is_miss_K, -np.inf, logs_K).max(axis=-1, keepdims=True)
        mirrored_K = 2 * value[..., None] - logs_K[..., ::-1]
        logs_K = np.where(is_miss_K, np.maximum(mirrored_K, slowest), logs_K)
        value = np.where(np.isfinite(value), value, np.nan)
        if count < 2:
            return LogMedian(
                value=value, variance=np.full_like(value, np.nan), freedom=value * 0 + 1
            )
        variance = logs_K.var(axis=-1, ddof=1) * median_variance(count)
    freedom = count - 1.0 - is_miss_K.sum(axis=-1)
    return LogMedian(
        value=value,
        variance=np.where(np.isfinite(value), variance, np.nan),
        freedom=np.where(np.isfinite(value), freedom, 1.0),
    )


def half_width(
    variance_N: FloatArray, freedom_N: FloatArray, confidence: float
) -> FloatArray:
    """Returns half the width of the interval of a sum of independent estimates.

    Args:
      variance_N: of each estimate, [..., N]; 0 for one that is known exactly.
      freedom_N: degrees of freedom of each variance, [..., N].
      confidence: of the interval, such as 0.95.

    Returns:
      [...]; NaN if a variance is unknown, or all are 0: studies that took exactly the
      same time only say that evaluations are too rare to tell them apart.
    """
    variance = variance_N.sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        pooled = variance**2 / (variance_N**2 / (freedom_N + 2)).sum(axis=-1) - 2
    # Not below the worst part with a variance, nor above all of them together.
    is_part_N = variance_N > 0
    worst = np.where(is_part_N, freedom_N, np.inf).min(axis=-1, initial=np.inf)
    together = np.where(is_part_N, freedom_N, 0.0).sum(axis=-1)
    freedom = np.maximum(np.minimum(pooled, together), worst)
    quantile = student_quantile((1 + confidence) / 2, freedom)
    return np.where(variance > 0, quantile * np.sqrt(variance), np.nan)


def student_quantile(probability: float, freedom: FloatArray) -> FloatArray:
    """Returns quantiles of Student's t for `probability` > 0.5, [...].

    With t = sqrt(n) tan(angle), the density of the angle is cos(angle) ** (n - 1) for n
    degrees of freedom; its integral is inverted on a grid. Relative error below 1e-4
    for n >= 1; NaN for NaN.
    """
    freedom = np.asarray(freedom, np.float64)
    flat_N = np.clip(np.nan_to_num(freedom.ravel(), nan=1.0), 1.0, _MANY)
    last_N = np.minimum(np.pi / 2, 12.0 / np.sqrt(flat_N))  # beyond is no mass
    share_P = 1 - np.linspace(1.0, 0.0, _POINTS) ** 3  # denser where it ends steeply
    quantiles = []
    for degrees, last in zip(flat_N.tolist(), last_N.tolist(), strict=True):
        angle_P = last * share_P
        density_P = np.maximum(np.cos(angle_P), 0.0) ** (degrees - 1.0)
        areas = (density_P[1:] + density_P[:-1]) * np.diff(angle_P)
        mass_P = np.concatenate([[0.0], np.cumsum(areas)])
        angle = np.interp((2 * probability - 1) * mass_P[-1], mass_P, angle_P)
        quantiles.append(math.sqrt(degrees) * math.tan(angle))
    result = np.array(quantiles).reshape(freedom.shape)
    return np.where(np.isnan(freedom), np.nan, result)


@functools.cache
def median_variance(count: int) -> float:
    """Returns the variance of the median of `count` independent standard normals.

    By quadrature of the density of the one or two values in the middle (David and
    Nagaraja 2003, "Order Statistics", chapter 2); relative error below 1e-3.
    """
    x_P = np.linspace(-8.0, 8.0, 801)
    below_P = np.array([math.erfc(-x / math.sqrt(2)) / 2 for x in x_P.tolist()])
    lower_P, upper_P = np.log(below_P), np.log(below_P[::-1])  # of F(x) and 1 - F(x)
    density_P = -(x_P**2) / 2
    if count % 2:
        half = (count - 1) // 2
        log_P = half * (lower_P + upper_P) + density_P
        weight_P = np.exp(log_P - log_P.max())
        return float((weight_P * x_P**2).sum() / weight_P.sum())
    rest = count // 2 - 1
    log_PP = (rest * lower_P + density_P)[:, None] + rest * upper_P + density_P
    weight_PP = np.exp(log_PP - log_PP.max())
    # The first of both is the smaller one; the diagonal is the edge of that region.
    weight_PP *= np.triu(np.ones_like(weight_PP), 1) + np.eye(len(x_P)) / 2
    mean_PP = (x_P[:, None] + x_P) / 2
    return float((weight_PP * mean_PP**2).sum() / weight_PP.sum())
