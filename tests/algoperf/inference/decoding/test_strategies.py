"""Costs of strategies: closed forms, a simulation, and what must be equal."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algoperf.errors import UserError
from algoperf.inference.decoding import speculation, strategies
from algoperf.inference.decoding.strategies import Plan
from algoperf.inference.timing.prompt_time import PromptTime
from algoperf.inference.timing.runtime import RuntimeModel
from algoperf.inference.tradeoffs import scaling
from algoperf.inference.tradeoffs.scaling import Budget

SMALL = RuntimeModel(PromptTime("affine", (), (0.01, 1e-5)), 0.005)
BASE = RuntimeModel(PromptTime("affine", (), (0.1, 1e-3)), 0.08, 1e-6)
# At 1000 tokens of context a token takes more than twice as long.
STEEP = (
    dataclasses.replace(SMALL, seconds_per_token_slope=1e-5),
    dataclasses.replace(BASE, seconds_per_token_slope=1e-4),
)


def test_one_answer_is_the_runtime():
    cost = strategies.request(BASE, 100, 40)
    assert cost.seconds == cost.device_seconds == BASE.predict(100, 40)
    assert cost.budget == Budget(40, 40)


def test_guessing_ahead_by_simulation():
    """Rounds played out with a coin for each guess, each at its own context."""
    small, base = STEEP
    rng = np.random.default_rng(0)
    seconds, answers = 0.0, 400
    for _ in range(answers):
        tokens = 1
        while tokens < 2001:
            kept = (rng.random(5) < 0.7).cumprod().sum()
            seconds += speculation.round_seconds(small, base, 5, 100 + tokens)
            tokens += kept + 1
    want = small.predict(100, 1) + base.predict(100, 1) + seconds / answers
    found = strategies.speculative(small, base, 100, 2001, 0.7, 5)
    assert found.seconds == pytest.approx(want, rel=0.005)


@pytest.mark.parametrize("output", [2, 3, 16])
def test_a_short_answer_takes_whole_rounds(output):
    """By simulation: the last round may bring more than is wanted."""
    rng = np.random.default_rng(0)
    rounds, answers = 0, 4000
    for _ in range(answers):
        tokens = 1
        while tokens < output:
            tokens += (rng.random(10) < 0.9).cumprod().sum() + 1
            rounds += 1
    small, base = (dataclasses.replace(m, seconds_per_token_slope=0) for m in STEEP)
    one = speculation.round_seconds(small, base, 10, 100)
    want = small.predict(100, 1) + base.predict(100, 1) + rounds / answers * one
    found = strategies.speculative(small, base, 100, output, 0.9, 10)
    assert found.seconds == pytest.approx(want, rel=0.01)


@pytest.mark.parametrize("output", [0, 1, 2, 1000])
def test_without_a_guess_it_is_plain_and_the_draft_s_prompt(output):
    """With a slope: what has come so far costs as much as in plain decoding."""
    small, base = STEEP
    found = strategies.speculative(small, base, 500, output, 0.7, 0)
    plain = strategies.request(base, 500, output).seconds
    assert found.seconds == pytest.approx(plain + small.predict(500, 1))


def test_the_best_length_is_the_best():
    lengths = range(33)
    costs = [
        strategies.speculative(SMALL, BASE, 10, 50, 0.8, k).seconds for k in lengths
    ]
    best = strategies.best_length(SMALL, BASE, 0.8, 10, 50)
    assert best == int(np.argmin(costs)) > 0
    found = strategies.speculative(SMALL, BASE, 10, 50, 0.8)
    assert found.seconds == pytest.approx(min(costs))
    assert strategies.best_length(SMALL, BASE, 0.0, 10, 50) == 0
    assert strategies.best_length(SMALL, BASE, 1.0, 10, 50) == 48  # one round
    assert strategies.best_length(SMALL, BASE, 0.8, 10, 2) == 0


def test_a_draft_that_slows_down_guesses_less_in_a_long_context():
    draft = dataclasses.replace(SMALL, seconds_per_token_slope=1e-4)
    lengths = [strategies.best_length(draft, BASE, 0.8, p, 60) for p in (1, 100, 2000)]
    assert lengths[0] > lengths[1] > lengths[2] == 0


def test_steps_add_up_to_the_one_step_formula():
    found = strategies.step_level(SMALL, BASE, 300, 100, 40, 10, 0.25)
    want = (
        SMALL.predict(300, 1)
        + BASE.predict(300, 1)
        + sum(
            speculation.step_level_seconds(SMALL, BASE, context, step, 10, 0.25)
            for context, step in ((300, 40), (340, 40), (380, 20))
        )
    )
    assert found.seconds == pytest.approx(want)
    # All written once by the small model, a score a step, three quarters once more.
    assert found.budget.total == 100 + 3 + 75


def test_kv_prediction_saves_the_base_model_s_prompt():
    found = strategies.predicted_cache(SMALL, BASE, 100, 40, map_seconds=0.002)
    plain = BASE.predict(100, 40)
    first = SMALL.prompt_seconds(100) + 0.002 + 0.08 + 1e-6 * 100
    assert found.seconds == pytest.approx(plain - BASE.prompt_seconds(100) + first)


def test_best_of_many_takes_no_longer_and_costs_more():
    one, many = (strategies.best_of(BASE, 100, 40, n) for n in (1, 5))
    assert one == strategies.request(BASE, 100, 40)
    assert many.seconds == one.seconds
    assert many.device_seconds == pytest.approx(5 * one.device_seconds)
    assert many.budget == scaling.best_of([40] * 5)
    judged = strategies.best_of(BASE, 100, 40, 5, SMALL)
    assert judged.seconds == pytest.approx(one.seconds + SMALL.predict(140, 1))
    assert judged.budget == Budget(41, 205)


def test_refinement_reads_the_answer_before():
    found = strategies.sequential_refinement(BASE, 100, 40, 2)
    want = BASE.predict(100, 40) + 2 * BASE.predict(140, 40)
    assert found.seconds == found.device_seconds == pytest.approx(want)
    assert found.budget == Budget(120, 120)


def test_parallel_distill_refine_by_hand():
    found = strategies.parallel_distill_refine(BASE, 100, 40, [3, 2], 20)
    rounds = (
        BASE.predict(100, 40), BASE.predict(220, 20), BASE.predict(120, 40),
        BASE.predict(180, 20), BASE.predict(120, 40),
    )  # fmt: skip
    assert found.seconds == pytest.approx(sum(rounds))
    more = 2 * rounds[0] + rounds[2]
    assert found.device_seconds == pytest.approx(sum(rounds) + more)
    want = scaling.parallel_distill_refine([([40] * 3, 20), ([40] * 2, 20)], 40)
    assert found.budget == want
    plain = strategies.parallel_distill_refine(BASE, 100, 40, [], 20)
    assert plain == strategies.request(BASE, 100, 40)


@settings(max_examples=30)
@given(
    st.integers(1, 200),
    st.integers(2, 60),
    st.floats(0, 1),
    st.integers(1, 8),
    st.integers(1, 30),
)
def test_what_every_cost_obeys(prompt, output, accepted, many, summary):
    """No path is longer than all work; one draft in a row is all in a row."""
    plan = Plan(prompt, output, accepted, 7, 3, many, many, summary)
    found, left_out = strategies.table(BASE, plan, SMALL)
    assert not left_out
    assert len(found) == 9
    for cost in found.values():
        assert 0 < cost.seconds <= cost.device_seconds * (1 + 1e-9)
        assert cost.budget.sequential >= output
    if many == 1:
        for cost in found.values():
            assert cost.seconds == pytest.approx(cost.device_seconds)
            assert cost.budget.sequential == cost.budget.total


def test_what_does_not_fit_is_left_out_and_says_why():
    short = RuntimeModel(BASE.prompt_seconds, 0.08, max_length=64)
    found, left_out = strategies.table(short, Plan(16, 16))
    assert "plain" in found
    assert list(left_out) == ["parallel-distill-refine, 4"]
    assert "shorten" in left_out["parallel-distill-refine, 4"]
    with pytest.raises(UserError, match="shorten"):
        strategies.table(short, Plan(60, 16))


@pytest.mark.parametrize("is_draft", [True, False])
def test_what_one_of_two_models_cannot_hold_is_left_out(is_draft):
    """As in the real loops: guesses and steps beyond the answer need room too."""
    plan = Plan(16, 24, step_tokens=9)
    guesses = strategies.best_length(SMALL, BASE, plan.acceptance, 16, 24)

    def left_out(room):
        small, base = SMALL, BASE
        if is_draft:
            small = dataclasses.replace(SMALL, max_length=room)
        else:
            base = dataclasses.replace(BASE, max_length=room)
        found = strategies.table(base, plan, small)[1]
        return {name.partition(",")[0] for name in found} & {
            "speculative", "SpecReason", "the draft alone", "KV prediction"
        }  # fmt: skip

    assert 0 < guesses < plan.step_tokens
    assert left_out(16 + 24 + 9) == set()
    assert left_out(16 + 24 + 9 - 1) == {"SpecReason"}
    assert left_out(16 + 24 + guesses - 1) == {"SpecReason"}  # guesses fewer


def test_a_predicted_cache_has_the_base_model_s_limit():
    base = dataclasses.replace(BASE, max_length=100)
    with pytest.raises(UserError, match="shorten"):
        strategies.predicted_cache(SMALL, base, 80, 21)


def test_what_makes_no_sense_is_an_error():
    with pytest.raises(UserError, match="a token"):
        strategies.step_level(SMALL, BASE, 10, 10, 0, 4, 0.5)
    with pytest.raises(UserError, match="there must be one"):
        strategies.best_of(BASE, 10, 10, 0)
