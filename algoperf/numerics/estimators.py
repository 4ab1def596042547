"""What stands for the derivative of rounding.

Quantising a block is f(x) = s Q(x / s) with a scale s that follows from the block's
largest magnitude. Q is a staircase, so its derivative is replaced. What stands for it
counts as constant where it is differentiated once more.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from algoperf.numerics import blocks, rounding
from algoperf.numerics.formats import FloatElement, Format

DGE_POWER = 5.0
DGE_LIMIT = 3.0


def block_gradient(
    x: jax.Array,
    g: jax.Array,
    scale: jax.Array,
    rounded: jax.Array,
    derivative: jax.Array,
    top: float,
    axes: tuple[int, ...] | None,
) -> jax.Array:
    """The gradient of sum_i g_i s Q(x_i / s) with s = max|x| / top.

    With u = x / s, the derivative by s is sum_i g_i (Q(u_i) - u_i Q'(u_i)), and s moves
    with the largest element only, by sign / top (shared where several are largest):

      dL/dx_j = g_j Q'(u_j) + [j is largest] sign(x_j) / top sum_i g_i (Q_i - u_i Q'_i)

    Proposition 1 of arXiv:2509.17791 for Z = absmax, derived anew. The rounding of the
    scale itself counts with derivative 1.

    Args:
      x, g: float32, the block's values and the gradients of f's.
      scale: float32 s, broadcasts against x.
      rounded, derivative: Q(u) and what stands for Q'(u).
      top: the element's largest value.
      axes: the axes of a block; None for all.
    """
    u = x * blocks.reciprocal(scale)
    by_scale = jnp.sum(g * (rounded - u * derivative), axis=axes, keepdims=True)
    magnitude = jnp.abs(x)
    is_largest = magnitude == jnp.max(magnitude, axis=axes, keepdims=True)
    share = is_largest / jnp.sum(is_largest, axis=axes, keepdims=True)
    return g * derivative + by_scale * share * jnp.sign(x) / top


def exact(x: jax.Array, g: jax.Array, fmt: Format, axis: int) -> jax.Array:
    """Pulls g back through `quantize(x, fmt, axis)` with its scale's derivative.

    Q' is 1 where a value was rounded and 0 where it was clipped. A format without scale
    has only that.
    """
    fmt = fmt.replace(rounding="nearest_even")
    parts = blocks.take_apart(x, fmt, axis, subnormals=False)
    if parts.scale is None:
        return g * parts.is_inside
    axis = blocks.checked_axis(x.ndim, axis)
    axes: tuple[int, ...] | None = (axis,)
    length = x.shape[axis]
    if isinstance(fmt.group, int):
        x, g = (blocks.split_axis(a, axis, fmt.group) for a in (x, g))
        axes = (axis + 1,)
    elif fmt.group == "tensor":
        axes = None
    unit = blocks.Parts(
        jnp.ones_like(parts.elements), parts.is_inside, parts.scale, parts.tensor_scale
    )
    whole = fmt.replace(group="tensor")  # keeps the blocks' own axis
    scale = blocks.put_together(unit, whole, x.shape, axis, subnormals=False)
    derivative = parts.is_inside.astype(jnp.float32)
    pulled = block_gradient(
        x, g, scale, parts.elements, derivative, fmt.elements.max, axes
    )
    if isinstance(fmt.group, int):
        pulled = blocks.join_axis(pulled, axis, length)
    return pulled


def dge_derivative(u: jax.Array, fmt: Format) -> jax.Array:
    """The power law's slope at scaled values u (Wang et al. 2025, arXiv:2501.17116).

    Between neighbours a distance d apart, at r = (|u| - lower) / d from 0 to 1, the
    staircase is replaced by d / 2 (1 + sign(2r - 1) |2r - 1|^(1/k)), whose slope is
    |2r - 1|^(1/k - 1) / k, with k = 5; limited to 3.
    """
    magnitude = jnp.abs(u)
    element = fmt.elements
    if isinstance(element, FloatElement):
        bits = rounding.bits_of(magnitude)
        exponent = ((bits & rounding.EXPONENT_MASK) >> 23) - 127
        step = jnp.maximum(exponent, element.min_exponent) - element.mantissa_bits
        magnitude = rounding.times_power_of_two(magnitude, -step)
    position = magnitude - jnp.floor(magnitude)
    distance = jnp.maximum(jnp.abs(2 * position - 1), 1e-6)
    slope = distance ** (1 / DGE_POWER - 1) / DGE_POWER
    return jnp.minimum(slope, DGE_LIMIT)


def dge(x: jax.Array, g: jax.Array, fmt: Format, axis: int) -> jax.Array:
    """Returns g times the slope of the power law at x."""
    fmt = fmt.replace(rounding="nearest_even")
    parts = blocks.take_apart(x, fmt, axis, subnormals=False)
    if parts.scale is None:
        return g * dge_derivative(x, fmt)
    axis = blocks.checked_axis(x.ndim, axis)
    split = x
    if isinstance(fmt.group, int):
        split = blocks.split_axis(x, axis, fmt.group)
    unit = parts._replace(elements=jnp.ones_like(parts.elements))
    scale = blocks.put_together(
        unit, fmt.replace(group="tensor"), x.shape, axis, subnormals=False
    )
    slope = dge_derivative(split * blocks.reciprocal(scale), fmt)
    if isinstance(fmt.group, int):
        slope = blocks.join_axis(slope, axis, x.shape[axis])
    return g * slope


def passed(
    estimator: str, x: jax.Array, mask: jax.Array, fmt: Format, axis: int
) -> jax.Array:
    """Returns an array that depends on x as its quantised values count to do.

    Args:
      estimator: of the recipe.
      x: float32.
      mask: where x was rounded and not clipped.
      fmt, axis: how it was quantised.
    """
    if estimator == "clipped":
        return x * mask
    fixed = jax.lax.stop_gradient(x)
    if estimator == "dge":
        return dge(fixed, x, fmt, axis)
    if estimator == "exact":
        (moved,) = jax.linear_transpose(lambda g: exact(fixed, g, fmt, axis), x)(x)
        return moved
    return x


# Not a `jax.custom_jvp`: a scan that is differentiated forgets those of its body.
_with_derivative_p = Primitive("with_derivative")
_with_derivative_p.def_impl(lambda values, _: values)
_with_derivative_p.def_abstract_eval(lambda values, _: values)
ad.defjvp(_with_derivative_p, None, lambda tangent, *_: tangent)
mlir.register_lowering(_with_derivative_p, lambda _, values, __: [values])


def _batched(arrays: Any, axes: Any) -> tuple[jax.Array, int]:
    pairs = list(zip(arrays, axes, strict=True))
    size = next(array.shape[axis] for array, axis in pairs if axis is not None)
    return with_derivative(*(batching.bdim_at_front(*p, size) for p in pairs)), 0


batching.primitive_batchers[_with_derivative_p] = _batched


def with_derivative(values: jax.Array, other: jax.Array) -> jax.Array:
    """Returns the values, bit for bit, with the derivative of another array.

    That of rounding is 0, and so would all be that is made of it. The other array is
    of the same shape and dtype; compiled, it is not computed.
    """
    return _with_derivative_p.bind(values, other)
