"""Transformer for translation (Vaswani et al. 2017, arXiv:1706.03762).

Encoder and decoder share one embedding with the output layer. Layer norm stands before
each branch and at the end of both stacks (Xiong et al. 2020, arXiv:2002.04745), or
behind each sum if `post_layer_norm`. Dropout acts on the embedded tokens, on attention
weights, inside the MLP and at the end of each branch.

Dimension key: B batch, S source tokens, T target tokens, Q tokens that attend, L tokens
attended to, D width, N heads, K width of a head, V vocabulary.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from workloads.common.dropout import Dropout
from workloads.common.positions import positions_1d

PAD = 0  # also what the decoder starts with
KERNEL_INIT = nn.initializers.xavier_uniform()
BIAS_INIT = nn.initializers.normal(1e-6)


class KeysValues(NamedTuple):
    """What attention reads, both (B, N, L, K).

    In this layout the products of a single query, as in decoding, are about ten times
    faster on a CPU than in (B, L, N, K).
    """

    keys: jax.Array
    values: jax.Array


def shift_right(tokens_BT: jax.Array, segments_BT: jax.Array | None) -> jax.Array:
    """Returns what the decoder reads: before each token the one before it.

    Every sentence of a packed row starts with PAD, as it does when it stands alone.
    """
    shifted_BT = jnp.pad(tokens_BT, ((0, 0), (1, 0)))[:, :-1]
    if segments_BT is None:
        return shifted_BT
    before_BT = jnp.pad(segments_BT, ((0, 0), (1, 0)))[:, :-1]
    return jnp.where(before_BT == segments_BT, shifted_BT, PAD)


def attention_mask(
    queries_BQ: jax.Array,
    keys_BL: jax.Array,
    query_segments_BQ: jax.Array | None = None,
    key_segments_BL: jax.Array | None = None,
) -> jax.Array:
    """Returns (B, 1, Q, L), true where both are tokens of one sentence."""
    mask_BQL = (queries_BQ != PAD)[:, :, None] & (keys_BL != PAD)[:, None, :]
    if query_segments_BQ is not None and key_segments_BL is not None:
        mask_BQL &= query_segments_BQ[:, :, None] == key_segments_BL[:, None, :]
    return mask_BQL[:, None]


class Attention(nn.Module):
    """Multi-head attention without biases (Vaswani et al. 2017, section 3.2)."""

    num_heads: int
    width: int

    def setup(self) -> None:
        """Names the four projections."""
        heads = (self.num_heads, self.width // self.num_heads)

        def project() -> nn.DenseGeneral:
            return nn.DenseGeneral(heads, use_bias=False, kernel_init=KERNEL_INIT)

        self.query, self.key, self.value = project(), project(), project()
        self.out = nn.DenseGeneral(
            self.width, axis=(-2, -1), use_bias=False, kernel_init=KERNEL_INIT
        )
        self.dropout = Dropout()

    def read(self, x_BLD: jax.Array) -> KeysValues:
        """Returns the keys and values of what is attended to."""
        keys_BLNK, values_BLNK = self.key(x_BLD), self.value(x_BLD)
        return KeysValues(keys_BLNK.swapaxes(1, 2), values_BLNK.swapaxes(1, 2))

    def __call__(
        self,
        x_BQD: jax.Array,
        memory: KeysValues,
        mask: jax.Array,
        train: bool,
        dropout_rate: Any,
    ) -> jax.Array:
        """Returns (B, Q, D); `mask` is (B, 1, Q, L)."""
        query_BNQK = self.query(x_BQD).swapaxes(1, 2)
        query_BNQK /= np.sqrt(query_BNQK.shape[-1])
        scores_BNQL = jnp.einsum("BNQK,BNLK->BNQL", query_BNQK, memory.keys)
        lowest = jnp.finfo(scores_BNQL.dtype).min
        weights_BNQL = nn.softmax(jnp.where(mask, scores_BNQL, lowest))
        weights_BNQL = self.dropout(weights_BNQL, train, dropout_rate)
        out_BNQK = jnp.einsum("BNQL,BNLK->BNQK", weights_BNQL, memory.values)
        return self.out(out_BNQK.swapaxes(1, 2))


class MLP(nn.Module):
    """Two layers; `gated` multiplies the activation by a second linear map."""

    mlp_width: int
    activation: Callable[[jax.Array], jax.Array]
    gated: bool

    @nn.compact
    def __call__(self, x_BLD: jax.Array, train: bool, dropout_rate: Any) -> jax.Array:
        """Returns (B, L, D)."""
        hidden = self.activation(_dense(self.mlp_width, "fc1")(x_BLD))
        if self.gated:
            hidden *= _dense(self.mlp_width, "gate")(x_BLD)
        hidden = Dropout()(hidden, train, dropout_rate)
        return _dense(x_BLD.shape[-1], "fc2")(hidden)


class Branch(nn.Module):
    """Where a branch meets its shortcut: norm and dropout.

    `enter` what the branch reads, `leave` what goes on: x + dropout(f(norm(x))), or
    norm(x + dropout(f(x))) if `post_layer_norm`.
    """

    post_layer_norm: bool

    def setup(self) -> None:
        """Names the norm."""
        self.layer_norm = nn.LayerNorm()
        self.dropout = Dropout()

    def enter(self, x: jax.Array) -> jax.Array:
        """Returns what the branch reads."""
        return x if self.post_layer_norm else self.layer_norm(x)

    def leave(self, x: jax.Array, out: jax.Array, train: bool, rate: Any) -> jax.Array:
        """Returns the sum of the shortcut `x` and the branch's `out`."""
        total = x + self.dropout(out, train, rate)
        return self.layer_norm(total) if self.post_layer_norm else total


