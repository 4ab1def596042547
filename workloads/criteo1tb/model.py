"""DLRM: embeddings of categories, dot products between them, two MLPs.

Naumov et al. 2019, arXiv:1906.00091, with one table for all categories. The residual
variant replaces the dot products by concatenation.

Dimension key: B batch, I dense features, C categorical features, E width of an
embedding, S = C + 1 vectors that interact.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from workloads.common.dropout import Dropout

Inputs = Mapping[str, jax.Array]  # 'dense' (B, I) float32, 'ids' (B, C) int32


class DLRM(nn.Module):
    """The click model; fields default to the full size.

    `embedding_scale` is the upper end of the embeddings' uniform initialisation; None
    stands for 1 / sqrt(vocabulary).
    """

    vocab_size: int = 4_194_304
    embedding_width: int = 128
    bottom_widths: Sequence[int] = (512, 256, 128)
    top_widths: Sequence[int] = (1024, 1024, 512, 256)
    layer_norm: bool = False
    embedding_scale: float | None = None

    @nn.compact
    def __call__(
        self, inputs: Inputs, train: bool, dropout_rate: Any = 0.0
    ) -> jax.Array:
        """Returns logits (B, 1)."""
        x = inputs["dense"]
        for i, width in enumerate(self.bottom_widths):
            x = nn.relu(_bottom_dense(width, f"bottom_{i}")(x))
            x = self._norm(f"bottom_norm_{i}", x)
        vectors_BCE = embed(self, inputs["ids"], self.embedding_scale)
        vectors_BCE = self._norm("embedding_norm", vectors_BCE)
        stack_BSE = jnp.concatenate([x[:, None, :], vectors_BCE], axis=1)
        x = jnp.concatenate([x, interactions(stack_BSE)], axis=-1)
        for i, width in enumerate(self.top_widths):
            x = nn.relu(_top_dense(x.shape[-1], width, f"top_{i}")(x))
            x = self._norm(f"top_norm_{i}", x)
        x = Dropout()(x, train, dropout_rate)
        return _top_dense(x.shape[-1], 1, "head")(x)

    def _norm(self, name: str, x: jax.Array) -> jax.Array:
        return nn.LayerNorm(name=name)(x) if self.layer_norm else x


class ResidualDLRM(nn.Module):
    """Residual MLPs around concatenated embeddings, without dot products."""

    vocab_size: int = 4_194_304
    embedding_width: int = 128
    bottom_widths: Sequence[int] = (256, 256, 256)
    top_widths: Sequence[int] = (256, 256, 256, 256)

    @nn.compact
    def __call__(
        self, inputs: Inputs, train: bool, dropout_rate: Any = 0.0
    ) -> jax.Array:
        """Returns logits (B, 1)."""
        x = nn.relu(_bottom_dense(self.bottom_widths[0], "bottom_0")(inputs["dense"]))
        for i, width in enumerate(self.bottom_widths[1:], start=1):
            x = x + nn.relu(_bottom_dense(width, f"bottom_{i}")(x))
        vectors_BCE = embed(self, inputs["ids"], None)
        x = jnp.concatenate([x, vectors_BCE.reshape(len(x), -1)], axis=-1)
        x = nn.relu(_top_dense(x.shape[-1], self.top_widths[0], "top_0")(x))
        for i, width in enumerate(self.top_widths[1:], start=1):
            y = nn.relu(_top_dense(x.shape[-1], width, f"top_{i}")(x))
            if i == len(self.top_widths) - 1:
                y = Dropout()(y, train, dropout_rate)
            x = x + y
        return _top_dense(x.shape[-1], 1, "head")(x)


def embed(
    module: DLRM | ResidualDLRM, ids_BC: jax.Array, scale: float | None
) -> jax.Array:
    """Looks ids, modulo the vocabulary, up in the module's table: (B, C, E)."""
    vocab_size, width = module.vocab_size, module.embedding_width
    table = module.param(
        "embedding",
        nn.initializers.uniform(1 / math.sqrt(vocab_size) if scale is None else scale),
        (vocab_size, width),
    )
    return table[ids_BC % vocab_size]


def interactions(stack_BSE: jax.Array) -> jax.Array:
    """Returns the products of all pairs of vectors, also with themselves.

    (B, S (S + 1) / 2): the upper triangle with its diagonal, row by row.
    """
    products_BSS = jnp.einsum("bse,bte->bst", stack_BSE, stack_BSE)
    rows, columns = np.triu_indices(stack_BSE.shape[1])
    return products_BSS[:, rows, columns]


def _bottom_dense(width: int, name: str) -> nn.Dense:
    return nn.Dense(
        width,
        kernel_init=nn.initializers.glorot_uniform(),
        bias_init=nn.initializers.normal(math.sqrt(1 / width)),
        name=name,
    )


def _top_dense(fan_in: int, width: int, name: str) -> nn.Dense:
    return nn.Dense(
        width,
        kernel_init=nn.initializers.normal(math.sqrt(2 / (fan_in + width))),
        bias_init=nn.initializers.normal(math.sqrt(1 / width)),
        name=name,
    )
