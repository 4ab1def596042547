"""Quantised arrays as they are stored: codes of a few bits, and scales.

For optimizer state, checkpoints and the weights of inference; products are emulated
on `blocks.quantize` instead.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from algoperf.errors import UserError
from algoperf.numerics import blocks, rounding
from algoperf.numerics.formats import (
    POWER_OF_TWO_SCALES,
    SCALE_ELEMENTS,
    Format,
    find_format,
)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("codes", "scales", "tensor_scale"),
    meta_fields=("format", "shape", "axis", "dtype"),
)
@dataclasses.dataclass(frozen=True)
class Packed:
    """A quantised array; a pytree.

    Attributes:
      codes: uint8 (bytes,): the elements' codes, one after another in row-major order
        of the array with its axis split into blocks, low bits first.
      scales: uint8 codes (E8M0, E4M3, UE5M3), or float32; (0,) for a plain cast.
      tensor_scale: float32 ().
      format, shape, axis, dtype: of the array.
    """

    codes: jax.Array
    scales: jax.Array
    tensor_scale: jax.Array
    format: Format
    shape: tuple[int, ...]
    axis: int
    dtype: Any

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self.codes.nbytes + self.scales.nbytes + self.tensor_scale.nbytes


def pack(x: Any, fmt: str | Format, axis: int = -1, key: Any = None) -> Packed:
    """Quantises an array and packs it; arguments and errors as of `quantize`."""
    fmt = find_format(fmt)
    x = blocks.as_float(x)
    words = None
    if fmt.is_stochastic:
        if key is None:
            raise UserError("this format rounds stochastically; give pack a key=")
        words = rounding.words_of(key)
    parts = blocks.take_apart(x.astype(jnp.float32), fmt, axis, words)
    element = fmt.elements
    # A NaN has no code in most formats; its group's scale carries it.
    elements = jnp.where(jnp.isnan(parts.elements), 0.0, parts.elements)
    if fmt.scale is None:
        elements = parts.elements
        if element.name not in ("bf16", "fp16"):
            elements = jnp.nan_to_num(elements, nan=0.0)
        scales = jnp.zeros((0,), jnp.uint8)
    elif fmt.scale in POWER_OF_TWO_SCALES:
        assert parts.scale is not None
        scales = (parts.scale - blocks.LOWEST_SCALE).astype(jnp.uint8)
    elif fmt.scale == "float32":
        assert parts.scale is not None
        scales = parts.scale
    else:
        assert parts.scale is not None
        holder = SCALE_ELEMENTS[fmt.scale]
        codes = rounding.element_codes(parts.scale, holder)
        scales = jnp.where(jnp.isnan(parts.scale), 0xFF, codes).astype(jnp.uint8)
    codes = to_bytes(rounding.element_codes(elements, element), element.bits)
    axis = blocks.checked_axis(x.ndim, axis) if fmt.scale is not None else axis
    return Packed(codes, scales, parts.tensor_scale, fmt, x.shape, axis, x.dtype)


def unpack(packed: Packed) -> jax.Array:
    """Returns the array, bit for bit what `quantize` returns.

    But for NaN in a plain cast to a type without it, or beside a fixed scale: it is 0.
    """
    fmt = packed.format
    element = fmt.elements
    shape = _element_shape(packed)
    codes = from_bytes(packed.codes, element.bits, math.prod(shape))
    elements = rounding.element_values(codes, element).reshape(shape)
    scale = None
    if fmt.scale in POWER_OF_TWO_SCALES:
        scale = packed.scales.astype(jnp.int32) + blocks.LOWEST_SCALE
        elements = jnp.where(scale > blocks.HIGHEST_SCALE, jnp.nan, elements)
    elif fmt.scale == "float32":
        scale = packed.scales
    elif fmt.scale is not None:
        holder = SCALE_ELEMENTS[fmt.scale]
        # The sign bit of E4M3 is never set; UE5M3's codes have none.
        scale = rounding.element_values(packed.scales, holder)
        scale = jnp.where(packed.scales == 0xFF, jnp.nan, scale)
    parts = blocks.Parts(elements, elements == elements, scale, packed.tensor_scale)
    values = blocks.put_together(parts, fmt, packed.shape, packed.axis)
    return values.reshape(packed.shape).astype(packed.dtype)


def _element_shape(packed: Packed) -> tuple[int, ...]:
    fmt, shape, axis = packed.format, packed.shape, packed.axis
    if fmt.scale is None or not isinstance(fmt.group, int):
        return shape
    number = -(-shape[axis] // fmt.group)
    return (*shape[:axis], number, fmt.group, *shape[axis + 1 :])


def to_bytes(codes: jax.Array, bits: int) -> jax.Array:
    """Packs codes of so many bits, low bits first, to uint8 (ceil(size bits / 8),)."""
    codes = codes.ravel().astype(jnp.uint32)
    if bits == 8:
        return codes.astype(jnp.uint8)
    every, length = _period(bits)  # so many codes fill so many bytes
    codes = jnp.pad(codes, (0, -codes.size % every)).reshape(-1, every)
    shifts = jnp.arange(every, dtype=jnp.uint32) * bits
    # A period has at most 24 bits, or is one code.
    word = jnp.sum(codes << shifts, axis=1, dtype=jnp.uint32)
    found = word[:, None] >> (8 * jnp.arange(length, dtype=jnp.uint32))
    return (found & 0xFF).astype(jnp.uint8).ravel()


def from_bytes(packed: jax.Array, bits: int, size: int) -> jax.Array:
    """Returns the `size` codes (uint32) that `to_bytes` packed."""
    if bits == 8:
        return packed.astype(jnp.uint32)
    if bits == 4:  # in a loop XLA's CPU compiler makes this 4 times as fast as below
        codes = jnp.stack([packed & 0xF, packed >> 4], axis=1)
        return codes.ravel()[:size].astype(jnp.uint32)
    every, length = _period(bits)
    found = packed.reshape(-1, length).astype(jnp.uint32)
    shifts = 8 * jnp.arange(length, dtype=jnp.uint32)
    word = jnp.sum(found << shifts, axis=1, dtype=jnp.uint32)
    codes = word[:, None] >> (bits * jnp.arange(every, dtype=jnp.uint32))
    return (codes & ((1 << bits) - 1)).ravel()[:size]


def _period(bits: int) -> tuple[int, int]:
    common = math.lcm(bits, 8)
    return common // bits, common // 8
