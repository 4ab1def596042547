"""ResNet v1.5 with bottleneck blocks (He et al. 2016, arXiv:1512.03385, section 4.1).

"v1.5": a block strides in its 3x3 convolution instead of its first 1x1. The last batch
norm of each block starts with scale `bn_init_scale`, 0 by default: every block starts
as the identity (Goyal et al. 2017, arXiv:1706.02677, section 5.1).

Dimension key: B batch, H height, W width, C channels.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax


class BottleneckBlock(nn.Module):
    """1x1, 3x3 and 1x1 convolutions around a shortcut; 4 `num_filters` channels out."""

    num_filters: int
    strides: int
    activation: Callable[[jax.Array], jax.Array]
    bn_init_scale: float

    @nn.compact
    def __call__(self, x_BHWC: jax.Array, use_running_average: bool) -> jax.Array:
        """Returns (B, H / strides, W / strides, 4 num_filters)."""
        conv = partial(nn.Conv, use_bias=False)
        norm = partial(_batch_norm, use_running_average)
        filters, strides = self.num_filters, self.strides
        y = conv(filters, (1, 1), name="conv_1")(x_BHWC)
        y = self.activation(norm("bn_1")(y))
        y = conv(filters, (3, 3), strides, name="conv_2")(y)
        y = self.activation(norm("bn_2")(y))
        y = conv(4 * filters, (1, 1), name="conv_3")(y)
        scale = nn.initializers.constant(self.bn_init_scale)
        y = norm("bn_3", scale_init=scale)(y)
        if x_BHWC.shape != y.shape:
            x_BHWC = conv(4 * filters, (1, 1), strides, name="conv_shortcut")(x_BHWC)
            x_BHWC = norm("bn_shortcut")(x_BHWC)
        return self.activation(x_BHWC + y)


class ResNet(nn.Module):
    """Stages of bottleneck blocks, mean over positions, one linear layer.

    Stage i has `num_filters * 2**i` filters and, but for the first, halves height and
    width. `small_stem` is for images of about 30 pixels: a 3x3 convolution with stride
    `stem_strides` instead of 7x7 with stride 2 and 3x3 max pooling with stride 2.
    """

    stage_sizes: Sequence[int] = (3, 4, 6, 3)
    num_filters: int = 64
    num_classes: int = 1000
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    bn_init_scale: float = 0.0
    small_stem: bool = False
    stem_strides: int = 1  # of the small stem

    @nn.compact
    def __call__(
        self,
        inputs: jax.Array,
        train: bool,
        use_running_average: bool | None = None,
        dropout_rate: Any = None,
    ) -> jax.Array:
        """Returns logits (B, num_classes) for images (B, H, W, C).

        Batch norm uses the batch's statistics if `train`, the running ones otherwise,
        unless `use_running_average` says. There is no dropout.
        """
        del dropout_rate
        running = not train if use_running_average is None else use_running_average
        x = self._stem(inputs, running)
        for stage, num_blocks in enumerate(self.stage_sizes):
            for block in range(num_blocks):
                x = BottleneckBlock(
                    num_filters=self.num_filters * 2**stage,
                    strides=2 if stage > 0 and block == 0 else 1,
                    activation=self.activation,
                    bn_init_scale=self.bn_init_scale,
                    name=f"stage_{stage}_block_{block}",
                )(x, running)
        x_BC = x.mean((1, 2))
        head = nn.Dense(
            self.num_classes, kernel_init=nn.initializers.normal(0.01), name="head"
        )
        return head(x_BC)

    def _stem(self, images_BHWC: jax.Array, running: bool) -> jax.Array:
        if self.small_stem:
            kernel, strides, padding = (3, 3), self.stem_strides, 1
        else:
            kernel, strides, padding = (7, 7), 2, 3
        x = nn.Conv(
            self.num_filters,
            kernel,
            strides,
            padding=padding,
            use_bias=False,
            name="conv_stem",
        )(images_BHWC)
        x = self.activation(_batch_norm(running, "bn_stem")(x))
        if not self.small_stem:
            x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        return x


def _batch_norm(use_running_average: bool, name: str, **options: Any) -> nn.BatchNorm:
    return nn.BatchNorm(
        use_running_average, momentum=0.9, epsilon=1e-5, name=name, **options
    )
