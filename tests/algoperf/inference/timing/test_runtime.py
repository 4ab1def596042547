"""The idealized runtime: closed forms, HELM's rule, planted models found again."""

import dataclasses
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algoperf import inference
from algoperf.errors import UserError
from algoperf.inference import RuntimeModel, decode_regression, fit_runtime
from algoperf.inference.timing.prompt_time import PromptTime

PROMPTS = (1, 32, 64, 128, 256, 384, 512, 768, 1024)
OUTPUTS = (1, 2, 4, 8, 16, 32, 64)
G = 0.02


def hinge(p):
    return 0.05 + 0.0004 * max(0, p - 150)


def samples(prompt_time, g=G, slope=0.0, noise=0.0, repeats=1, seed=0):
    """Requests in a loop written out: token i after the first has p + i before it."""
    rng = np.random.default_rng(seed)
    found = []
    for p, o, _ in itertools.product(PROMPTS, OUTPUTS, range(repeats)):
        seconds = prompt_time(p)
        for i in range(1, o):
            seconds += g + slope * (p + i)
        found.append((p, o, seconds * np.exp(noise * rng.standard_normal())))
    return found


HELM = {
    "runtime_per_output_token": 0.064,
    "runtime_for_prompt_tokens": {"1": 0.08, "256": 0.12, "512": 0.2, "1024": 0.4},
}


@pytest.mark.parametrize(
    ("prompt", "output", "want"),
    [
        (1, 0, 0.08),  # the prompt alone
        (1, 1, 0.08),  # and the first token
        (256, 11, 0.12 + 10 * 0.064),
        (128, 1, 0.12 * 128 / 256),  # of the next key, in proportion
        (257, 2, 0.2 * 257 / 512 + 0.064),
        (2048, 1, 0.4 * 2048 / 1024),  # beyond the last, of the last
        (2, 1, 0.12 * 2 / 256),  # the saw-tooth: less than one token takes
        (0, 1, 0.0),
    ],
)
def test_helm_rule(prompt, output, want):
    assert RuntimeModel.from_helm(HELM).predict(prompt, output) == pytest.approx(want)


def test_helm_denoised_adds_its_overhead_and_interpolation_is_an_option():
    denoised = RuntimeModel.from_helm({**HELM, "overhead": 0.3})
    assert denoised.predict(256, 2) == pytest.approx(0.3 + 0.12 + 0.064)
    table = RuntimeModel.from_helm(HELM, rule="table")
    assert table.predict(384, 1) == pytest.approx(0.16)
    assert table.predict(2048, 1) == pytest.approx(0.4 + 1024 * 0.2 / 512)


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"runtime_per_output_token": 1.0},
        {**HELM, "runtime_for_prompt_tokens": {"x": 1.0}},
        {**HELM, "runtime_for_prompt_tokens": {}},
        {**HELM, "runtime_for_prompt_tokens": [1.0]},
    ],
)
def test_what_is_no_entry_of_helm_is_an_error(entry):
    with pytest.raises(UserError, match=r"HELM|at least one length"):
        RuntimeModel.from_helm(entry)


@pytest.mark.parametrize(
    ("prompt_time", "rule"),
    [
        (lambda p: 0.03 + 0.0002 * p, "affine"),
        (hinge, "hinge"),
        (lambda p: 0.03 + 1e-4 * p + 2e-7 * p**2, "quadratic"),
    ],
)
def test_planted_curves_are_found_and_their_rule_too(prompt_time, rule):
    model = fit_runtime(samples(prompt_time))
    assert model.seconds_per_token == pytest.approx(G, rel=1e-6)
    assert model.r2 == pytest.approx(1.0, abs=1e-6)
    for p, o in ((700, 1), (90, 20), (1, 1)):
        want = prompt_time(p) + G * (o - 1)
        assert model.predict(p, o) == pytest.approx(want, rel=5e-3)
    exact = fit_runtime(samples(prompt_time), rule=rule)
    assert exact.predict(700, 1) == pytest.approx(prompt_time(700), rel=1e-3)


