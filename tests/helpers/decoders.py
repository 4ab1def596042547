"""Tiny decoders, one for each family of options, with weights that NumPy draws."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from algoperf.inference.models.shapes import DecoderShape, RotaryScaling, param_shapes

_GPT2 = DecoderShape(
    name="like gpt2",
    vocab_size=37,
    num_layers=2,
    width=24,
    num_heads=4,
    mlp_width=40,
    max_length=48,
    positions="learned",
    norm="layer",
    norm_epsilon=1e-5,
    activation="gelu_tanh",
    is_gated=False,
    has_attention_bias=True,
    has_mlp_bias=True,
)
_LLAMA = DecoderShape(
    name="like llama",
    vocab_size=37,
    num_layers=2,
    width=24,
    num_heads=6,
    mlp_width=40,
    max_length=48,
    num_kv_heads=2,
    head_size=8,
    rotary_theta=1000.0,
    rotary_scaling=RotaryScaling(8.0, 1.0, 4.0, 32),
    norm_epsilon=1e-5,
    ties_head=False,
)
SHAPES = {
    shape.name: shape
    for shape in (
        _GPT2,
        _LLAMA,
        dataclasses.replace(
            _LLAMA,
            name="like qwen3",
            num_heads=4,
            rotary_scaling=None,
            query_key_norm="rms",
            ties_head=True,
        ),
        dataclasses.replace(
            _GPT2,
            name="like gpt-j",
            positions="rotary",
            rotary_size=4,
            rotary_pairs="neighbours",
            has_attention_bias=False,
            is_parallel=True,
            shares_norm=True,
            ties_head=False,
            has_head_bias=True,
        ),
        dataclasses.replace(
            _GPT2,
            name="like neox",
            positions="rotary",
            rotary_size=2,
            activation="gelu",
            is_parallel=True,
            ties_head=False,
        ),
    )
}
TRAINED = dataclasses.replace(
    _LLAMA,
    name="like the workload",
    num_heads=3,
    num_kv_heads=3,
    rotary_scaling=None,
    query_key_norm="unit",
    activation="sigmoid",
    ties_head=True,
)


def drawn_params(shape, seed=0):
    """Weights large enough that every option changes the logits."""
    rng = np.random.default_rng(seed)

    def draw(path, size):
        kind = path[-1].key
        center = {"scale": 1.0, "attention_scale": 5.0}.get(kind, 0.0)
        spread = {"embedding": 1.0, "positions": 1.0, "kernel": 0.5}.get(kind, 0.1)
        return (center + spread * rng.standard_normal(size)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(
        draw, param_shapes(shape), is_leaf=lambda leaf: isinstance(leaf, tuple)
    )


def drawn_tokens(shape, batch, length, seed=1):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.integers(shape.vocab_size, size=(batch, length)), jnp.int32)
