"""The real loop: the target's tokens when greedy, its distribution when sampling."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoders import SHAPES, drawn_params, drawn_tokens

from algoperf.errors import UserError
from algoperf.inference.decoding import speculation, speculative
from algoperf.inference.decoding.speculative import Model, Strategy
from algoperf.inference.models import decoder

VOCABULARY = 6
TARGET_SHAPE = dataclasses.replace(SHAPES["like llama"], vocab_size=VOCABULARY)
DRAFT_SHAPE = dataclasses.replace(
    SHAPES["like gpt2"], vocab_size=VOCABULARY, num_layers=1
)
TARGET = Model(TARGET_SHAPE, drawn_params(TARGET_SHAPE, seed=3))
DRAFT = Model(DRAFT_SHAPE, drawn_params(DRAFT_SHAPE, seed=4))
PROMPT = drawn_tokens(TARGET_SHAPE, 1, 5)[0]


def _blurred(model, share):
    """The model with weights a little off: a draft that often agrees."""
    other = drawn_params(model.shape, seed=9)
    params = jax.tree.map(lambda a, b: (1 - share) * a + share * b, model.params, other)
    return Model(model.shape, params)


@pytest.fixture(scope="module")
def plain():
    """The target's own 24 greedy tokens."""
    return np.asarray(decoder.generate(*TARGET, PROMPT[None], 24)[0])


DRAFTS = {
    "another model": DRAFT,
    "itself, blurred": _blurred(TARGET, 0.1),
    "itself": TARGET,
}


@pytest.mark.parametrize("name", DRAFTS)
def test_greedy_tokens_are_those_of_the_target(name, plain):
    tokens, counts = speculative.generate(
        TARGET, DRAFTS[name], PROMPT, 24, Strategy(longest=4)
    )
    np.testing.assert_array_equal(tokens, plain)
    assert counts.drafted == 4 * counts.verified
    if name == "itself":  # every guess is kept: five tokens a round
        assert counts.accepted == counts.drafted
    # The first token is the prefill's.
    assert 23 <= counts.tokens <= 23 + 4


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [0.0, 0.4])
def test_a_threshold_changes_how_many_are_guessed_not_which_come_out(threshold, plain):
    draft = DRAFTS["itself, blurred"]
    strategy = Strategy(longest=6, threshold=threshold)
    tokens, counts = speculative.generate(TARGET, draft, PROMPT, 24, strategy)
    np.testing.assert_array_equal(tokens, plain)
    if threshold == 0.0:  # no guess is certain, so there is one a round
        assert counts.drafted == counts.verified
    else:
        assert counts.verified < counts.drafted < 6 * counts.verified


def _sampled(target, draft, strategy, num_tokens, samples):
    """Tokens (samples, num_tokens) and counts, in one compiled program."""
    keys = jax.random.split(jax.random.key(7), samples)

    def one(key):
        state = speculative.compiled(
            target.shape, draft.shape, target.params, draft.params,
            PROMPT, num_tokens, 16, strategy, key,
        )  # fmt: skip
        tokens = state.text_S[5 : 5 + num_tokens]
        return tokens, state.drafted, state.verified, state.accepted

    return jax.jit(jax.vmap(one))(keys)


def _sequence_probabilities(target, length, temperature):
    """Of every sequence of tokens after the prompt, by the pass without a cache."""
    sequences = np.array(list(itertools.product(range(VOCABULARY), repeat=length)))
    text = jnp.concatenate(
        [jnp.tile(PROMPT, (len(sequences), 1)), jnp.asarray(sequences)], axis=1
    )
    logits = decoder.compiled_forward(target.shape, target.params, text)
    log_p = jax.nn.log_softmax(logits / temperature)[:, 4:-1]  # (sequences, length, V)
    taken = np.take_along_axis(np.asarray(log_p), sequences[..., None], axis=-1)
    return np.exp(taken.sum(axis=(1, 2)))


def test_sampled_tokens_have_the_distribution_of_the_target():
    """Chi-square over all 216 sequences of three tokens; the draft is another model."""
    samples, temperature = 20_000, 2.5
    strategy = Strategy(longest=2, temperature=temperature)
    tokens, *_ = _sampled(TARGET, DRAFT, strategy, 3, samples)
    index = np.asarray(tokens) @ np.array([36, 6, 1])
    counts = np.bincount(index, minlength=216)
    expected = samples * _sequence_probabilities(TARGET, 3, temperature)
    assert expected.sum() == pytest.approx(samples, rel=1e-4)
    is_common = expected >= 5
    assert is_common.sum() > 20
    statistic = ((counts - expected)[is_common] ** 2 / expected[is_common]).sum()
    rest = counts[~is_common].sum(), expected[~is_common].sum()
    statistic += (rest[0] - rest[1]) ** 2 / max(rest[1], 1.0)
    degrees = is_common.sum()
    # Mean and standard deviation of chi-square; 4 deviations.
    assert statistic < degrees + 4 * np.sqrt(2 * degrees)
    # The draft's own distribution would not pass.
    wrong = samples * _sequence_probabilities(DRAFT, 3, temperature)
    off = ((counts - wrong) ** 2 / np.maximum(wrong, 1.0)).sum()
    assert off > 10 * degrees


@pytest.mark.slow
def test_acceptance_is_the_overlap_of_the_distributions():
    """One guess a round, one round: kept as often as sum min(p, q) says, on average."""
    strategy = Strategy(longest=1, temperature=2.5)
    _, drafted, _, accepted = _sampled(TARGET, DRAFT, strategy, 2, 20_000)
    assert set(np.asarray(drafted).tolist()) == {1}
    text = jnp.concatenate(
        [jnp.tile(PROMPT, (VOCABULARY, 1)), jnp.arange(VOCABULARY)[:, None]], axis=1
    )
    p, q = (
        np.asarray(
            jax.nn.softmax(decoder.compiled_forward(m.shape, m.params, text) / 2.5)
        )
        for m in (TARGET, DRAFT)
    )
    overlap = speculation.acceptance(p[:, -1], q[:, -1])  # after each first token
    want = float((p[0, 4] * overlap).sum())
    error = np.sqrt(want * (1 - want) / 20_000)
    assert np.mean(accepted) == pytest.approx(want, abs=4 * error)


def test_what_makes_no_sense_is_an_error():
    other = Model(dataclasses.replace(DRAFT_SHAPE, vocab_size=9), {})
    with pytest.raises(UserError, match="vocabulary"):
        speculative.generate(TARGET, other, PROMPT, 4, Strategy())
    with pytest.raises(UserError, match="at least one"):
        speculative.generate(TARGET, DRAFT, PROMPT, 0, Strategy())
    with pytest.raises(UserError, match="shorten"):
        speculative.generate(TARGET, DRAFT, PROMPT, 45, Strategy())
    with pytest.raises(UserError, match="in order"):
        Strategy(longest=2, shortest=3)
