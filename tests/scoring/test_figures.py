"""Figures hold what they should and nothing that plotly would take for markup."""

import json
import math

import pytest

from scoring.figures import MAX_POINTS, curves_figure, profile_figure, styles
from scoring.rules import load_rules
from scoring.score import score_runs
from scoring.time_to_target import TimeKind

RULES = load_rules("mini_fast")
STYLE = {"adamw": {"color": "#000000", "dash": "solid"}}
ACCURACY = RULES.goals["imagenet_resnet_mini"]
PPL = RULES.goals["finewebedu_lm_mini"]


def test_profile_is_a_step_line_from_one_to_r_max(mini_runs):
    result = score_runs(mini_runs({"a": (10, 10), "<b>": (20, 90)}), RULES)
    first, second = profile_figure(result)["data"]
    assert (first["name"], second["name"]) == ("a", "&lt;b&gt;")
    assert second["x"] == [1, 2, 4]
    assert second["y"] == [0, 0.5, 0.5]
    assert second["line"]["shape"] == "hv"


def test_curves_have_target_dots_and_gaps(make_trial):
    trials = [
        make_trial(times=[1, 2], values=[0.1, 0.9]),
        make_trial(trial=2, times=[1, 2, 3], values=[0.1, math.nan, math.inf]),
        make_trial(trial=3, times=[1], metric="other", values=[1]),
    ]
    figure = curves_figure(trials, ACCURACY, STYLE)
    line, dots = figure["data"]
    assert line["x"] == [1, 2, None, 1, 2, 3, None]
    assert line["y"] == [0.1, 0.9, None, 0.1, None, None, None]
    assert dots["x"] == [2, 3]
    assert dots["customdata"] == ["study 0 trial 1", "study 0 trial 2"]
    assert figure["layout"]["shapes"][0]["y0"] == ACCURACY.target
    json.dumps(figure, allow_nan=False)


def test_long_curves_are_thinned_but_keep_the_dot(make_trial):
    count = 5000
    values = [0.1] * count
    values[1234] = 0.9
    trial = make_trial(times=list(range(count)), values=values)
    line, dots = curves_figure([trial], ACCURACY, STYLE)["data"]
    assert len(line["x"]) <= MAX_POINTS + 2
    assert 0.9 in line["y"]
    assert len(dots["x"]) == 1


@pytest.mark.parametrize(
    ("longest", "unit", "expected"),
    [(60, "seconds", 60), (600, "minutes", 10), (36000, "hours", 10)],
)
def test_time_has_a_unit_that_suits_it(make_trial, longest, unit, expected):
    figure = curves_figure([make_trial(times=[longest], values=[1])], ACCURACY, STYLE)
    assert unit in figure["layout"]["xaxis"]["title"]["text"]
    assert figure["data"][0]["x"] == [expected, None]


@pytest.mark.parametrize(
    ("kind", "label", "last"),
    [
        (TimeKind.SUBMISSION, "submission time (minutes)", 60),
        (TimeKind.IDEALIZED, "idealized time (seconds)", 4),
        (TimeKind.STEPS, "steps", 2),
    ],
)
def test_curves_are_drawn_over_the_time_that_counts(make_trial, kind, label, last):
    record = {"status": "reached", "step_time": {"seconds": 2.0}}
    times = [600, 1200, 3600]
    trial = make_trial(times=times, values=[0.1, 0.2, 0.9], record=record)
    figure = curves_figure([trial], ACCURACY, STYLE, kind)
    line, dots = figure["data"]
    assert figure["layout"]["xaxis"]["title"]["text"] == label
    assert line["x"][2] == dots["x"][0] == last


def test_a_metric_that_falls_far_has_a_log_axis_that_an_explosion_cannot_stretch(
    make_trial,
):
    steps = list(range(1, 101))
    falling = [3000 / step + 10 for step in steps]
    exploding = [*falling[:-1], 1e30]
    trials = [
        make_trial(trial=k, times=steps, metric="ppl", values=values)
        for k, values in enumerate((falling, exploding), start=1)
    ]
    axis = curves_figure(trials, PPL, STYLE)["layout"]["yaxis"]
    assert axis["type"] == "log"
    low, high = axis["range"]
    assert low < math.log10(min(falling)) < math.log10(max(falling)) < high < 6
    flat = make_trial(times=[1, 2], metric="ppl", values=[25, 19])
    assert "type" not in curves_figure([flat], PPL, STYLE)["layout"]["yaxis"]


def test_styles_differ(mini_runs):
    names = {f"s{i:02}": (10.0 + i, 10.0) for i in range(30)}
    looks = styles(score_runs(mini_runs(names), RULES)).values()
    assert len({(look["color"], look["dash"]) for look in looks}) == 30
