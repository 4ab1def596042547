"""Learning-rate schedules against their formulas."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algoperf.schedules import (
    cosine_restarts,
    warmup_constant,
    warmup_cosine,
    warmup_linear,
    warmup_stable_decay,
)


def _values(schedule, steps):
    return np.array([float(schedule(step)) for step in range(steps + 1)])


def test_cosine_rises_to_the_peak_and_falls_to_zero():
    schedule = warmup_cosine(100, 0.5, warmup_factor=0.1)
    assert schedule(0) == 0
    assert schedule(10) == pytest.approx(0.5)
    assert schedule(55) == pytest.approx(0.25, rel=0.01)
    assert schedule(100) == pytest.approx(0, abs=1e-6)
    assert max(_values(schedule, 100)) == pytest.approx(0.5)
    assert warmup_cosine(1, 0.5)(1) == pytest.approx(0.5)


def test_linear():
    found = _values(warmup_linear(10, 1.0, warmup_factor=0.2), 12)
    wanted = [0, 0.5, *(1 - np.arange(9) / 8), 0, 0]
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_constant():
    found = _values(warmup_constant(10, 2.0, warmup_factor=0.2), 4)
    np.testing.assert_allclose(found, [0, 1, 2, 2, 2])
    assert warmup_constant(10, 2.0, warmup_factor=0)(0) == 2


def test_stable_decay():
    schedule = warmup_stable_decay(20, 2.0, warmup_factor=0.1, decay_factor=0.25)
    wanted = [0, 1, *[2] * 14, 1.6, 1.2, 0.8, 0.4, 0]
    np.testing.assert_allclose(_values(schedule, 20), wanted, atol=1e-6)
    # A decay that starts at once, and one that leaves no room for the warm-up.
    schedule = warmup_stable_decay(4, 1.0, warmup_factor=0, decay_factor=1.0)
    np.testing.assert_allclose(_values(schedule, 4), [1, 0.75, 0.5, 0.25, 0])
    schedule = warmup_stable_decay(4, 1.0, warmup_factor=0.5, decay_factor=1.0)
    np.testing.assert_allclose(_values(schedule, 4), [0, 0.5, 1, 0.5, 0])


def test_restarts():
    found = _values(cosine_restarts(30, 1.0, warmup_factor=0.1, cycles=3), 29)
    one = _values(warmup_cosine(10, 1.0, warmup_factor=0.1), 9)
    np.testing.assert_allclose(found, [*one, *one, *one], atol=1e-6)


@settings(max_examples=15)
@given(
    steps=st.integers(1, 40),
    warmup=st.floats(0, 1),
    make=st.sampled_from(
        [warmup_cosine, warmup_linear, warmup_stable_decay, cosine_restarts]
    ),
)
def test_rates_are_within_0_and_the_peak(steps, warmup, make):
    found = _values(make(steps, 0.3, warmup), steps + 2)
    assert np.isfinite(found).all()
    assert found.min() >= -1e-7
    assert found.max() <= 0.3 + 1e-6
