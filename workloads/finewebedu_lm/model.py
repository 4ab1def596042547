"""Decoder-only transformer with rotary positions, query-key norm and a gated MLP.

Architecture as in the public implementation of the MLCommons workload (algorithmic-
efficiency pull requests 860 and 902): fused query-key-value product, RMS norms before
attention, before the MLP and at the end, one learned attention scale per layer, tied
embedding, no biases, weights N(0, 0.02) and, where a residual branch ends,
N(0, 0.02 / sqrt(2 layers)). Full size there: vocabulary 50,257, 12 layers, width 1024,
8 heads, MLP width 4096, 1024 tokens.

Dimension key: B batch, L length, D width, H heads, K width of a head, F width of the
MLP, V vocabulary.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

NORM_EPSILON = 1e-6


def rotate(x_BLHK: jax.Array, positions_L: jax.Array, theta: float) -> jax.Array:
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864, section 3.4).

    Features i and i + K/2 are a pair, turned by position * theta^(-2i/K) radians.
    """
    half = x_BLHK.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = (positions_L[:, None] * frequencies)[:, None, :]  # (L, 1, K/2)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    x1, x2 = jnp.split(x_BLHK.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1)
    return turned.astype(x_BLHK.dtype)


def unit(x: jax.Array) -> jax.Array:
    """Divides by the Euclidean norm over the last axis, safely at 0."""
    squares = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
    return (x * jax.lax.rsqrt(squares + NORM_EPSILON**2)).astype(x.dtype)


class CausalAttention(nn.Module):
    """Attention over the past with normalised queries and keys.

    Queries and keys have length 1 (Henry et al. 2020, arXiv:2010.04245), their products
    are multiplied by one learned scale, which starts at log2(N^2 - N) for sequences
    of N = `max_length` tokens.
    """

    num_heads: int
    max_length: int
    rope_theta: float
    out_init: nn.initializers.Initializer
    dtype: Any

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        """Returns (B, L, D)."""
        batch, length, width = x_BLD.shape
        qkv = _dense(3 * width, "qkv", self.dtype)(x_BLD)
        qkv = qkv.reshape(batch, length, 3, self.num_heads, -1)
        q_BLHK, k_BLHK, v_BLHK = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        start = math.log2(self.max_length**2 - self.max_length)
        scale = self.param("scale", nn.initializers.constant(start), ())
        positions = jnp.arange(length, dtype=jnp.float32)
        q_BLHK = unit(rotate(q_BLHK, positions, self.rope_theta))
        k_BLHK = unit(rotate(k_BLHK, positions, self.rope_theta))
        mixed_BLHK = jax.nn.dot_product_attention(
            q_BLHK * scale.astype(self.dtype), k_BLHK, v_BLHK, scale=1.0, is_causal=True
        )
        mixed_BLD = mixed_BLHK.reshape(batch, length, width)
        return _dense(width, "out", self.dtype, self.out_init)(mixed_BLD)


class GatedMLP(nn.Module):
    """`fc1` gives values and gates, `fc2` maps value * activation(gate) back."""

    mlp_width: int
    activation: Callable[[jax.Array], jax.Array]
    out_init: nn.initializers.Initializer
    dtype: Any

    @nn.compact
    def __call__(self, x_BLD: jax.Array) -> jax.Array:
        """Returns (B, L, D)."""
        value_BLF, gate_BLF = jnp.split(
            _dense(2 * self.mlp_width, "fc1", self.dtype)(x_BLD), 2, axis=-1
        )
        hidden_BLF = value_BLF * self.activation(gate_BLF)
        return _dense(x_BLD.shape[-1], "fc2", self.dtype, self.out_init)(hidden_BLF)


class Decoder(nn.Module):
    """The language model; fields default to the full size.

    The gate's activation is the sigmoid (Dauphin et al. 2017, arXiv:1612.08083), as in
    the public implementation. `dtype` is what the products are computed in; parameters
    are float32.
    """

    vocab_size: int = 50_257
    num_layers: int = 12
    width: int = 1024
    num_heads: int = 8
    mlp_width: int = 4096
    max_length: int = 1024
    rope_theta: float = 500_000.0
    activation: Callable[[jax.Array], jax.Array] = nn.sigmoid
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, inputs: jax.Array, train: bool, dropout_rate: Any = None
    ) -> jax.Array:
        """Returns logits (B, L, V) for token ids (B, L); there is no dropout."""
        del train, dropout_rate
        out_init = nn.initializers.normal(0.02 / math.sqrt(2 * self.num_layers))
        embed = nn.Embed(
            self.vocab_size,
            self.width,
            embedding_init=nn.initializers.normal(0.02),
            dtype=self.dtype,
            name="embed",
        )
        x_BLD = embed(inputs)
        for i in range(self.num_layers):
            x_BLD = x_BLD + CausalAttention(
                self.num_heads,
                self.max_length,
                self.rope_theta,
                out_init,
                self.dtype,
                name=f"layer_{i}_attention",
            )(_rms_norm(f"layer_{i}_attention_norm", self.dtype)(x_BLD))
            x_BLD = x_BLD + GatedMLP(
                self.mlp_width,
                self.activation,
                out_init,
                self.dtype,
                name=f"layer_{i}_mlp",
            )(_rms_norm(f"layer_{i}_mlp_norm", self.dtype)(x_BLD))
        return embed.attend(_rms_norm("final_norm", self.dtype)(x_BLD))


def _dense(
    features: int,
    name: str,
    dtype: Any,
    init: nn.initializers.Initializer = nn.initializers.normal(0.02),  # noqa: B008
) -> nn.Dense:
    return nn.Dense(features, use_bias=False, kernel_init=init, dtype=dtype, name=name)


def _rms_norm(name: str, dtype: Any) -> nn.RMSNorm:
    return nn.RMSNorm(epsilon=NORM_EPSILON, dtype=dtype, name=name)
