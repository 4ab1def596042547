"""Packed and factorised weights: the logits of the dense model, at their own bytes."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoders import SHAPES, TRAINED, drawn_params, drawn_tokens

from algoperf.errors import UserError
from algoperf.inference.models import decoder, serving, weights
from algoperf.inference.models.serving import Recipe
from algoperf.inference.models.shapes import param_shapes
from algoperf.inference.rooflines import traffic
from algoperf.inference.timing import hlo
from algoperf.numerics import packed as packed_arrays
from algoperf.reparam import width

PROMPT, OUTPUT = 5, 4
compiled_pack = jax.jit(packed_arrays.pack, static_argnums=(1, 2))
unpack = jax.jit(packed_arrays.unpack)
compiled_rows = jax.jit(weights.rows)
# One layer whose kernels all are 64 x 64, so that they share compiled programs.
SQUARE = dataclasses.replace(
    TRAINED,
    num_layers=1,
    width=64,
    num_heads=4,
    num_kv_heads=4,
    head_size=16,
    mlp_width=64,
)


@pytest.mark.parametrize(
    ("shape", "recipe"),
    [
        (SQUARE, Recipe("nvfp4", packs_embedding=True)),
        pytest.param(
            SHAPES["like gpt2"],
            Recipe("mxfp4", rank=3, pruned=0.25),
            marks=pytest.mark.slow,
        ),
        (SQUARE, Recipe(rank=8, pruned=0.25)),
        pytest.param(TRAINED, Recipe("int8"), marks=pytest.mark.slow),
        pytest.param(
            SHAPES["like llama"],
            Recipe("mxfp8", packs_embedding=True, rank=0.25),
            marks=pytest.mark.slow,
        ),
        pytest.param(SHAPES["like neox"], Recipe(pruned=0.5), marks=pytest.mark.slow),
    ],
    ids=lambda x: x.name if hasattr(x, "name") else x.label("float32"),
)
def test_logits_are_those_of_the_materialised_model(shape, recipe):
    """Prefill and decoding of what is stored, against a dense pass over the text."""
    small, params = serving.served(shape, drawn_params(shape), recipe)
    prompt = drawn_tokens(shape, 1, PROMPT)
    cache = decoder.empty_cache(small, 1, 32)
    first, cache = decoder.compiled_prefill(small, params, prompt, PROMPT, cache)
    tokens, last, _ = decoder.compiled_decode(
        small, params, first, PROMPT, cache, OUTPUT, jax.random.key(0)
    )
    text = jnp.concatenate([prompt, tokens[:, :OUTPUT]], axis=1)
    dense = weights.materialised(params)
    want = decoder.compiled_forward(small, dense, text)
    np.testing.assert_allclose(first, want[:, PROMPT - 1], atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(last, want[:, -2], atol=1e-5, rtol=1e-5)


def test_rows_of_a_packed_table_are_rows_of_the_table():
    table = jax.random.normal(jax.random.key(0), (11, 40))
    numbers = jnp.array([[3, 0], [10, 3]])
    for name in ("nvfp4", "int8"):  # scales of blocks, and of rows
        packed = compiled_pack(table, name, 1)
        np.testing.assert_array_equal(
            compiled_rows(packed, numbers), unpack(packed)[numbers], err_msg=name
        )


def test_rows_that_begin_inside_a_byte():
    packed = compiled_pack(jax.random.normal(jax.random.key(0), (3, 5)), "int4", 1)
    numbers = jnp.array([2, 1])
    np.testing.assert_array_equal(
        compiled_rows(packed, numbers), unpack(packed)[numbers]
    )


@pytest.mark.parametrize(
    ("name", "bits", "group", "scale_bits"),
    [("nvfp4", 4, 16, 8), ("mxfp4", 4, 32, 8), ("mxfp8", 8, 32, 8)],
)
def test_bytes_are_those_of_the_format(name, bits, group, scale_bits):
    """Of sides that are multiples of a block; a tensor's scale has 4 more."""
    params = drawn_params(SQUARE)
    _, packed = serving.served(SQUARE, params, Recipe(name))
    sizes = [
        part["kernel"].size
        for layer in params["layers"]
        for part in layer.values()
        if isinstance(part, dict) and "kernel" in part
    ]
    rest = sum(leaf.size for leaf in jax.tree.leaves(params)) - sum(sizes)
    bits_of_all = sum(sizes) * (bits + scale_bits / group)
    want = bits_of_all / 8 + 4 * len(sizes) + 4 * rest
    assert serving.described(packed)["weight_bytes"] == want
    assert serving.described(packed)["dense_bytes"] == 4 * (sum(sizes) + rest)


@pytest.fixture(scope="module")
def packed_loop():
    """The text of a compiled decoding loop of packed weights, and its model."""
    shape, params = serving.served(SQUARE, drawn_params(SQUARE), Recipe("nvfp4"))
    text = (
        decoder.compiled_decode.lower(
            shape,
            params,
            jnp.zeros((1, shape.vocab_size)),
            4,
            decoder.empty_cache(shape, 1, 32),
            8,
            jax.random.key(0),
        )
        .compile()
        .as_text()
    )
    return text, shape, params


def test_weights_are_unpacked_in_every_step(packed_loop):
    """The loop carries codes, not what they stand for."""
    text, _, params = packed_loop
    (carried,) = re.findall(r"= \((.*)\) while\(", text)
    codes = params["layers"][0]["query"]["kernel"].codes.size
    assert codes == 64 * 64 // 2
    assert len(re.findall(rf"u8\[{codes}\]", carried)) == 7
    assert "f32[64,64]" not in carried
    in_loop = [k for k in hlo.kernels(text, 100) if k.repeats == 100]
    assert len([k for k in in_loop if k.bytes > 4 * 64 * 64]) >= 7


