"""U-Net (Ronneberger et al. 2015, arXiv:1505.04597) as fastMRI uses it.

Zbontar et al. 2018, arXiv:1811.08839, section 5.2: blocks of two 3 x 3 convolutions,
average pooling on the way down, transposed convolutions on the way up, instance norm
without parameters, leaky ReLU.

Dimension key: B batch, H height, W width, C channels.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from workloads.common.dropout import Dropout

NORM_EPSILON = 1e-5
leaky_relu = partial(nn.leaky_relu, negative_slope=0.2)
Activation = Callable[[jax.Array], jax.Array]


def instance_norm(x_BHWC: jax.Array) -> jax.Array:
    """Gives each channel of each image mean 0 and variance 1 (Ulyanov et al. 2016)."""
    mean = x_BHWC.mean((1, 2), keepdims=True)
    variance = jnp.square(x_BHWC - mean).mean((1, 2), keepdims=True)
    return (x_BHWC - mean) * jax.lax.rsqrt(variance + NORM_EPSILON)


class ConvBlock(nn.Module):
    """Convolution, norm, activation and dropout of whole channels, twice."""

    channels: int
    activation: Activation
    layer_norm: bool

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, train: bool, dropout_rate: Any) -> jax.Array:
        """Returns (B, H, W, channels)."""
        for i in (1, 2):
            x_BHWC = nn.Conv(self.channels, (3, 3), use_bias=False, name=f"conv_{i}")(
                x_BHWC
            )
            if self.layer_norm:  # over the whole image
                norm = nn.LayerNorm(reduction_axes=(1, 2, 3), name=f"norm_{i}")
                x_BHWC = norm(x_BHWC)
            else:
                x_BHWC = instance_norm(x_BHWC)
            x_BHWC = self.activation(x_BHWC)
            x_BHWC = Dropout(broadcast_dims=(1, 2))(x_BHWC, train, dropout_rate)
        return x_BHWC


class UpBlock(nn.Module):
    """Doubles height and width by a transposed convolution."""

    channels: int
    activation: Activation

    @nn.compact
    def __call__(self, x_BHWC: jax.Array) -> jax.Array:
        """Returns (B, 2 H, 2 W, channels)."""
        x_BHWC = nn.ConvTranspose(
            self.channels, (2, 2), strides=(2, 2), use_bias=False, name="conv"
        )(x_BHWC)
        return self.activation(instance_norm(x_BHWC))


class UNet(nn.Module):
    """The reconstruction; fields default to the full size.

    Level i has `channels * 2**i` channels, the lowest, level `num_pools`, too.
    """

    channels: int = 32
    num_pools: int = 4
    activation: Activation = leaky_relu
    layer_norm: bool = False

    @nn.compact
    def __call__(
        self, inputs: jax.Array, train: bool, dropout_rate: Any = 0.0
    ) -> jax.Array:
        """Returns images (B, H, W) for images (B, H, W)."""

        def block(name: str, level: int) -> ConvBlock:
            channels = self.channels * 2**level
            return ConvBlock(channels, self.activation, self.layer_norm, name=name)

        x_BHWC = inputs[..., None]
        skipped = []
        for level in range(self.num_pools):
            x_BHWC = block(f"down_{level}", level)(x_BHWC, train, dropout_rate)
            skipped.append(x_BHWC)
            x_BHWC = nn.avg_pool(x_BHWC, (2, 2), strides=(2, 2))
        x_BHWC = block("bottom", self.num_pools)(x_BHWC, train, dropout_rate)
        for level in reversed(range(self.num_pools)):
            up = UpBlock(
                self.channels * 2**level, self.activation, name=f"up_{level}_transposed"
            )
            x_BHWC = _fit(up(x_BHWC), skipped[level])
            x_BHWC = jnp.concatenate([x_BHWC, skipped[level]], axis=-1)
            x_BHWC = block(f"up_{level}", level)(x_BHWC, train, dropout_rate)
        return nn.Conv(1, (1, 1), name="head")(x_BHWC)[..., 0]


def _fit(x_BHWC: jax.Array, like_BHWC: jax.Array) -> jax.Array:
    """Reflects a last row or column where pooling has dropped an odd one."""
    rows, columns = (like_BHWC.shape[i] - x_BHWC.shape[i] for i in (1, 2))
    padding = ((0, 0), (0, rows), (0, columns), (0, 0))
    return jnp.pad(x_BHWC, padding, mode="reflect") if rows or columns else x_BHWC
