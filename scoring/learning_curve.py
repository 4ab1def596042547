"""When would a run that was stopped have reached its target? Trends of its curve.

Vilares Ferro, Darriba Bilbao and Ribadas Pena, "Modeling of learning curves" (arXiv
2402.02515): a power law, c - a x^-b, is fitted to nested prefixes of the curve. The
fits are a sequence of trends. They are trusted from the *prediction level* on, and are
good enough once they lie within tau of each other where the target is reached (the
*proximity condition*). An *anchor*, a value far ahead that the trend before it expects,
steadies a trend.

Two things differ from the paper, whose curves are of data sets that grow. The exponent
b goes down to -1, a straight line: a learning rate that falls to zero makes curves that
flatten less than any power law with an asymptote. And a trend sees the second half of
the time run only (the *working level*): what comes before follows another law.

Curves are handled as gains, metrics whose sign makes larger better. A trend is kept as
level + slope * growth(x), where x is time divided by the time run and

    growth(x) = (1 - x^-b) / b,  log x for b = 0,

which is the power law with a = slope / b and c = level + slope / b.

Dimension key: E evaluations, P points (evaluations and the anchor), L trends
(prefixes), G exponents, R resamples.
"""

import dataclasses
import math

import numpy as np

from algoperf.records import Direction
from scoring.read import FloatArray
from scoring.rules import Goal

MIN_EVALUATIONS = 6  # in the second half of the time run, or before it if need be
MIN_POINTS = 4  # of one trend, which has three parameters
MAX_TRENDS = 12
WORKING_LEVEL = 0.5  # of the time run; the rules of a curve's start are others
COMPARED = 3  # trusted trends that must agree
TAU = 0.2  # by default, of what the last trend has missing to the target
EXPONENTS = np.linspace(-1.0, 6.0, 43)  # [G] tried before the best is refined
HUBER = 1.345  # residuals beyond this many deviations weigh less
ANCHOR_AT = 2.0  # the anchor stands at this many times the time run
FARTHEST = 10.0  # a target further than this many times the time run is not predicted
RESAMPLES = 200
COVERAGE = 0.9  # of the interval, if residuals were all that can be wrong
FEWEST_IMPROVING = 0.55  # share of pairs of evaluations of which the later is better


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Trends:
    """Fits to nested prefixes of a curve; see the module for the formula."""

    counts: np.ndarray  # [L] evaluations of each prefix
    exponents: FloatArray  # [L] b
    slopes: FloatArray  # [L] gain per growth; positive if the curve improves
    levels: FloatArray  # [L] gain at x = 1
    scale: float  # seconds of x = 1

    def gains(self, seconds: float) -> FloatArray:
        """Returns the gain that each trend expects at a time, [L]."""
        growth_L = _growth(np.log(seconds / self.scale), self.exponents)
        return self.levels + self.slopes * growth_L

    def seconds(self, gain: float) -> FloatArray:
        """Returns when each trend has a gain, [L]; inf if never."""
        return self.scale * _inverse(self.exponents, self.slopes, gain - self.levels)

    def trusted(self, gain: float) -> slice:
        """Returns the last COMPARED trends, as far as the prediction level allows.

        The prediction level is past the last trend that never has the gain.
        """
        is_never_L = ~np.isfinite(self.seconds(gain))
        level = 1 + int(np.flatnonzero(is_never_L).max(initial=-1))
        return slice(max(level, len(is_never_L) - COMPARED), None)

    @property
    def asymptotes(self) -> FloatArray:
        """The gain of each trend at infinity, c of the power law, [L]; or inf."""
        is_bounded_L = self.exponents > 0
        safe_L = np.where(is_bounded_L, self.exponents, 1.0)
        return np.where(is_bounded_L, self.levels + self.slopes / safe_L, np.inf)


def _growth(log_x: FloatArray | float, exponents: FloatArray) -> FloatArray:
    """Returns (1 - x^-b) / b, and its limit log x at b = 0."""
    safe = np.where(np.abs(exponents) < 1e-9, 1e-9, exponents)
    return -np.expm1(-safe * log_x) / safe


def _inverse(
    exponents: FloatArray, slopes: FloatArray, gains: FloatArray
) -> FloatArray:
    """Returns the x whose growth times slope is the gain; inf if there is none."""
    safe = np.where(np.abs(exponents) < 1e-9, 1e-9, exponents)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        rest = -safe * gains / slopes
        x = np.exp(-np.log1p(rest) / safe)
    return np.where((slopes > 0) & (rest > -1) & np.isfinite(x), x, np.inf)


