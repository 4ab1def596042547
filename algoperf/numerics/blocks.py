"""Quantising arrays: groups, their scales, and back to float32."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from algoperf.errors import UserError
from algoperf.numerics import rounding
from algoperf.numerics.formats import (
    POWER_OF_TWO_SCALES,
    SCALE_ELEMENTS,
    FloatElement,
    Format,
    IntElement,
    exponent_of_max,
    find_format,
)

# The power of two below which E8M0 has no code, and the highest it has.
LOWEST_SCALE, HIGHEST_SCALE = -127, 127
# Where subnormals do not count, scales stop here: all factors are normal numbers.
LOWEST_FAST_SCALE = -100
# Optimal scale of E2M1 for N(0, 1) (Panferov et al. 2025, arXiv:2505.14669): a grid
# that ends at 6 scales reaches 2.92247856 standard deviations.
QUEST_SCALE = 2.92247856 / 6.0


class Parts(NamedTuple):
    """A quantised array, taken apart; the groups are an axis of their own.

    Attributes:
      elements: float32 on the element's grid, the array's shape but for the padded
        axis, which is split into (blocks, block) where the format has blocks.
      is_inside: bool, like `elements`: the scaled value was within the element's
        range, so it was rounded and not clipped. The end of the range itself counts,
        but for 'e8m0_quest', whose paper trusts no gradient there.
      scale: broadcasts against `elements`; int32 exponents of 2 where the format's
        scales are powers of two, otherwise the float32 values of the scales as stored
        (without the tensor's); None for a plain cast.
      tensor_scale: float32 (), 1 unless the format has one.
    """

    elements: jax.Array
    is_inside: jax.Array
    scale: jax.Array | None
    tensor_scale: jax.Array


def quantize(x: Any, fmt: str | Format, axis: int = -1, key: Any = None) -> jax.Array:
    """Quantises and dequantises an array.

    Arithmetic is float32. Scales that are powers of two are exact, subnormal numbers
    included. Other scales are applied as NVIDIA's recipe does (arXiv:2509.25149,
    appendix): the element is x * (1 / scale), and a group whose scale underflows is 0.

    Infinities: with power-of-two scales the block takes the highest scale, the infinite
    element the largest value. With other scales a group that holds one is NaN. A NaN
    makes its whole group NaN. Where the tensor has a scale beside the groups', it is
    the whole array.

    Args:
      x: a float array of any shape.
      fmt: a `Format` or the name of one in `FORMATS`; static under jit.
      axis: along which blocks, or channels, lie: the axis that a product contracts.
      key: a JAX key, for formats that round stochastically.

    Returns:
      An array of the shape and dtype of x.

    Raises:
      UserError: an unknown format, x is not float, no such axis, no key where one is
        needed, or a block size that does not divide a format without padding.
    """
    fmt = find_format(fmt)
    x = as_float(x)
    words = None
    if fmt.is_stochastic:
        if key is None:
            raise UserError("this format rounds stochastically; give quantize a key=")
        words = rounding.words_of(key)
    parts = take_apart(x.astype(jnp.float32), fmt, axis, words)
    return put_together(parts, fmt, x.shape, axis).astype(x.dtype)


def as_float(x: Any) -> jax.Array:
    """Returns x as an array.

    Raises:
      UserError: it is not of a float type.
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise UserError(f"only float arrays can be quantised, not {x.dtype}")
    return x


def checked_axis(ndim: int, axis: int) -> int:
    """Returns the axis counted from the front.

    Raises:
      UserError: there is no such axis.
    """
    if not -ndim <= axis < ndim:
        raise UserError(f"an array with {ndim} axes has no axis {axis}")
    return axis % ndim


def split_axis(x: jax.Array, axis: int, block: int) -> jax.Array:
    """Pads an axis with zeros and splits it in two: (blocks, block)."""
    length = x.shape[axis]
    missing = -length % block
    if missing:
        pads = [(0, 0)] * x.ndim
        pads[axis] = (0, missing)
        x = jnp.pad(x, pads)
    blocks = (length + missing) // block
    return x.reshape(*x.shape[:axis], blocks, block, *x.shape[axis + 1 :])


def join_axis(x: jax.Array, axis: int, length: int) -> jax.Array:
    """Undoes `split_axis`; drops the padding."""
    joined = x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
    return joined[(slice(None),) * axis + (slice(0, length),)]


