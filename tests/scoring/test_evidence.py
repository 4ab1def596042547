"""Words, tables and JSON for how sure a result is and how it compares."""

import csv
import dataclasses
import io
import json

import numpy as np
import pytest
from rich.console import Console

from scoring import evidence
from scoring.compare import compare_to, field_at_budget
from scoring.read import Runs
from scoring.rules import load_rules
from scoring.score import score_runs
from scoring.tables import headline, print_report, to_json, write_scores_csv
from scoring.time_to_target import TimeKind, Timing
from scoring.uncertainty import estimate_uncertainty

RULES = load_rules("mini_fast")
NEAR = [[10.0, 14.0], [11.0, 12.0], [13.0, 12.5]]


@pytest.fixture
def make_runs(make_trial):
    """Makes runs from {submission: factor on the times of NEAR} on both workloads."""

    def make(factors):
        trials = []
        for name, factor in factors.items():
            for workload in RULES.base_workloads:
                goal = RULES.goals[workload]
                trials += [
                    make_trial(
                        name,
                        workload,
                        study=k,
                        trial=t,
                        times=[factor * time],
                        metric=goal.metric,
                        values=[goal.target],
                    )
                    for k, study in enumerate(NEAR)
                    for t, time in enumerate(study, start=1)
                ]
        return Runs(trials=tuple(trials), skipped=())

    return make


def _headline(runs):
    result = score_runs(runs, RULES)
    return headline(result, estimate_uncertainty(result))


def test_headline_says_fastest_only_where_it_differs(make_runs):
    assert _headline(make_runs({"a": 1, "b": 3})).startswith(
        "a is fastest with a score of 1.0000, ahead of b (0.3333); on"
    )
    unsure = _headline(make_runs({"a": 1, "b": 1.01}))
    assert unsure.startswith(
        "a ranks first with a score of 1.0000, not distinguishable from b (0.9967); on "
        "the 2 workloads that count for both it takes 1.0 % less time"
    )
    many = {"a": 1, "b": 1.01, "c": 1.011, "d": 1.012, "e": 1.013, "f": 1.014}
    crowded = _headline(make_runs(many))
    assert "from b (0.9967) nor from c, d, e and 1 more; on the 2" in crowded
    assert "that count for it and b it takes" in crowded


def test_headline_of_one_trial_admits_it(mini_runs):
    sentence = _headline(mini_runs({"a": (10, 10), "b": (20, 20)}))
    assert sentence.startswith("a is fastest with a score of 1.0000, ahead of b")
    assert sentence.endswith("How sure that is, so few trials cannot say.")


def test_the_second_may_differ_where_the_third_does_not(make_runs):
    result = score_runs(make_runs({"a": 1, "b": 2, "c": 2.01}), RULES)
    found = estimate_uncertainty(result)
    is_different = np.array([[False, True, False], [True, False, False], [False] * 3])
    low = np.zeros((3, 3))
    odd = dataclasses.replace(
        found, is_different_SS=is_different, difference_low_SS=low
    )
    words = "ahead of b (0.6667), but not distinguishable from c"
    assert words in headline(result, odd)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a"], "a"),
        (["a", "b"], "a and b"),
        (["a", "b", "c"], "a, b and c"),
        (["a", "b", "c", "d", "e"], "a, b, c and 2 more"),
    ],
)
def test_some_names(names, words):
    assert evidence.some_names(names) == words


def test_sensitivity_in_words(make_runs, mini_runs):
    def lines(runs):
        result = score_runs(runs, RULES)
        return evidence.sensitivity_lines(result, estimate_uncertainty(result))

    assert lines(make_runs({"a": 1, "b": 3})) == [
        "a stays first whichever workload is left out",
        "a stays first with every r_max from 1.5 to 16",
    ]
    # a is 5 times as fast on one workload, b 1.4 times on the other.
    resnet, lm = RULES.base_workloads
    mixed = lines(mini_runs({"a": (10, 14), "b": (50, 10), "c": (60, 99)}))
    assert mixed[0] == f"a is not first without {resnet}"
    assert lines(make_runs({"a": 1})) == []
    del lm