def fit_trends(
    times_E: FloatArray,
    gains_E: FloatArray,
    counts: np.ndarray | None = None,
    anchor: float = 0.0,
) -> Trends:
    """Fits a trend to each prefix, all at once.

    For a given exponent the fit is linear least squares with Huber weights; the
    exponent is the best of a grid, refined by golden section.

    Args:
      times_E: increasing, positive, in seconds.
      gains_E: metric, larger is better; finite.
      counts: how many evaluations each prefix has, [L]; MIN_POINTS or more, increasing.
        By default as `prefix_counts` says.
      anchor: weight of the anchor, against 1 of an evaluation; 0 for none.
    """
    if counts is None:
        counts = prefix_counts(len(times_E))
    scale = float(times_E[-1])
    log_x_P = np.log(times_E / scale)
    weights_LP = (np.arange(len(times_E)) < counts[:, None]).astype(float)
    gains_LP = np.broadcast_to(gains_E, weights_LP.shape)
    fit = _fit(log_x_P, gains_LP, weights_LP)
    if anchor and len(counts) > 1:
        # Each trend is fitted again, with what the one before it expects far ahead.
        exponents_L, slopes_L, levels_L = fit
        at = math.log(ANCHOR_AT)
        expected_L = levels_L + slopes_L * _growth(at, exponents_L)
        before_L = np.concatenate([expected_L[:1], expected_L[:-1]])
        log_x_P = np.append(log_x_P, at)
        gains_LP = np.column_stack([gains_LP, before_L])
        weights_LP = np.column_stack([weights_LP, np.full(len(counts), anchor)])
        fit = _fit(log_x_P, gains_LP, weights_LP)
    exponents_L, slopes_L, levels_L = fit
    return Trends(
        counts=counts,
        exponents=exponents_L,
        slopes=slopes_L,
        levels=levels_L,
        scale=scale,
    )


def prefix_counts(evaluations: int) -> np.ndarray:
    """Returns lengths of at most MAX_TRENDS prefixes, evenly spread, [L]."""
    counts = np.linspace(MIN_POINTS, evaluations, MAX_TRENDS)
    return np.unique(counts.round().astype(int))


