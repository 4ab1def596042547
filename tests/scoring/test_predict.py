"""Predicted times stand apart from scores, and are marked where they do not."""

import csv
import dataclasses
import io
import json
import math

import numpy as np
import pytest
from rich.console import Console

from algoperf import cli
from algoperf.errors import UserError
from scoring.assessment import assess
from scoring.compare import field_at_budget
from scoring.export import to_json, write_csv_files
from scoring.page import write_page
from scoring.predict import (
    MAX_ROWS,
    predict_runs,
    score_predicted,
)
from scoring.read import Runs
from scoring.rules import load_rules
from scoring.score import score_runs
from scoring.tables import print_predictions
from scoring.time_to_target import Mode, TimeKind, Timing
from scoring.words import footnotes, format_time, headline

RULES = load_rules("mini_fast")
RULES = dataclasses.replace(
    RULES,
    goals={
        name: dataclasses.replace(goal, budget_sec=200.0)
        for name, goal in RULES.goals.items()
    },
)
GOAL = RULES.goals["imagenet_resnet_mini"]
TIMES = np.linspace(1.0, 50.0, 40)


def _rising(true=100.0):
    """Accuracies along a power of time that reach the target at `true` seconds."""
    return GOAL.target * (TIMES / true) ** 0.5


def _runs(make_trial, record=None, values=None):
    """One submission that was stopped on the first workload, one that was not."""
    stopped = make_trial(
        "slow",
        times=TIMES.tolist(),
        values=_rising() if values is None else values,
        record=record,
    )
    whole = make_trial("fast", times=[60.0], values=[0.99])
    language = [
        make_trial(
            name, "finewebedu_lm_mini", times=[10.0], metric="ppl", values=[12.0]
        )
        for name in ("slow", "fast")
    ]
    return Runs(trials=(stopped, whole, *language), skipped=())


def _printed(forecasts):
    file = io.StringIO()
    print_predictions(forecasts, Console(file=file, color_system=None))
    return file.getvalue()


def test_trials_without_their_target_are_predicted(make_trial):
    runs = _runs(make_trial, record={"status": "preempted"})
    (forecast,) = predict_runs(runs, RULES)
    assert forecast.trial is runs.trials[0]
    assert forecast.prediction.seconds == pytest.approx(100.0, rel=1e-3)
    text = _printed([forecast])
    for part in ("Predicted, not measured", "slow", "50.0", "~100.0", "yes"):
        assert part in text
    result = score_runs(runs, RULES)
    (value,) = to_json(assess(runs, result, forecasts=[forecast]))["predictions"]
    assert value["predicted_seconds"] == pytest.approx(100.0, rel=1e-3)
    assert value["reason"] is None


def test_a_predicted_time_reaches_no_target_within_a_budget(make_trial):
    runs = _runs(make_trial, record={"status": "preempted"})
    measured = score_runs(runs, RULES)
    mixed = score_predicted(runs, RULES, predict_runs(runs, RULES), measured)
    assert mixed.predicted
    one, other = (field_at_budget(runs, result, 150.0) for result in (measured, mixed))
    np.testing.assert_array_equal(one.share_S, other.share_S)


FREE = {"budget_sec": None}
CUT = {"status": "completed", "max_steps": 39, "global_step": 39}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"status": "failed"}, "the run failed"),
        ({"status": "diverged"}, "the run diverged"),
        ({"status": "budget"}, "the time budget was spent"),
        ({"status": "completed"}, "the submission was done"),
        ({"status": "completed", "max_steps": 9, "global_step": 8}, "was done"),
        ({"status": "completed", "max_steps": 9, "global_step": 9}, ""),
        ({"status": "completed", "max_steps": 9, "global_step": None}, "was done"),
        ({"status": "running", "budget_sec": None}, ""),
        ({"status": "running", "budget_sec": 101.0}, ""),
        ({"status": "running", "budget_sec": 90.0}, "after the budget"),
        ({"status": "running", **FREE, "step_hint": 80}, ""),  # 39 steps are run
        ({"status": "running", **FREE, "step_hint": 70}, "after the step hint"),
        ({**CUT, **FREE, "step_hint": 80}, ""),
        ({**CUT, **FREE, "step_hint": 39}, "the step hint was spent"),
        ({**CUT, "budget_sec": 101.0, "step_hint": 39}, ""),
        # A self-tuned trial without a budget has 1.5 times the hint.
        ({**CUT, **FREE, "step_hint": 54, "ruleset": "self"}, ""),
        ({**CUT, **FREE, "step_hint": 51, "ruleset": "self"}, "after the step hint"),
        ({**CUT, **FREE, "step_hint": 26, "ruleset": "self"}, "hint was spent"),
        (None, ""),
    ],
)
def test_an_end_that_is_a_result_is_not_predicted(make_trial, record, reason):
    (forecast,) = predict_runs(_runs(make_trial, record=record), RULES)
    found = forecast.prediction
    assert reason in found.reason
    assert bool(found.reason) == bool(reason)
    assert math.isinf(found.seconds) == bool(reason)
    assert found.run == 50.0
    if reason:
        assert f"no prediction: {found.reason}" in _printed([forecast])


