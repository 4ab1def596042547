"""Rounding float32 numbers to the grid of an element, and the randomness for it.

Everything is plain arithmetic on float32 and int32, so it is the same on every device,
also where the device has no such type. Processors that flush subnormals to zero (XLA
does so on CPU) change nothing: no intermediate result is subnormal, and subnormal
inputs and outputs are handled as integers.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from algoperf.errors import UserError
from algoperf.numerics.formats import Element, FloatElement, IntElement

EXPONENT_MASK = 0x7F800000
MANTISSA_MASK = 0x007FFFFF
MAGNITUDE_MASK = 0x7FFFFFFF
Words = Any  # uint32[2]: a key of the hash below


def bits_of(x: jax.Array) -> jax.Array:
    """Returns the bits of float32 numbers as int32."""
    return lax.bitcast_convert_type(x, jnp.int32)


def power_of_two(exponent: jax.Array) -> jax.Array:
    """Returns 2^exponent (float32) for int32 exponents, clipped to [-126, 127]."""
    return small_power_of_two(jnp.clip(exponent, -126, 127))


def small_power_of_two(exponent: jax.Array) -> jax.Array:
    """Returns 2^exponent for exponents that are known to lie in [-126, 127]."""
    return lax.bitcast_convert_type((exponent + 127) << 23, jnp.float32)


def times_power_of_two(x: jax.Array, exponent: jax.Array) -> jax.Array:
    """Returns x 2^exponent in two factors, so that |exponent| may exceed 127."""
    half = exponent >> 1
    return x * power_of_two(half) * power_of_two(exponent - half)


def divide_by_power_of_two(x: jax.Array, exponent: jax.Array) -> jax.Array:
    """Returns x / 2^exponent, also right where x is subnormal."""
    bits = bits_of(x)
    magnitude = bits & MAGNITUDE_MASK
    mantissa = jnp.where(bits < 0, -magnitude, magnitude).astype(jnp.float32)
    return jnp.where(
        magnitude <= MANTISSA_MASK,
        times_power_of_two(mantissa, -149 - exponent),
        times_power_of_two(x, -exponent),
    )


def multiply_by_power_of_two(x: jax.Array, exponent: jax.Array) -> jax.Array:
    """Returns x 2^exponent, also right where that is subnormal (and exact)."""
    product = times_power_of_two(x, exponent)
    is_subnormal = jnp.abs(x) < power_of_two(-126 - exponent)
    # Beyond 2^30 the clipped power says "subnormal" of anything; nothing is.
    is_subnormal &= exponent < -100
    steps = times_power_of_two(x, exponent + 149)  # a whole number of 2^-149
    magnitude = jnp.abs(jnp.where(is_subnormal, steps, 0.0)).astype(jnp.int32)
    sign = bits_of(x) & ~MAGNITUDE_MASK
    tiny = lax.bitcast_convert_type(magnitude | sign, jnp.float32)
    return jnp.where(is_subnormal, tiny, product)


def _round(y: jax.Array, noise: jax.Array | None) -> jax.Array:
    """Rounds to integers: to nearest even, or up with the probability of the rest."""
    if noise is None:
        return lax.round(y, lax.RoundingMethod.TO_NEAREST_EVEN)
    magnitude = jnp.abs(y)
    below = jnp.floor(magnitude)
    rounded = below + (noise < magnitude - below)
    return jnp.where(y < 0, -rounded, rounded)


def round_to_element(
    y: jax.Array,
    element: Element,
    noise: jax.Array | None = None,
    symmetric: bool = True,
    saturate: bool = True,
) -> jax.Array:
    """Rounds float32 numbers to the values of an element.

    Args:
      y: float32; infinities and NaN are allowed, NaN stays.
      element: the grid.
      noise: None for round to nearest, ties to even; else uniform on [0, 1), same
        shape: stochastic rounding, E[result] = y inside the range.
      symmetric: see `Format.symmetric`.
      saturate: whether what is beyond the largest value becomes the largest value;
        otherwise infinity, as in a cast to an IEEE type.
    """
    if isinstance(element, IntElement):
        low = -element.max if symmetric else -element.max - 1.0
        rounded = jnp.clip(_round(y, noise), low, element.max)
        return jnp.where(rounded == 0.0, 0.0, rounded)  # integers have one zero
    if element.name == "bf16":
        return _round_to_bfloat16(y, noise, saturate)
    bounded = jnp.clip(y, -element.max, element.max) if saturate else y
    exponent = ((bits_of(bounded) & EXPONENT_MASK) >> 23) - 127
    step = jnp.maximum(exponent, element.min_exponent) - element.mantissa_bits
    rounded = _round(bounded * small_power_of_two(-step), noise)
    rounded = rounded * small_power_of_two(step)
    if saturate:
        return rounded
    beyond = jnp.where(y < 0, -jnp.inf, jnp.inf)
    rounded = jnp.where(jnp.abs(rounded) > element.max, beyond, rounded)
    return jnp.where(jnp.isinf(y), y, rounded)


def _round_to_bfloat16(
    y: jax.Array, noise: jax.Array | None, saturate: bool
) -> jax.Array:
    """bfloat16 is the upper half of float32, its subnormals too: round the bits."""
    bits = bits_of(y)
    if noise is None:
        carry = 0x7FFF + ((bits >> 16) & 1)
    else:
        carry = (noise * 65536.0).astype(jnp.int32)
    magnitude = ((bits & MAGNITUDE_MASK) + carry) & ~0xFFFF
    if saturate:
        magnitude = jnp.minimum(magnitude, 0x7F7F0000)
    rounded = lax.bitcast_convert_type(
        magnitude | (bits & ~MAGNITUDE_MASK), jnp.float32
    )
    is_finite = (bits & MAGNITUDE_MASK) < EXPONENT_MASK
    return jnp.where(is_finite | (saturate & ~jnp.isnan(y)), rounded, y)


def element_codes(values: jax.Array, element: Element) -> jax.Array:
    """Returns the codes (uint8 or uint16) of values that lie on an element's grid.

    Floats: sign, exponent field, mantissa. Integers: two's complement.
    """
    kind = jnp.uint8 if element.bits <= 8 else jnp.uint16
    if isinstance(element, IntElement):
        return (values.astype(jnp.int32) & ((1 << element.bits) - 1)).astype(kind)
    bits = bits_of(values)
    sign = (bits >> 31) & 1
    if element.name == "bf16":
        return ((bits >> 16) & 0xFFFF).astype(kind)
    magnitude = jnp.abs(values)
    exponent = ((bits & EXPONENT_MASK) >> 23) - 127
    field = jnp.maximum(exponent - element.min_exponent + 1, 0)
    is_normal = magnitude >= 2.0**element.min_exponent
    mantissa = (bits & MANTISSA_MASK) >> (23 - element.mantissa_bits)
    subnormal = (magnitude * (1.0 / element.smallest)).astype(jnp.int32)
    code = jnp.where(is_normal, (field << element.mantissa_bits) | mantissa, subnormal)
    if element.name == "fp16":
        quiet = jnp.isnan(values).astype(jnp.int32) << (element.mantissa_bits - 1)
        code = jnp.where(jnp.isfinite(values), code, _highest_codes(element) | quiet)
    return ((sign << (element.bits - 1)) | code).astype(kind)


def element_values(codes: jax.Array, element: Element) -> jax.Array:
    """Returns the float32 values of codes, the inverse of `element_codes`."""
    codes = codes.astype(jnp.int32)
    if isinstance(element, IntElement):
        shift = 32 - element.bits
        return ((codes << shift) >> shift).astype(jnp.float32)
    if element.name == "bf16":
        return lax.bitcast_convert_type(codes << 16, jnp.float32)
    return _float_values(codes, element)


def _highest_codes(element: FloatElement) -> int:
    """Returns the code of infinity in an IEEE type; those above it are NaN."""
    return ((1 << element.exponent_bits) - 1) << element.mantissa_bits


def _float_values(codes: jax.Array, element: FloatElement) -> jax.Array:
    magnitude = codes & ((1 << (element.bits - 1)) - 1)
    field = magnitude >> element.mantissa_bits
    mantissa = magnitude & ((1 << element.mantissa_bits) - 1)
    whole = jnp.where(field > 0, mantissa + (1 << element.mantissa_bits), mantissa)
    step = jnp.maximum(field, 1) - element.bias - element.mantissa_bits
    values = whole.astype(jnp.float32) * power_of_two(step)
    if element.name == "fp16":
        beyond = jnp.where(mantissa == 0, jnp.inf, jnp.nan)
        values = jnp.where(magnitude < _highest_codes(element), values, beyond)
    sign = (codes >> (element.bits - 1)) & 1
    return lax.bitcast_convert_type(bits_of(values) | (sign << 31), jnp.float32)


# Stochastic rounding needs many random numbers of modest quality. Threefry would be
# most of a recipe's compile time and a good part of its run time; a hash of the
# element's index fuses into the rounding.


def _mix(x: jax.Array) -> jax.Array:
    """A bijective hash of uint32 (lowbias32 of Wellons, 'hash prospector', 2018)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def words_of(key: Any) -> Words:
    """Returns uint32[2] for a JAX key, typed or raw.

    Raises:
      UserError: it is no single key.
    """
    is_typed = jnp.issubdtype(jnp.result_type(key), jax.dtypes.prng_key)
    words = jax.random.key_data(key) if is_typed else jnp.asarray(key)
    if words.dtype != jnp.uint32 or words.ndim != 1 or words.shape[0] not in (2, 4):
        raise UserError(
            f"a key has dtype {words.dtype} and shape {words.shape}; give one key of "
            "jax.random.key or jax.random.PRNGKey"
        )
    return _mix(words[:2] ^ _mix(words[-2:] + jnp.uint32(0x9E3779B9)))