@dataclasses.dataclass(frozen=True)
class LayerConfig:
    """What all layers have in common."""

    num_heads: int
    width: int
    mlp_width: int
    activation: Callable[[jax.Array], jax.Array]
    gated_mlp: bool
    post_layer_norm: bool
    attention_temperature: float

    def attention(self) -> Attention:
        """Returns an attention."""
        return Attention(self.num_heads, self.width)

    def mlp(self) -> MLP:
        """Returns an MLP."""
        return MLP(self.mlp_width, self.activation, self.gated_mlp)


class EncoderLayer(nn.Module):
    """Self-attention and MLP."""

    config: LayerConfig

    def setup(self) -> None:
        """Names the parts."""
        post = self.config.post_layer_norm
        self.attention, self.mlp = self.config.attention(), self.config.mlp()
        self.attention_branch, self.mlp_branch = Branch(post), Branch(post)

    def __call__(
        self, x_BSD: jax.Array, mask: jax.Array, train: bool, dropout_rate: Any
    ) -> jax.Array:
        """Returns (B, S, D)."""
        temperature = self.config.attention_temperature
        y_BSD = self.attention_branch.enter(x_BSD)
        memory = self.attention.read(y_BSD)
        y_BSD = self.attention(temperature * y_BSD, memory, mask, train, dropout_rate)
        x_BSD = self.attention_branch.leave(x_BSD, y_BSD, train, dropout_rate)
        y_BSD = self.mlp(self.mlp_branch.enter(x_BSD), train, dropout_rate)
        return self.mlp_branch.leave(x_BSD, y_BSD, train, dropout_rate)


class DecoderLayer(nn.Module):
    """Self-attention, attention to the source, and MLP."""

    config: LayerConfig

    def setup(self) -> None:
        """Names the parts."""
        post = self.config.post_layer_norm
        self.attention, self.mlp = self.config.attention(), self.config.mlp()
        self.source_attention = self.config.attention()
        self.attention_branch, self.source_branch = Branch(post), Branch(post)
        self.mlp_branch = Branch(post)

    def __call__(
        self,
        x_BTD: jax.Array,
        source: KeysValues,
        mask: jax.Array,
        source_mask: jax.Array,
        train: bool,
        dropout_rate: Any,
        past: KeysValues | None = None,
        position: Any = None,
    ) -> tuple[jax.Array, KeysValues]:
        """Returns (B, T, D), and the keys and values of the target tokens.

        With `past`, those of all positions, `x` is of the one position given, and its
        keys and values take their place among them.
        """
        temperature = self.config.attention_temperature
        y_BTD = self.attention_branch.enter(x_BTD)
        memory = self.attention.read(y_BTD)
        if past is not None:
            memory = jax.tree.map(
                lambda all_BNTK, one_BN1K: jax.lax.dynamic_update_slice_in_dim(
                    all_BNTK, one_BN1K, position, axis=2
                ),
                past,
                memory,
            )
        y_BTD = self.attention(temperature * y_BTD, memory, mask, train, dropout_rate)
        x_BTD = self.attention_branch.leave(x_BTD, y_BTD, train, dropout_rate)

        y_BTD = temperature * self.source_branch.enter(x_BTD)
        y_BTD = self.source_attention(y_BTD, source, source_mask, train, dropout_rate)
        x_BTD = self.source_branch.leave(x_BTD, y_BTD, train, dropout_rate)

        y_BTD = self.mlp(self.mlp_branch.enter(x_BTD), train, dropout_rate)
        return self.mlp_branch.leave(x_BTD, y_BTD, train, dropout_rate), memory


