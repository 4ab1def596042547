"""`assess` fills in all that everything else draws from."""

import pytest

from algoperf.errors import UserError
from scoring.assessment import assess
from scoring.predict import predict_runs
from scoring.rules import load_rules
from scoring.score import score_runs
from scoring.uncertainty import estimate_uncertainty

RULES = load_rules("mini_fast")


def test_everything_is_filled_in(study_runs):
    runs = study_runs({"a": 1, "b": 3, "c": 4})
    result = score_runs(runs, RULES)
    found = assess(
        runs,
        result,
        resamples=200,
        with_trials=False,
        reference="b",
        budget=12,
        forecasts=predict_runs(runs, RULES),
    )
    assert found.runs is runs
    assert found.result is result
    assert found.rules is result.rules
    expected = estimate_uncertainty(result, 200, with_trials=False)
    assert found.uncertainty.score_low_S.tolist() == expected.score_low_S.tolist()
    assert (found.uncertainty.resamples, found.uncertainty.with_trials) == (200, False)
    assert found.comparison.reference == "b"
    assert (found.at_budget.budget, found.at_budget.unit) == (12, "seconds")
    assert found.forecasts == ()  # asked for, and nothing missed its target


def test_what_was_not_asked_for_is_none(study_runs):
    runs = study_runs({"a": 1, "b": 3})
    found = assess(runs, score_runs(runs, RULES), resamples=0)
    assert found.uncertainty is None
    assert found.at_budget is None
    assert found.forecasts is None
    assert found.comparison.reference == "b"  # the last that scores


def test_one_alone_is_compared_with_nobody(study_runs):
    runs = study_runs({"a": 1})
    assert assess(runs, score_runs(runs, RULES)).comparison is None


def test_an_unknown_reference_is_a_user_error(study_runs):
    runs = study_runs({"a": 1, "b": 3})
    with pytest.raises(UserError, match="unknown reference 'c'"):
        assess(runs, score_runs(runs, RULES), reference="c")
