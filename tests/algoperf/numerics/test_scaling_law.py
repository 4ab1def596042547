"""The scaling law: published numbers, and planted laws that the fit finds again."""

import dataclasses
import math

import numpy as np
import pytest
from scipy import stats

from algoperf.errors import UserError
from algoperf.numerics.scaling_law import (
    Law,
    Observation,
    fit,
    half_widths,
    intervals,
)

# Panferov et al. 2025, arXiv:2505.14669.
QUARTET = Law(a=1.52e5, alpha=0.589, b=5.25e5, beta=0.544, gamma=0.274, e=1.35)
PLANTED = {"bf16": (1.0, 1.0), "good": (0.64, 0.94), "poor": (0.2, 0.1)}


def _runs(noise=0.0, outlier=0.0, seed=0):
    random = np.random.default_rng(seed)
    found = []
    for recipe, efficiencies in PLANTED.items():
        for n in (3e7, 5e7, 1e8, 2e8):
            for ratio in (25, 50, 100, 200, 400):
                loss = QUARTET.loss(n, ratio * n, *efficiencies)
                loss *= np.exp(noise * random.normal())
                found.append(Observation(n, ratio * n, float(loss), recipe))
    if outlier:
        one = found[7]
        found[7] = Observation(one.parameters, one.tokens, one.loss + outlier, "bf16")
    return found


def test_published_losses():
    """30M parameters at 25 to 200 tokens each; the paper's table to its fit's error."""
    ratios = np.array([25, 50, 100, 200])
    found = QUARTET.loss(3e7, 3e7 * ratios, 0.64, 0.94)
    np.testing.assert_allclose(found, [3.49, 3.38, 3.29, 3.24], atol=0.02)


def test_a_planted_law_is_found():
    found = fit(_runs(), "bf16")
    assert found.law.loss(1e9, 1e11) == pytest.approx(QUARTET.loss(1e9, 1e11), rel=5e-3)
    for recipe, (parameters, data) in PLANTED.items():
        efficiency = found.efficiencies[recipe]
        assert efficiency.parameters == pytest.approx(parameters, rel=0.03)
        assert efficiency.data == pytest.approx(data, rel=0.03)
        assert efficiency.error < 1e-4


@pytest.mark.parametrize(("noise", "outlier"), [(1e-3, 0.0), (2e-4, 1.0)])
def test_noise_and_a_run_that_went_wrong(noise, outlier):
    found = fit(_runs(noise, outlier), "bf16")
    good, poor = found.efficiencies["good"], found.efficiencies["poor"]
    assert good.parameters == pytest.approx(0.64, rel=0.15)
    assert good.data == pytest.approx(0.94, rel=0.15)
    assert poor.parameters == pytest.approx(0.2, rel=0.25)
    assert poor.data == pytest.approx(0.1, rel=0.25)
    if not outlier:
        assert good.error == pytest.approx(noise, rel=0.6)


def test_too_few_runs_are_told():
    runs = _runs()
    with pytest.raises(UserError, match="at least 7"):
        fit(runs[:5], "bf16")
    with pytest.raises(UserError, match="good has 2 finite runs"):
        fit(runs[:22], "bf16")


@pytest.mark.parametrize("lost", [1, 18, 20])
def test_a_recipe_that_diverged_where_the_baseline_did_not_has_no_efficiency(lost):
    """Those of its runs that are left are the ones in which it does well."""
    whole = _runs(noise=1e-3)
    runs = list(whole)
    for i in range(20, 20 + lost):  # those of 'good'
        runs[i] = dataclasses.replace(runs[i], loss=math.nan)
    found = fit(runs, "bf16")
    good = found.efficiencies["good"]
    assert (good.used, good.made) == (20 - lost, 20)
    assert math.isnan(good.parameters)
    assert math.isnan(good.data)
    assert found.efficiencies["poor"] == fit(whole, "bf16").efficiencies["poor"]
    of_recipe = intervals(runs, "bf16", found)
    assert np.isnan(of_recipe["good"]).all()
    assert np.isfinite(of_recipe["poor"]).all()


def test_places_that_the_baseline_lacks_too_are_only_counted():
    runs = _runs()
    for i in (0, 20):  # of 'bf16' and of 'good'
        runs[i] = dataclasses.replace(runs[i], loss=math.inf)
    found = fit(runs, "bf16").efficiencies
    assert [(one.used, one.made) for one in found.values()] == [
        (19, 20),
        (19, 20),
        (20, 20),
    ]
    assert found["good"].parameters == pytest.approx(0.64, rel=0.03)


def _intervals(runs):
    return intervals(runs, "bf16", fit(runs, "bf16"))


def test_intervals_hold_what_was_planted_and_vanish_without_noise():
    exact, *noisy = (
        _intervals(_runs(noise, seed=seed))
        for noise, seed in ((0.0, 0), (1e-3, 1), (1e-3, 2))
    )
    held = 0
    for recipe in ("good", "poor"):
        for kind, planted in enumerate(PLANTED[recipe]):
            low, high = exact[recipe][kind]
            assert high - low < 1e-3 * planted
            assert (low + high) / 2 == pytest.approx(planted, rel=1e-3)
            for found in noisy:
                low, high = found[recipe][kind]
                assert 1.02 * low < high < 2 * low
                held += low < planted < high
    assert held >= 6  # of 8; of 60 simulated ones 92 % held


def test_the_jackknife_of_a_mean_is_the_usual_interval():
    values = np.random.default_rng(0).normal(size=9)
    without = (values.sum() - values) / 8
    low, high = stats.t.interval(0.95, 8, values.mean(), stats.sem(values))
    assert half_widths(without[:, None])[0] == pytest.approx((high - low) / 2)


def test_no_intervals_of_a_grid_that_can_spare_nothing():
    wanted = [(n, r * n) for n in (3e7, 5e7, 1e8) for r in (25, 50, 100)][:7]
    runs = [run for run in _runs() if (run.parameters, run.tokens) in wanted]
    found = _intervals(runs)
    assert all(math.isnan(x) for pair in found["good"] for x in pair)