def fold(words: Words, number: Any) -> Words:
    """Returns the keys that numbers pick.

    Args:
      words: uint32[..., 2], keys.
      number: an int, or integers that broadcast against the keys' leading axes.

    Returns:
      uint32[..., 2].
    """
    if isinstance(number, int):
        number = np.uint32(number)
    number = jnp.asarray(number).astype(jnp.uint32)
    first = _mix(words[..., 0] + _mix(number ^ jnp.uint32(0x85EBCA6B)))
    second = _mix(words[..., 1] ^ _mix(first + number * jnp.uint32(0xC2B2AE35)))
    return jnp.stack([first, second], axis=-1)


@functools.cache
def _constants(number: int) -> np.ndarray:
    return np.random.SeedSequence(number).generate_state(2).astype(np.uint32)


def stream(words: Words, number: int) -> Words:
    """Returns the key of a numbered stream of a key, as `fold`, but in one operation.

    `fold` is some forty operations on single numbers, and a recipe has six operands and
    three rotations for each product: folding for each was a third of its compile time.
    The two words of a stream differ from the key's by constants; `random_bits` uses
    them in different ways, so streams are no shifted copies of each other.
    """
    return words ^ _constants(number)


def random_bits(words: Words, shape: tuple[int, ...]) -> jax.Array:
    """Returns uint32 numbers, one for each index: a hash of words[0] + index step.

    The step is words[1] made odd, so no two indices share a number.
    """
    size = 1
    for length in shape:
        size *= length
    index = lax.iota(jnp.uint32, size).reshape(shape)
    return _mix(index * (words[1] | jnp.uint32(1)) + words[0])


def uniform(words: Words, shape: tuple[int, ...]) -> jax.Array:
    """Returns float32 numbers, uniform on the multiples of 2^-24 in [0, 1)."""
    return (random_bits(words, shape) >> 8).astype(jnp.float32) * 2.0**-24
