"""The layers of a decoder as functions of its shape and their parameters.

Keys and values have three axes, the first of which runs over heads and, within a head,
over the batch: what a cache of this layout is updated with can be read where it lies,
while XLA's CPU compiler copies one of four axes in every step of a loop.

Dimension key: B batch, T new tokens, S tokens attended to, D width, H query heads,
C key-value heads, N = C B, G = H / C queries that share a key, R = G T, K width of a
head, F width of the MLP.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from algoperf.inference.models import weights
from algoperf.inference.models.shapes import DecoderShape, RotaryScaling

_ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "silu": jax.nn.silu,
    "sigmoid": jax.nn.sigmoid,
}


def dense(params: dict[str, Any], x: jax.Array) -> jax.Array:
    """Returns x W, plus a bias where there is one; W as `weights` stores it."""
    product = weights.product(x, params["kernel"])
    return product + params["bias"] if "bias" in params else product


def norm(shape: DecoderShape, params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """RMS norm, or layer norm, over the last axis; statistics in float32."""
    wide = x.astype(jnp.float32)
    if shape.norm == "layer":
        wide -= jnp.mean(wide, axis=-1, keepdims=True)
    return _scaled(wide, params, shape.norm_epsilon).astype(x.dtype)


def _scaled(wide: jax.Array, params: dict[str, jax.Array], epsilon: float) -> jax.Array:
    mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    out = wide * (jax.lax.rsqrt(mean_square + epsilon) * params["scale"])
    return out + params["bias"] if "bias" in params else out


def _unit(wide: jax.Array, epsilon: float) -> jax.Array:
    squares = jnp.sum(jnp.square(wide), axis=-1, keepdims=True)
    return wide * jax.lax.rsqrt(squares + epsilon**2)


def _side_by_side(
    layer: dict[str, Any],
    fused: str,
    names: tuple[str, ...],
    x: jax.Array,
    ends: tuple[int, ...],
    size: int,
) -> list[jax.Array]:
    """Products of x with several kernels, which may be stored as one.

    Args:
      layer: its parameters.
      fused: the name of the one kernel, if there is one: outputs side by side.
      names: of the several.
      x: (..., D).
      ends: of all but the last among the outputs of the one, in units of `size`.
      size: outputs of a unit.
    """
    if fused not in layer:
        return [dense(layer[name], x) for name in names]
    return jnp.split(dense(layer[fused], x), [end * size for end in ends], axis=-1)


def rotary_frequencies(shape: DecoderShape) -> jax.Array:
    """Returns radians per position (K_rotated / 2,), float32."""
    half = (shape.rotary_size or shape.head_width) // 2
    frequencies = shape.rotary_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if shape.rotary_scaling is None:
        return frequencies
    return _slowed(frequencies, shape.rotary_scaling)


def _slowed(frequencies: jax.Array, scaling: RotaryScaling) -> jax.Array:
    """Divides slow frequencies by the factor; see `RotaryScaling`."""
    turns = scaling.original_length * frequencies / (2 * math.pi)
    share_kept = (turns - scaling.low_factor) / (
        scaling.high_factor - scaling.low_factor
    )
    share_kept = jnp.clip(share_kept, 0.0, 1.0)
    return frequencies * (share_kept + (1 - share_kept) / scaling.factor)


def rotate(shape: DecoderShape, wide: jax.Array, positions_T: jax.Array) -> jax.Array:
    """Rotary position embedding of (B, T, heads, K) in float32.

    Only the first `rotary_size` features of a head are turned.
    """
    size = shape.rotary_size or shape.head_width
    turned, rest = wide[..., :size], wide[..., size:]
    angles = positions_T[:, None].astype(jnp.float32) * rotary_frequencies(shape)
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]  # (T, 1, size / 2)
    if shape.rotary_pairs == "halves":
        a, b = jnp.split(turned, 2, axis=-1)
    else:
        a, b = turned[..., 0::2], turned[..., 1::2]
    a, b = a * cos - b * sin, b * cos + a * sin
    if shape.rotary_pairs == "halves":
        return jnp.concatenate([a, b, rest], axis=-1)
    pairs = jnp.stack([a, b], axis=-1).reshape(turned.shape)
    return jnp.concatenate([pairs, rest], axis=-1)


def queries_keys_values(
    shape: DecoderShape, layer: dict[str, Any], x_BTD: jax.Array, positions_T: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns queries (N, R, K), keys and values (N, T, K).

    Queries are scaled, so that scores are plain products.
    """
    batch, tokens, _ = x_BTD.shape
    heads, kv_heads, size = shape.num_heads, shape.kv_heads, shape.head_width
    parts = _side_by_side(
        layer, "qkv", ("query", "key", "value"), x_BTD, (heads, heads + kv_heads), size
    )
    q, k, v = (part.reshape(batch, tokens, -1, size) for part in parts)
    wide_q, wide_k = q.astype(jnp.float32), k.astype(jnp.float32)
    scale: Any = size**-0.5
    if shape.query_key_norm == "unit":
        scale = layer["attention_scale"]
    wide_q = _placed(shape, layer.get("query_norm"), wide_q, positions_T)
    wide_k = _placed(shape, layer.get("key_norm"), wide_k, positions_T)
    group = heads // kv_heads
    q_BTCGK = (wide_q * scale).astype(x_BTD.dtype)
    q_BTCGK = q_BTCGK.reshape(batch, tokens, kv_heads, group, size)
    q_NRK = q_BTCGK.transpose(2, 0, 3, 1, 4).reshape(-1, group * tokens, size)
    return q_NRK, _heads_first(wide_k.astype(x_BTD.dtype)), _heads_first(v)