def test_report_has_intervals_and_speed_ups(make_runs):
    runs = make_runs({"a": 1, "[b]": 3})
    result = score_runs(runs, RULES)
    file = io.StringIO()
    print_report(
        runs,
        result,
        Console(file=file, color_system=None),
        uncertainty=estimate_uncertainty(result),
        comparison=compare_to(result, "[b]"),
    )
    text = file.getvalue()
    for part in (
        "1.000 to 1.000",
        "Speed-up over [b]",
        "3.000",
        "reference",
        "2/0/0",
        "a stays first",
    ):
        assert part in text


def test_report_says_unknown_and_why(mini_runs):
    runs = mini_runs({"a": (10, 10), "b": (20, 20)})
    result = score_runs(runs, RULES)
    file = io.StringIO()
    console = Console(file=file, color_system=None)
    print_report(runs, result, console, uncertainty=estimate_uncertainty(result))
    text = file.getvalue()
    assert text.count("unknown") == 4
    assert "warning: No interval for a, b: with one trial" in text


def test_json_names_everything_and_holds_no_nan(make_runs):
    runs = make_runs({"a": 1, "b": 3})
    result = score_runs(runs, RULES)
    found = estimate_uncertainty(result)
    value = to_json(result, found, compare_to(result, "b"))
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    sure, comparison = value["uncertainty"], value["comparison"]
    assert sure["resamples"] == 1000
    assert sure["is_different"]["a"] == {"a": False, "b": True}
    assert sure["score_interval"]["b"] == [found.score_low_S[1], found.score_high_S[1]]
    assert sure["rank_interval"]["a"] == [1, 1]
    assert set(sure["without_workload"]) == set(RULES.base_workloads)
    assert sure["r_max"][0]["r_max"] == 1.5
    assert comparison["reference"] == "b"
    assert comparison["submissions"]["a"]["wins"] == 2
    assert comparison["submissions"]["a"]["mean_speedup"] == pytest.approx(3)


def test_json_of_what_is_unknown(mini_runs):
    result = score_runs(mini_runs({"a": (10, None), "b": (20, None)}), RULES)
    value = to_json(result, estimate_uncertainty(result), compare_to(result, "b"))
    json.dumps(value, allow_nan=False)
    assert value["uncertainty"]["score_interval"]["a"] == [None, None]
    assert value["uncertainty"]["notes"]


def test_budget_in_words_and_numbers(mini_runs):
    runs = mini_runs({"a": (10, 30), "b": (20, None)})
    result = score_runs(runs, RULES)
    found = field_at_budget(runs, result, 20)
    file = io.StringIO()
    console = Console(file=file, color_system=None)
    print_report(runs, result, console, at_budget=found)
    text = file.getvalue()
    assert "best validation metric, within 20 seconds of each trial" in text
    assert text.count("50%") == 2
    value = to_json(result, at_budget=found)["at_budget"]
    assert value["submissions"]["a"]["best"][RULES.base_workloads[1]] is None
    assert value["submissions"]["b"]["share_of_targets"] == 0.5


def test_csv_has_interval_and_unit(tmp_path, make_runs):
    runs = make_runs({"a": 1, "b": 3})
    result = score_runs(runs, RULES, timing=Timing(kind=TimeKind.STEPS))
    write_scores_csv(tmp_path / "scores.csv", result, estimate_uncertainty(result))
    rows = list(csv.DictReader((tmp_path / "scores.csv").read_text().splitlines()))
    names = [f"{workload}_steps" for workload in RULES.base_workloads]
    assert list(rows[0]) == ["submission", "score", "score_low", "score_high", *names]
    assert float(rows[0]["score_low"]) <= float(rows[0]["score"])
