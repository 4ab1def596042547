"""Deep Speech 2 (Amodei et al. 2015, arXiv:1512.02595), with residuals and CTC.

Dropout acts on the subsampled frames and behind each feed-forward layer.

Dimension key: B batch, S samples, T frames, M mel bins, D width, H width of an LSTM, V
vocabulary, 2 directions.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from workloads.common.dropout import Dropout
from workloads.common.speech.features import LogMel, spec_augment
from workloads.common.speech.layers import BatchNorm, LayerNorm, Subsample, dense
from workloads.common.speech.librispeech import LOG_MEL

Activation = Callable[[jax.Array], jax.Array]


def orthogonal_gates(rng: jax.Array, shape: tuple[int, int], dtype: Any) -> jax.Array:
    """Returns (H, 4 H): an orthogonal matrix for each of the four gates."""
    width, total = shape
    gates = [
        nn.initializers.orthogonal()(key, (width, width), dtype)
        for key in jax.random.split(rng, total // width)
    ]
    return jnp.concatenate(gates, axis=1)


class Recurrent(nn.Module):
    """The parameters that an LSTM applies to its last output."""

    width: int

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        """Returns the kernel (H, 4 H) and the bias (4 H)."""
        shape = (self.width, 4 * self.width)
        kernel = self.param("kernel", orthogonal_gates, shape, jnp.float32)
        return kernel, self.param("bias", nn.initializers.zeros, shape[1:])


class BidirectionalLSTM(nn.Module):
    """Two LSTMs (Hochreiter and Schmidhuber 1997), one of which reads backwards.

    Gates are input, forget, cell and output, in this order; the forget gate has no
    offset. Both directions take a step at the same time.
    """

    width: int

    @nn.compact
    def __call__(self, x_BTD: jax.Array, paddings_BT: jax.Array) -> jax.Array:
        """Returns (B, T, 2 H): the outputs forwards, then backwards."""
        lengths_B = (1 - paddings_BT).sum(axis=1).astype(jnp.int32)
        forth = self._gates("forward", x_BTD)
        back = self._gates("backward", _reverse(x_BTD, lengths_B))
        inputs_2BTG, kernel_2HG, bias_2G = jax.tree.map(
            lambda *arrays: jnp.stack(arrays), forth, back
        )

        def step(carry, inputs_2BG):
            output_2BH, cell_2BH = carry
            gates = inputs_2BG + jnp.einsum("xbh,xhg->xbg", output_2BH, kernel_2HG)
            enter, forget, new, leave = jnp.split(gates + bias_2G[:, None], 4, axis=-1)
            cell_2BH = nn.sigmoid(forget) * cell_2BH + nn.sigmoid(enter) * jnp.tanh(new)
            output_2BH = nn.sigmoid(leave) * jnp.tanh(cell_2BH)
            return (output_2BH, cell_2BH), output_2BH

        zeros = jnp.zeros((2, len(x_BTD), self.width), x_BTD.dtype)
        inputs_T2BG = jnp.moveaxis(inputs_2BTG, 2, 0)
        _, outputs_T2BH = jax.lax.scan(step, (zeros, zeros), inputs_T2BG)
        forth_BTH, back_BTH = jnp.moveaxis(outputs_T2BH, 0, 2)
        return jnp.concatenate([forth_BTH, _reverse(back_BTH, lengths_B)], axis=-1)

    def _gates(self, name: str, x_BTD: jax.Array) -> tuple[jax.Array, ...]:
        """Returns what the inputs add to the gates (B, T, 4 H), kernel and bias."""
        inputs = nn.Dense(4 * self.width, use_bias=False, name=f"{name}_input")
        return (inputs(x_BTD), *Recurrent(self.width, name=f"{name}_recurrent")())


def _reverse(x_BTD: jax.Array, lengths_B: jax.Array) -> jax.Array:
    """Turns the frames that are not padding round; padding stays at the end."""
    frames = jnp.arange(x_BTD.shape[1])
    turned_BT = lengths_B[:, None] - 1 - frames
    index_BT = jnp.where(turned_BT >= 0, turned_BT, frames)
    return jnp.take_along_axis(x_BTD, index_BT[:, :, None], axis=1)


class Deepspeech(nn.Module):
    """From waveforms to logits of subwords; fields default to the full size."""

    vocab_size: int = 1024
    width: int = 512
    num_lstm_layers: int = 6
    num_feed_forward_layers: int = 3
    activation: Activation = nn.relu
    residual: bool = True
    layer_norm: bool = False  # instead of batch norm
    decoder_layer_norm: bool = True
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
        subsample = Subsample(self.width, self.activation, name="subsample")
        x_BTD, paddings_BT = subsample(x_BTM, paddings_BT)
        x_BTD = Dropout()(x_BTD, train, dropout_rate)

        def norm(name: str, x_BTD: jax.Array) -> jax.Array:
            if self.layer_norm:
                return LayerNorm(name=f"{name}_norm")(x_BTD)
            batch_norm = BatchNorm(self.batch_norm_momentum, name=f"{name}_batch_norm")
            return batch_norm(x_BTD, paddings_BT, use_running_average)

        for i in range(self.num_lstm_layers):
            lstm = BidirectionalLSTM(self.width // 2, name=f"lstm_{i}")
            y_BTD = lstm(norm(f"lstm_{i}", x_BTD), paddings_BT)
            x_BTD = x_BTD + y_BTD if self.residual else y_BTD
        for i in range(self.num_feed_forward_layers):
            layer = dense(self.width, f"feed_forward_{i}")
            y_BTD = self.activation(layer(norm(f"feed_forward_{i}", x_BTD)))
            y_BTD = y_BTD * (1 - paddings_BT[:, :, None])
            y_BTD = Dropout()(y_BTD, train, dropout_rate)
            x_BTD = x_BTD + y_BTD if self.residual else y_BTD
        if self.decoder_layer_norm:
            x_BTD = LayerNorm(name="final_norm")(x_BTD)
        return dense(self.vocab_size, "head")(x_BTD), paddings_BT
