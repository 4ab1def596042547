"""Shapes of decoder-only transformers: what a model's speed depends on, by name.

A shape says everything about a decoder but its weights. The sizes are those that the
models' makers publish. No JAX here: sizes, parameters and bytes are arithmetic.
"""

import dataclasses
import math
from typing import Any, Literal

from algoperf.errors import UserError, unknown_name

Positions = Literal["rotary", "learned"]
Norm = Literal["rms", "layer"]
QueryKeyNorm = Literal["none", "rms", "unit"]


@dataclasses.dataclass(frozen=True)
class RotaryScaling:
    """Slower rotation of the slow features, for texts longer than in training.

    Frequencies whose wave is longer than `original_length / low_factor` tokens are
    divided by `factor`, those below `original_length / high_factor` are kept, between
    them it is interpolated ('The Llama 3 Herd of Models', arXiv:2407.21783, section
    3.2, as released with the models).
    """

    factor: float
    low_factor: float
    high_factor: float
    original_length: int


@dataclasses.dataclass(frozen=True)
class DecoderShape:
    """One decoder-only transformer, without weights.

    Attributes:
      name: what it is called.
      vocab_size: V, tokens.
      num_layers: transformer blocks.
      width: D, of the residual stream.
      num_heads: H, of queries.
      mlp_width: F.
      max_length: N, the most tokens of prompt and output together.
      num_kv_heads: of keys and values; each serves H / num_kv_heads queries
        (grouped-query attention, arXiv:2305.13245). None: H.
      head_size: K, of a head. None: D / H.
      positions: rotary (arXiv:2104.09864) or a learned table.
      rotary_size: features of a head that are rotated. None: all.
      rotary_pairs: which features are a pair: i and i + K/2, or neighbours.
      rotary_theta: base of the rotation frequencies.
      rotary_scaling: see `RotaryScaling`.
      norm: RMS (arXiv:1910.07467) or layer norm with a bias.
      norm_epsilon: added to the mean square or variance.
      query_key_norm: of queries and keys: none, RMS with a learned scale before the
        rotation, or unit length after it with one learned factor for the scores.
      activation: of the MLP: gelu, gelu_tanh, silu or sigmoid.
      is_gated: whether the MLP is (x U * activation(x G)) W; else activation(x U) W.
      has_attention_bias: on query, key, value and out.
      has_mlp_bias: on the MLP's products.
      is_parallel: whether attention and MLP both read the block's input.
      shares_norm: whether they read it through one norm.
      ties_head: whether the embedding is the output layer too.
      has_head_bias: on the output layer.
    """

    name: str
    vocab_size: int
    num_layers: int
    width: int
    num_heads: int
    mlp_width: int
    max_length: int
    num_kv_heads: int | None = None
    head_size: int | None = None
    positions: Positions = "rotary"
    rotary_size: int | None = None
    rotary_pairs: Literal["halves", "neighbours"] = "halves"
    rotary_theta: float = 10_000.0
    rotary_scaling: RotaryScaling | None = None
    norm: Norm = "rms"
    norm_epsilon: float = 1e-6
    query_key_norm: QueryKeyNorm = "none"
    activation: Literal["gelu", "gelu_tanh", "silu", "sigmoid"] = "silu"
    is_gated: bool = True
    has_attention_bias: bool = False
    has_mlp_bias: bool = False
    is_parallel: bool = False
    shares_norm: bool = False
    ties_head: bool = True
    has_head_bias: bool = False

    def __post_init__(self) -> None:
        if self.num_heads % self.kv_heads:
            raise UserError(
                f"shape {self.name}: {self.num_heads} query heads cannot share "
                f"{self.kv_heads} key-value heads evenly"
            )
        if self.head_size is None and self.width % self.num_heads:
            raise UserError(
                f"shape {self.name}: width {self.width} is no multiple of its "
                f"{self.num_heads} heads; give head_size"
            )

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_kv_heads or self.num_heads

    @property
    def head_width(self) -> int:
        """Features of one head."""
        return self.head_size or self.width // self.num_heads

    @property
    def num_parameters(self) -> int:
        """Of the whole model, embedding included."""
        return sum(math.prod(size) for size in _leaves(param_shapes(self)))

    @property
    def num_active_parameters(self) -> int:
        """Those that every token is multiplied by: no tables that are looked up."""
        looked_up = 0 if self.ties_head else self.vocab_size * self.width
        if self.positions == "learned":
            looked_up += self.max_length * self.width
        return self.num_parameters - looked_up

    def cache_bytes(self, tokens: int, element_bytes: int = 2) -> int:
        """Returns bytes of keys and values of so many tokens of one sequence."""
        per_token = 2 * self.num_layers * self.kv_heads * self.head_width
        return per_token * tokens * element_bytes


