"""KV prediction: by itself a model's cache is its own; FLOPs as XLA counts them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoders import SHAPES, TRAINED, drawn_params, drawn_tokens

from algoperf.errors import UserError
from algoperf.inference.decoding import kv_prediction, strategies
from algoperf.inference.decoding.kv_prediction import Settings
from algoperf.inference.models import decoder
from algoperf.inference.models.decoder import Model


def _model(shape, seed):
    return Model(shape, jax.tree.map(jnp.asarray, drawn_params(shape, seed)))


BASE = _model(TRAINED, 1)
SMALL_SHAPE = dataclasses.replace(
    TRAINED, name="small", width=16, num_heads=2, num_kv_heads=2, mlp_width=24
)
SMALL = _model(SMALL_SHAPE, 2)


@pytest.mark.parametrize(
    "name",
    [
        "like the workload",
        pytest.param("like gpt2", marks=pytest.mark.slow),
        pytest.param("like qwen3", marks=pytest.mark.slow),
    ],
)
def test_a_model_predicts_itself_bit_for_bit(name):
    """Keys are predicted before norm and rotation, grouped heads or not."""
    shape = TRAINED if name == TRAINED.name else SHAPES[name]
    model = _model(shape, 1)
    tokens = drawn_tokens(shape, 2, 9)

    @jax.jit
    def both(params, maps):
        found, _ = kv_prediction.prefill(shape, shape, params, params, maps, tokens, 16)
        cache = decoder.empty_cache(shape, 2, 16)
        _, cache = decoder.prefill(shape, params, tokens[:, :-1], 8, cache)
        want, _ = decoder.extend(shape, params, tokens[:, -1:], 8, cache)
        return found, want[:, 0]

    found, want = both(model.params, kv_prediction.identity_maps(shape))
    np.testing.assert_array_equal(found, want)


def test_the_loop_goes_on_from_the_predicted_cache():
    """A model that predicts itself writes what it would have written."""
    tokens = drawn_tokens(TRAINED, 2, 6)
    maps = kv_prediction.identity_maps(TRAINED)
    found = kv_prediction.generate(BASE, BASE, maps, tokens, 8)
    np.testing.assert_array_equal(found, decoder.generate(*BASE, tokens, 8))


def test_maps_are_of_both_models():
    maps = kv_prediction.init_maps(SMALL_SHAPE, TRAINED, jax.random.key(0))
    assert [m["key"]["kernel"].shape for m in maps] == [(16, 24)] * 2
    deep = dataclasses.replace(TRAINED, num_layers=6)
    sources = [kv_prediction.source_layer(i, SMALL_SHAPE, deep) for i in range(6)]
    assert sources == [0, 0, 0, 1, 1, 1]


def test_flops_are_those_that_xla_counts():
    """Products far larger than what is added: norms and rotations count little."""
    base = dataclasses.replace(TRAINED, num_layers=3, width=192, mlp_width=384)
    small = dataclasses.replace(TRAINED, num_layers=2, width=96, mlp_width=192)
    shapes = [
        dataclasses.replace(s, head_size=None, num_kv_heads=None, max_length=256)
        for s in (small, base)
    ]
    trees = [
        jax.eval_shape(lambda s=s: decoder.init_params(s, jax.random.key(0)))
        for s in shapes
    ]
    maps = jax.eval_shape(lambda: kv_prediction.init_maps(*shapes, jax.random.key(0)))
    tokens = jax.ShapeDtypeStruct((1, 129), jnp.int32)
    program = kv_prediction.compiled_prefill.lower(*shapes, *trees, maps, tokens, 129)
    counted = program.compile().cost_analysis()["flops"]
    found = strategies.first_token_flops(*shapes, 129, 129)
    assert counted == pytest.approx(found, rel=0.04)


def _rows(seed, batch=16):
    """Text that can be learned: each token follows from the one before."""
    starts = np.random.default_rng(seed).integers(37, size=(batch, 1))
    return ((starts + 5 * np.arange(21)) % 37).astype(np.int32)


@pytest.mark.slow
def test_training_makes_up_for_a_prompt_that_was_not_read():
    """The base model cannot read; a trained prediction is nearer to its own cache."""
    tokens = jnp.asarray(_rows(10_000))
    plan = Settings(num_steps=150, learning_rate=1e-2)
    maps = kv_prediction.init_maps(SMALL_SHAPE, TRAINED, jax.random.key(0))
    before = kv_prediction.quality(SMALL, BASE, maps, tokens, 8)
    small, maps, losses = kv_prediction.train(
        SMALL, BASE, _rows, 8, plan, jax.random.key(0)
    )
    after = kv_prediction.quality(small, BASE, maps, tokens, 8)
    assert losses[-10:].mean() < 0.8 * losses[:10].mean()
    assert after["base"] == pytest.approx(before["base"])
    assert after["blind"] == pytest.approx(before["blind"])
    assert after["predicted"] < before["predicted"] - 0.1
    assert after["auxiliary"] < before["auxiliary"]


def test_quality_of_a_model_that_predicts_itself():
    """Its loss is its own, by the pass without a cache."""
    tokens = jnp.asarray(_rows(3, 4))
    found = kv_prediction.quality(
        BASE, BASE, kv_prediction.identity_maps(TRAINED), tokens, 8
    )
    assert found["predicted"] == pytest.approx(found["base"], rel=1e-5)
    assert found["auxiliary"] == found["base"]
    logits = decoder.compiled_forward(*BASE, tokens)
    logs = jax.nn.log_softmax(logits[:, 7:-1])
    want = -np.take_along_axis(np.asarray(logs), np.asarray(tokens)[:, 8:, None], -1)
    assert found["base"] == pytest.approx(want.mean(), rel=1e-4)


def test_what_makes_no_sense_is_an_error():
    maps = kv_prediction.identity_maps(TRAINED)
    one = drawn_tokens(TRAINED, 1, 1)
    with pytest.raises(UserError, match="two tokens"):
        kv_prediction.generate(BASE, BASE, maps, one, 4)
    with pytest.raises(UserError, match="shorten"):
        kv_prediction.generate(BASE, BASE, maps, drawn_tokens(TRAINED, 1, 9), 40)
    with pytest.raises(UserError, match="two tokens"):
        kv_prediction.train(SMALL, BASE, _rows, 1, Settings(), jax.random.key(0))