def _heads_first(x_BTCK: jax.Array) -> jax.Array:
    """Returns keys or values as a cache holds them, (N, T, K)."""
    _, tokens, _, size = x_BTCK.shape
    return x_BTCK.transpose(2, 0, 1, 3).reshape(-1, tokens, size)


def placed_keys_values(
    shape: DecoderShape,
    layer: dict[str, Any],
    k_BTE: jax.Array,
    v_BTE: jax.Array,
    positions_T: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns keys and values (N, T, K) as a cache holds them.

    Args:
      shape: the model's.
      layer: its parameters, of which norms of keys are read.
      k_BTE: products before norm and rotation, E = C K; predicted ones, say.
      v_BTE: likewise.
      positions_T: of the tokens.
    """
    split = (*k_BTE.shape[:2], shape.kv_heads, shape.head_width)
    wide_k = k_BTE.reshape(split).astype(jnp.float32)
    wide_k = _placed(shape, layer.get("key_norm"), wide_k, positions_T)
    return _heads_first(wide_k.astype(k_BTE.dtype)), _heads_first(v_BTE.reshape(split))


def _placed(
    shape: DecoderShape,
    norm_params: dict[str, jax.Array] | None,
    wide_BTHK: jax.Array,
    positions_T: jax.Array,
) -> jax.Array:
    """Queries or keys in float32, normed and rotated as the shape says."""
    if shape.query_key_norm == "rms" and norm_params is not None:
        wide_BTHK = _scaled(wide_BTHK, norm_params, shape.norm_epsilon)
    if shape.positions == "rotary":
        wide_BTHK = rotate(shape, wide_BTHK, positions_T)
    if shape.query_key_norm == "unit":
        wide_BTHK = _unit(wide_BTHK, shape.norm_epsilon)
    return wide_BTHK


def attend(
    q_NRK: jax.Array, k_NSK: jax.Array, v_NSK: jax.Array, mask_TS: jax.Array, batch: int
) -> jax.Array:
    """Returns the mixed values (B, T, H K); softmax in float32 where the mask is true.

    Every query must see a key.
    """
    tokens, seen = mask_TS.shape
    size = q_NRK.shape[-1]
    scores_NRS = jnp.einsum(
        "nrk,nsk->nrs", q_NRK, k_NSK, preferred_element_type=jnp.float32
    )
    scores_NGTS = scores_NRS.reshape(len(q_NRK), -1, tokens, seen)
    scores_NGTS = jnp.where(mask_TS, scores_NGTS, -jnp.inf)
    shares = jax.nn.softmax(scores_NGTS, axis=-1).astype(v_NSK.dtype)
    shares_NRS = shares.reshape(scores_NRS.shape)
    mixed_NRK = jnp.einsum("nrs,nsk->nrk", shares_NRS, v_NSK)
    kv_heads = len(q_NRK) // batch
    mixed_CBGTK = mixed_NRK.reshape(kv_heads, batch, -1, tokens, size)
    return mixed_CBGTK.transpose(1, 3, 0, 2, 4).reshape(batch, tokens, -1)


def mlp(shape: DecoderShape, layer: dict[str, Any], x_BTD: jax.Array) -> jax.Array:
    """Plain or gated MLP: (B, T, D) to (B, T, D)."""
    activation = _ACTIVATIONS[shape.activation]
    if shape.is_gated:
        names = ("up", "gate")
        width = layer["down"]["kernel"].shape[0]
        up_BTF, gate_BTF = _side_by_side(layer, "up_gate", names, x_BTD, (1,), width)
        hidden_BTF = up_BTF * activation(gate_BTF)
    else:
        hidden_BTF = activation(dense(layer["up"], x_BTD))
    return dense(layer["down"], hidden_BTF)
