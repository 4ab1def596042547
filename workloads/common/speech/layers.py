"""Layers of speech models that know which frames are padding.

Dimension key: B batch, T frames, D width, M mel bins, C channels.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

KERNEL_INIT = nn.initializers.xavier_uniform()


class LayerNorm(nn.Module):
    """Layer norm that multiplies by 1 + scale, so that weight decay pulls it to 1."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the shape of `x` (..., D)."""
        scale = self.param("scale", nn.initializers.zeros, x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        x = x - x.mean(axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + 1e-6)
        return x * (1 + scale) + bias


class BatchNorm(nn.Module):
    """Batch norm over the frames that are not padding; 0 on padding.

    Multiplies by 1 + scale. The statistics are those of the whole batch, also where it
    is spread over devices; they keep the shape (D,).
    """

    momentum: float = 0.999
    epsilon: float = 1e-3

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, paddings_BT: jax.Array, use_running_average: bool
    ) -> jax.Array:
        """Returns (B, T, D)."""
        shape = x_BTD.shape[-1:]
        scale = self.param("scale", nn.initializers.zeros, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        variance = self.variable("batch_stats", "var", jnp.ones, shape)
        real_BT1 = 1 - paddings_BT[:, :, None]
        if use_running_average:
            mean_D, variance_D = mean.value, variance.value
        else:
            count = jnp.maximum(real_BT1.sum(), 1)
            mean_D = (x_BTD * real_BT1).sum(axis=(0, 1)) / count
            squares_BTD = jnp.square(x_BTD - mean_D) * real_BT1
            variance_D = squares_BTD.sum(axis=(0, 1)) / count
            if not self.is_initializing():
                keep = self.momentum
                mean.value = keep * mean.value + (1 - keep) * mean_D
                variance.value = keep * variance.value + (1 - keep) * variance_D
        gain_D = (1 + scale) / jnp.sqrt(variance_D + self.epsilon)
        return ((x_BTD - mean_D) * gain_D + bias) * real_BT1


class Subsample(nn.Module):
    """Two convolutions, each of which halves time and frequency, and a linear map."""

    width: int
    activation: Callable[[jax.Array], jax.Array] = nn.relu

    @nn.compact
    def __call__(
        self, features_BTM: jax.Array, paddings_BT: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns (B, T / 4, D) and the paddings (B, T / 4)."""
        x = features_BTM[..., None]
        for i in (1, 2):
            conv = nn.Conv(
                self.width,
                (3, 3),
                strides=(2, 2),
                kernel_init=KERNEL_INIT,
                name=f"conv_{i}",
            )
            paddings_BT = paddings_BT[:, ::2]
            x = self.activation(conv(x)) * (1 - paddings_BT)[:, :, None, None]
        x_BTC = x.reshape(*x.shape[:2], -1)
        return dense(self.width, "out")(x_BTC), paddings_BT


def dense(width: int, name: str, **options: Any) -> nn.Dense:
    """Returns a linear map."""
    return nn.Dense(width, kernel_init=KERNEL_INIT, name=name, **options)
