"""The cached decoder: same logits and tokens as the pass without a cache."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoders import SHAPES, TRAINED, drawn_params, drawn_tokens

from algoperf.errors import UserError
from algoperf.inference.models import decoder
from algoperf.inference.models.shapes import DecoderShape, param_shapes
from algoperf.inference.models.trained import trained_params, trained_shape
from workloads.finewebedu_lm.model import Decoder
from workloads.finewebedu_lm.workload import MINI

PROMPT, OUTPUT, CAPACITY = 7, 6, 16
ALL = [*SHAPES.values(), TRAINED]


@pytest.fixture(scope="module", params=ALL, ids=lambda shape: shape.name)
def generated(request):
    """A greedy generation after a padded prompt, and the full pass over its text."""
    shape = request.param
    params = drawn_params(shape)
    prompt = drawn_tokens(shape, 2, PROMPT)
    padded = jnp.concatenate([prompt, jnp.zeros((2, 3), jnp.int32)], axis=1)
    cache = decoder.empty_cache(shape, 2, CAPACITY)
    first_logits, cache = decoder.compiled_prefill(shape, params, padded, PROMPT, cache)
    tokens, last_logits, cache = decoder.compiled_decode(
        shape, params, first_logits, PROMPT, cache, OUTPUT, jax.random.key(0)
    )
    tokens = tokens[:, :OUTPUT]
    text = jnp.concatenate([prompt, tokens], axis=1)
    logits = decoder.compiled_forward(shape, params, text)
    return {
        "shape": shape,
        "params": params,
        "tokens": np.asarray(tokens),
        "text": text,
        "logits": np.asarray(logits),
        "first": np.asarray(first_logits),
        "last": np.asarray(last_logits),
        "cache": cache,
    }


def test_prefill_gives_the_logits_of_the_full_pass(generated):
    want = generated["logits"][:, PROMPT - 1]
    np.testing.assert_allclose(generated["first"], want, atol=1e-5, rtol=1e-5)


def test_decoding_gives_the_tokens_of_the_full_pass(generated):
    want = generated["logits"][:, PROMPT - 1 : -1].argmax(axis=-1)
    np.testing.assert_array_equal(generated["tokens"], want)
    assert len(np.unique(generated["tokens"])) > 1


def test_decoding_gives_the_logits_of_the_full_pass(generated):
    want = generated["logits"][:, -2]
    np.testing.assert_allclose(generated["last"], want, atol=1e-5, rtol=1e-5)


def test_extending_by_several_tokens_gives_the_logits_of_the_full_pass(generated):
    """From the middle of the text, so that what the cache holds is overwritten."""
    cache = jax.tree.map(jnp.copy, generated["cache"])
    got, _ = decoder.compiled_extend(
        generated["shape"],
        generated["params"],
        generated["text"][:, 8:12],
        8,
        cache,
    )
    np.testing.assert_allclose(got, generated["logits"][:, 8:12], atol=1e-5, rtol=1e-5)


def test_generate_is_prefill_and_decode():
    shape = SHAPES["like qwen3"]
    params, prompt = drawn_params(shape), drawn_tokens(shape, 2, PROMPT)
    tokens = decoder.generate(shape, params, prompt, OUTPUT)
    text = jnp.concatenate([prompt, tokens], axis=1)
    logits = decoder.compiled_forward(shape, params, text)
    np.testing.assert_array_equal(tokens, logits[:, PROMPT - 1 : -1].argmax(axis=-1))
    assert decoder.generate(shape, params, prompt, 0).shape == (2, 0)


def test_sampling_has_the_distribution_of_the_logits():
    """Chi-square of 4,000 first tokens, at temperature 2."""
    shape = dataclasses.replace(SHAPES["like gpt2"], vocab_size=6)
    params, prompt = drawn_params(shape), drawn_tokens(shape, 1, 3)
    logits = decoder.compiled_forward(shape, params, prompt)[0, -1]
    probabilities = np.asarray(jax.nn.softmax(logits / 2.0))
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = jax.vmap(lambda key: decoder.choose(logits[None], key, 2.0)[0])(keys)
    counts = np.bincount(np.asarray(drawn), minlength=6)
    expected = 4000 * probabilities
    assert ((counts - expected) ** 2 / expected).sum() < 20.5  # p = 0.001, 5 degrees


def test_the_trained_workload_is_served_with_its_own_parameters():
    model = Decoder(
        vocab_size=53, num_layers=2, width=24, num_heads=3, mlp_width=40, max_length=32
    )
    tokens = jax.random.randint(jax.random.key(0), (2, 9), 0, 53)

    @jax.jit
    def fresh_and_applied(tokens):
        variables = model.init(jax.random.key(1), tokens, train=False)
        params = jax.tree.map(lambda leaf: 3 * leaf, variables["params"])
        return params, model.apply({"params": params}, tokens, train=False)

    params, want = fresh_and_applied(tokens)
    shape = trained_shape("tiny_lm", model)
    served = trained_params(shape, params)
    got = decoder.compiled_forward(shape, served, tokens)
    np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-5)
    sizes = jax.tree.map(jnp.shape, served)
    assert sizes == param_shapes(shape)


def test_the_mini_workload_has_all_its_parameters_in_the_shape():
    shape = trained_shape("finewebedu_lm_mini", MINI.model)
    assert shape.num_parameters == MINI.num_parameters


def test_parameters_of_another_workload_are_an_error():
    shape = trained_shape("finewebedu_lm_mini", MINI.model)
    with pytest.raises(UserError, match="have no 'embed'"):
        trained_params(shape, {"head": {}})
    with pytest.raises(UserError, match="decoder-only"):
        trained_shape("resnet", object())


@pytest.mark.parametrize(
    ("tokens", "capacity"),
    [(1, 32), (32, 32), (33, 48), (49, 64), (65, 96), (97, 128), (1025, 1536)],
)
def test_capacity_is_the_next_size(tokens, capacity):
    assert decoder.capacity_for(tokens) == capacity


def test_capacity_never_wastes_more_than_half():
    for tokens in range(33, 3000):
        assert tokens <= decoder.capacity_for(tokens) < 1.5 * tokens


@pytest.mark.parametrize(
    ("prompt", "output", "says"),
    [(0, 1, "at least one"), (1, -1, "negative"), (40, 9, "shorten one")],
)
def test_lengths_that_do_not_fit_are_an_error(prompt, output, says):
    with pytest.raises(UserError, match=says):
        decoder.check_lengths(SHAPES["like gpt2"], prompt, output)


def test_heads_that_cannot_share_are_an_error():
    with pytest.raises(UserError, match="evenly"):
        dataclasses.replace(SHAPES["like llama"], num_kv_heads=4)
    with pytest.raises(UserError, match="head_size"):
        DecoderShape("odd", 8, 1, 10, 3, 8, 8)


def test_init_params_have_the_shape():
    shape = dataclasses.replace(TRAINED, num_layers=1)
    params = decoder.init_params(shape, jax.random.key(0))
    assert jax.tree.map(jnp.shape, params) == param_shapes(shape)
    assert float(params["layers"][0]["up"]["kernel"].std()) == pytest.approx(
        0.02, rel=0.1
    )
    assert float(params["final_norm"]["scale"].min()) == 1.0
