"""Ratios, profiles and integrals: laws and cases by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from scoring import profile

INF = np.inf
times = arrays(
    np.float64,
    array_shapes(min_dims=2, max_dims=2, max_side=6),
    elements=st.one_of(st.floats(1e-3, 1e6), st.just(INF), st.just(0.0)),
)


def test_by_hand():
    ratios = profile.performance_ratios(
        np.array([[10.0, 30.0], [20.0, 10.0], [INF, 50.0]])
    )
    np.testing.assert_array_equal(ratios, [[1, 3], [2, 1], [INF, 5]])
    taus = profile.breakpoints(ratios, 4.0)
    np.testing.assert_array_equal(taus, [1, 2, 3, 4])
    rho = profile.performance_profile(ratios, taus)
    np.testing.assert_array_equal(rho, [[0.5, 0.5, 1, 1], [0.5, 1, 1, 1], [0, 0, 0, 0]])
    # Areas over [1, 4]: (3 + 1) / 2, (2 + 3) / 2 and 0, each of 3.
    scores = profile.exact_scores(ratios, 4.0)
    np.testing.assert_allclose(scores, [2 / 3, 2.5 / 3, 0])


def test_a_workload_that_nobody_reached_counts_for_nobody():
    ratios = profile.performance_ratios(np.array([[INF, 1.0], [INF, 1.0]]))
    np.testing.assert_array_equal(ratios, [[INF, 1], [INF, 1]])
    np.testing.assert_array_equal(profile.exact_scores(ratios, 4.0), [0.5, 0.5])


def test_best_at_zero_seconds():
    ratios = profile.performance_ratios(np.array([[0.0], [0.0], [1.0]]))
    np.testing.assert_array_equal(ratios, [[1], [1], [INF]])


@given(times)
def test_ratios_are_one_for_the_best_and_never_less(times_SB):
    ratios = profile.performance_ratios(times_SB)
    assert (ratios >= 1).all()
    reached = np.isfinite(times_SB).any(axis=0)
    assert (ratios.min(axis=0)[reached] == 1).all()
    assert np.isinf(ratios[np.isinf(times_SB)]).all()


@given(times, st.floats(1.5, 10))
def test_exact_score_is_the_integral_of_the_profile(times_SB, r_max):
    ratios = profile.performance_ratios(times_SB)
    points = 4000
    edges = np.linspace(1, r_max, points + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    brute = profile.performance_profile(ratios, middles).mean(axis=1)
    exact = profile.exact_scores(ratios, r_max)
    np.testing.assert_allclose(exact, brute, atol=1 / points)


@given(times)
def test_breakpoints_hold_the_whole_profile(times_SB):
    ratios = profile.performance_ratios(times_SB)
    taus = profile.breakpoints(ratios, 4.0)
    rho = profile.performance_profile(ratios, taus)
    area = (rho[:, :-1] * np.diff(taus)).sum(axis=1) / 3
    np.testing.assert_allclose(area, profile.exact_scores(ratios, 4.0), atol=1e-12)
    assert (np.diff(rho, axis=1) >= 0).all()


@given(times)
def test_official_score_is_within_half_a_grid_step(times_SB):
    ratios = profile.performance_ratios(times_SB)
    exact = profile.exact_scores(ratios, 4.0)
    official = profile.official_scores(ratios, 4.0)
    np.testing.assert_allclose(official, exact, atol=0.5 / 99 + 1e-12)


def test_official_score_by_hand():
    # A step at 1.01 lies inside the first of 99 trapezoids, which counts half of it.
    score = profile.official_scores(np.array([[1.01]]), 4.0)
    assert score[0] == pytest.approx(1 - 0.5 / 99)


@given(times, st.floats(1.5, 10))
def test_scores_are_means_of_the_areas_of_workloads(times_SB, r_max):
    ratios = profile.performance_ratios(times_SB)
    exact = profile.exact_areas(ratios, r_max).mean(axis=1)
    np.testing.assert_allclose(exact, profile.exact_scores(ratios, r_max))
    official = profile.official_areas(ratios, r_max).mean(axis=1)
    expected = profile.official_scores(ratios, r_max)
    np.testing.assert_allclose(official, expected, atol=1e-12)


def test_official_areas_at_points_of_the_grid():
    grid = profile.official_grid(4.0)
    ratios = np.concatenate([grid, (grid[1:] + grid[:-1]) / 2, [INF, 4.0001]])[:, None]
    areas = profile.official_areas(ratios, 4.0)[:, 0]
    np.testing.assert_allclose(areas, profile.official_scores(ratios, 4.0), atol=1e-12)


@given(
    arrays(
        np.float64,
        array_shapes(min_dims=3, max_dims=3, max_side=4),
        elements=st.one_of(st.floats(1e-3, 1e6), st.just(INF)),
    )
)
def test_many_tables_at_once_are_as_one_by_one(times_RSB):
    ratios = profile.performance_ratios(times_RSB)
    each = [profile.performance_ratios(table) for table in times_RSB]
    np.testing.assert_array_equal(ratios, each)
    scores = [profile.exact_scores(table, 4.0) for table in each]
    np.testing.assert_array_equal(profile.exact_scores(ratios, 4.0), scores)


@given(times)
def test_fastest_everywhere_scores_one(times_SB):
    best = np.minimum(times_SB.min(axis=0, keepdims=True), 1e9)
    ratios = profile.performance_ratios(np.vstack([times_SB, best]))
    assert profile.exact_scores(ratios, 4.0)[-1] == 1
    assert profile.official_scores(ratios, 4.0)[-1] == pytest.approx(1)


@given(times, st.data())
def test_scores_do_not_depend_on_order(times_SB, data):
    scores = profile.exact_scores(profile.performance_ratios(times_SB), 4.0)
    rows = data.draw(st.permutations(range(times_SB.shape[0])))
    columns = data.draw(st.permutations(range(times_SB.shape[1])))
    shuffled = profile.performance_ratios(times_SB[np.ix_(rows, columns)])
    np.testing.assert_allclose(profile.exact_scores(shuffled, 4.0), scores[rows])


@given(times, st.data(), st.floats(1, 1e3))
def test_own_score_never_rises_and_others_never_fall_when_a_time_gets_worse(
    times_SB, data, factor
):
    s = data.draw(st.integers(0, times_SB.shape[0] - 1))
    w = data.draw(st.integers(0, times_SB.shape[1] - 1))
    worse_SB = times_SB.copy()
    worse_SB[s, w] = worse_SB[s, w] * factor + 1e-3
    before = profile.exact_scores(profile.performance_ratios(times_SB), 4.0)
    after = profile.exact_scores(profile.performance_ratios(worse_SB), 4.0)
    assert after[s] <= before[s] + 1e-12
    assert (np.delete(after - before, s) >= -1e-12).all()


@given(times, st.floats(0.1, 10))
def test_scores_do_not_depend_on_the_unit_of_time(times_SB, unit):
    before = profile.exact_scores(profile.performance_ratios(times_SB), 4.0)
    after = profile.exact_scores(profile.performance_ratios(times_SB * unit), 4.0)
    np.testing.assert_allclose(after, before, atol=1e-9)
