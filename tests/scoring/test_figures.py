"""Figures hold what they should and nothing that plotly would take for markup."""

import json
import math

import numpy as np
import pytest

from scoring.figures import (
    COLORS,
    curves_layout,
    forest_figure,
    heat_share,
    near_target,
    profile_figure,
    styles,
    time_unit,
)
from scoring.rules import load_rules
from scoring.score import score_runs

RULES = load_rules("mini_fast")
ACCURACY = RULES.goals["imagenet_resnet_mini"]
PPL = RULES.goals["finewebedu_lm_mini"]


def test_profile_is_a_step_line_from_one_to_r_max(mini_runs):
    result = score_runs(mini_runs({"a": (10, 10), "<b>": (20, 60)}), RULES)
    first, second = profile_figure(result)["data"]
    assert (first["name"], second["name"]) == ("a", "&lt;b&gt;")
    assert second["x"] == [1, 2, 4]
    assert second["y"] == [0, 0.5, 0.5]
    assert second["line"]["shape"] == "hv"


def test_curves_have_the_target_as_a_line(make_trial):
    layout = curves_layout([make_trial(times=[1, 2], values=[0.1, 0.9])], ACCURACY)
    (line,) = layout["shapes"]
    assert (line["y0"], line["y1"], line["xref"]) == (ACCURACY.target,) * 2 + ("paper",)
    json.dumps(layout, allow_nan=False)


@pytest.mark.parametrize(
    ("longest", "unit"),
    [(60, (1, "seconds")), (600, (60, "minutes")), (36000, (3600, "hours"))],
)
def test_time_has_a_unit_that_suits_it(longest, unit):
    assert time_unit(longest) == unit


def test_near_the_target_are_the_target_and_the_better_half(make_trial):
    rising = make_trial(times=[1, 2, 3, 4], values=[0.0, 0.2, 0.8, math.nan])
    low, high = near_target([rising], ACCURACY)
    # The median of 0, 0.2, 0.8 and the target is 0.5.
    assert 0.2 < low < 0.8 < ACCURACY.target < high < 0.9
    best, worse = 0.9 * PPL.target, 1.2 * PPL.target
    falling = make_trial(times=[1, 2, 3], metric="ppl", values=[900.0, worse, best])
    low, high = near_target([falling], PPL)
    assert 0.95 * best < low < best < PPL.target < high < worse


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
    axis = curves_layout(trials, PPL)["yaxis"]
    assert axis["type"] == "log"
    low, high = axis["range"]
    assert low < math.log10(min(falling)) < math.log10(max(falling)) < high < 6
    flat = make_trial(times=[1, 2], metric="ppl", values=[25, 19])
    assert "type" not in curves_layout([flat], PPL)["yaxis"]


def test_styles_differ(mini_runs):
    names = {f"s{i:02}": (10.0 + i, 10.0) for i in range(30)}
    looks = styles(score_runs(mini_runs(names), RULES)).values()
    assert len({(look["color"], look["dash"]) for look in looks}) == 30


def test_heat_fades_from_the_best_to_r_max():
    shares = [heat_share(ratio, 4.0) for ratio in (1.0, 1.5, 2.0, 4.0, 9.0)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 0.5
    assert shares[2] == pytest.approx((shares[0] + shares[3]) / 2)
    assert shares[3] == shares[4] > 0


def test_forest_has_whiskers_where_they_are_known():
    nan = math.nan
    figure = forest_figure(
        ["x", "<y>", "z"],
        np.array([2.0, nan, 0.5]),
        np.array([1.5, nan, nan]),
        np.array([3.0, nan, nan]),
        {"color": "#000000", "dash": "solid"},
    )
    (trace,) = figure["data"]
    assert trace["x"] == [2.0, None, 0.5]
    assert trace["error_x"]["array"] == [1.0, None, None]
    assert trace["error_x"]["arrayminus"] == [0.5, None, None]
    assert figure["layout"]["yaxis"]["categoryarray"] == ["z", "&lt;y&gt;", "x"]
    low, high = figure["layout"]["xaxis"]["range"]
    assert low < math.log10(0.5) < math.log10(3) < high
    json.dumps(figure, allow_nan=False)


# Machado, Oliveira, Fernandes 2009, table 1, severity 1: linear RGB to what is seen.
_VISION = {
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
# Ottosson 2020, "A perceptual color space for image processing" (OKLab).
_LMS = [
    [0.4122214708, 0.5363325363, 0.0514459929],
    [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
]
_LAB = [
    [0.2104542553, 0.7936177850, -0.0040720468],
    [1.9779984951, -2.4285922050, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.8086757660],
]


def _linear(colors):
    codes = [[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in colors]
    rgb = np.array(codes)
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


@pytest.mark.parametrize("vision", _VISION)
def test_colors_differ_also_for_the_colour_blind(vision):
    seen = np.clip(_linear(COLORS) @ np.transpose(_VISION[vision]), 0, 1)
    lab = np.cbrt(seen @ np.transpose(_LMS)) @ np.transpose(_LAB)
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=-1)
    assert distance[~np.eye(len(COLORS), dtype=bool)].min() >= 0.11


@pytest.mark.parametrize("paper", ["#ffffff", "#14181f"])
def test_colors_stand_out_on_both_papers(paper):
    luminance, back = (_linear(x) @ [0.2126, 0.7152, 0.0722] for x in (COLORS, [paper]))
    ratio = (np.maximum(luminance, back) + 0.05) / (np.minimum(luminance, back) + 0.05)
    assert ratio.min() >= 3