@pytest.mark.parametrize(
    ("budget", "ruleset", "record", "reason"),
    [
        (101.0, "external", None, ""),
        (99.0, "external", None, "after the budget"),
        (99.0, "self", None, ""),  # 1.5 times the budget
        (60.0, "self", None, "after the budget"),
        (51.0, "external", None, "the time budget was spent"),  # one evaluation more
        (51.0, "external", {"status": "running"}, "after the budget"),
        (99.0, "external", {"status": "running", "budget_ratio": 1.1}, ""),
        (99.0, "external", {"status": "running", "budget_sec": 120.0}, ""),
        (99.0, "external", {"status": "running", "budget_sec": None}, ""),
    ],
)
def test_without_a_record_the_budget_of_the_rules_bounds_predictions(
    make_trial, budget, ruleset, record, reason
):
    goal = dataclasses.replace(GOAL, budget_sec=budget)
    goals = {**RULES.goals, "imagenet_resnet_mini": goal}
    rules = dataclasses.replace(RULES, goals=goals)
    runs = _runs(make_trial, record=record)
    forecast = predict_runs(runs, rules, ruleset=ruleset)[0]
    assert forecast.prediction.reason == reason
    measured = score_runs(runs, rules, ruleset)
    result = score_predicted(runs, rules, [forecast], measured)
    assert bool(result.predicted) == (not reason)


def test_a_trial_without_evaluations_or_the_metric(make_trial):
    trials = (
        make_trial(record={"status": "preempted"}),
        make_trial(trial=2, times=[1.0], metric="wer", values=[0.5]),
        make_trial("x", "mnist", times=[1.0], values=[0.5]),
    )
    found = predict_runs(Runs(trials=trials, skipped=()), RULES)
    assert [item.prediction.reason for item in found] == ["no metric", "no metric"]
    assert found[0].prediction.run == 0.0


def test_scores_do_not_know_of_predictions(make_trial):
    runs = _runs(make_trial)
    before = score_runs(runs, RULES)
    predict_runs(runs, RULES)
    after = score_runs(runs, RULES)
    np.testing.assert_array_equal(before.scores, after.scores)
    assert np.isinf(after.times[1, 0])
    assert not after.predicted


def test_predictions_in_a_score_are_marked_everywhere(make_trial, tmp_path):
    runs = _runs(make_trial)
    measured = score_runs(runs, RULES)
    result = score_predicted(runs, RULES, predict_runs(runs, RULES), measured)
    assert result.predicted == {("slow", "imagenet_resnet_mini")}
    seconds = result.times[1, 0]
    assert seconds == pytest.approx(100.0, rel=1e-3)
    expected = (1.0 + (4.0 - seconds / 60.0) / 3.0) / 2.0
    assert result.scores[1] == pytest.approx(expected)
    assert format_time(result, 1, 0) == "~100.0"
    assert format_time(result, 1, 1) == "10.0"
    assert any(line.startswith("~ predicted") for line in footnotes(result))
    assert headline(result).startswith("With predicted times: ")
    says = "predicted, not measured: the time of slow on imagenet_resnet_mini"
    assert result.warnings[0] == says
    found = assess(runs, result)
    assert to_json(found)["predicted"] == [["slow", "imagenet_resnet_mini"]]
    write_csv_files(tmp_path, found)
    rows = list(csv.DictReader((tmp_path / "scores.csv").read_text().splitlines()))
    assert [row["predicted"] for row in rows] == ["", "imagenet_resnet_mini"]
    write_page(tmp_path / "page.html", found)
    text = (tmp_path / "page.html").read_text()
    assert "~100.0" in text
    assert says in text


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("seconds", [60.0, 150.0])  # faster and slower than predicted
@pytest.mark.parametrize("study", [0, 1])  # that of the prediction, and another
def test_a_measured_time_is_not_replaced(make_trial, mode, seconds, study):
    # It reached the target at a later evaluation than that of the prediction.
    times = np.linspace(1.0, seconds, 60).tolist()
    values = [0.1] * 59 + [0.99]
    hit = make_trial("slow", study=study, trial=2, times=times, values=values)
    runs = Runs(trials=(*_runs(make_trial).trials, hit), skipped=())
    measured = score_runs(runs, RULES, mode=mode)
    result = score_predicted(runs, RULES, predict_runs(runs, RULES), measured)
    expected = seconds if study == 0 else (seconds + 100.0) / 2
    assert result.times[1, 0] == pytest.approx(expected, rel=1e-3)
    assert bool(result.predicted) == (study == 1)


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_the_earliest_prediction_of_a_study_counts(make_trial, mode, order):
    # The later one has fewer evaluations: it was stopped sooner.
    early, late = order
    shorter = TIMES[:30].tolist()
    trials = (
        make_trial("slow", trial=early, times=TIMES.tolist(), values=_rising(100.0)),
        make_trial("slow", trial=late, times=shorter, values=_rising(150.0)[:30]),
    )
    runs = Runs(trials=trials, skipped=())
    forecasts = predict_runs(runs, RULES)
    assert all(item.prediction.is_settled for item in forecasts)
    measured = score_runs(runs, RULES, mode=mode)
    result = score_predicted(runs, RULES, forecasts, measured)
    assert result.times[0, 0] == pytest.approx(100.0, rel=1e-3)
    (both,) = result.studies["slow", "imagenet_resnet_mini"]
    np.testing.assert_allclose(both, [100.0, 150.0], rtol=1e-3)


