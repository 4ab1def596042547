"""AdaPT's rules against integer arithmetic and closed forms."""

import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from algoperf.numerics import adapt, rounding

WORDS = rounding.words_of(jax.random.key(0))
DEFAULTS = adapt.Settings()
_fixed_point = jax.jit(adapt.fixed_point)


@hypothesis.given(
    st.integers(2, 16),
    st.integers(0, 12),
    st.lists(st.integers(-9999, 9999), min_size=4, max_size=4),
)
@hypothesis.settings(max_examples=40)
def test_fixed_point_is_integer_arithmetic(word, fraction, numerators):
    """Numbers k / 2^14: shifts and halves, ties to even, in Python's integers."""
    x = np.array(numerators, np.float32) / 2**14
    expected = []
    for k in numerators:
        shift = 14 - fraction
        below, rest = k >> shift, k & ((1 << shift) - 1)
        half = 1 << (shift - 1)
        below += rest > half or (rest == half and below % 2 == 1)
        expected.append(min(max(below, -(2 ** (word - 1))), 2 ** (word - 1) - 1))
    result = np.asarray(_fixed_point(x, word, fraction))
    np.testing.assert_array_equal(result * 2**fraction, expected)


def test_fixed_point_is_unbiased_with_a_key():
    x = np.tile(np.array([0.3, -0.3, 1.01, 0.5], np.float32), (20_000, 1))
    rounded = np.asarray(_fixed_point(x, 8, 2, WORDS))
    assert set(np.unique(rounded[:, 0])) == {0.25, 0.5}
    error = rounded.mean(axis=0) - x[0]
    assert (np.abs(error) <= 4 * rounded.std(axis=0) / math.sqrt(len(x))).all()


def test_diversity_in_closed_form():
    assert adapt.diversity(7, 7.0) == 1.0  # equal gradients
    unit = np.eye(5)
    assert math.isclose(
        adapt.diversity(5, np.linalg.norm(unit.sum(axis=0))), math.sqrt(5)
    )


def test_divergence():
    w = np.linspace(0, 1, 100)
    assert adapt.divergence(w, w, 10) == 0.0
    halves = np.where(w < 0.25, 0.1, 0.9)
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert math.isclose(adapt.divergence(w, halves, 2), expected, rel_tol=1e-9)
    assert adapt.divergence(w, halves, 10) == math.inf


@pytest.mark.parametrize(("word", "fraction"), [(8, 4), (6, 2), (12, 10)])
def test_push_down_finds_words_that_hold_the_weights(word, fraction):
    codes = np.random.default_rng(0).integers(-(2 ** (word - 1)), 2 ** (word - 1), 3000)
    codes[:2] = -(2 ** (word - 1)), 2 ** (word - 1) - 1
    weights = jnp.asarray(codes / 2**fraction, jnp.float32)
    found_word, found_fraction = adapt.push_down(weights, 50, WORDS)
    assert found_fraction <= fraction
    assert found_word <= word
    # A coarser histogram needs no more.
    coarse = adapt.push_down(weights, 2, WORDS)
    assert coarse[0] <= found_word
    every = adapt.push_down(weights, 2 ** (word + 1), WORDS)
    assert every == (word, fraction)


@pytest.mark.parametrize(
    ("spread", "strategy", "expected"),
    [
        (1.0, "min", (13, 5)),  # log 1 - 1 < 0: one bit more, and 8 before the point
        (math.exp(1.5), "min", (16, 8)),  # e = 1/2: min(4, 8 - 4)
        (math.exp(2.0), "min", (13, 5)),  # e = 1: min(1, 32 - 4)
        (math.exp(2.0), "mean", (27, 19)),
        (math.exp(2.0), "max", (32, 24)),
        (math.inf, "min", (13, 5)),
    ],
)
def test_push_up_by_hand(spread, strategy, expected):
    word, fraction = adapt.push_up(11, 4, spread, strategy, DEFAULTS)
    assert (word, fraction) == expected


def test_lookback_and_strategy():
    start = adapt.Precision(lookback=40, resolution=50)
    # 100 / 2 = 50: ceil(50 * 0.33 + 40 * 0.67) = ceil(43.3)
    assert adapt.next_lookback(start, 2.0, DEFAULTS) == (44, 50)
    shortest = adapt.Precision(lookback=10, resolution=1)
    assert adapt.next_lookback(shortest, 1e9, DEFAULTS) == (10, 1)
    longest = adapt.Precision(lookback=100, resolution=50)
    assert adapt.next_lookback(longest, 1.0, DEFAULTS) == (100, 51)
    assert adapt.next_strategy("min", 1.0, 1.5) == "mean"
    assert adapt.next_strategy("max", 1.0, 1.5) == "max"
    assert adapt.next_strategy("max", 1.0, 0.5) == "min"
