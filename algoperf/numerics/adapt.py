"""AdaPT: fixed-point words per layer, chosen while training (arXiv:2107.13490).

Each layer's weights and gradients are words <WL, FL> of WL bits, FL of them after the
point; masters stay in float32. Every `lookback` steps of a layer two things are asked.
PushDown: how few bits leave the weights' histogram as it is? PushUp: how diverse were
the gradients since (section 3 of the paper), so how many bits should be added?

These are the rules; `submissions/adapt_sgd` trains by them. Three defects of the
published code are mended: its divergence is taken of probabilities where logarithms
are expected, its search for FL evaluates the lower end instead of the middle, and it
looks at the first row of the weights alone. And two things differ by choice:

- Lookback and resolution follow when a layer's words are chosen; there at every step,
  which would have to wait for the device.
- PushDown looks for FL from 0 to 31 and for WL up to 32 bits; there for FL from 4 to
  that of now and for WL up to that of now, so that PushUp alone adds bits.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from algoperf.numerics import rounding

MAX_BITS = 32
STRATEGIES = ("min", "mean", "max")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the published code has as defaults.

    Attributes:
      min_lookback, max_lookback: steps between two choices for a layer.
      min_resolution, max_resolution: bins of the histograms.
      buffer_bits: bits before the point, at least.
      momentum: share of the new lookback in the next.
    """

    min_lookback: int = 10
    max_lookback: int = 100
    min_resolution: int = 1
    max_resolution: int = 100
    buffer_bits: int = 8
    momentum: float = 0.33


@dataclasses.dataclass(frozen=True)
class Precision:
    """A layer's words, and how it is watched."""

    word_length: int = 8
    fraction_length: int = 4
    lookback: int = 10
    resolution: int = 50


def fixed_point(
    x: jax.Array, word_length: Any, fraction_length: Any, words: rounding.Words = None
) -> jax.Array:
    """Rounds float32 numbers to k 2^-FL with -2^(WL - 1) <= k < 2^(WL - 1).

    Args:
      x: float32.
      word_length, fraction_length: WL and FL, integers or int32 arrays of shape ().
      words: uint32[2], the key of stochastic rounding; None rounds to nearest even.

    Returns:
      float32. Where WL exceeds the 24 bits of float32, x's own bits are kept.
    """
    word = jnp.asarray(word_length, jnp.int32)
    fraction = jnp.asarray(fraction_length, jnp.int32)
    scaled = rounding.times_power_of_two(x, fraction)
    if words is None:
        rounded = jnp.round(scaled)
    else:
        below = jnp.floor(scaled)
        rounded = below + (rounding.uniform(words, x.shape) < scaled - below)
    half = rounding.power_of_two(word - 1)
    return rounding.times_power_of_two(jnp.clip(rounded, -half, half - 1), -fraction)


def divergence(weights: np.ndarray, quantised: np.ndarray, bins: int) -> float:
    """KL divergence of the quantised weights' histogram from the weights', in nats.

    Both over the weights' range; what falls outside is put at its ends. Infinite where
    a bin of the weights is empty among the quantised.
    """
    low, high = float(weights.min()), float(weights.max())
    if low == high:
        return 0.0 if np.array_equal(weights, quantised) else math.inf
    edges = np.linspace(low, high, bins + 1)
    counts = [
        np.histogram(np.clip(a, low, high), edges)[0] for a in (weights, quantised)
    ]
    p, q = (c / weights.size for c in counts)
    is_there = p > 0
    if (q[is_there] == 0).any():
        return math.inf
    return float(np.sum(p[is_there] * np.log(p[is_there] / q[is_there])))


_fixed_point = jax.jit(fixed_point)


def push_down(
    weights: jax.Array, resolution: int, words: rounding.Words
) -> tuple[int, int]:
    """Returns the smallest (WL, FL) that lose nothing of the weights' histogram.

    First the smallest FL under words of 32 bits, then the smallest WL for it, both by
    bisection, as if more bits never lost more.
    """
    flat = jnp.ravel(weights).astype(jnp.float32)
    original = np.asarray(flat)

    def loses(word: int, fraction: int) -> bool:
        quantised = np.asarray(_fixed_point(flat, word, fraction, words))
        return divergence(original, quantised, resolution) > 0

    fraction = _smallest(0, MAX_BITS - 1, lambda fl: not loses(MAX_BITS, fl))
    word = _smallest(max(fraction, 1), MAX_BITS, lambda wl: not loses(wl, fraction))
    return word, fraction


def _smallest(low: int, high: int, is_enough: Any) -> int:
    while low < high:
        middle = (low + high) // 2
        if is_enough(middle):
            high = middle
        else:
            low = middle + 1
    return low


def diversity(number: int, norm_of_sum: float) -> float:
    """Sum of the norms of `number` unit gradients over the norm of their sum.

    1 if all are equal, sqrt(k) if k are orthogonal (Yin et al. 2018, arXiv:1706.05699).
    """
    return number / norm_of_sum if norm_of_sum > 0 else math.inf


def push_up(
    word: int, fraction: int, spread: float, strategy: str, settings: Settings
) -> tuple[int, int]:
    """Returns (WL, FL) with the bits that gradients of this diversity ask for."""
    added = 1
    excess = math.log(spread) - 1 if math.isfinite(spread) else math.inf
    if excess > 0:
        few = max(math.ceil(1 / excess**2), 1) if math.isfinite(excess) else 1
        square = MAX_BITS * excess**2
        wanted = MAX_BITS if square >= MAX_BITS else math.ceil(square)
        many = max(wanted - fraction, 0)
        added = {
            "min": min(few, many),
            "mean": math.ceil((few + many) / 2),
            "max": max(few, many),
        }[strategy]
    longer = min(fraction + added, MAX_BITS - settings.buffer_bits)
    wider = max(
        min(longer + settings.buffer_bits, MAX_BITS),
        min(max(word, longer) + 1, MAX_BITS),
    )
    return wider, longer


def next_lookback(
    precision: Precision, spread: float, settings: Settings
) -> tuple[int, int]:
    """Returns (lookback, resolution): diverse gradients are looked at more often."""
    wanted = settings.max_lookback / spread
    wanted = math.ceil(min(max(wanted, settings.min_lookback), settings.max_lookback))
    share = settings.momentum
    lookback = math.ceil(wanted * share + precision.lookback * (1 - share))
    resolution = precision.resolution
    resolution += lookback == settings.max_lookback
    resolution -= lookback == settings.min_lookback
    bounded = min(max(resolution, settings.min_resolution), settings.max_resolution)
    return lookback, bounded


def next_strategy(strategy: str, mean_loss: float, loss: float) -> str:
    """Returns a bolder strategy where the loss is no better than its recent mean."""
    if abs(mean_loss) <= abs(loss):
        return STRATEGIES[min(STRATEGIES.index(strategy) + 1, len(STRATEGIES) - 1)]
    return STRATEGIES[0]


def switched(
    precision: Precision,
    weights: jax.Array,
    spread: float,
    strategy: str,
    words: rounding.Words,
    settings: Settings | None = None,
) -> Precision:
    """Returns a layer's next precision: PushDown, then PushUp, then the lookback."""
    settings = settings or Settings()
    word, fraction = push_down(weights, precision.resolution, words)
    word, fraction = push_up(word, fraction, spread, strategy, settings)
    lookback, resolution = next_lookback(precision, spread, settings)
    return Precision(word, fraction, lookback, resolution)
