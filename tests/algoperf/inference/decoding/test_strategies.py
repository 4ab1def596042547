"""Costs of strategies: closed forms, a simulation, and what must be equal."""

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


def test_one_answer_is_the_runtime():
    cost = strategies.request(BASE, 100, 40)
    assert cost.seconds == cost.device_seconds == BASE.predict(100, 40)
    assert cost.budget == Budget(40, 40)


def test_guessing_ahead_by_simulation():
    """Rounds played out with a coin for each guess."""
    rng = np.random.default_rng(0)
    rounds, answers = 0, 400
    for _ in range(answers):
        tokens = 1
        while tokens < 2001:
            kept = (rng.random(5) < 0.7).cumprod().sum()
            tokens, rounds = tokens + kept + 1, rounds + 1
    seconds = rounds / answers * speculation.round_seconds(SMALL, BASE, 5)
    want = SMALL.predict(100, 1) + BASE.predict(100, 1) + seconds
    found = strategies.speculative(SMALL, BASE, 100, 2001, 0.7, 5)
    assert found.seconds == pytest.approx(want, rel=0.005)


def test_the_best_length_is_the_best():
    lengths = range(33)
    costs = [
        strategies.speculative(SMALL, BASE, 10, 50, 0.8, k).seconds for k in lengths
    ]
    assert strategies.best_length(SMALL, BASE, 0.8) == int(np.argmin(costs)) > 0
    found = strategies.speculative(SMALL, BASE, 10, 50, 0.8)
    assert found.seconds == pytest.approx(min(costs))
    assert strategies.best_length(SMALL, BASE, 0.0) == 0


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


def test_what_makes_no_sense_is_an_error():
    with pytest.raises(UserError, match="a token"):
        strategies.step_level(SMALL, BASE, 10, 10, 0, 4, 0.5)
    with pytest.raises(UserError, match="there must be one"):
        strategies.best_of(BASE, 10, 10, 0)