def _fit(
    log_x_P: FloatArray, gains_LP: FloatArray, mask_LP: FloatArray, rounds: int = 4
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Returns exponent, slope and level of each row, [L]; `mask_LP` weighs points."""
    growth_GP = _growth(log_x_P, EXPONENTS[:, None])
    rows = np.arange(len(gains_LP))
    weights_LP = mask_LP
    for _ in range(rounds):
        slopes_LG, levels_LG, errors_LG = _profile(growth_GP, gains_LP, weights_LP)
        best_L = np.argmin(errors_LG, axis=1)
        slopes_L1, levels_L1 = (x[rows, best_L, None] for x in (slopes_LG, levels_LG))
        residuals_LP = gains_LP - (levels_L1 + slopes_L1 * growth_GP[best_L])
        weights_LP = mask_LP * _huber(residuals_LP, mask_LP)
    exponents_L = _refine(log_x_P, gains_LP, weights_LP, best_L)
    growth_LP = _growth(log_x_P, exponents_L[:, None])
    slopes_L, levels_L, _ = _least_squares(growth_LP, gains_LP, weights_LP)
    return exponents_L, slopes_L, levels_L


def _profile(
    growth_GP: FloatArray, gains_LP: FloatArray, weights_LP: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Fits gain = level + slope * growth for each row and each exponent.

    Returns:
      Slopes, levels and weighted sums of squared residuals, each [L, G].
    """
    total_L1 = weights_LP.sum(axis=1, keepdims=True)
    middle_L1 = (weights_LP * gains_LP).sum(axis=1, keepdims=True) / total_L1
    weighed_LP = weights_LP * (gains_LP - middle_L1)
    mean_LG = weights_LP @ growth_GP.T / total_L1
    spread_LG = weights_LP @ (growth_GP**2).T - total_L1 * mean_LG**2
    product_LG = weighed_LP @ growth_GP.T
    slopes_LG = product_LG / np.maximum(spread_LG, np.finfo(float).tiny)
    squares_L1 = (weighed_LP * (gains_LP - middle_L1)).sum(axis=1, keepdims=True)
    errors_LG = squares_L1 - slopes_LG * product_LG
    return slopes_LG, middle_L1 - slopes_LG * mean_LG, errors_LG


def _least_squares(
    growth_LP: FloatArray, gains_LP: FloatArray, weights_LP: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Does what `_profile` does for one exponent a row, to the last digit; each [L]."""
    total_L = weights_LP.sum(axis=1)
    mean_L = (weights_LP * growth_LP).sum(axis=1) / total_L
    middle_L = (weights_LP * gains_LP).sum(axis=1) / total_L
    centred_LP = growth_LP - mean_L[:, None]
    deviations_LP = gains_LP - middle_L[:, None]
    weighed_LP = weights_LP * centred_LP
    spread_L = (weighed_LP * centred_LP).sum(axis=1)
    slopes_L = (weighed_LP * deviations_LP).sum(axis=1)
    slopes_L /= np.maximum(spread_L, np.finfo(float).tiny)
    residuals_LP = deviations_LP - slopes_L[:, None] * centred_LP
    errors_L = (weights_LP * residuals_LP**2).sum(axis=1)
    return slopes_L, middle_L - slopes_L * mean_L, errors_L


def _huber(residuals_LP: FloatArray, mask_LP: FloatArray) -> FloatArray:
    """Returns weights that bound what one evaluation can do to a fit, [L, P]."""
    sizes_LP = np.where(mask_LP > 0, np.abs(residuals_LP), np.nan)
    deviation_L1 = 1.4826 * np.nanmedian(sizes_LP, axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        weights_LP = np.minimum(1.0, HUBER * deviation_L1 / sizes_LP)
    return np.where(np.isfinite(weights_LP), weights_LP, 1.0)


def _refine(
    log_x_P: FloatArray,
    gains_LP: FloatArray,
    weights_LP: FloatArray,
    best_L: np.ndarray,
    steps: int = 20,
) -> FloatArray:
    """Returns the best exponent of each row between the neighbours of the best, [L]."""

    def errors(exponents_L: FloatArray) -> FloatArray:
        growth_LP = _growth(log_x_P, exponents_L[:, None])
        return _least_squares(growth_LP, gains_LP, weights_LP)[2]

    low_L = EXPONENTS[np.maximum(best_L - 1, 0)]
    high_L = EXPONENTS[np.minimum(best_L + 1, len(EXPONENTS) - 1)]
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(steps):
        left_L = high_L - ratio * (high_L - low_L)
        right_L = low_L + ratio * (high_L - low_L)
        is_left_L = errors(left_L) < errors(right_L)
        high_L = np.where(is_left_L, right_L, high_L)
        low_L = np.where(is_left_L, low_L, left_L)
    return (low_L + high_L) / 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """When a run that was stopped would have reached its target, or why that is open.

    The interval holds COVERAGE of the times that the curve's own residuals allow, the
    times of the last trusted trends, and those of a straight line and of a logarithm
    (exponents -1 and 0). It knows nothing of what is yet to come, a learning rate that
    falls, say, and holds the truth less often than COVERAGE says: docs/prediction.md
    has how often it did.
    """

    run: float  # seconds of submission time that the run had
    seconds: float = math.inf  # to the target; inf if there is no prediction
    low: float = math.inf
    high: float = math.inf
    reason: str = ""  # why there is no prediction: 'too few evaluations'
    detail: str = ""  # of the reason: '3 of at least 6'
    trend_distance: float = math.inf  # of the last trusted trends, at the target
    resampled_distance: float = math.inf  # of resampled trends from the last one, there
    tau: float = 0.0  # what distances may be, in units of the metric

    @property
    def is_settled(self) -> bool:
        """Whether the proximity condition holds, for resampled trends as well.

        Trends of nearly the same evaluations agree even where all of them are wrong.
        """
        return max(self.trend_distance, self.resampled_distance) <= self.tau


def predict_time(
    times_E: FloatArray,
    values_E: FloatArray,
    goal: Goal,
    *,
    tau: float | None = None,
    anchor: float = 0.0,
    seed: int = 0,
) -> Prediction:
    """Predicts the time to a target from evaluations that did not reach it.

    Args:
      times_E: submission time in seconds; evaluations at 0 s or without a finite time
        and value are left out.
      values_E: the metric of the goal.
      goal: metric, direction and target.
      tau: how far the last trusted trends may lie apart at the target, in units of the
        metric; by default TAU times what is missing to the target.
      anchor: see `fit_trends`.
      seed: of the resampling.
    """
    sign = 1.0 if goal.direction is Direction.MAXIMIZE else -1.0
    is_used_E = np.isfinite(times_E) & np.isfinite(values_E) & (times_E > 0)
    times_E, gains_E = times_E[is_used_E], sign * values_E[is_used_E]
    run = float(times_E[-1]) if times_E.size else 0.0
    if len(times_E) < MIN_EVALUATIONS:
        detail = f"{len(times_E)} of at least {MIN_EVALUATIONS}"
        return Prediction(run=run, reason="too few evaluations", detail=detail)
    first = int(np.searchsorted(times_E, WORKING_LEVEL * run))
    first = min(first, len(times_E) - MIN_EVALUATIONS)
    times_E, gains_E = times_E[first:], gains_E[first:]
    share = _improving_pairs(gains_E)
    if share < FEWEST_IMPROVING:
        detail = f"in {share:.0%} of pairs the later evaluation is better"
        return Prediction(run=run, reason="not improving", detail=detail)
    trends, target = fit_trends(times_E, gains_E, anchor=anchor), sign * goal.target
    if why := _why_not(trends, target, goal, sign):
        return Prediction(run=run, reason=why[0], detail=why[1])
    resampled = _resampled(times_E, gains_E, trends, seed)
    low, high = _interval(times_E, gains_E, trends, resampled, target)
    seconds = max(float(trends.seconds(target)[-1]), run)
    gains_L = trends.gains(seconds)[trends.trusted(target)]
    apart_R = np.abs(resampled.gains(seconds) - gains_L[-1])
    missing = max(target - float(trends.levels[-1]), 0.0)
    return Prediction(
        run=run,
        seconds=seconds,
        low=max(low, run),
        high=max(high, run),
        trend_distance=float(np.ptp(gains_L)) if len(gains_L) == COMPARED else math.inf,
        resampled_distance=float(np.quantile(apart_R, COVERAGE)),
        tau=TAU * missing if tau is None else tau,
    )


def _why_not(
    trends: Trends, target: float, goal: Goal, sign: float
) -> tuple[str, str] | None:
    """Returns reason and detail why the last trend is no prediction; or None."""
    seconds = float(trends.seconds(target)[-1])
    if trends.slopes[-1] <= 0:
        return "not improving", "the last trend leads away from the target"
    asymptote = float(trends.asymptotes[-1])
    if asymptote <= target:
        level = f"{goal.metric} {sign * asymptote:.4g}"
        return "levels off short of the target", f"at {level}"
    if seconds > FARTHEST * trends.scale:
        return "too far", f"further than {FARTHEST:g} times the time run"
    return None


def _improving_pairs(gains_E: FloatArray) -> float:
    """Returns the share of pairs of evaluations of which the later is better."""
    earlier, later = np.triu_indices(len(gains_E), k=1)
    return float((gains_E[later] > gains_E[earlier]).mean())


def _interval(
    times_E: FloatArray,
    gains_E: FloatArray,
    trends: Trends,
    resampled: Trends,
    target: float,
) -> tuple[float, float]:
    """Returns the interval that `Prediction` describes, in seconds."""
    tail = (1 - COVERAGE) / 2
    ends = np.quantile(resampled.seconds(target), [tail, 1 - tail], method="nearest")
    plain = _plain_seconds(times_E, gains_E, target)
    trusted_L = trends.seconds(target)[trends.trusted(target)]
    times = np.concatenate([ends, plain, trusted_L])
    return float(times.min()), float(times.max())


def _plain_seconds(
    times_E: FloatArray, gains_E: FloatArray, target: float
) -> FloatArray:
    """Returns when a straight line and a logarithm reach the target, [2]."""
    exponents = np.array([-1.0, 0.0])
    scale = float(times_E[-1])
    growth_2E = _growth(np.log(times_E / scale), exponents[:, None])
    gains_2E = np.broadcast_to(gains_E, growth_2E.shape)
    slopes, levels, _ = _least_squares(growth_2E, gains_2E, np.ones_like(growth_2E))
    return scale * _inverse(exponents, slopes, target - levels)


def _resampled(
    times_E: FloatArray, gains_E: FloatArray, trends: Trends, seed: int
) -> Trends:
    """Returns trends of curves like this one, with residuals drawn anew, R of them.

    Residuals of the last trend are drawn with replacement, get a random sign, and are
    scaled up by what the three parameters took from them.
    """
    generator = np.random.default_rng(seed)
    count = len(times_E)
    log_x_E = np.log(times_E / trends.scale)
    growth_E = _growth(log_x_E, trends.exponents[-1:])
    fitted_E = trends.levels[-1] + trends.slopes[-1] * growth_E
    residuals_E = (gains_E - fitted_E) * math.sqrt(count / (count - 3))
    drawn_RE = residuals_E[generator.integers(count, size=(RESAMPLES, count))]
    signs_RE = generator.choice([-1.0, 1.0], size=drawn_RE.shape)
    growth_GE = _growth(log_x_E, EXPONENTS[:, None])
    slopes_RG, levels_RG, errors_RG = _profile(
        growth_GE, fitted_E + drawn_RE * signs_RE, np.ones_like(drawn_RE)
    )
    best_R = np.argmin(errors_RG, axis=1)
    rows = np.arange(RESAMPLES)
    return Trends(
        counts=np.full(RESAMPLES, count),
        exponents=EXPONENTS[best_R],
        slopes=slopes_RG[rows, best_R],
        levels=levels_RG[rows, best_R],
        scale=trends.scale,
    )
