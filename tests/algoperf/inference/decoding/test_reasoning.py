"""SpecReason's loop: at its ends it is one model or the other, token for token."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoders import SHAPES, drawn_params, drawn_tokens

from algoperf.errors import UserError
from algoperf.inference.decoding import reasoning
from algoperf.inference.decoding.reasoning import Settings
from algoperf.inference.models import decoder
from algoperf.inference.models.decoder import Model

BASE_SHAPE = dataclasses.replace(SHAPES["like llama"], vocab_size=6)
SMALL_SHAPE = dataclasses.replace(SHAPES["like gpt2"], vocab_size=6, num_layers=1)
BASE, SMALL = (
    Model(shape, jax.tree.map(jnp.asarray, drawn_params(shape, seed)))
    for shape, seed in ((BASE_SHAPE, 3), (SMALL_SHAPE, 4))
)
PROMPT = drawn_tokens(BASE_SHAPE, 1, 5)[0]
TOKENS = 18


@pytest.fixture(scope="module")
def alone():
    """Greedy tokens of each model by itself."""
    return {
        name: np.asarray(decoder.generate(*model, PROMPT[None], TOKENS)[0])
        for name, model in (("small", SMALL), ("base", BASE))
    }


def _answer(judge=reasoning.likelihood_judge, **facts):
    settings = Settings(**{"step_tokens": 4, **facts})
    return reasoning.generate(SMALL, BASE, PROMPT, TOKENS, settings, judge)


def test_threshold_0_is_the_small_model(alone):
    tokens, trace = _answer(threshold=0.0)
    np.testing.assert_array_equal(tokens, alone["small"])
    assert trace.accepted == (True,) * 5
    assert (trace.small_tokens, trace.base_tokens) == (20, 0)
    assert trace.acceptance == 1


def test_a_threshold_above_9_is_the_base_model(alone):
    tokens, trace = _answer(threshold=9.1)
    np.testing.assert_array_equal(tokens, alone["base"])
    assert trace.accepted == (False,) * 5
    assert (trace.small_tokens, trace.base_tokens) == (20, 20)
    assert trace.acceptance == 0


def test_first_steps_can_be_the_base_model_s(alone):
    tokens, trace = _answer(threshold=0.0, first_steps_of_base=2)
    np.testing.assert_array_equal(tokens[:8], alone["base"][:8])
    assert trace.scores[:2] == (None, None)
    assert trace.accepted == (False, False, True, True, True)
    assert (trace.small_tokens, trace.base_tokens) == (12, 8)


def test_the_judge_decides_and_sees_what_the_base_model_thinks():
    """Alternating verdicts; everything is repeated by passes without a cache."""
    seen = []

    def judge(step):
        seen.append(step)
        return 9.0 if len(seen) % 2 else 0.0

    tokens, trace = _answer(judge, threshold=5.0)
    assert trace.accepted == (True, False, True, False, True)
    text = PROMPT.tolist()
    for step, is_kept in zip(seen, trace.accepted, strict=True):
        by_small, by_base = (_greedy(model, text) for model in (SMALL, BASE))
        np.testing.assert_array_equal(step.text, text)
        np.testing.assert_array_equal(step.tokens, by_small)
        logs = _log_probabilities(BASE, [*text, *by_small])[len(text) - 1 :]
        want = logs[np.arange(4), by_small]
        np.testing.assert_allclose(step.log_probabilities, want, atol=2e-4)
        text += by_small if is_kept else by_base
    np.testing.assert_array_equal(tokens, text[5 : 5 + TOKENS])


def _log_probabilities(model, text):
    """(tokens, V) by the pass without a cache; padded, so as to compile once."""
    padded = jnp.asarray([text + [0] * (32 - len(text))], jnp.int32)
    logits = decoder.compiled_forward(*model, padded)
    return np.asarray(jax.nn.log_softmax(logits))[0, : len(text)]


def _greedy(model, text):
    """A step of four tokens."""
    made = []
    for _ in range(4):
        made.append(int(_log_probabilities(model, text + made)[-1].argmax()))
    return made


def test_an_end_token_ends_a_step(alone):
    end = int(alone["small"][1])
    tokens, trace = _answer(threshold=0.0, end_token=end)
    np.testing.assert_array_equal(tokens, alone["small"])
    assert trace.lengths[0] <= 2
    places = np.cumsum(trace.lengths)
    longer = [n for n in trace.lengths if n == 4]
    assert all(tokens[i - 1] == end for i in places[:-1]) or longer
    assert sum(trace.lengths) >= TOKENS
    _, whole = _answer(threshold=0.0)
    assert len(trace.lengths) > len(whole.lengths)


def test_the_likelihood_judge():
    step = reasoning.Step(PROMPT, np.array([1, 2]), np.log(np.array([0.25, 0.64])))
    assert reasoning.likelihood_judge(step) == pytest.approx(9 * 0.4)


def test_what_makes_no_sense_is_an_error():
    with pytest.raises(UserError, match="at least 1 and 0"):
        Settings(step_tokens=0)
    with pytest.raises(UserError, match="at least one"):
        reasoning.generate(SMALL, BASE, PROMPT, 0, Settings())
    with pytest.raises(UserError, match="shorten"):
        reasoning.generate(SMALL, BASE, PROMPT, 40, Settings())
    other = Model(dataclasses.replace(SMALL_SHAPE, vocab_size=9), {})
    with pytest.raises(UserError, match="vocabulary"):
        reasoning.generate(other, BASE, PROMPT, 4, Settings())
