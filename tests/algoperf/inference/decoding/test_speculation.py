"""Speculative decoding on paper: closed forms, simulations, the decision process."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algoperf.errors import UserError
from algoperf.inference.decoding import speculation
from algoperf.inference.decoding.speculation import Counts
from algoperf.inference.timing.prompt_time import PromptTime
from algoperf.inference.timing.runtime import RuntimeModel

SMALL = RuntimeModel(PromptTime("affine", (), (0.01, 1e-5)), 0.005)
BASE = RuntimeModel(PromptTime("affine", (), (0.1, 1e-3)), 0.08, 1e-6)


@pytest.mark.parametrize(
    ("accepted", "length", "tokens", "speed_up", "best"),
    [(0.8, 4, 3.3616, 2.80133, 8), (0.9, 8, 6.125795, 4.37557, 13)],
)
def test_published_figures(accepted, length, tokens, speed_up, best):
    found = speculation.tokens_per_round(accepted, length)
    assert found == pytest.approx(tokens, abs=5e-7)
    found = speculation.speed_up(accepted, length, 0.05)
    assert found == pytest.approx(speed_up, abs=5e-6)
    assert speculation.best_length(accepted, 0.05) == best


@given(st.integers(0, 12), st.floats(0, 1), st.integers(0, 6))
def test_expected_rounds_by_recursion(tokens, accepted, length):
    def rounds(n):
        if n <= 0:
            return 0.0
        kept = [accepted**k * (1 - accepted) for k in range(length)]
        kept.append(accepted**length)
        return 1 + sum(p * rounds(n - k - 1) for k, p in enumerate(kept))

    found = speculation.expected_rounds(tokens, accepted, length)
    assert found == pytest.approx(rounds(tokens), rel=1e-9)
    many = speculation.expected_rounds(3000, accepted, length)
    per_round = speculation.tokens_per_round(accepted, length)
    assert many == pytest.approx(3000 / per_round, rel=0.01)


def test_tokens_per_round_at_the_ends():
    assert speculation.tokens_per_round(1, 4) == 5
    assert speculation.tokens_per_round(0, 4) == 1
    assert speculation.best_length(0.0, 0.05) == 0
    with pytest.raises(UserError):
        speculation.tokens_per_round(1.1, 4)


def _distributions(seed, size=5):
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(size)), rng.dirichlet(np.ones(size))


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_output_has_the_distribution_of_the_target(seed):
    """Accept x with min(1, p/q), else the residual: exactly p."""
    p, q = _distributions(seed)
    accepted = q * np.minimum(1, p / q)
    rejected = 1 - accepted.sum()
    out = accepted + rejected * speculation.residual(p, q)
    np.testing.assert_allclose(out, p, atol=1e-15)


@settings(max_examples=30)
@given(st.integers(0, 10_000))
def test_acceptance_is_one_less_total_variation(seed):
    p, q = _distributions(seed)
    total_variation = np.abs(p - q).sum() / 2
    assert speculation.acceptance(p, q) == pytest.approx(1 - total_variation)


def test_equal_models_accept_everything():
    p, _ = _distributions(0)
    assert speculation.acceptance(p, p) == pytest.approx(1)
    np.testing.assert_array_equal(speculation.residual(p, p), p)


@pytest.fixture(scope="module")
def simulated():
    """Rounds of 4 guesses, each accepted with probability 0.8."""
    rng = np.random.default_rng(0)
    accepted = (rng.random((40_000, 4)) < 0.8).cumprod(axis=1).sum()
    return Counts(drafted=4 * 40_000, verified=40_000, accepted=int(accepted))


def test_simulation_gives_the_closed_form(simulated):
    per_round = simulated.tokens / simulated.verified
    assert per_round == pytest.approx(3.3616, rel=0.01)


def test_cost_by_rates_is_the_cost_by_counts(simulated):
    """T = t_d N + c1 discarded + c2 verified, with c1 = t_d, c2 = t_t - t_d."""
    draft, target = 0.0234, 0.112
    want = (
        draft
        + draft * simulated.discard_rate
        + (target - draft) * simulated.verification_rate
    ) * simulated.tokens
    assert simulated.seconds(draft, target) == pytest.approx(want, rel=1e-9)


TOY = ([0.95, 0.4], [0.6, 0.4], 0.0234, 0.112)


def test_optimal_stopping_of_the_toy():
    found = speculation.optimal_stopping(*TOY)
    assert found.seconds_per_token == pytest.approx(0.0632, abs=5e-5)
    assert found.goes_on_up_to < 0.493 < found.stops_from
    # The sufficient condition of SpecDec++ is far above.
    assert found.stops_from < 0.9 * (0.112 - 0.0234) / 0.112


def test_best_fixed_length_of_the_toy():
    costs = {k: speculation.fixed_length_seconds(*TOY, k) for k in range(1, 9)}
    assert min(costs, key=costs.get) == 3
    assert costs[3] == pytest.approx(0.0685, rel=5e-3)
    gain = costs[3] / speculation.optimal_stopping(*TOY).seconds_per_token - 1
    assert gain == pytest.approx(0.089, abs=0.003)


def test_optimal_stopping_by_simulation():
    """The threshold policy, played out, costs what the program says."""
    found = speculation.optimal_stopping(*TOY)
    rng = np.random.default_rng(0)
    seconds = tokens = 0.0
    for _ in range(20_000):
        kept, alive, accepted = 1.0, True, 0
        while 1 - kept < found.stops_from:
            a = 0.95 if rng.random() < 0.6 else 0.4
            kept *= a
            alive = alive and rng.random() < a
            accepted += alive
            seconds += 0.0234
        seconds += 0.112
        tokens += accepted + 1
    assert seconds / tokens == pytest.approx(found.seconds_per_token, rel=0.02)


def test_with_one_kind_of_guess_the_best_policy_is_a_fixed_length():
    found = speculation.optimal_stopping([0.8], [1.0], 0.05, 1.0)
    costs = [
        speculation.fixed_length_seconds([0.8], [1.0], 0.05, 1.0, k) for k in range(20)
    ]
    assert found.longest == np.argmin(costs) == 8
    assert found.seconds_per_token == pytest.approx(min(costs), rel=1e-6)
    with pytest.raises(UserError, match="sum to 1"):
        speculation.optimal_stopping([0.5], [0.5], 0.1, 1.0)


def test_round_seconds():
    found = speculation.round_seconds(SMALL, BASE, 4, 1000)
    assert found == pytest.approx(4 * 0.005 + 0.08 + 4 * 1e-3 + 1e-6 * 1000)
    found = speculation.round_seconds(BASE, SMALL, 4, 1000)
    assert found == pytest.approx(4 * (0.08 + 1e-6 * 1000) + 0.005 + 4 * 1e-5)


def test_step_level_acceptance_lies_between_the_two_models():
    def seconds(rate):
        return speculation.step_level_seconds(SMALL, BASE, 300, 40, 10, rate)

    small = 40 * 0.005
    judging = 0.1 + 1e-3 * 50 + 1e-6 * 300
    base = sum(0.08 + 1e-6 * (300 + i) for i in range(40))
    assert seconds(1) == pytest.approx(small + judging)
    assert seconds(0) == pytest.approx(small + judging + base)
    assert seconds(0.25) == pytest.approx(0.25 * seconds(1) + 0.75 * seconds(0))


def test_kv_prediction_flops_term_by_term():
    found = speculation.kv_prediction_flops(1e6, 1e7, 100, 64, 128, 12)
    maps = sum(2 * 64 * 128 * 100 for _ in itertools.product(range(12), "kv"))
    assert found == pytest.approx(2e6 * 100 + maps + 2e7)
