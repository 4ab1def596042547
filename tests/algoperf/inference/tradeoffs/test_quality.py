"""Frontiers against brute force; ratios of speed-ups in closed form."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algoperf.errors import UserError
from algoperf.inference.tradeoffs import quality

POINTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12)


def _beats(a, b):
    return a[0] <= b[0] and a[1] >= b[1] and a != b


@settings(max_examples=60)
@given(POINTS)
def test_frontier_is_what_none_beats(points):
    want = {a for a in points if not any(_beats(b, a) for b in points)}
    found = quality.pareto(points)
    assert set(found) == want
    assert len(found) == len(want)
    assert found == sorted(found)


@settings(max_examples=60)
@given(POINTS, st.tuples(st.integers(0, 9), st.integers(0, 9)))
def test_views_are_read_off_the_frontier_and_gain_by_points(points, more):
    frontier = quality.pareto(points)
    for level in (0, 3, 7):
        best = quality.at_budget(points, level)
        assert best == quality.at_budget(frontier, level)
        assert quality.at_budget([*points, more], level) >= best
        least = quality.cost_to_reach(points, level)
        assert least == quality.cost_to_reach(frontier, level)
        assert quality.cost_to_reach([*points, more], level) <= least


@settings(max_examples=60)
@given(POINTS)
def test_hypervolume_counts_the_squares_that_are_beaten(points):
    squares = sum(
        any(cost <= x and q >= y + 1 for cost, q in points)
        for x in range(10)
        for y in range(10)
    )
    assert quality.hypervolume(points, 10, 0) == pytest.approx(squares)


def test_no_points():
    assert quality.at_budget([], 1) == -math.inf
    assert quality.cost_to_reach([], 1) == math.inf


def test_speed_up_ratio():
    assert quality.speed_up_ratio(10, 2, 4) == pytest.approx((10 / 2) / (10 / 4))
    assert quality.speed_up_ratio(10, 0.001, 4, is_correct=False) == 4 / 10
    assert quality.speed_up_ratio(10, 4, 4) == 1
    with pytest.raises(UserError):
        quality.speed_up_ratio(10, 0, 4)


def test_means_and_what_a_clamp_does():
    ratios = [1.0] * 99 + [1e-4]  # one wrong change where the expert won 10,000 times
    assert quality.harmonic_mean(ratios) == pytest.approx(100 / (99 + 1e4))
    assert quality.harmonic_mean(ratios, 0.01) == pytest.approx(100 / 199)
    assert quality.geometric_mean(ratios) == pytest.approx(10 ** (-4 / 100))
    values = np.array([0.5, 2.0, 4.0])
    assert quality.harmonic_mean(values) == pytest.approx(3 / np.sum(1 / values))
