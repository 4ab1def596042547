"""Differences of means by Welch's t, and what follows from their intervals."""

import numpy as np
import pytest
from scipy import stats

from algoperf.reparam import verdicts
from algoperf.reparam.verdicts import CONFIRMED, REFUTED, UNDECIDED


def test_differences_are_those_of_welchs_test():
    one, other = [0.81, 0.83, 0.80], [0.79, 0.70, 0.78, 0.77]
    mean, bounds = verdicts.difference(one, other)
    wanted = stats.ttest_ind(one, other, equal_var=False).confidence_interval(0.95)
    assert mean == pytest.approx(np.mean(one) - np.mean(other))
    np.testing.assert_allclose(bounds, wanted, rtol=1e-9)
    # Collapsed runs are all alike.
    mean, bounds = verdicts.difference([0.8, 0.8], [0.1, 0.1])
    assert bounds == (mean, mean)


@pytest.mark.parametrize(
    ("bounds", "wanted"),
    [
        ((-0.009, 0.03), CONFIRMED),  # worse perhaps, but not by the margin
        ((-0.011, 0.03), UNDECIDED),
        ((-0.05, -0.009), UNDECIDED),
        ((-0.05, -0.011), REFUTED),
    ],
)
def test_an_interval_is_judged_beside_the_margin(bounds, wanted):
    assert verdicts.verdict(bounds, 0.01) == wanted


def _rows(series, x, values):
    return [
        {"series": series, "x": x, "final": value, "status": "completed"}
        for value in values
    ]


def test_a_method_is_compared_with_each_at_each_value():
    rows = _rows("ours", 4, [0.80, 0.81, 0.80]) + _rows("ours", 64, [0.5, 0.51, 0.5])
    rows += _rows("a", 4, [0.79, 0.80, 0.79]) + _rows("a", 64, [0.7, 0.71, 0.7])
    rows += _rows("b", 4, [0.1, 0.1, 0.1]) + _rows("b", 2, [0.9, 0.9, 0.9])
    for row in rows:
        row["collapsed"] = row["final"] == 0.1
    found = verdicts.against(rows, "ours", ["a", "b"], 0.01)
    assert [(one.other, one.x, one.verdict) for one in found] == [
        ("a", 4, CONFIRMED),
        ("a", 64, REFUTED),
        ("b", 4, CONFIRMED),
    ]
    assert [one.collapsed for one in found] == [False, False, True]
    text = verdicts.text(found, "ours", "compression", 0.01, 560)
    assert "| a | 64 | -0.2000 | -0.2131 to -0.1869 | refuted |  |" in text
    assert "After 560 steps, at least as good as each at every compression: " in text
    assert text.endswith("refuted (2 confirmed, 1 refuted, 0 undecided).\n")
    assert verdicts.overall([found[0], found[2]]) == CONFIRMED


def test_a_run_without_a_result_leaves_it_undecided():
    """Without the worst seed, which diverged, means would flatter."""
    rows = _rows("ours", 4, [0.80, 0.81, 0.80]) + _rows("a", 4, [0.5, 0.5, 0.5])
    del rows[0]["final"]
    (one,) = verdicts.against(rows, "ours", ["a"], 0.01)
    assert (one.verdict, one.interval) == (UNDECIDED, None)
    alone = _rows("ours", 4, [0.8]) + _rows("a", 4, [0.5])
    (one,) = verdicts.against(alone, "ours", ["a"], 0.01)
    assert one.verdict == UNDECIDED
    assert "| a | 4 |  |  | undecided | too few runs with a value |" in verdicts.text(
        [one], "ours", "x", 0.01, 5
    )
