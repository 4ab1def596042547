"""Which runs have no hope left."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algoperf.records import Direction
from scoring import stopping
from scoring.rules import Goal

STEPS = np.arange(0.0, 2001.0, 100.0)  # 21 evaluations
GOAL = Goal(metric="loss", direction=Direction.MINIMIZE, target=1.0)
UP = Goal(metric="accuracy", direction=Direction.MAXIMIZE, target=-1.0)


def power_law(asymptote, exponent=0.5):
    return asymptote + (STEPS + 20.0) ** -exponent * 20**exponent * 4


def noisy(values, size=0.003, seed=0):
    return values + np.random.default_rng(seed).normal(scale=size, size=len(values))


def test_a_curve_that_levels_off_far_from_the_target_is_stopped_at_half():
    found = stopping.first_hopeless(STEPS, noisy(power_law(2.0)), GOAL, 2000)
    assert found is not None
    assert 1000 <= STEPS[found] <= 1400


@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_a_curve_on_its_way_goes_on(exponent):
    values = power_law(0.4, exponent)
    assert values[-1] < GOAL.target
    assert stopping.first_hopeless(STEPS, noisy(values), GOAL, 2000) is None


def test_a_curve_that_gets_worse_is_stopped_but_not_before_half():
    values = 2.0 + STEPS / 1000
    found = stopping.first_hopeless(STEPS, values, GOAL, 2000)
    assert STEPS[found] == 1000


def test_a_curve_that_a_falling_rate_bends_goes_on():
    """Flat, then ever steeper: the present pace alone would not do."""
    values = 2.0 - 1.05 * (STEPS / 2000) ** 1.5
    assert values[-1] < GOAL.target
    assert stopping.first_hopeless(STEPS, values, GOAL, 2000) is None


def test_once_the_target_was_reached_nothing_is_hopeless():
    values = np.where(STEPS == 300, 0.9, 3.0)
    assert stopping.first_hopeless(STEPS, values, GOAL, 2000) is None


def test_too_few_evaluations_say_nothing():
    steps = np.array([0.0, 400.0, 800.0, 1200.0, 1600.0])
    assert stopping.first_hopeless(steps, np.full(5, 3.0), GOAL, 2000) is None
    assert stopping.first_hopeless(STEPS, np.full(21, math.nan), GOAL, 2000) is None


@given(st.floats(0, 3), st.floats(0.2, 1.5), st.integers(0, 9))
@settings(max_examples=15)
def test_the_answer_is_of_the_first_evaluations_alone_and_of_no_direction(
    asymptote, exponent, seed
):
    values = noisy(power_law(asymptote, exponent), 0.02, seed)
    found = stopping.first_hopeless(STEPS, values, GOAL, 2000)
    assert stopping.first_hopeless(STEPS, -values, UP, 2000) == found
    if found is not None:
        cut = slice(0, found + 1)
        assert stopping.first_hopeless(STEPS[cut], values[cut], GOAL, 2000) == found
        before = slice(0, found)
        none = stopping.first_hopeless(STEPS[before], values[before], GOAL, 2000)
        assert none is None