@pytest.mark.parametrize(
    ("knee", "rule"),
    [(10, "hinge"), (420, "hinge"), (500, "hinge"), (512, "hinge"), (500, "auto")],
)
def test_a_hinge_is_found_wherever_it_lies(knee, rule):
    """Also where half as many tokens more are beyond the longest prompt."""

    def late(p):
        return 0.05 + 0.0004 * max(0, p - knee)

    prompts = (1, 64, 256, 384, 512, 600)
    found = [(p, o, late(p) + G * (o - 1)) for p in prompts for o in OUTPUTS]
    model = fit_runtime(found, rule)
    assert model.prompt_seconds.rule == "hinge"
    assert model.prompt_seconds.coefficients[2] == pytest.approx(knee, rel=0.03)
    assert model.predict(560, 1) == pytest.approx(late(560), rel=0.01)


def test_a_curve_of_no_rule_is_a_table():
    def steps(p):
        return 0.05 * (1 + np.sqrt(p) + (p > 300))

    model = fit_runtime(samples(steps))
    assert model.prompt_seconds.rule == "table"
    assert dict(model.prompt_seconds) == pytest.approx({p: steps(p) for p in PROMPTS})


def test_a_slope_in_the_context_is_found():
    model = fit_runtime(samples(hinge, slope=1e-5), context_slope=True)
    assert model.seconds_per_token == pytest.approx(G, rel=1e-3)
    assert model.seconds_per_token_slope == pytest.approx(1e-5, rel=1e-3)
    want = hinge(300) + sum(G + 1e-5 * (300 + i) for i in range(1, 200))
    assert model.predict(300, 200) == pytest.approx(want, rel=1e-2)
    without = fit_runtime(samples(hinge, slope=1e-5))
    assert without.mean_relative_error > 10 * model.mean_relative_error


def test_planted_model_under_noise():
    """5 % noise, 5 repeats: g within its stated error, predictions within 6 %."""
    model = fit_runtime(samples(hinge, noise=0.05, repeats=5))
    assert abs(model.seconds_per_token - G) < 3 * model.seconds_per_token_error
    assert model.seconds_per_token_error < 0.02 * G
    assert 0.99 < model.r2 < 1
    for p, o in itertools.product((1, 200, 700), (1, 10, 60)):
        want = hinge(p) + G * (o - 1)
        assert model.predict(p, o) == pytest.approx(want, rel=0.06)


def test_the_stated_error_of_g_is_the_spread_over_draws():
    found = [
        fit_runtime(samples(hinge, noise=0.05, seed=seed), rule="table")
        for seed in range(60)
    ]
    spread = np.std([model.seconds_per_token for model in found], ddof=1)
    stated = np.mean([model.seconds_per_token_error for model in found])
    assert stated == pytest.approx(spread, rel=0.35)


def test_minimum_denoises_where_noise_only_adds():
    rng = np.random.default_rng(0)
    noisy = [
        (p, o, seconds + rng.exponential(0.3 * seconds))
        for p, o, seconds in samples(hinge, repeats=30)
    ]
    denoised = fit_runtime(noisy, statistic="minimum")
    assert denoised.predict(512, 32) == pytest.approx(hinge(512) + 31 * G, rel=0.05)
    assert fit_runtime(noisy, statistic="mean").predict(512, 32) > 1.2 * (
        hinge(512) + 31 * G
    )


def test_the_regression_of_the_paper():
    found = decode_regression(samples(hinge))
    assert found.slope == pytest.approx(G)
    assert found.intercept == pytest.approx(-G)
    assert found.r2 == pytest.approx(1)
    noisy = decode_regression(samples(hinge, noise=0.3))
    assert noisy.r2 < 0.97
    with pytest.raises(UserError, match="two output lengths"):
        decode_regression([(5, 1, 1.0), (5, 1, 1.1)])