def take_apart(
    x: jax.Array,
    fmt: Format,
    axis: int,
    words: rounding.Words = None,
    subnormals: bool = True,
    largest: jax.Array | None = None,
) -> Parts:
    """Quantises float32 numbers; see `quantize`.

    Args:
      x: float32.
      fmt: the format.
      axis: along which groups lie.
      words: the key of stochastic rounding, uint32[2].
      subnormals: whether numbers down to float32's subnormals count. If not, scales
        that are powers of two stop at 2^-100, and what is too small for that is 0:
        products in float32 lose such numbers too, and quantising is faster. An
        infinity is then NaN, with its group, so that no overflow goes unseen.
      largest: float32 (), for a tensor's float32 scale: taken for max|x|, so that what
        is beyond it is clipped.
    """
    one = jnp.float32(1.0)
    noise = rounding.uniform(words, x.shape) if fmt.is_stochastic else None
    element = fmt.elements
    if fmt.scale is None:
        saturate = element.name not in ("bf16", "fp16")
        elements = rounding.round_to_element(
            x, element, noise, fmt.symmetric, saturate=saturate
        )
        return Parts(elements, jnp.abs(x) <= element.max, None, one)
    axis = checked_axis(x.ndim, axis)
    axes: tuple[int, ...] | None = (axis,)
    counts = None
    if isinstance(fmt.group, int):
        if x.shape[axis] % fmt.group and not fmt.pad:
            raise UserError(
                f"blocks of {fmt.group} do not divide an axis of {x.shape[axis]}; take "
                "another block size or a format with pad=True"
            )
        counts = _counts(x.shape, axis, fmt.group)
        x = split_axis(x, axis, fmt.group)
        noise = None if noise is None else split_axis(noise, axis, fmt.group)
        axes = (axis + 1,)
    elif fmt.group == "tensor":
        axes = None
    if fmt.scale in POWER_OF_TWO_SCALES:
        tensor_scale = (
            largest_magnitude(x, None).reshape(()) if fmt.tensor_scale else one
        )
        if fmt.tensor_scale:
            x = x * reciprocal(tensor_scale)
        of_infinity = HIGHEST_SCALE if subnormals else HIGHEST_SCALE + 1
        scale = _scale_exponent(x, fmt, axes, of_infinity, counts)
        if subnormals:
            scaled = rounding.divide_by_power_of_two(x, scale - implied_exponent(fmt))
        else:
            scale = jnp.maximum(scale, LOWEST_FAST_SCALE)
            unit = scale - implied_exponent(fmt)
            scaled = x * rounding.small_power_of_two(-unit)
    else:
        scale, tensor_scale = _scale(x, fmt, axes, largest)
        scaled = x * reciprocal(scale * tensor_scale)
    if fmt.prescale != 1.0:
        scaled = scaled * np.float32(fmt.prescale)
    elements = rounding.round_to_element(scaled, element, noise, fmt.symmetric)
    if fmt.scale in POWER_OF_TWO_SCALES:
        elements = jnp.where(scale > HIGHEST_SCALE, jnp.nan, elements)
    if not subnormals and (fmt.scale == "fixed" or largest is not None):
        # No scale of this very array told of it.
        elements = jnp.where(jnp.isinf(x), jnp.nan, elements)
    if fmt.scale == "e8m0_quest":
        is_inside = jnp.abs(scaled) < element.max
    else:  # the largest lies on the end itself, but for the rounding of 1 / scale
        is_inside = jnp.abs(scaled) <= np.float32(element.max * (1 + 1e-6))
    return Parts(elements, is_inside, scale, tensor_scale)


def put_together(
    parts: Parts,
    fmt: Format,
    shape: tuple[int, ...],
    axis: int,
    subnormals: bool = True,
) -> jax.Array:
    """Returns the float32 array of this shape that the parts stand for."""
    if parts.scale is None:
        return parts.elements
    if fmt.scale in POWER_OF_TWO_SCALES:
        unit = parts.scale - implied_exponent(fmt)
        if subnormals:
            values = rounding.multiply_by_power_of_two(parts.elements, unit)
        else:
            values = parts.elements * rounding.small_power_of_two(unit)
        if fmt.tensor_scale:
            values = values * parts.tensor_scale
    else:
        values = parts.elements * (parts.scale * parts.tensor_scale)
    if fmt.prescale != 1.0:
        values = values * np.float32(1.0 / fmt.prescale)
    if isinstance(fmt.group, int):
        axis = checked_axis(len(shape), axis)
        values = join_axis(values, axis, shape[axis])
    return values


def implied_exponent(fmt: Format) -> int:
    """Integer k stands for k / 2^(bits - 2) under an E8M0 scale (OCP MX, 5.3.4)."""
    element = fmt.elements
    return element.bits - 2 if isinstance(element, IntElement) else 0


def reciprocal(scale: jax.Array) -> jax.Array:
    """1 / scale; 0 where the scale is 0 or subnormal.

    Most subnormal scales have no reciprocal in float32, and where devices flush them
    they are 0 anyway: so all devices give the same numbers.
    """
    return jnp.where(scale < np.float32(2.0**-126), 0.0, 1.0 / scale)


