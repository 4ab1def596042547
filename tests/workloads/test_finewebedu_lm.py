"""The language model: size, arithmetic, causality, packing."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from workloads.finewebedu_lm import data
from workloads.finewebedu_lm.model import CausalAttention, Decoder, GatedMLP, rotate
from workloads.finewebedu_lm.workload import MINI


def test_full_size_has_the_parameters_of_the_public_implementation():
    shapes = jax.eval_shape(
        lambda key: Decoder().init(key, jnp.zeros((1, 8), jnp.int32), train=False),
        jax.random.PRNGKey(0),
    )
    layer = 4 * 1024**2 + 3 * 1024 * 4096 + 2 * 1024 + 1
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == (
        50_257 * 1024 + 12 * layer + 1024
    )


def test_mini_has_the_parameters_that_the_targets_were_set_on():
    assert MINI.num_parameters == 283_106


def test_attention_agrees_with_numpy():
    batch, length, width, heads, theta = 2, 5, 12, 3, 100.0
    size = width // heads
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, length, width)).astype(np.float32)
    module = CausalAttention(
        heads, 8, theta, jax.nn.initializers.normal(0.5), jnp.float32
    )
    params = module.init(jax.random.PRNGKey(0), x)["params"]
    assert params["scale"] == pytest.approx(math.log2(8**2 - 8))
    params = {**params, "scale": jnp.float32(2.5)}
    got = module.apply({"params": params}, x)

    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    query, key, value = np.split(x @ p["qkv"]["kernel"], 3, axis=-1)
    want = np.zeros((batch, length, width))
    for b in range(batch):
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            for t in range(length):
                q = turned(query[b, t, part], t, theta)
                past = range(t + 1)
                keys = np.array([turned(key[b, s, part], s, theta) for s in past])
                scores = 2.5 * keys @ q
                weights = np.exp(scores) / np.exp(scores).sum()
                want[b, t, part] = weights @ value[b, : t + 1, part]
    np.testing.assert_allclose(got, want @ p["out"]["kernel"], atol=1e-5)


def turned(vector, position, theta):
    """One head's vector at one position, rotated as complex numbers, of length 1."""
    half = len(vector) // 2
    angles = position * theta ** (-np.arange(half) / half)
    pairs = (vector[:half] + 1j * vector[half:]) * np.exp(1j * angles)
    pairs = np.concatenate([pairs.real, pairs.imag])
    return pairs / np.linalg.norm(pairs)


def test_rotation_makes_products_depend_on_the_distance_alone():
    q, k = jax.random.normal(jax.random.PRNGKey(0), (2, 1, 1, 1, 16))

    def product(at, distance):
        first = rotate(q, jnp.array([at + distance], jnp.float32), 1e4)
        second = rotate(k, jnp.array([at], jnp.float32), 1e4)
        return float(jnp.sum(first * second))

    assert product(0, 3) == pytest.approx(product(40, 3), abs=1e-4)
    assert product(0, 3) != pytest.approx(product(0, 4), abs=1e-4)


def test_mlp_agrees_with_numpy():
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    module = GatedMLP(5, jax.nn.sigmoid, jax.nn.initializers.normal(1.0), jnp.float32)
    params = module.init(jax.random.PRNGKey(0), x)["params"]
    hidden = x @ np.asarray(params["fc1"]["kernel"])
    hidden = hidden[..., :5] / (1 + np.exp(-hidden[..., 5:]))
    want = hidden @ np.asarray(params["fc2"]["kernel"])
    np.testing.assert_allclose(module.apply({"params": params}, x), want, atol=1e-5)


def test_logits_do_not_depend_on_later_tokens():
    params, _ = MINI.init_model_fn(jax.random.PRNGKey(0))
    apply = jax.jit(lambda ids: MINI.model.apply({"params": params}, ids, train=False))
    ids = MINI.dataset("validation", 2, 0)[0]["inputs"]
    changed_at = 20
    other = ids.copy()
    other[:, changed_at] = (other[:, changed_at] + 7) % data.VOCAB_SIZE
    before, after = apply(ids), apply(other)
    np.testing.assert_allclose(before[:, :changed_at], after[:, :changed_at], atol=1e-6)
    assert not np.allclose(before[:, changed_at:], after[:, changed_at:], atol=1e-3)


def test_permuting_a_batch_permutes_the_logits():
    params, _ = MINI.init_model_fn(jax.random.PRNGKey(0))
    apply = jax.jit(lambda ids: MINI.model.apply({"params": params}, ids, train=False))
    ids = MINI.dataset("validation", 4, 0)[0]["inputs"]
    order = np.array([2, 0, 3, 1])
    np.testing.assert_allclose(apply(ids[order]), apply(ids)[order], atol=1e-5)


def test_packing_predicts_each_token_but_the_first_once():
    stream = np.arange(23, dtype=np.uint16)
    batch = data.shift({"tokens": data.pack(stream, 5)})
    assert batch["inputs"].tolist() == np.arange(20).reshape(4, 5).tolist()
    assert batch["targets"].tolist() == np.arange(1, 21).reshape(4, 5).tolist()
    assert batch["inputs"].dtype == batch["targets"].dtype == np.int32


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_streams_hold_text_between_end_of_text_tokens(split):
    stream = data.tokens(split)
    assert stream.dtype == np.uint16
    assert stream[0] == stream[-1] == data.END_OF_TEXT
    assert stream.max() < data.VOCAB_SIZE
    chapters = data.decode(stream).strip("\f").split("\f")
    assert len(chapters) == {"train": 1149, "validation": 20, "test": 20}[split]
    assert all(chapter.isascii() and chapter for chapter in chapters)


def test_decoding_gives_the_text_back():
    start = "\fIn the beginning God created the heaven and the earth.\nAnd the earth"
    assert data.decode(data.tokens("train")[:40]).startswith(start)


def test_no_verse_is_in_two_splits():
    verses = {
        split: set(data.decode(data.tokens(split)).replace("\f", "\n").split("\n"))
        - {""}
        for split in ("train", "validation", "test")
    }
    assert len(verses["train"]) > 29_000
    assert not verses["train"] & verses["validation"]
    assert not verses["train"] & verses["test"]
    assert not verses["validation"] & verses["test"]


def test_perplexity_of_a_diverged_model_is_infinite_not_an_error():
    assert MINI.metrics({"loss": 1e6, "tokens": 1.0})["ppl"] == math.inf
    assert math.isnan(MINI.metrics({"loss": math.nan, "tokens": 1.0})["ppl"])
