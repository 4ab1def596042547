"""Conformer (Gulati et al. 2020, arXiv:2005.08100), with CTC.

Each block ends in a layer norm unless `post_layer_norm` is off. Dropout acts on the
subsampled frames, on attention weights, and in each branch of a block.

Dimension key: B batch, S samples, T frames, M mel bins, D width, N heads, K width of a
head, V vocabulary.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from workloads.common.dropout import Dropout
from workloads.common.positions import positions_1d
from workloads.common.speech.features import LogMel, spec_augment
from workloads.common.speech.layers import (
    KERNEL_INIT,
    BatchNorm,
    LayerNorm,
    Subsample,
    dense,
)
from workloads.common.speech.librispeech import LOG_MEL

Activation = Callable[[jax.Array], jax.Array]


class FeedForward(nn.Module):
    """Layer norm and two layers, the first one `expansion` times as wide."""

    activation: Activation
    expansion: int

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, paddings_BT: jax.Array, train: bool, dropout_rate: Any
    ) -> jax.Array:
        """Returns (B, T, D), 0 on padding."""
        real_BT1 = 1 - paddings_BT[:, :, None]
        width = x_BTD.shape[-1]
        hidden = dense(self.expansion * width, "fc1")(LayerNorm(name="norm")(x_BTD))
        hidden = Dropout()(self.activation(hidden), train, dropout_rate) * real_BT1
        out_BTD = dense(width, "fc2")(hidden) * real_BT1
        return Dropout()(out_BTD, train, dropout_rate)


class SelfAttention(nn.Module):
    """Layer norm and attention, with a learned scale for each dimension of a query.

    `temperature` multiplies what attention gives before its last linear map.
    """

    num_heads: int
    temperature: float

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, paddings_BT: jax.Array, train: bool, dropout_rate: Any
    ) -> jax.Array:
        """Returns (B, T, D)."""
        width = x_BTD.shape[-1]
        head_width = width // self.num_heads
        x_BTD = LayerNorm(name="norm")(x_BTD)

        def project(name: str) -> jax.Array:
            heads = (self.num_heads, head_width)
            return nn.DenseGeneral(heads, kernel_init=KERNEL_INIT, name=name)(x_BTD)

        scale_K = self.param("scale", nn.initializers.zeros, (head_width,))
        # 1 at the start.
        query_BTNK = project("query") * jax.nn.softplus(scale_K) / math.log(2)
        is_real = (paddings_BT == 0)[:, None, :, None] & (paddings_BT == 0)[
            :, None, None, :
        ]
        weights = nn.dot_product_attention_weights(
            query_BTNK, project("key"), mask=is_real
        )
        weights = Dropout()(weights, train, dropout_rate)
        mixed_BTNK = jnp.einsum("BNQL,BLNK->BQNK", weights, project("value"))
        out = nn.DenseGeneral(width, axis=(-2, -1), kernel_init=KERNEL_INIT, name="out")
        out_BTD = out(self.temperature * mixed_BTNK)
        return Dropout()(out_BTD, train, dropout_rate)


class Convolution(nn.Module):
    """Layer norm, gated linear unit, convolution over time of each channel."""

    activation: Activation
    kernel_size: int
    batch_norm_momentum: float = 0.999

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        paddings_BT: jax.Array,
        train: bool,
        dropout_rate: Any,
        use_running_average: bool,
    ) -> jax.Array:
        """Returns (B, T, D)."""
        width = x_BTD.shape[-1]
        x_BTD = LayerNorm(name="norm")(x_BTD)
        x_BTD = dense(width, "linear")(x_BTD) * nn.sigmoid(dense(width, "gate")(x_BTD))
        x_BTD = x_BTD * (1 - paddings_BT[:, :, None])
        x_BTD = nn.Conv(
            width,
            (self.kernel_size,),
            feature_group_count=width,
            use_bias=False,
            kernel_init=KERNEL_INIT,
            name="conv",
        )(x_BTD)
        batch_norm = BatchNorm(self.batch_norm_momentum, name="batch_norm")
        x_BTD = self.activation(batch_norm(x_BTD, paddings_BT, use_running_average))
        out = nn.Dense(width, kernel_init=KERNEL_INIT, name="out")
        return Dropout()(out(x_BTD), train, dropout_rate)


class Block(nn.Module):
    """Half a feed-forward branch, attention, convolution, the other half."""

    num_heads: int
    kernel_size: int
    expansion: int
    activation: Activation
    attention_temperature: float
    post_layer_norm: bool
    batch_norm_momentum: float = 0.999

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        paddings_BT: jax.Array,
        train: bool,
        dropout_rate: Any,
        use_running_average: bool,
    ) -> jax.Array:
        """Returns (B, T, D)."""
        rest = (paddings_BT, train, dropout_rate)
        before = FeedForward(self.activation, self.expansion, name="before")
        x_BTD = x_BTD + 0.5 * before(x_BTD, *rest)
        attention = SelfAttention(
            self.num_heads, self.attention_temperature, name="attention"
        )
        x_BTD = x_BTD + attention(x_BTD, *rest)
        convolution = Convolution(
            self.activation,
            self.kernel_size,
            self.batch_norm_momentum,
            name="convolution",
        )
        x_BTD = x_BTD + convolution(x_BTD, *rest, use_running_average)
        after = FeedForward(self.activation, self.expansion, name="after")
        x_BTD = x_BTD + 0.5 * after(x_BTD, *rest)
        return LayerNorm(name="norm")(x_BTD) if self.post_layer_norm else x_BTD


class Conformer(nn.Module):
    """From waveforms to logits of subwords; fields default to the full size."""

    vocab_size: int = 1024
    width: int = 512
    num_layers: int = 4
    num_heads: int = 8
    kernel_size: int = 5
    expansion: int = 4
    activation: Activation = nn.swish
    attention_temperature: float = 1.0
    post_layer_norm: bool = True
    frequency_masks: int = 2
    time_masks: int = 10
    max_mask_bins: int = 27
    batch_norm_momentum: float = 0.999
    features: LogMel = LOG_MEL

    @nn.compact
    def __call__(
        self,
        audio: jax.Array,
        paddings: jax.Array,
        train: bool,
        dropout_rate: Any = 0.0,
        use_running_average: bool = True,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns logits (B, T / 4, V) and paddings (B, T / 4), 1 on padding.

        Args:
          audio: (B, S) samples of 16 bits.
          paddings: (B, S), 1 on padding, which stands at the end.
          train: whether SpecAugment and dropout act.
          dropout_rate: may be traced.
          use_running_average: of batch statistics, instead of those of the batch.
        """
        x_BTM, paddings_BT = self.features(audio, paddings)
        if train:
            x_BTM = spec_augment(
                self.make_rng("dropout"),
                x_BTM,
                paddings_BT,
                self.frequency_masks,
                self.time_masks,
                self.max_mask_bins,
            )
        x_BTD, paddings_BT = Subsample(self.width, name="subsample")(x_BTM, paddings_BT)
        x_BTD = x_BTD + positions_1d(x_BTD.shape[1], self.width)
        x_BTD = Dropout()(x_BTD, train, dropout_rate)
        for i in range(self.num_layers):
            block = Block(
                self.num_heads,
                self.kernel_size,
                self.expansion,
                self.activation,
                self.attention_temperature,
                self.post_layer_norm,
                self.batch_norm_momentum,
                name=f"block_{i}",
            )
            x_BTD = block(x_BTD, paddings_BT, train, dropout_rate, use_running_average)
        x_BTD = LayerNorm(name="final_norm")(x_BTD)
        return dense(self.vocab_size, "head")(x_BTD), paddings_BT
