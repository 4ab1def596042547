"""Test-time compute: published and closed-form figures."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algoperf.errors import UserError
from algoperf.inference.models.shapes import find_shape
from algoperf.inference.timing.prompt_time import PromptTime
from algoperf.inference.timing.runtime import RuntimeModel
from algoperf.inference.tradeoffs import scaling
from algoperf.inference.tradeoffs.scaling import Budget, Saturation, VisualPowerLaw

# Kinetics' own counts of parameters, in 10^9, and its cost of 8,192 tokens after 200.
KINETICS = {
    "qwen3-0.6b": (0.752, 2290.8),
    "qwen3-1.7b": (2.03, 2311.7),
    "qwen3-4b": (4.02, 3005.7),
    "qwen3-8b": (8.19, 3074.0),
    "qwen3-14b": (14.77, 3514.2),
    "qwen3-32b": (32.76, 5799.9),
}


@pytest.mark.parametrize("name", KINETICS)
def test_kinetics(name):
    billions, want = KINETICS[name]
    cost = scaling.equivalent_flops(find_shape(name), 200, 8192, 1, billions * 1e9)
    assert cost.total / 1e12 == pytest.approx(want, abs=0.06)


def test_kinetics_compute_and_attention_share():
    small = scaling.equivalent_flops(find_shape("qwen3-0.6b"), 200, 8192, 1, 0.752e9)
    assert small.compute / 1e12 == pytest.approx(20.4, abs=0.05)
    products = 2 * 0.752e9 * 8192
    assert 1 - products / small.total == pytest.approx(0.995, abs=5e-4)
    large = scaling.equivalent_flops(find_shape("qwen3-32b"), 200, 8192, 1, 32.76e9)
    assert large.compute / 1e12 == pytest.approx(610.5, abs=0.05)
    assert 1 - 2 * 32.76e9 * 8192 / large.total == pytest.approx(0.907, abs=5e-4)


@pytest.mark.parametrize(("attended", "trials"), [(100, 1), (500, 4), (10_000, 2)])
def test_sparse_attention_is_counted_token_by_token(attended, trials):
    shape, prompt, output = find_shape("qwen3-0.6b"), 300, 900
    seen = sum(min(attended, prompt + i + 0.5) for i in range(output))
    cost = scaling.equivalent_flops(
        shape, prompt, output, trials, 0.0, attended=attended
    )
    width = 128 * 28
    want = trials * 4 * seen * 16 * width
    assert cost.compute == pytest.approx(want, rel=1e-4)
    full = scaling.equivalent_flops(shape, prompt, output, trials, 0.0)
    assert cost.total <= full.total
    if attended > prompt + output:
        assert cost.total == pytest.approx(full.total)


def test_trials_share_the_prompt_in_memory():
    shape = find_shape("qwen3-0.6b")
    one, four = (scaling.equivalent_flops(shape, 1000, 10, n) for n in (1, 4))
    assert four.compute == pytest.approx(4 * one.compute)
    assert four.memory < 1.02 * one.memory


def test_coverage_is_the_share_of_subsets():
    samples = [True] * 3 + [False] * 5
    subsets = list(itertools.combinations(samples, 4))
    want = sum(any(subset) for subset in subsets) / len(subsets)
    assert scaling.coverage(8, 3, 4) == pytest.approx(want)
    assert scaling.coverage(8, 0, 4) == 0
    assert scaling.coverage(8, 8, 1) == 1
    with pytest.raises(UserError):
        scaling.coverage(8, 9, 1)


@pytest.mark.parametrize(
    ("limit", "rate", "gain", "want", "accuracy"),
    [
        (1, 0.3, 0.01, 10, 0.97175),
        (0.8, 0.1, 0.005, 27, 0.75348),
        (0.6, 0.05, 0.001, 67, 0.58070),
    ],
)
def test_saturation_point(limit, rate, gain, want, accuracy):
    law = Saturation(limit, rate)
    assert law.saturates_at(gain) == want
    assert law.accuracy(want) == pytest.approx(accuracy, abs=5e-6)


@settings(max_examples=50)
@given(limit=st.floats(0.1, 1), rate=st.floats(0.01, 0.9), gain=st.floats(1e-4, 0.5))
def test_saturation_point_against_brute_force(limit, rate, gain):
    law = Saturation(limit, rate)
    tries = law.saturates_at(gain)
    assert law.accuracy(tries + 1) - law.accuracy(tries) <= gain * (1 + 1e-9)
    if tries > 0:
        before = law.accuracy(tries) - law.accuracy(tries - 1)
        assert before >= gain * (1 - 1e-9)


@pytest.mark.parametrize(("limit", "rate"), [(0.9, 0.3), (0.55, 0.02), (0.3, 0.7)])
def test_planted_saturation_is_found(limit, rate):
    law, tries = Saturation(limit, rate), [1, 2, 4, 8, 16, 32]
    found = scaling.fit_saturation(tries, [law.accuracy(n) for n in tries])
    assert found.limit == pytest.approx(limit, rel=1e-3)
    assert found.rate == pytest.approx(rate, rel=1e-3)
    rng = np.random.default_rng(0)
    noisy = [law.accuracy(n) + 0.01 * rng.standard_normal() for n in tries * 5]
    again = scaling.fit_saturation(tries * 5, noisy)
    assert again.accuracy(32) == pytest.approx(law.accuracy(32), abs=0.02)


@pytest.mark.parametrize(
    ("ratio", "want"), [(0.16, 257.75), (0.79, 63.367), (22, 15.773)]
)
def test_flops_matched_multiplier(ratio, want):
    found = scaling.matched_inference_multiplier(14, ratio)
    assert found == pytest.approx(want, abs=5e-4)
    # Both sides in FLOPs: 6 N D + 2 N D_i.
    small = 6 * 1 + 2 * 1 * ratio * found
    assert small == pytest.approx(6 * 14 + 2 * 14 * ratio)


# a, b, c of the published prefill fits; seconds at 1,024 and at 100 tokens.
EDGE = {
    "1.5b": ((0.046, 2.31e-6, 1.56e-7), 0.2119, 0.0489),
    "8b": ((0.104, 2.90e-4, 6.65e-7), 1.0983, 0.1520),
    "14b": ((0.189, 5.3e-4, 1.23e-6), 2.0215, 0.2770),
}


@pytest.mark.parametrize("name", EDGE)
def test_edge_prefill_latency(name):
    coefficients, long, short = EDGE[name]
    prefill = PromptTime("quadratic", (), coefficients, pad=128)
    assert prefill(1024) == pytest.approx(long, abs=6e-5)
    assert prefill(100) == pytest.approx(short, abs=6e-5)
    assert prefill(100) == prefill(128) < prefill(129)


def test_edge_decode_latency_is_the_sum_over_tokens():
    n, m = 0.1, 8e-7
    want = sum(n + m * (512 + i) for i in range(700))
    found = scaling.context_decode_seconds(512, 700, n, m)
    assert found == pytest.approx(want)
    # The runtime model counts the first token in F, so its o - 1 tokens follow p + 1.
    model = RuntimeModel(PromptTime("affine", (), (0.0, 0.0)), n, m)
    assert model.predict(511, 701) == pytest.approx(want)


def test_visual_tokens():
    """The published exponents: one token without text, about 14 with 50 of it."""
    law = VisualPowerLaw(0.5908, 0.0709, 0.0151)
    assert law.best_visual_tokens(0) == 1
    assert law.best_visual_tokens(50) == pytest.approx(13.8, rel=0.03)
    assert law.size_exponent / law.token_exponent == pytest.approx(4.7, abs=0.05)
    flops, text = 350.0, 50
    tokens = np.arange(1, 600)
    errors = [law.error(flops / (text + t), t) for t in tokens]
    assert tokens[np.argmin(errors)] == round(law.best_visual_tokens(text))
    reversed_law = VisualPowerLaw(0.5, 0.02, 0.05)
    assert reversed_law.best_visual_tokens(50) == math.inf


def test_a_planted_power_law_is_found_on_the_published_grid():
    law = VisualPowerLaw(0.6, 0.07, 0.015)
    grid = list(itertools.product((0.5, 1.8, 4, 7), (1, 4, 16, 36, 64, 144, 576)))
    assert len(grid) == 28
    sizes, tokens = zip(*grid, strict=True)
    found = scaling.fit_visual_power_law(
        sizes, tokens, [law.error(n, t) for n, t in grid]
    )
    assert found.scale == pytest.approx(0.6)
    assert found.size_exponent == pytest.approx(0.07)
    assert found.token_exponent == pytest.approx(0.015)
    assert found.r2 == pytest.approx(1)
    with pytest.raises(UserError, match="several"):
        scaling.fit_visual_power_law([1, 1], [1, 2], [1, 1])


@pytest.mark.parametrize(
    ("alpha", "depth", "width", "resolution", "activations"),
    [
        (0.8, 1.1487, 1.7411, 1.0718, 2.2974),
        (1 / 3, 1.5874, 1.2599, 1.2599, 3.1748),
        (1, 1, 2, 1, 2),
    ],
)
def test_compound_scaling(alpha, depth, width, resolution, activations):
    found = scaling.fast_compound_scaling(4, alpha)
    assert found.depth == pytest.approx(depth, abs=5e-5)
    assert found.width == pytest.approx(width, abs=5e-5)
    assert found.resolution == pytest.approx(resolution, abs=5e-5)
    assert found.activations == pytest.approx(activations, abs=5e-5)
    assert found.depth * found.width**2 * found.resolution**2 == pytest.approx(4)
    if alpha == 0.8:
        assert found.parameters == pytest.approx(3.4822, abs=5e-5)
        assert found.activations == pytest.approx(4**0.6)


def test_budgets_of_strategies():
    assert scaling.best_of([50]) == scaling.one_pass(50) == Budget(50, 50)
    assert scaling.best_of([50, 80, 20]) == Budget(80, 150)
    # Sequential refinement: one draft a round.
    refined = scaling.parallel_distill_refine([([100], 0), ([90], 0)], 80)
    assert refined == Budget(270, 270)
    pdr = scaling.parallel_distill_refine([([100, 60], 30), ([70, 90], 20)], 40)
    assert pdr == Budget(100 + 30 + 90 + 20 + 40, 160 + 30 + 160 + 20 + 40)
    with pytest.raises(UserError):
        Budget(3, 2)


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(1, 100), min_size=1, max_size=4), max_size=4))
def test_total_is_at_least_sequential_and_equal_for_single_drafts(rounds):
    budget = scaling.parallel_distill_refine([(drafts, 5) for drafts in rounds], 10)
    assert budget.total >= budget.sequential
    is_single = all(len(drafts) == 1 for drafts in rounds)
    assert (budget.total == budget.sequential) == is_single


def test_what_makes_no_sense_is_an_error():
    with pytest.raises(UserError):
        Saturation(1, 1.0)
    with pytest.raises(UserError):
        Saturation(1, 0.5).saturates_at(0)
    with pytest.raises(UserError):
        scaling.matched_inference_multiplier(0.5, 1)
    with pytest.raises(UserError):
        scaling.fast_compound_scaling(4, 2)
    with pytest.raises(UserError):
        scaling.fit_saturation([1, 1], [0.5, 0.5])