def test_a_step_moves_at_least_its_weights(packed_loop):
    _, shape, params = packed_loop
    packed = traffic.step_bytes(shape, params, 1, 32)
    dense = traffic.step_bytes(shape, weights.materialised(params), 1, 32)
    kernels = weights.num_bytes(params) - params["embedding"].nbytes
    assert packed > kernels
    assert dense > weights.num_bytes(weights.materialised(params)["layers"])


def test_factors_are_two_thin_products():
    """FLOPs of x L R, counted on the compiled program."""
    x = jnp.ones((1, 48))
    kernel = jax.random.normal(jax.random.key(0), (48, 32))
    layer = {"out": {"kernel": kernel}}
    factors = serving._factorised(layer, Recipe(rank=4))["out"]["kernel"]
    assert isinstance(factors, weights.LowRank)
    text = jax.jit(weights.product).lower(x, factors).compile().as_text()
    flops = sum(kernel.flops for kernel in hlo.kernels(text))
    assert flops == pytest.approx(2 * 4 * (48 + 32))
    u, s, vt = np.linalg.svd(np.asarray(kernel))
    nearest = (u[:, :4] * s[:4]) @ vt[:4]
    np.testing.assert_allclose(weights.dense(factors), nearest, atol=1e-4)


def test_a_kernel_that_factors_would_make_larger_stays():
    layer = {"out": {"kernel": jnp.ones((8, 8))}}
    kept = serving._factorised(layer, Recipe(rank=4))["out"]["kernel"]
    assert isinstance(kept, jax.Array)


def test_pruned_neurons_are_those_with_the_least_weights():
    """Against NumPy, by the rule of arXiv:2512.22671; the rest is as it was."""
    params = drawn_params(TRAINED)
    shape, pruned = serving.served(TRAINED, params, Recipe(pruned=0.4))
    assert shape.mlp_width == 24
    assert jax.tree.map(jnp.shape, pruned) == param_shapes(shape)
    for before, after in zip(params["layers"], pruned["layers"], strict=True):
        up, gate = before["up"]["kernel"], before["gate"]["kernel"]
        score = np.abs(up).max(axis=0) + np.abs(gate).max(axis=0)
        kept = np.sort(np.argsort(score)[16:])
        np.testing.assert_array_equal(after["up"]["kernel"], up[:, kept])
        np.testing.assert_array_equal(after["gate"]["kernel"], gate[:, kept])
        np.testing.assert_array_equal(
            after["down"]["kernel"], before["down"]["kernel"][kept]
        )


def test_compact_changes_no_logit():
    """A kernel of rank 2 and neurons that do nothing, as training leaves them."""
    params = drawn_params(TRAINED)
    for number, layer in enumerate(params["layers"]):
        layer["down"]["kernel"][number : number + 6] = 0.0
        layer["up"]["kernel"][:, 20:24] = 0.0
        out = layer["out"]["kernel"]
        layer["out"]["kernel"] = out[:, :2] @ out[:2]
    shape, small = serving.served(TRAINED, params, Recipe(is_compact=True))
    assert shape.mlp_width == TRAINED.mlp_width - 10
    assert serving.described(small)["ranks"] == [2, 2]
    tokens = drawn_tokens(TRAINED, 1, 6)
    np.testing.assert_allclose(
        decoder.compiled_forward(shape, small, tokens),
        decoder.compiled_forward(TRAINED, params, tokens),
        atol=3e-5,  # other orders of summation: processors differ
        rtol=1e-5,
    )


def test_a_model_trained_with_pruned_neurons_is_served_without_them():
    """What `reparam.width` sets to 0 in the workload's tree is left out again."""
    params = drawn_params(TRAINED)
    _, want = serving.served(TRAINED, params, Recipe(pruned=0.4))
    for layer in params["layers"]:
        first = np.concatenate([layer[n]["kernel"] for n in ("up", "gate")], axis=1)
        mlp = {"fc1": {"kernel": first}, "fc2": layer["down"]}
        zeroed = width.zeroed(mlp, 0.4)
        up, gate = np.split(np.asarray(zeroed["fc1"]["kernel"]), 2, axis=1)
        layer |= {"up": {"kernel": up}, "gate": {"kernel": gate}, "down": zeroed["fc2"]}
    shape, small = serving.served(TRAINED, params, Recipe(is_compact=True))
    assert shape.mlp_width == width.kept_number(40, 0.4) == 24
    jax.tree.map(np.testing.assert_array_equal, small, want)


def test_what_is_dense_stays_as_it_is():
    params = drawn_params(TRAINED)
    shape, same = serving.served(TRAINED, params, Recipe(is_compact=True))
    assert shape == TRAINED
    jax.tree.map(np.testing.assert_array_equal, same, params)


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        (Recipe("nvfp5"), "did you mean nvfp4"),
        (Recipe("bf16"), "give --dtype"),
        (Recipe("luq_fp4"), "at random"),
        (Recipe(packs_embedding=True), "needs a format"),
        (Recipe(rank=0), "--rank 0"),
        (Recipe(rank=1.5), "--rank 1.5"),
        (Recipe(rank=1000), "give 1 to"),
        (Recipe(pruned=1.0), "--prune 1"),
    ],
)
def test_a_recipe_that_cannot_be(recipe, says):
    with pytest.raises(UserError, match=says):
        serving.served(TRAINED, drawn_params(TRAINED), recipe)


def test_labels():
    assert Recipe().label("bfloat16") == "bfloat16"
    full = Recipe("nvfp4", packs_embedding=True, rank=0.25, pruned=0.5)
    assert full.label("float32") == "nvfp4 + embedding + rank 0.25 + pruned 0.5"