def test_a_framework_that_is_not_judged_replaces_no_prediction(make_trial):
    runs = _runs(make_trial)
    ignored = make_trial("slow", framework="pytorch", times=[1.0], values=[0.99])
    runs = dataclasses.replace(runs, trials=(*runs.trials, ignored))
    measured = score_runs(runs, RULES)
    result = score_predicted(runs, RULES, predict_runs(runs, RULES), measured)
    assert result.predicted == {("slow", "imagenet_resnet_mini")}


@pytest.mark.parametrize(
    "timing", [Timing(kind=TimeKind.STEPS), Timing(interpolate=True)]
)
def test_other_times_are_not_predicted(make_trial, timing):
    runs = _runs(make_trial)
    measured = score_runs(runs, RULES, timing=timing)
    with pytest.raises(UserError, match="predictions are of seconds of submission"):
        score_predicted(runs, RULES, predict_runs(runs, RULES), measured)


def test_what_is_not_settled_does_not_count(make_trial):
    noise = np.random.default_rng(0).normal(0, 0.05, 40)
    runs = _runs(make_trial, values=_rising() + noise)
    (forecast,) = predict_runs(runs, RULES)
    assert not forecast.prediction.is_settled
    measured = score_runs(runs, RULES)
    result = score_predicted(runs, RULES, [forecast], measured)
    assert not result.predicted
    np.testing.assert_array_equal(result.scores, measured.scores)


def test_a_predicted_variant_is_marked(make_trial, tmp_path):
    rules = load_rules("v0.5")
    goal = rules.goals["ogbg"]
    metric = {"metric": goal.metric}
    values = rules.goals["ogbg_model_size"].target * (TIMES / 100.0) ** 0.5
    trials = (
        make_trial("a", "ogbg", times=[30.0], values=[0.5], **metric),
        make_trial(
            "a", "ogbg_model_size", times=TIMES.tolist(), values=values, **metric
        ),
    )
    runs = Runs(trials=trials, skipped=())
    measured = score_runs(runs, rules)
    assert measured.scores[0] == 0
    result = score_predicted(runs, rules, predict_runs(runs, rules), measured)
    assert result.scores[0] == pytest.approx(1 / 8)
    assert result.predicted == {("a", "ogbg_model_size")}
    write_page(tmp_path / "page.html", assess(runs, result))
    assert "~100.0" in (tmp_path / "page.html").read_text()


def test_reasons_of_many_trials_are_counted(make_trial):
    trials = tuple(
        make_trial(trial=k, times=[1.0], values=[0.1]) for k in range(MAX_ROWS + 1)
    )
    text = _printed(predict_runs(Runs(trials=trials, skipped=()), RULES))
    assert f"no prediction for {MAX_ROWS + 1} trials: too few evaluations" in text
    assert "trial_3" not in text


def test_of_many_predictions_the_settled_come_first_and_the_rest_is_counted(
    make_trial,
):
    times, noise = TIMES.tolist(), np.random.default_rng(0).normal(0, 0.05, 40)
    trials = tuple(
        make_trial(trial=k, times=times, values=_rising() + noise)
        for k in range(MAX_ROWS)
    )
    last = make_trial(trial=999, times=times, values=_rising())
    text = _printed(predict_runs(Runs(trials=(*trials, last), skipped=()), RULES))
    rows = [line for line in text.splitlines() if "/trial_" in line]
    assert len(rows) == MAX_ROWS
    assert "trial_999" in rows[0]
    assert "and 1 more: --report and --json have them all" in text
    assert f"trial_{MAX_ROWS - 1} " not in text


def test_nothing_to_predict(mini_runs):
    assert "nothing to predict" in _printed(
        predict_runs(mini_runs({"a": (1, 1)}), RULES)
    )


def test_score_with_predictions(tmp_path, write_trial, capsys):
    options = {"times": TIMES, "values": _rising(), "status": "preempted"}
    options["budget_sec"] = 200.0
    write_trial(tmp_path, "slow", **options)
    file = tmp_path / "scores.json"
    arguments = ["score", str(tmp_path), "--benchmark=mini_fast", f"--json={file}"]
    assert cli.main(arguments) == 0
    assert "redicted" not in capsys.readouterr().out
    assert "predictions" not in json.loads(file.read_text())
    assert cli.main([*arguments, "--predict"]) == 0
    text = capsys.readouterr().out
    assert "No score" in text
    assert "~100.0" in text
    (value,) = json.loads(file.read_text())["predictions"]
    assert value["is_settled"]
    assert cli.main([*arguments, "--score_predicted"]) == 0
    text = capsys.readouterr().out
    assert "With predicted times: slow reached the target on 1 of 2" in text
    assert "warning: predicted, not measured: the time of slow on imagenet" in text
