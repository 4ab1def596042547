"""SpecDec++'s head: its loss in closed form, what it learns from, the loop it ends."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoders import SHAPES, drawn_params, drawn_tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from algoperf.errors import UserError
from algoperf.inference.decoding import acceptance_head, drafting, oracle, speculative
from algoperf.inference.decoding.acceptance_head import Settings
from algoperf.inference.decoding.speculative import Model, Strategy
from algoperf.inference.models import decoder

VOCABULARY = 6
TARGET_SHAPE = dataclasses.replace(SHAPES["like llama"], vocab_size=VOCABULARY)
TARGET = Model(
    TARGET_SHAPE, jax.tree.map(jnp.asarray, drawn_params(TARGET_SHAPE, seed=3))
)
OTHER = drawn_params(TARGET_SHAPE, seed=9)
# The target with weights a little off: a draft that often agrees.
DRAFT = Model(
    TARGET_SHAPE, jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, TARGET.params, OTHER)
)
PROMPT = drawn_tokens(TARGET_SHAPE, 1, 5)[0]
HEAD = acceptance_head.init(TARGET_SHAPE.width, 2, jax.random.key(1))
WIDTH = TARGET_SHAPE.width


@pytest.fixture(scope="module")
def plain():
    """The target's own 24 greedy tokens."""
    return np.asarray(decoder.generate(*TARGET, PROMPT[None], 24)[0])


def test_the_head_is_what_the_paper_writes():
    """x + SiLU(W x + b), block after block, then a linear map: in NumPy, float64."""
    hidden = np.random.default_rng(0).standard_normal((3, WIDTH))
    x = hidden
    for block in HEAD["blocks"]:
        y = x @ np.asarray(block["kernel"], float) + np.asarray(block["bias"])
        x = x + y / (1 + np.exp(-y))
    out = (x @ np.asarray(HEAD["out"]["kernel"], float))[:, 0]
    found = acceptance_head.logit(HEAD, jnp.asarray(hidden, jnp.float32))
    np.testing.assert_allclose(found, out, rtol=2e-5, atol=2e-5)
    found = acceptance_head.probability(HEAD, jnp.asarray(hidden, jnp.float32))
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-out)), rtol=2e-5)


@settings(max_examples=20)
@given(st.floats(0.05, 0.95), st.sampled_from([1.0, 3.0, 6.0, 12.0]))
def test_the_least_loss_is_where_the_weights_balance(accepted, weight):
    """The derivative is 0 at s = a / (a + w (1 - a)), and nowhere else."""
    best = accepted / (accepted + weight * (1 - accepted))

    def slope(s):
        logits = jnp.log(s / (1 - s))[None]
        ones = jnp.ones(1)
        return jax.grad(
            lambda z: acceptance_head.loss(z, accepted * ones, ones, weight)
        )(logits)[0]

    assert abs(slope(best)) < 1e-5
    assert slope(best * 0.9) < -1e-4
    assert slope(best + 0.1 * (1 - best)) > 1e-4


def test_the_loss_by_hand_and_what_does_not_count():
    logits = jnp.array([0.3, -1.0, 2.0])
    accepted, counts = jnp.array([1.0, 0.25, 0.0]), jnp.array([1.0, 1.0, 0.0])
    s = 1 / (1 + np.exp(-np.asarray(logits, float)))
    want = -np.log(s[0]) - 0.25 * np.log(s[1]) - 6 * 0.75 * np.log(1 - s[1])
    want /= 1 + 0.25 + 6 * 0.75
    found = acceptance_head.loss(logits, accepted, counts, 6.0)
    assert found == pytest.approx(want, rel=1e-6)


@pytest.fixture(scope="module")
def learned_from():
    """Texts, and the examples of a few draws at temperature 2."""
    texts = drawn_tokens(TARGET_SHAPE, 4, 12, seed=5)
    plan = Settings(temperature=2.0, target_share=0.3)
    examples = jax.jit(
        lambda key: acceptance_head.examples(TARGET, DRAFT, texts, 3, plan, key)
    )
    return texts, [examples(jax.random.key(i)) for i in range(40)]


def test_examples_are_labelled_by_what_the_loop_does(learned_from):
    """On average a guess is accepted as often as sum min(p, q) says."""
    texts, drawn = learned_from
    p, q = (
        np.asarray(jax.nn.softmax(decoder.compiled_forward(*m, texts) / 2.0))
        for m in (TARGET, DRAFT)
    )
    overlap = np.minimum(p, q).sum(axis=-1)[:, 2:-1]
    accepted = np.stack([np.asarray(a) for _, a, _ in drawn])[:, :, 3:]
    error = accepted.std(axis=0) / np.sqrt(len(drawn))
    distance = np.abs(accepted.mean(axis=0) - overlap)
    assert (distance < 4.5 * error + 1e-3).all()


