"""What is done to an array before it is quantised: rotations and outliers.

A rotation is applied to both operands of a product along the axis that it contracts,
so the product stays what it was while large values are spread over their block.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from algoperf.errors import UserError
from algoperf.numerics import blocks, rounding
from algoperf.numerics.formats import Format


@functools.cache
def hadamard_matrix(size: int) -> np.ndarray:
    """Returns the orthogonal, symmetric Hadamard matrix (size, size), float32.

    Sylvester's construction: H_1 = 1, H_2n = [[H_n, H_n], [H_n, -H_n]] / sqrt(2).

    Raises:
      UserError: the size is no power of two.
    """
    if size < 1 or size & (size - 1):
        raise UserError(f"a Hadamard block of {size}: give a power of two")
    index = np.arange(size)
    common = index[:, None] & index[None, :]
    odd = np.array([bin(i).count("1") % 2 for i in range(size)])[common]
    return ((1 - 2 * odd) / np.sqrt(size)).astype(np.float32)


def random_signs(words: rounding.Words, size: int) -> jax.Array:
    """Returns float32 (size,) of +1 and -1."""
    bits = rounding.random_bits(words, (-(-size // 32), 1))
    place = np.arange(32, dtype=np.uint32)
    signs = ((bits >> place) & 1).astype(jnp.float32) * -2.0 + 1.0
    return signs.ravel()[:size]


def rotate(
    x: jax.Array, block: int, axis: int = -1, signs: jax.Array | None = None
) -> jax.Array:
    """Multiplies each block by H diag(signs); the axis is padded to whole blocks.

    The padding stays: a rotation spreads values over it, and a product must contract
    it too.

    Args:
      x: float32.
      block: a power of two.
      axis: the axis whose neighbours form the blocks.
      signs: float32 (block,), the same for all blocks; None for all +1.

    Returns:
      float32, x's shape with the axis rounded up to a multiple of `block`.
    """
    axis = blocks.checked_axis(x.ndim, axis)
    split = blocks.split_axis(x, axis, block)
    matrix = jnp.asarray(hadamard_matrix(block))
    if signs is not None:
        matrix = signs[:, None] * matrix  # row i is input i
    return _multiply(split, matrix, axis)


def rotate_back(
    x: jax.Array,
    block: int,
    axis: int = -1,
    signs: jax.Array | None = None,
    length: int | None = None,
) -> jax.Array:
    """Undoes `rotate`: multiplies by diag(signs) H^T; cuts the axis to `length`."""
    axis = blocks.checked_axis(x.ndim, axis)
    split = blocks.split_axis(x, axis, block)
    matrix = jnp.asarray(hadamard_matrix(block))
    if signs is not None:
        matrix = matrix * signs[None, :]
    rotated = _multiply(split, matrix, axis)
    return rotated[(slice(None),) * axis + (slice(0, length),)]


def _multiply(split: jax.Array, matrix: jax.Array, axis: int) -> jax.Array:
    """Multiplies axis + 1 of `split` by the matrix; joins it with the axis before."""
    product = jax.lax.dot_general(
        split,
        matrix,
        (((axis + 1,), (0,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST,
    )
    product = jnp.moveaxis(product, -1, axis + 1)
    return product.reshape(*split.shape[:axis], -1, *split.shape[axis + 2 :])


def quest(x: jax.Array, axis: int = -1, block: int = 32) -> tuple[jax.Array, jax.Array]:
    """The QuEST projection to E2M1 under a power-of-two scale.

    scale = 2^round(log2(0.487079 rms of the block)), the scale with the least expected
    error for a Gaussian, so the largest values are clipped; ties to even. Panferov et
    al. 2025 (arXiv:2502.05003; with this format arXiv:2505.14669, section 4).

    Returns:
      (values, mask), of x's shape: float32, and bool, True where |x / scale| < 6, which
      is where a gradient is trusted.
    """
    fmt = Format("e2m1", block, "e8m0_quest")
    values, mask = quantize_with_mask(x.astype(jnp.float32), fmt, axis)
    return values, mask


class Factors(NamedTuple):
    """A quantised array in factors, as units of low precision take it.

    Attributes:
      elements: float32, of the array's shape: elements with their block's scale.
      outer: float32, what they are to be multiplied by: (), or of the array's shape
        with length 1 along the axis.
      codes: elements without scale, with the axis split into (blocks, block).
      block_scale: float32, broadcasts against `codes`.
    """

    elements: jax.Array
    outer: jax.Array
    codes: jax.Array
    block_scale: jax.Array


def quantize_with_mask(
    x: jax.Array,
    fmt: Format,
    axis: int,
    words: rounding.Words = None,
    largest: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns the quantised float32 array, and where it was rounded and not clipped."""
    return quantize_in_full(x, fmt, axis, words, largest)[:2]


def quantize_in_full(
    x: jax.Array,
    fmt: Format,
    axis: int,
    words: rounding.Words = None,
    largest: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, Factors]:
    """As `quantize_with_mask`, and the array in factors."""
    parts = blocks.take_apart(x, fmt, axis, words, subnormals=False, largest=largest)
    mask = parts.is_inside
    if parts.scale is not None and isinstance(fmt.group, int):
        axis = blocks.checked_axis(x.ndim, axis)
        mask = blocks.join_axis(mask, axis, x.shape[axis])
    values = blocks.put_together(parts, fmt, x.shape, axis, subnormals=False)
    return values, mask, _factors(parts, fmt, x.shape, axis)


def _factors(
    parts: blocks.Parts, fmt: Format, shape: tuple[int, ...], axis: int
) -> Factors:
    one = jnp.float32(1.0)
    if parts.scale is None:
        return Factors(parts.elements, one, parts.elements, one)
    inverse = np.float32(1.0 / fmt.prescale)
    if fmt.scale == "float32" and isinstance(fmt.group, str):
        scale = parts.scale.reshape(()) if fmt.group == "tensor" else parts.scale
        return Factors(parts.elements, scale * inverse, parts.elements, one)
    if fmt.scale in blocks.POWER_OF_TWO_SCALES:
        unit = parts.scale - blocks.implied_exponent(fmt)
        block_scale = rounding.small_power_of_two(unit)
        if fmt.scale == "fixed":  # for the whole tensor, and codes are integers
            outer = block_scale.reshape(()) * inverse
            return Factors(parts.elements, outer, parts.elements, one)
    else:
        block_scale = parts.scale
    elements = parts.elements * block_scale
    if isinstance(fmt.group, int):
        elements = blocks.join_axis(elements, axis, shape[axis])
    outer = parts.tensor_scale * inverse
    return Factors(elements, outer, parts.elements, block_scale)


def split_outliers(x: jax.Array, share: float) -> tuple[jax.Array, jax.Array]:
    """Splits an array into what is quantised and what is not.

    Args:
      x: any shape.
      share: of the elements, the largest in magnitude, that are outliers; static. Ties
        with the smallest of them are outliers too.

    Returns:
      (rest, outliers), of x's shape and with sum x: each element is in one, 0 in the
      other.
    """
    count = min(x.size, max(1, round(share * x.size)))
    threshold = jax.lax.top_k(jnp.abs(x).ravel(), count)[0][-1]
    is_outlier = jnp.abs(x) >= threshold
    zero: Any = jnp.zeros((), x.dtype)
    return jnp.where(is_outlier, zero, x), jnp.where(is_outlier, x, zero)
