"""DistillSpec: divergences by SciPy; their fall is the rise of acceptance."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial.distance
import scipy.special
from decoders import SHAPES, drawn_params, drawn_tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from algoperf.errors import UserError
from algoperf.inference.decoding import distill, fitting, speculation, speculative
from algoperf.inference.decoding.distill import DIVERGENCES, Settings
from algoperf.inference.decoding.speculative import Model, Strategy
from algoperf.inference.models import decoder

TARGET_SHAPE = dataclasses.replace(SHAPES["like llama"], vocab_size=6)
DRAFT_SHAPE = dataclasses.replace(SHAPES["like gpt2"], vocab_size=6, num_layers=1)
TARGET, DRAFT = (
    Model(shape, jax.tree.map(jnp.asarray, drawn_params(shape, seed)))
    for shape, seed in ((TARGET_SHAPE, 3), (DRAFT_SHAPE, 4))
)
PROMPT = drawn_tokens(TARGET_SHAPE, 1, 5)[0]
TEMPERATURE = 2.5


def _two(seed, size=7):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((2, size)) * 2


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.floats(0.1, 0.9))
def test_divergences_are_those_of_scipy(seed, beta):
    logits = _two(seed)
    p, q = scipy.special.softmax(logits, axis=-1)
    m = beta * p + (1 - beta) * q
    kl = lambda a, b: scipy.special.rel_entr(a, b).sum()  # noqa: E731
    want = {
        "forward_kl": kl(p, q),
        "reverse_kl": kl(q, p),
        "jensen_shannon": beta * kl(p, m) + (1 - beta) * kl(q, m),
        "total_variation": np.maximum(p - q, 0).sum(),
    }
    for name in DIVERGENCES:
        found = distill.divergence(name, *jnp.asarray(logits, jnp.float32), beta)
        assert found == pytest.approx(want[name], rel=1e-4, abs=1e-6), name
    half = distill.divergence("jensen_shannon", *jnp.asarray(logits, jnp.float32))
    distance = scipy.spatial.distance.jensenshannon(p, q)
    assert half == pytest.approx(distance**2, rel=1e-4, abs=1e-6)


@settings(max_examples=25)
@given(st.integers(0, 10_000))
def test_total_variation_is_what_acceptance_lacks(seed):
    logits = _two(seed)
    p, q = scipy.special.softmax(logits, axis=-1)
    apart = distill.divergence("total_variation", *jnp.asarray(logits, jnp.float32))
    assert speculation.acceptance(p, q) == pytest.approx(1 - float(apart), abs=1e-6)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_equal_models_are_not_apart(name):
    logits = jnp.asarray(_two(0)[0], jnp.float32)
    assert distill.divergence(name, logits, logits + 3.0) == pytest.approx(0, abs=1e-6)


def _given(step):
    """Text at random: the target's opinion on it is what is learned."""
    return np.random.default_rng(step).integers(6, size=(16, 12))


def _distilled(steps, **facts):
    plan = Settings(num_steps=steps, learning_rate=1e-2, **facts)
    return distill.distil(TARGET, DRAFT, _given, 5, plan, jax.random.key(0))


@pytest.fixture(scope="module")
def distilled():
    """The draft after 60 steps, half of them on policy, and their losses."""
    return _distilled(60)


@jax.jit
def _rounds(params, keys):
    """Guesses kept in one round with one guess, for each key."""
    strategy = Strategy(longest=1, temperature=TEMPERATURE)

    def one(key):
        return speculative.compiled(
            TARGET_SHAPE, DRAFT_SHAPE, TARGET.params, params,
            PROMPT, 2, 16, strategy, key,
        ).accepted  # fmt: skip

    return jax.vmap(one)(keys)


def _accepted(draft, samples=20_000):
    """Share of guesses that the real loop keeps."""
    return np.mean(_rounds(draft.params, jax.random.split(jax.random.key(7), samples)))


def _distance(draft):
    """Mean total variation distance of the second token, over the target's first."""
    text = jnp.concatenate([jnp.tile(PROMPT, (6, 1)), jnp.arange(6)[:, None]], axis=1)
    p, q = (decoder.compiled_forward(*m, text) / TEMPERATURE for m in (TARGET, draft))
    apart = distill.divergence("total_variation", p[:, -1], q[:, -1])
    return float(jax.nn.softmax(p[0, 4]) @ apart)