def test_examples_count_the_draft_s_own_guesses_after_the_prompt(learned_from):
    _, drawn = learned_from
    counts = np.stack([np.asarray(c) for *_, c in drawn])
    assert not counts[..., :3].any()
    assert counts[..., 3:].mean() == pytest.approx(0.7, abs=0.05)


def test_the_head_reads_the_guess_that_it_judges(learned_from):
    """Where all tokens are the target's, hidden states are those of its text."""
    texts, _ = learned_from
    plan = Settings(temperature=2.0, target_share=0.999999)

    @jax.jit
    def both(key):
        found = acceptance_head.examples(TARGET, DRAFT, texts, 3, plan, key)
        x = decoder.forward_hidden(*DRAFT, texts)
        return found, decoder.final_hidden(*DRAFT, x)

    (hidden, _, counts), want = both(jax.random.key(0))
    assert not counts.any()
    np.testing.assert_allclose(hidden, want, atol=1e-5)


@pytest.mark.slow
def test_training_foresees_rejection_better_than_the_mean():
    """On texts that it has not seen, greedy, without a weight."""
    prompts = drawn_tokens(TARGET_SHAPE, 96, 2, seed=11)
    texts = np.concatenate([prompts, decoder.generate(*TARGET, prompts, 22)], axis=1)
    # A draft that is wrong in places, and a loss that is its own entropy.
    draft = Model(
        TARGET_SHAPE, jax.tree.map(lambda a, b: 0.8 * a + 0.2 * b, TARGET.params, OTHER)
    )
    plan = Settings(
        blocks=1, rejection_weight=1.0, temperature=0.0, num_steps=150, batch_size=32,
        learning_rate=5e-3,
    )  # fmt: skip
    head, losses = acceptance_head.train(
        TARGET, draft, texts[:64], 2, plan, jax.random.key(0)
    )
    hidden, accepted, counts = acceptance_head.examples(
        TARGET, draft, jnp.asarray(texts[64:]), 2, plan, jax.random.key(1)
    )
    found = acceptance_head.loss(
        acceptance_head.logit(head, hidden), accepted, counts, 1.0
    )
    mean = float((accepted * counts).sum() / counts.sum())
    assert 0.1 < mean < 0.95
    without = -mean * np.log(mean) - (1 - mean) * np.log(1 - mean)
    assert found < 0.8 * without
    assert losses[-10:].mean() < losses[:10].mean()


@pytest.mark.parametrize("threshold", [0.0, 0.6, 1.0])
def test_a_head_changes_how_many_are_guessed_not_which_come_out(threshold, plain):
    tokens, counts = speculative.generate(
        TARGET, DRAFT, PROMPT, 24, Strategy(longest=4, threshold=threshold), head=HEAD
    )
    np.testing.assert_array_equal(tokens, plain)
    if threshold == 0.0:  # nothing is certain: one guess a round, read in vain
        assert counts.drafted == counts.verified == counts.unused
    if threshold == 1.0:  # nothing is feared
        assert counts.drafted == 4 * counts.verified
        assert counts.unused == 0
    if threshold == 0.6:
        assert counts.verified < counts.drafted < 4 * counts.verified
        assert 0 < counts.unused <= counts.verified


def test_the_loop_stops_where_the_rule_says(plain):
    """Played on paper: guesses and hidden states by the pass without a cache."""
    strategy = Strategy(longest=4, threshold=0.6)
    _, counts = speculative.generate(TARGET, DRAFT, PROMPT, 24, strategy, head=HEAD)
    text, drafted, verified, unused = [*PROMPT.tolist(), int(plain[0])], 0, 0, 0
    answer = [*PROMPT.tolist(), *plain.tolist()]
    hidden = jax.jit(lambda text: decoder.forward_hidden(*DRAFT, text))

    def after(known):
        """The draft's logits and the head's word on the last token."""
        padded = jnp.asarray([known + [0] * (40 - len(known))])
        x = hidden(padded)[0, len(known) - 1]
        logits, h = decoder.output_logits(*DRAFT, x), decoder.final_hidden(*DRAFT, x)
        return int(jnp.argmax(logits)), float(acceptance_head.probability(HEAD, h))

    while len(text) < len(answer):
        guesses, sure = [after(text)[0]], 1.0
        while len(guesses) < 4:
            following, accepted = after(text + guesses)
            sure *= accepted
            if 1 - sure > 0.6:
                unused += 1
                break
            guesses.append(following)
        drafted, verified = drafted + len(guesses), verified + 1
        longer = answer + [-1] * 5
        kept = 0
        while kept < len(guesses) and guesses[kept] == longer[len(text) + kept]:
            kept += 1
        text = longer[: len(text) + kept + 1]
    assert (counts.drafted, counts.verified) == (drafted, verified)
    assert counts.unused == unused