class Transformer(nn.Module):
    """The translation model; fields default to the full size."""

    vocab_size: int = 32_000
    num_layers: int = 6
    width: int = 1024
    num_heads: int = 16
    mlp_width: int = 1024
    max_length: int = 256
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    gated_mlp: bool = False
    post_layer_norm: bool = False
    attention_temperature: float = 1.0

    def setup(self) -> None:
        """Names the parts."""
        config = LayerConfig(
            self.num_heads,
            self.width,
            self.mlp_width,
            self.activation,
            self.gated_mlp,
            self.post_layer_norm,
            self.attention_temperature,
        )
        self.shared = nn.Embed(
            self.vocab_size, self.width, embedding_init=nn.initializers.normal(1.0)
        )
        self.encoder = [EncoderLayer(config) for _ in range(self.num_layers)]
        self.decoder = [DecoderLayer(config) for _ in range(self.num_layers)]
        if not self.post_layer_norm:
            self.encoder_norm, self.decoder_norm = nn.LayerNorm(), nn.LayerNorm()
        self.dropout = Dropout()

    def __call__(
        self,
        inputs: jax.Array,
        targets: jax.Array,
        inputs_position: jax.Array | None = None,
        targets_position: jax.Array | None = None,
        inputs_segmentation: jax.Array | None = None,
        targets_segmentation: jax.Array | None = None,
        *,
        train: bool,
        dropout_rate: Any = 0.0,
    ) -> jax.Array:
        """Returns logits (B, T, V) of each target token, from those before it.

        Args:
          inputs: (B, S) ids, PAD on padding.
          targets: (B, T) ids, PAD on padding.
          inputs_position: (B, S) places in their sentences of packed tokens.
          targets_position: (B, T).
          inputs_segmentation: (B, S) which sentence of the row a token is of.
          targets_segmentation: (B, T).
          train: whether dropout acts.
          dropout_rate: may be traced.
        """
        encoded_BSD = self.encode(
            inputs, inputs_position, inputs_segmentation, train, dropout_rate
        )
        y_BT = shift_right(targets, targets_segmentation)
        y_BTD = self._embed(y_BT, targets_position, train, dropout_rate)
        mask = attention_mask(
            targets, targets, targets_segmentation, targets_segmentation
        )
        mask &= jnp.tril(jnp.ones(mask.shape[-2:], bool))
        source_mask = attention_mask(
            targets, inputs, targets_segmentation, inputs_segmentation
        )
        for layer, source in zip(self.decoder, self.sources(encoded_BSD), strict=True):
            y_BTD, _ = layer(y_BTD, source, mask, source_mask, train, dropout_rate)
        return self._logits(y_BTD)

    def encode(
        self,
        inputs: jax.Array,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
        train: bool = False,
        dropout_rate: Any = 0.0,
    ) -> jax.Array:
        """Returns the encoded source (B, S, D)."""
        x_BSD = self._embed(inputs, positions, train, dropout_rate)
        mask = attention_mask(inputs, inputs, segments, segments)
        for layer in self.encoder:
            x_BSD = layer(x_BSD, mask, train, dropout_rate)
        return x_BSD if self.post_layer_norm else self.encoder_norm(x_BSD)

    def sources(self, encoded_BSD: jax.Array) -> list[KeysValues]:
        """Returns the keys and values of the source for each layer of the decoder."""
        return [layer.source_attention.read(encoded_BSD) for layer in self.decoder]

    def decode_one(
        self,
        tokens_B: jax.Array,
        position: jax.Array,
        past: list[KeysValues],
        sources: list[KeysValues],
        inputs: jax.Array,
    ) -> tuple[jax.Array, list[KeysValues]]:
        """Returns the logits (B, V) of the next token, and what was read so far.

        Args:
          tokens_B: the token before; PAD at the start.
          position: () where it stands: 0 at the start.
          past: per layer, (B, N, T, K) for all T positions; filled up to this one.
          sources: as `sources` returns them.
          inputs: (B, S) ids of the source, PAD on padding.
        """
        positions_B1 = jnp.full((len(tokens_B), 1), position)
        y_B1D = self._embed(tokens_B[:, None], positions_B1, False, 0.0)
        length = past[0].keys.shape[2]
        mask = (jnp.arange(length) <= position)[None, None, None]
        source_mask = (inputs != PAD)[:, None, None]
        filled = []
        for layer, source, memory in zip(self.decoder, sources, past, strict=True):
            y_B1D, memory = layer(
                y_B1D, source, mask, source_mask, False, 0.0, memory, position
            )
            filled.append(memory)
        return self._logits(y_B1D)[:, 0], filled

    def empty_past(self, batch_size: int, length: int) -> list[KeysValues]:
        """Returns the `past` with which `decode_one` starts."""
        shape = (batch_size, self.num_heads, length, self.width // self.num_heads)
        zeros = KeysValues(jnp.zeros(shape), jnp.zeros(shape))
        return [zeros] * self.num_layers

    def _embed(
        self, tokens: jax.Array, positions: jax.Array | None, train: bool, rate: Any
    ) -> jax.Array:
        table = jnp.asarray(positions_1d(self.max_length, self.width))
        place = table[: tokens.shape[1]] if positions is None else table[positions]
        return self.dropout(self.shared(tokens) + place, train, rate)

    def _logits(self, y_BTD: jax.Array) -> jax.Array:
        if not self.post_layer_norm:
            y_BTD = self.decoder_norm(y_BTD)
        return self.shared.attend(y_BTD) / np.sqrt(self.width)


def _dense(features: int, name: str) -> nn.Dense:
    return nn.Dense(features, kernel_init=KERNEL_INIT, bias_init=BIAS_INIT, name=name)