def param_shapes(shape: DecoderShape) -> dict[str, Any]:
    """Returns the parameter tree with tuples in place of arrays.

    Kernels are (in, out); `layers` is a list with one dict for each block.
    """
    width, heads, kv_heads = shape.width, shape.num_heads, shape.kv_heads
    size = shape.head_width

    def dense(inside: int, outside: int, has_bias: bool) -> dict[str, Any]:
        kernel = {"kernel": (inside, outside)}
        return kernel | ({"bias": (outside,)} if has_bias else {})

    norm: dict[str, Any] = {"scale": (width,)}
    if shape.norm == "layer":
        norm["bias"] = (width,)
    attention_bias, mlp_bias = shape.has_attention_bias, shape.has_mlp_bias
    layer: dict[str, Any] = {
        "attention_norm": norm,
        "query": dense(width, heads * size, attention_bias),
        "key": dense(width, kv_heads * size, attention_bias),
        "value": dense(width, kv_heads * size, attention_bias),
        "out": dense(heads * size, width, attention_bias),
        "up": dense(width, shape.mlp_width, mlp_bias),
        "down": dense(shape.mlp_width, width, mlp_bias),
    }
    if not shape.shares_norm:
        layer["mlp_norm"] = norm
    if shape.is_gated:
        layer["gate"] = dense(width, shape.mlp_width, mlp_bias)
    if shape.query_key_norm == "rms":
        layer |= {"query_norm": {"scale": (size,)}, "key_norm": {"scale": (size,)}}
    if shape.query_key_norm == "unit":
        layer["attention_scale"] = ()
    tree: dict[str, Any] = {
        "embedding": (shape.vocab_size, width),
        "layers": [layer] * shape.num_layers,
        "final_norm": norm,
    }
    if shape.positions == "learned":
        tree["positions"] = (shape.max_length, width)
    if not shape.ties_head:
        tree["head"] = dense(width, shape.vocab_size, shape.has_head_bias)
    return tree


def find_shape(name: str) -> DecoderShape:
    """Returns a named shape.

    Raises:
      UserError: there is none of this name; with the nearest names.
    """
    if name not in SHAPES:
        raise unknown_name("shape", name, SHAPES)
    return SHAPES[name]


def _leaves(tree: Any) -> list[tuple[int, ...]]:
    if isinstance(tree, tuple):
        return [tree]
    inner = tree.values() if isinstance(tree, dict) else tree
    return [leaf for branch in inner for leaf in _leaves(branch)]


def _gpt2(
    name: str,
    num_layers: int,
    width: int,
    num_heads: int,
    vocab_size: int = 50_257,
    max_length: int = 1024,
) -> DecoderShape:
    return DecoderShape(
        name=name,
        vocab_size=vocab_size,
        num_layers=num_layers,
        width=width,
        num_heads=num_heads,
        mlp_width=4 * width,
        max_length=max_length,
        positions="learned",
        norm="layer",
        norm_epsilon=1e-5,
        activation="gelu_tanh",
        is_gated=False,
        has_attention_bias=True,
        has_mlp_bias=True,
    )