def largest_magnitude(x: jax.Array, axes: tuple[int, ...] | None) -> jax.Array:
    """max|x| of the groups, kept as axes of length 1; NaN where one is.

    Taken on the bits: NaN is above infinity there, and subnormals keep their order.
    """
    bits = rounding.bits_of(x) & rounding.MAGNITUDE_MASK
    largest = jnp.max(bits, axis=axes, keepdims=True, initial=0)
    return jax.lax.bitcast_convert_type(largest, jnp.float32)


def _scale(
    x: jax.Array,
    fmt: Format,
    axes: tuple[int, ...] | None,
    largest: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns the groups' scales, as stored, and the tensor's."""
    if largest is None:
        largest = largest_magnitude(x, axes)
    else:
        largest = largest.reshape((1,) * x.ndim)
    per_element = largest * np.float32(1.0 / fmt.elements.max)
    if fmt.scale == "float32":
        return per_element, jnp.float32(1.0)
    holder = SCALE_ELEMENTS[str(fmt.scale)]
    tensor_scale = jnp.float32(1.0)
    if fmt.tensor_scale:
        tensor_scale = jnp.max(largest) * np.float32(
            1.0 / (fmt.elements.max * holder.max)
        )
        per_element = per_element * reciprocal(tensor_scale)
    scale = rounding.round_to_element(per_element, holder)
    return jnp.where(jnp.isinf(per_element), jnp.nan, scale), tensor_scale


def _counts(shape: tuple[int, ...], axis: int, block: int) -> np.ndarray | None:
    """Returns how many numbers blocks hold without padding; None if all are full."""
    length = shape[axis]
    if length % block == 0:
        return None
    counts = np.full(-(-length // block), block, np.float32)
    counts[-1] = length % block
    return counts.reshape(-1, *(1,) * (len(shape) - axis))


def _scale_exponent(
    x: jax.Array,
    fmt: Format,
    axes: tuple[int, ...] | None,
    of_infinity: int,
    counts: np.ndarray | None = None,
) -> jax.Array:
    """Returns the exponents of E8M0 scales, int32; above 127 stands for NaN.

    All on the bits of the largest magnitude, m 2^e with 1 <= m < 2, so exact. Where the
    scale follows from a mean, that is of `counts` numbers, not of padding.
    """
    if fmt.scale == "fixed":
        fixed = implied_exponent(fmt) - fmt.fraction_bits
        return jnp.full((1,) * x.ndim, fixed, jnp.int32)
    if fmt.scale == "e8m0_quest":
        squares = jnp.square(x)
        if counts is None:
            mean = jnp.mean(squares, axis=axes, keepdims=True)
        else:
            mean = jnp.sum(squares, axis=axes, keepdims=True) / counts
        number = jnp.sqrt(mean) * np.float32(QUEST_SCALE)
    else:
        number = largest_magnitude(x, axes)
    bits = rounding.bits_of(number)
    field = (bits & rounding.EXPONENT_MASK) >> 23
    mantissa = bits & rounding.MANTISSA_MASK
    # Only subnormals from 2^-127 on can lie above the lowest scale.
    shifted = jnp.where(mantissa >> 22 == 1, mantissa << 1, 0)
    mantissa = jnp.where(field == 0, shifted & rounding.MANTISSA_MASK, mantissa)
    exponent = field - 127 + _correction(fmt, mantissa)
    exponent = jnp.clip(exponent, LOWEST_SCALE, HIGHEST_SCALE)
    exponent = jnp.where(jnp.isinf(number), of_infinity, exponent)
    return jnp.where(jnp.isnan(number), HIGHEST_SCALE + 1, exponent)


def _correction(fmt: Format, mantissa: jax.Array) -> jax.Array:
    """Returns log2(scale) - e for largest magnitudes m 2^e with these mantissas."""
    if fmt.scale == "e8m0_quest":
        return (mantissa >= _mantissa_field(2.0**0.5)).astype(jnp.int32)
    element = fmt.elements
    emax = exponent_of_max(element) if isinstance(element, FloatElement) else 0
    top = element.max / 2.0 ** exponent_of_max(element)  # in [1, 2)
    if fmt.scale == "e8m0_floor":
        return jnp.full_like(mantissa, -emax)
    if fmt.scale == "e8m0_ceil":
        return (mantissa > _mantissa_field(top)).astype(jnp.int32) - emax
    down, up = top / 2.0**0.5, top * 2.0**0.5
    correction = jnp.full_like(mantissa, -emax)
    if down > 1.0:
        correction -= mantissa < _mantissa_field(down)
    if up < 2.0:
        correction += mantissa >= _mantissa_field(up)
    return correction


def _mantissa_field(value: float) -> int:
    """Returns the mantissa bits of a number in [1, 2)."""
    return int(np.float32(value).view(np.int32)) & rounding.MANTISSA_MASK