def test_interpolation_is_nearer_than_the_rule_of_helm():
    """On a curve that is flat, then linear, one length left out at a time."""
    knots = [(p, hinge(p)) for p in PROMPTS]
    errors = {"table": [], "proportional": []}
    for i, (p, want) in enumerate(knots[1:-1], start=1):
        for rule, found in errors.items():
            guess = PromptTime(rule, tuple(knots[:i] + knots[i + 1 :]))(p)
            found.append(abs(guess / want - 1))
    assert np.mean(errors["table"]) < 0.4 * np.mean(errors["proportional"])


@settings(max_examples=30)
@given(
    start=st.floats(1e-4, 1.0),
    rise=st.floats(1e-7, 1e-3),
    g=st.floats(1e-4, 1.0),
    prompt=st.integers(1, 4000),
    output=st.integers(0, 4000),
)
def test_prediction_grows_with_prompt_and_output(start, rise, g, prompt, output):
    model = fit_runtime(samples(lambda p: start + rise * p, g=g), rule="affine")
    here = model.predict(prompt, output)
    assert model.predict(prompt + 1, output) > here - 1e-9
    assert model.predict(prompt, output + 1) >= here
    assert here == pytest.approx(
        start + rise * prompt + g * max(output - 1, 0), rel=1e-3
    )


def test_json_keeps_the_model():
    for rule in ("table", "affine", "hinge", "quadratic"):
        model = fit_runtime(samples(hinge), rule=rule, pad=128, max_length=2048)
        again = RuntimeModel.from_json(json.loads(json.dumps(model.to_json())))
        assert again == model


def test_few_samples():
    model = fit_runtime([(10, 1, 1.0), (10, 11, 2.0), (10, 21, 3.0)])
    assert model.seconds_per_token == pytest.approx(0.1)
    scattered = [
        (p, o, 1 + 0.01 * p + 0.1 * (o - 1)) for p, o in ((10, 5), (20, 2), (40, 9))
    ]
    assert fit_runtime(scattered).predict(30, 3) == pytest.approx(1.5)
    nothing_after = fit_runtime([(10, 0, 1.0), (10, 5, 1.4)])
    assert nothing_after.predict(10, 0) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ([], "two output lengths"),
        ([(10, 1, 1.0), (20, 1, 2.0)], "two output lengths"),
        ([(10, 1, 1.0), (20, 2, 2.0)], "too few"),
        ([(10, 1, -1.0), (10, 2, 2.0)], "seconds above 0"),
        ([(10, -1, 1.0), (10, 2, 2.0)], "at least none"),
        ([(0, 1, 1.0), (10, 2, 2.0)], "at least one"),
        ([(10, 1, float("nan")), (10, 2, 2.0)], "seconds above 0"),
    ],
)
def test_samples_that_say_nothing_are_an_error(bad, says):
    with pytest.raises(UserError, match=says):
        fit_runtime(bad)


def test_unknown_names_are_an_error():
    with pytest.raises(UserError, match="did you mean hinge"):
        fit_runtime(samples(hinge), rule="hing")
    with pytest.raises(UserError, match="did you mean median"):
        fit_runtime(samples(hinge), statistic="medain")


@pytest.mark.parametrize(
    ("prompt", "output", "says"),
    [(0, 1, "at least 1"), (5, -1, "negative"), (100, 29, "shorten")],
)
def test_requests_that_make_no_sense_are_an_error(prompt, output, says):
    model = dataclasses.replace(fit_runtime(samples(hinge)), max_length=128)
    with pytest.raises(UserError, match=says):
        model.predict(prompt, output)


def test_public_names():
    for name in inference.__all__:
        assert getattr(inference, name).__doc__


def test_the_public_names_load_no_jax():
    code = (
        "import sys; from algoperf import inference; "
        "from algoperf.inference.timing import hlo, plot, profiler; "
        "from algoperf.inference.rooflines import roofline; "
        "from algoperf.inference.tradeoffs import costs, quality, scaling; "
        "from algoperf.inference.decoding import speculation; "
        "assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
