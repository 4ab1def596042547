"""Recipes compared: ratios, intervals, the Pareto front, the picture."""

import itertools
import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from scipy import stats

from scoring.recipes import (
    Point,
    RecipeRun,
    mean_ratio,
    points,
    summarise,
    svg,
)


def _runs(workload, recipe, steps):
    """To the target; the level is reached in half the steps."""
    return [RecipeRun(workload, recipe, i, s, s / 2, 0.5) for i, s in enumerate(steps)]


def test_ratios_of_medians_by_hand():
    runs = _runs("a", "bf16", [100, 110, 120]) + _runs("a", "mxfp4", [150, 165, 240])
    base, other = summarise(runs, "bf16")
    assert (base.to_target.value, base.steps, base.reached) == (1.0, 110, 3)
    ratio, low, high = other.to_target
    assert ratio == pytest.approx(1.5)
    assert low < 1.5 < high
    assert math.log(high / 1.5) == pytest.approx(math.log(1.5 / low))


def test_the_level_is_a_goal_of_its_own():
    runs = [
        RecipeRun("a", "bf16", 0, math.inf, 80.0, 0.9),
        RecipeRun("a", "mxfp4", 0, math.inf, 100.0, 0.8),
    ]
    base, other = summarise(runs, "bf16")
    assert math.isnan(other.to_target.value)
    assert other.to_level.value == pytest.approx(1.25)
    assert base.to_level.value == 1.0
    found = points([base, other], {"mxfp4": 0.1, "bf16": 0.25})
    assert found[0].ratio == pytest.approx(1.25)


def test_the_interval_is_welchs():
    """Against SciPy's Welch statistic for means, scaled to medians of normals."""
    logs = np.log([[100, 110, 120], [150, 165, 240]])
    runs = _runs("a", "bf16", [100, 110, 120]) + _runs("a", "mxfp4", [150, 165, 240])
    row = summarise(runs, "bf16")[1]
    of_median = 0.4487  # variance of the median of three standard normals
    wide = math.sqrt((logs.var(axis=1, ddof=1) * of_median).sum())
    half = math.log(row.to_target.high / row.to_target.value)
    # Student's 97.5 % point between 4 and 2 degrees of freedom.
    assert 2.776 * wide < half < 4.303 * wide * 1.001


def test_misses():
    runs = _runs("a", "bf16", [100, 110]) + _runs("a", "bad", [math.inf, math.inf])
    runs += _runs("b", "bf16", [math.inf]) + _runs("b", "bad", [10])
    rows = summarise(runs, "bf16")
    assert rows[1].to_target.value == math.inf
    assert rows[1].reached == 0
    assert math.isnan(rows[1].to_target.low)
    assert math.isnan(rows[3].to_target.value)  # the baseline missed


def test_the_mean_over_workloads_is_scipys():
    ratios = [1.1, 0.9, 1.4, 1.2]
    logs = np.log(ratios)
    low, high = stats.t.interval(0.95, 3, logs.mean(), stats.sem(logs))
    found = mean_ratio([*ratios, math.inf])
    expected = [stats.gmean(ratios), math.exp(low), math.exp(high)]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert mean_ratio([1.5, math.inf])[0] == pytest.approx(1.5)
    assert all(map(math.isnan, mean_ratio([1.5])[1:]))
    assert all(map(math.isnan, mean_ratio([math.inf, math.nan])))


def test_points_are_geometric_means():
    runs = []
    for workload, factor in (("a", 2.0), ("b", 8.0)):
        runs += _runs(workload, "bf16", [100.0]) + _runs(workload, "x", [100 * factor])
    runs += _runs("a", "half", [10.0])
    found = points(summarise(runs, "bf16"), {"bf16": 0.25, "x": 0.1, "half": 0.01})
    assert [(p.recipe, p.on_front) for p in found] == [("x", True), ("bf16", True)]
    assert found[0].ratio == pytest.approx(4.0)


def test_points_that_nothing_dominates_are_on_the_front():
    steps = {"bf16": 100.0, "cheap": 150.0, "worse": 160.0, "bad": math.inf}
    runs = [run for recipe, s in steps.items() for run in _runs("a", recipe, [s])]
    costs = {"bf16": 0.25, "cheap": 0.1, "worse": 0.2, "bad": 0.01}
    found = points(summarise(runs, "bf16"), costs)
    assert [p.recipe for p in found if p.on_front] == ["cheap", "bf16"]
    assert points([], {}) == []


def test_the_picture_is_xml_and_names_all():
    found = [
        Point("a<b", 0.1, 1.5, True),
        Point("bf16", 0.25, 1.0, True),
        Point("missed", 0.2, math.inf),
    ]
    tree = ElementTree.fromstring(svg(found, "bf16"))
    texts = [element.text for element in tree.iter() if element.tag.endswith("text")]
    assert "a<b" in texts
    assert "missed" not in texts
    circles = [e for e in tree.iter() if e.tag.endswith("circle")]
    for one, other in itertools.pairwise(circles):
        assert float(one.get("cx")) < float(other.get("cx"))  # dearer is further right
        assert float(one.get("cy")) < float(other.get("cy"))  # and better is lower
    assert "no recipe" in svg([found[2]], "bf16")
