"""Intervals of log medians, beside scipy, closed forms and simulated truth."""

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import scripts
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from scoring.intervals import half_width, log_median, median_variance, student_quantile

INF, NAN = np.inf, np.nan


BENCHMARK = scripts.load("tests/benchmarks/bootstrap_coverage.py")


@pytest.mark.parametrize("probability", [0.8, 0.95, 0.975, 0.995])
def test_student_is_that_of_scipy(probability):
    freedom = np.array([[1, 1.3, 2, 3.7, 5], [12, 31.5, 200, 1e4, 1e8]])
    theirs = scipy.stats.t.ppf(probability, freedom)
    ours = student_quantile(probability, freedom)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    assert np.isnan(student_quantile(probability, np.array(NAN)))


@pytest.mark.parametrize(
    ("count", "published"),  # David and Nagaraja 2003, to four places
    [(1, 1.0), (2, 0.5), (3, 0.4487), (5, 0.2868), (7, 0.2104)],
)
def test_variance_of_a_median_as_published(count, published):
    assert median_variance(count) == pytest.approx(published, abs=5e-5)


def test_variance_of_an_even_median_by_another_quadrature():
    normal = scipy.stats.norm

    def density(y, x):  # of the middle two of four
        below, above = normal.cdf(x), normal.sf(y)
        both = 24 * below * normal.pdf(x) * normal.pdf(y) * above
        return both * ((x + y) / 2) ** 2

    expected, _ = scipy.integrate.dblquad(
        density, -8, 8, lambda x: x, 8, epsabs=1e-6, epsrel=1e-6
    )
    assert median_variance(4) == pytest.approx(expected, rel=1e-3)


def test_variance_of_a_median_of_many_is_the_limit():
    assert median_variance(301) == pytest.approx(np.pi / 2 / 301, rel=0.01)


def test_log_median_by_hand():
    found = log_median(np.exp([[1.0, 2.0, 4.0], [3.0, 3.0, 3.0]]))
    np.testing.assert_allclose(found.value, [2, 3])
    variance = np.var([1, 2, 4], ddof=1) * median_variance(3)
    np.testing.assert_allclose(found.variance, [variance, 0], atol=1e-12)
    np.testing.assert_array_equal(found.freedom, [2, 2])


def test_a_study_that_missed_mirrors_the_fastest_and_costs_a_degree_of_freedom():
    found = log_median(np.array([np.exp(1.0), np.exp(2.0), INF]))
    whole = log_median(np.exp([1.0, 2.0, 3.0]))
    assert found.value == pytest.approx(2)
    assert found.variance == pytest.approx(whole.variance)
    assert found.freedom == 1
    # Never faster than the slowest that did not miss.
    found = log_median(np.exp([1.0, 1.9, 2.0, 5.0, INF]))
    whole = log_median(np.exp([1.0, 1.9, 2.0, 5.0, 5.0]))
    assert found.variance == pytest.approx(whole.variance)


def test_one_study_and_a_missed_median_are_unknown():
    one = log_median(np.array([7.0]))
    assert one.value == pytest.approx(np.log(7))
    assert np.isnan(one.variance)
    missed = log_median(np.array([7.0, INF, INF]))
    assert np.isnan(missed.value)
    assert np.isnan(missed.variance)


def test_a_study_that_was_there_at_once_is_no_miss():
    found = log_median(np.array([0.0, 5.0, 6.0]))
    assert found.value == pytest.approx(np.log(5))
    assert np.isnan(found.variance)
    assert found.freedom == 2


positive = st.floats(0.1, 10)


@given(arrays(float, st.integers(2, 6), elements=positive), positive)
def test_log_median_shifts_with_the_unit_of_time(times_K, unit):
    before, after = log_median(times_K), log_median(times_K * unit)
    np.testing.assert_allclose(after.value, before.value + np.log(unit), atol=1e-9)
    np.testing.assert_allclose(after.variance, before.variance, atol=1e-9)


def test_half_width_of_one_estimate_is_that_of_scipy():
    half = half_width(np.array([0.3, 0.0]), np.array([4.0, 1.0]), 0.95)
    low, high = scipy.stats.t.interval(0.95, 4, scale=np.sqrt(0.3))
    assert half == pytest.approx((high - low) / 2, rel=1e-4)


@given(
    arrays(float, 6, elements=st.floats(0.01, 1)),
    arrays(float, 6, elements=st.integers(1, 9).map(float)),
)
def test_half_width_lies_between_the_worst_part_and_all_together(variance, freedom):
    half = half_width(variance, freedom, 0.95)
    scale = np.sqrt(variance.sum())
    most = scipy.stats.t.ppf(0.975, freedom.min()) * scale
    least = scipy.stats.t.ppf(0.975, freedom.sum()) * scale
    assert least * (1 - 1e-4) <= half <= most * (1 + 1e-4)


@pytest.mark.parametrize("variance", [[0.0, 0.0], [NAN, 1.0]])
def test_half_width_without_a_known_spread_is_unknown(variance):
    assert np.isnan(half_width(np.array(variance), np.ones(2), 0.95))


@pytest.mark.parametrize(
    "setting",
    [setting for setting in BENCHMARK.settings() if setting.is_promised],
    ids=lambda setting: f"{setting.name}, {setting.studies} studies",
)
def test_interval_of_a_speed_up_holds_the_truth(setting):
    # 2,000 repetitions know a rate of 95 % to 0.5 points (one standard deviation).
    found, _ = BENCHMARK.coverage(setting, repetitions=2000, with_percentile=False)
    assert 0.93 <= found <= 0.97


@settings(max_examples=20)
@given(
    st.sampled_from(["normal", "exponential", "gamma", "peaks"]),
    st.floats(0.05, 1),
    st.sampled_from([1, 5]),
    st.sampled_from([0.0, 0.3]),
)
def test_the_truth_of_the_simulation_is_what_draws_show(kind, scale, trials, miss):
    options = {"study_scale": 0.1, "miss": miss}
    noise = BENCHMARK.noise(kind, scale, **options)
    rng = np.random.default_rng(0)
    studies = noise.draw(rng, (8, 4001, trials)).min(axis=-1)
    # The median is where half of the draws lie below; 32,008 of them, 5 deviations.
    below = (studies <= noise.median(scale, trials)).mean()
    assert below == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(studies.size))


@pytest.mark.parametrize("with_trials", [True, False])
@pytest.mark.parametrize("points", [(1.0,) * 5, BENCHMARK.POINTS])
def test_equal_submissions_are_rarely_called_different(points, with_trials):
    false, difference, _ = BENCHMARK.score_coverage(
        3, 0.1, repetitions=60, points=points, with_trials=with_trials
    )
    # At a rate of 5 %, more than 8 of 60 occur in one case in 200.
    assert false <= 8 / 60
    assert difference >= 0.93