def test_acceptance_rises_by_what_the_distance_falls(distilled):
    """Measured in the real loop, before and after; the identity, not a trend."""
    after, _ = distilled
    fall = _distance(DRAFT) - _distance(after)
    before_rate, after_rate = _accepted(DRAFT), _accepted(after)
    assert fall > 0.05
    error = np.sqrt(2 * 0.25 / 20_000)
    assert after_rate - before_rate == pytest.approx(fall, abs=4 * error)
    assert after_rate == pytest.approx(1 - _distance(after), abs=3 * error)


def test_the_divergence_falls_in_training(distilled):
    _, losses = distilled
    assert losses[-10:].mean() < 0.8 * losses[:10].mean()


@pytest.mark.slow
@pytest.mark.parametrize("name", DIVERGENCES)
def test_every_divergence_brings_the_draft_nearer(name):
    after, losses = _distilled(80, divergence=name, on_policy=0.0)
    assert losses[-10:].mean() < 0.8 * losses[:10].mean()
    assert _distance(after) < _distance(DRAFT)


def test_on_policy_text_is_the_draft_s_own(monkeypatch):
    """A step on policy asks the draft as it is then; the others ask for nothing."""
    asked = []

    def sample(shape, params, prompts, num_tokens, temperature, key):
        asked.append((params, prompts, num_tokens, temperature))
        return jnp.concatenate([prompts, jnp.zeros((16, num_tokens), jnp.int32)], 1)

    def descend(loss, params, constants, batch_at, num_steps, rate, key):
        read = [batch_at(step, f"after {step} steps") for step in range(num_steps)]
        return read, np.zeros(num_steps)

    monkeypatch.setattr(fitting, "sample", sample)
    monkeypatch.setattr(fitting, "descend", descend)
    (_, read), _ = _distilled(100, on_policy=1.0, temperature=0.7)
    assert len(asked) == 100
    assert [params for params, *_ in asked[:2]] == ["after 0 steps", "after 1 steps"]
    np.testing.assert_array_equal(asked[1][1], _given(1)[:, :5])
    assert asked[1][2:] == (7, 0.7)
    assert not read[1][:, 5:].any()
    asked.clear()
    (_, read), _ = _distilled(100, on_policy=0.0)
    assert not asked
    np.testing.assert_array_equal(read[1], _given(1))
    _distilled(100, on_policy=0.3)
    assert 15 <= len(asked) <= 45


def test_sampling_writes_what_the_decoder_would():
    prompts = drawn_tokens(DRAFT_SHAPE, 3, 5)
    texts = fitting.sample(*DRAFT, prompts, 6, 0.0, jax.random.key(0))
    np.testing.assert_array_equal(texts[:, :5], prompts)
    np.testing.assert_array_equal(texts[:, 5:], decoder.generate(*DRAFT, prompts, 6))


def test_descending_a_parabola():
    """The minimum of a convex loss is found; its batches see the parameters."""
    seen = []

    def batch_at(step, params):
        seen.append((step, float(params["x"])))
        return jnp.float32(3.0)

    params, losses = fitting.descend(
        lambda params, constants, batch, key: (params["x"] - batch * constants) ** 2,
        {"x": jnp.float32(0.0)},
        jnp.float32(2.0),
        batch_at,
        200,
        0.3,
        jax.random.key(0),
    )
    assert params["x"] == pytest.approx(6.0, abs=0.05)
    assert losses.shape == (200,)
    assert losses[0] == pytest.approx(36.0)
    assert [step for step, _ in seen] == list(range(200))
    assert seen[0][1] == 0 < seen[50][1]


def test_what_makes_no_sense_is_an_error():
    with pytest.raises(UserError, match="did you mean"):
        Settings(divergence="reverse_lk")
    with pytest.raises(UserError, match="within"):
        Settings(on_policy=1.5)
    with pytest.raises(UserError, match="beta"):
        Settings(beta=1.0)
    with pytest.raises(UserError, match="longer texts"):
        distill.distil(TARGET, DRAFT, _given, 12, Settings(), jax.random.key(0))
    with pytest.raises(UserError, match="at least 1"):
        _distilled(0)