def test_an_oracle_throws_nothing_away(plain):
    tokens, counts = oracle.generate(TARGET, DRAFT, PROMPT, 24, longest=4)
    np.testing.assert_array_equal(tokens, plain)
    assert counts.drafted == counts.accepted > 0
    assert counts.discard_rate == 0


@pytest.mark.slow
def test_no_fixed_length_does_better_than_an_oracle():
    _, counts = oracle.generate(TARGET, DRAFT, PROMPT, 24, longest=4)
    for length in (1, 4):
        _, fixed = speculative.generate(
            TARGET, DRAFT, PROMPT, 24, Strategy(longest=length)
        )
        assert counts.verified <= fixed.verified
        assert counts.seconds(0.1, 1.0) < fixed.seconds(0.1, 1.0)


def test_the_plan_of_an_oracle():
    is_match = [True, False, False, False, True, True, True, True, True, False]
    found = oracle.plan(is_match, 11, 4)
    # One kept and one of the target's own; twice none; four, the most; none at last.
    assert found.lengths == (1, 0, 0, 4, 0)
    assert found.window == 4
    assert oracle.plan([], 1, 4).lengths == ()
    np.testing.assert_array_equal(oracle.padded(found, 6), [1, 0, 0, 4, 0, 0])


def test_what_makes_no_sense_is_an_error():
    with pytest.raises(UserError, match="threshold"):
        speculative.generate(TARGET, DRAFT, PROMPT, 4, Strategy(), head=HEAD)
    with pytest.raises(UserError, match="above 0"):
        Settings(rejection_weight=0.0)
    with pytest.raises(UserError, match="longer texts"):
        acceptance_head.train(
            TARGET, DRAFT, np.zeros((2, 4), int), 4, Settings(), jax.random.key(0)
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "threshold"), [(HEAD, 0.8), (None, 0.5)], ids=["head", "confidence"]
)
def test_sampled_tokens_have_the_distribution_of_the_target(head, threshold):
    """Chi-square over all 216 sequences of three tokens, where a rule ends guessing.

    The rule looks at the guesses themselves, so this is no matter of course.
    """
    samples, temperature = 20_000, 2.5
    draft = Model(TARGET_SHAPE, jax.tree.map(jnp.asarray, OTHER))
    strategy = Strategy(longest=2, threshold=threshold, temperature=temperature)

    def one(key):
        help_ = drafting.Help(threshold, head)
        state = speculative.compiled(
            TARGET_SHAPE, TARGET_SHAPE, TARGET.params, draft.params,
            PROMPT, 3, 16, strategy, key, help_,
        )  # fmt: skip
        return state.text_S[5:8], state.drafted / state.verified

    keys = jax.random.split(jax.random.key(7), samples)
    tokens, drafted = jax.jit(jax.vmap(one))(keys)
    assert 1.05 < np.mean(drafted) < 1.95  # the rule ends some rounds, not all

    sequences = np.array(list(itertools.product(range(VOCABULARY), repeat=3)))
    text = jnp.concatenate([jnp.tile(PROMPT, (216, 1)), jnp.asarray(sequences)], axis=1)
    logits = decoder.compiled_forward(*TARGET, text) / temperature
    logs = np.asarray(jax.nn.log_softmax(logits))[:, 4:-1]
    taken = np.take_along_axis(logs, sequences[..., None], axis=-1)
    expected = samples * np.exp(taken.sum(axis=(1, 2)))
    counts = np.bincount(np.asarray(tokens) @ np.array([36, 6, 1]), minlength=216)
    is_common = expected >= 5
    degrees = is_common.sum()
    assert degrees > 20
    statistic = ((counts - expected)[is_common] ** 2 / expected[is_common]).sum()
    # Mean and standard deviation of chi-square; 4 deviations.
    assert statistic < degrees + 4 * np.sqrt(2 * degrees)