def _llama(
    name: str,
    num_layers: int,
    width: int,
    num_heads: int,
    mlp_width: int,
    factor: float,
    ties_head: bool,
) -> DecoderShape:
    return DecoderShape(
        name=name,
        vocab_size=128_256,
        num_layers=num_layers,
        width=width,
        num_heads=num_heads,
        mlp_width=mlp_width,
        max_length=131_072,
        num_kv_heads=8,
        rotary_theta=500_000.0,
        rotary_scaling=RotaryScaling(factor, 1.0, 4.0, 8192),
        norm_epsilon=1e-5,
        ties_head=ties_head,
    )


def _qwen3(
    name: str,
    num_layers: int,
    width: int,
    num_heads: int,
    mlp_width: int,
    ties_head: bool,
) -> DecoderShape:
    return DecoderShape(
        name=name,
        vocab_size=151_936,
        num_layers=num_layers,
        width=width,
        num_heads=num_heads,
        mlp_width=mlp_width,
        max_length=40_960,
        num_kv_heads=8,
        head_size=128,
        rotary_theta=1_000_000.0,
        query_key_norm="rms",
        ties_head=ties_head,
    )


_GPT_J = DecoderShape(
    name="gpt-j-6b",
    vocab_size=50_400,
    num_layers=28,
    width=4096,
    num_heads=16,
    mlp_width=16_384,
    max_length=2048,
    rotary_size=64,
    rotary_pairs="neighbours",
    norm="layer",
    norm_epsilon=1e-5,
    activation="gelu_tanh",
    is_gated=False,
    has_mlp_bias=True,
    is_parallel=True,
    shares_norm=True,
    ties_head=False,
    has_head_bias=True,
)
_NEOX = DecoderShape(
    name="gpt-neox-20b",
    vocab_size=50_432,
    num_layers=44,
    width=6144,
    num_heads=64,
    mlp_width=24_576,
    max_length=2048,
    rotary_size=24,
    norm="layer",
    norm_epsilon=1e-5,
    activation="gelu",
    is_gated=False,
    has_attention_bias=True,
    has_mlp_bias=True,
    is_parallel=True,
    ties_head=False,
)

# The first four are for a laptop's processor. `deep-narrow` has three quarters of
# `shallow-wide`'s parameters, in 24 times as many blocks; both fit a processor's cache.
SHAPES: dict[str, DecoderShape] = {
    shape.name: shape
    for shape in (
        _gpt2("tiny-4m", 4, 256, 4, vocab_size=4096),
        _gpt2("small-30m", 8, 512, 8, vocab_size=8192),
        _gpt2("deep-narrow", 48, 64, 4, vocab_size=2048),
        _gpt2("shallow-wide", 2, 320, 5, vocab_size=2048),
        _gpt2("gpt2", 12, 768, 12),
        _gpt2("gpt2-medium", 24, 1024, 16),
        _gpt2("gpt2-large", 36, 1280, 20),
        _gpt2("gpt2-xl", 48, 1600, 25),
        _GPT_J,
        _NEOX,
        _gpt2("gpt3-175b", 96, 12_288, 96, max_length=2048),
        _llama("llama-3.2-1b", 16, 2048, 32, 8192, 32.0, ties_head=True),
        _llama("llama-3.2-3b", 28, 3072, 24, 8192, 32.0, ties_head=True),
        _llama("llama-3.1-8b", 32, 4096, 32, 14_336, 8.0, ties_head=False),
        _qwen3("qwen3-0.6b", 28, 1024, 16, 3072, ties_head=True),
        _qwen3("qwen3-1.7b", 28, 2048, 16, 6144, ties_head=True),
        _qwen3("qwen3-4b", 36, 2560, 32, 9728, ties_head=True),
        _qwen3("qwen3-8b", 36, 4096, 32, 12_288, ties_head=False),
        _qwen3("qwen3-14b", 40, 5120, 40, 17_408, ties_head=False),
        _qwen3("qwen3-32b", 64, 5120, 64, 25_600, ties_head=False),
    )
}
