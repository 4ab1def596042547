"""Vision transformer S/16 (Dosovitskiy et al. 2021, arXiv:2010.11929).

With the changes of 'Better plain ViT baselines for ImageNet-1k' (Beyer et al. 2022,
arXiv:2205.01580): fixed sine-cosine positions and mean pooling instead of a class
token. Layer norm stands before each branch, or behind the sum if `post_layer_norm`.
Dropout acts on the embedded patches and at the end of each branch, not on attention
weights.

Dimension key: B batch, H height, W width, C channels, L patches, D width, N heads,
K width of a head, F width of the MLP.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from workloads.common.dropout import Dropout

KERNEL_INIT = nn.initializers.xavier_uniform()
MLP_BIAS_INIT = nn.initializers.normal(1e-6)


def positions_2d(height: int, width: int, features: int) -> np.ndarray:
    """Sine-cosine positions of a grid (Chen et al. 2021, arXiv:2104.02057, MoCo v3).

    A quarter of the features each: sine and cosine of the column, sine and cosine of
    the row, at frequencies 10000^(-i / (features/4 - 1)).

    Returns:
      (height * width, features) float32, row by row.
    """
    quarter = features // 4
    frequencies = 10_000.0 ** (-np.arange(quarter) / (quarter - 1))
    rows, columns = np.mgrid[:height, :width]
    column_angles = columns.reshape(-1, 1) * frequencies
    row_angles = rows.reshape(-1, 1) * frequencies
    parts = [
        np.sin(column_angles),
        np.cos(column_angles),
        np.sin(row_angles),
        np.cos(row_angles),
    ]
    return np.concatenate(parts, axis=1).astype(np.float32)


class Attention(nn.Module):
    """Multi-head attention of queries over a sequence (Vaswani et al. 2017, 3.2)."""

    num_heads: int

    @nn.compact
    def __call__(self, queries_BQD: jax.Array, x_BLD: jax.Array) -> jax.Array:
        """Returns (B, Q, D)."""
        width = x_BLD.shape[-1]
        heads = (self.num_heads, width // self.num_heads)

        def project(name: str, inputs: jax.Array) -> jax.Array:
            dense = nn.DenseGeneral(heads, kernel_init=KERNEL_INIT, name=name)
            return dense(inputs)

        mixed_BQNK = jax.nn.dot_product_attention(
            project("query", queries_BQD),
            project("key", x_BLD),
            project("value", x_BLD),
        )
        out = nn.DenseGeneral(width, axis=(-2, -1), kernel_init=KERNEL_INIT, name="out")
        return out(mixed_BQNK)


class MLP(nn.Module):
    """Two layers with GELU; `gated` multiplies by a linear map of the activation."""

    mlp_width: int
    gated: bool = False

    @nn.compact
    def __call__(self, x_BLD: jax.Array, train: bool, dropout_rate: Any) -> jax.Array:
        """Returns (B, L, D)."""
        hidden_BLF = nn.gelu(_dense(self.mlp_width, "fc1")(x_BLD))
        if self.gated:
            hidden_BLF = hidden_BLF * _dense(self.mlp_width, "gate")(hidden_BLF)
        hidden_BLF = Dropout()(hidden_BLF, train, dropout_rate)
        return _dense(x_BLD.shape[-1], "fc2")(hidden_BLF)


class Block(nn.Module):
    """Attention and MLP, each around a shortcut."""

    num_heads: int
    mlp_width: int
    gated_mlp: bool
    post_layer_norm: bool

    @nn.compact
    def __call__(self, x_BLD: jax.Array, train: bool, dropout_rate: Any) -> jax.Array:
        """Returns (B, L, D)."""
        attention = Attention(self.num_heads, name="attention")
        mlp = MLP(self.mlp_width, self.gated_mlp, name="mlp")
        attention_norm, mlp_norm = (
            _layer_norm("attention_norm"),
            _layer_norm("mlp_norm"),
        )
        if self.post_layer_norm:
            y_BLD = Dropout()(attention(x_BLD, x_BLD), train, dropout_rate)
            x_BLD = attention_norm(x_BLD + y_BLD)
            y_BLD = Dropout()(mlp(x_BLD, train, dropout_rate), train, dropout_rate)
            return mlp_norm(x_BLD + y_BLD)
        y_BLD = attention_norm(x_BLD)
        x_BLD = x_BLD + Dropout()(attention(y_BLD, y_BLD), train, dropout_rate)
        y_BLD = mlp(mlp_norm(x_BLD), train, dropout_rate)
        return x_BLD + Dropout()(y_BLD, train, dropout_rate)


class AttentionPool(nn.Module):
    """One learned query attends to all patches (Lee et al. 2019, arXiv:1810.00825)."""

    num_heads: int
    mlp_width: int

    @nn.compact
    def __call__(self, x_BLD: jax.Array, train: bool, dropout_rate: Any) -> jax.Array:
        """Returns (B, D)."""
        batch, _, width = x_BLD.shape
        probe = self.param("probe", KERNEL_INIT, (1, 1, width))
        queries_B1D = jnp.tile(probe, (batch, 1, 1))
        x_B1D = Attention(self.num_heads, name="attention")(queries_B1D, x_BLD)
        y_B1D = _layer_norm("mlp_norm")(x_B1D)
        y_B1D = MLP(self.mlp_width, name="mlp")(y_B1D, train, dropout_rate)
        return (x_B1D + y_B1D)[:, 0]


class VisionTransformer(nn.Module):
    """The classifier; fields default to the full size."""

    num_classes: int = 1000
    patch_size: int = 16
    width: int = 384
    num_layers: int = 12
    num_heads: int = 6
    mlp_width: int = 1536
    gated_mlp: bool = False
    post_layer_norm: bool = False
    attention_pool: bool = False

    @nn.compact
    def __call__(
        self, inputs: jax.Array, train: bool, dropout_rate: Any = 0.0
    ) -> jax.Array:
        """Returns logits (B, num_classes) for images (B, H, W, C)."""
        patch = (self.patch_size, self.patch_size)
        x_BHWD = nn.Conv(
            self.width, patch, strides=patch, padding="VALID", name="conv_patch"
        )(inputs)
        batch, height, width, features = x_BHWD.shape
        x_BLD = x_BHWD.reshape(batch, height * width, features)
        x_BLD = x_BLD + positions_2d(height, width, features)
        x_BLD = Dropout()(x_BLD, train, dropout_rate)
        for i in range(self.num_layers):
            x_BLD = Block(
                self.num_heads,
                self.mlp_width,
                self.gated_mlp,
                self.post_layer_norm,
                name=f"layer_{i}",
            )(x_BLD, train, dropout_rate)
        if not self.post_layer_norm:
            x_BLD = _layer_norm("final_norm")(x_BLD)
        if self.attention_pool:
            pool = AttentionPool(self.num_heads, self.mlp_width, name="pool")
            x_BD = pool(x_BLD, train, dropout_rate)
        else:
            x_BD = x_BLD.mean(axis=1)
        x_BD = jnp.tanh(nn.Dense(self.width, name="pre_logits")(x_BD))
        head = nn.Dense(
            self.num_classes, kernel_init=nn.initializers.zeros, name="head"
        )
        return head(x_BD)


def _dense(features: int, name: str) -> nn.Dense:
    return nn.Dense(
        features, kernel_init=KERNEL_INIT, bias_init=MLP_BIAS_INIT, name=name
    )


def _layer_norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(name=name)
