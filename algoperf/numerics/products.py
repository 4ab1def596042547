"""One product with quantised operands, forward and backward.

A product is bilinear, out = contract(left, right). Its gradients are products too: of g
with right, for left, and of g with left, for right; each contracts another axis, along
which its operands are quantised. So six arrays are quantised in all.

Matrix products are brought to left (B, M, K), right (B, K, N), out (B, M, N).
Convolutions stay as they are. They contract channels and kernel positions (forward),
output channels and kernel positions (gradient of x), batch and positions (gradient of
w). In which order a product adds up is ours to choose: channels, output channels and
batch are innermost, so a block never crosses a position, and each is a block of
neighbours on the contracted axis of a matrix product that a kernel could run.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from algoperf.numerics import estimators, rounding, transforms
from algoperf.numerics.formats import Format
from algoperf.numerics.recipes import Recipe, Rotation


@dataclasses.dataclass(frozen=True)
class Product:
    """One product of a function, and how it is quantised; static under jit.

    Attributes:
      recipe: the formats.
      is_convolution: else a batched matrix product.
      params: of the convolution's primitive, as sorted pairs; of a matrix product,
        'precision' and 'preferred_element_type'.
      weight_is_left: whether the left operand has the role of w.
      shapes, dtypes: of left and right.
    """

    recipe: Recipe
    is_convolution: bool
    params: tuple[tuple[str, Any], ...]
    weight_is_left: bool
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    dtypes: tuple[Any, Any]


class _Operand(NamedTuple):
    """Where one operand of a product is quantised: format, axis, groups on the axis."""

    fmt: Format | None
    axis: int
    groups: int


class _Plan(NamedTuple):
    """One of the three products: its operands, its rotation, its number."""

    first: _Operand
    second: _Operand
    rotation: Rotation | None
    number: int


def _plans(product: Product) -> tuple[_Plan, _Plan, _Plan]:
    """Returns the plans of forward (left, right), gradients of left, and of right."""
    recipe = product.recipe
    # By role: (own format in the forward product, the format of g and of this operand
    # where the gradient of the OTHER operand is made, that product's rotation).
    as_x = (recipe.forward_x, recipe.weight_gradient_g, recipe.weight_gradient_x)
    as_w = (recipe.forward_w, recipe.input_gradient_g, recipe.input_gradient_w)
    rotations = [recipe.weight_gradient_rotation, recipe.input_gradient_rotation]
    left, right = (as_w, as_x) if product.weight_is_left else (as_x, as_w)
    if product.weight_is_left:
        rotations.reverse()
    axes = _axes(product)
    forward = _Plan(
        _Operand(left[0], *axes["left"]),
        _Operand(right[0], *axes["right"]),
        recipe.forward_rotation,
        0,
    )
    of_left = _Plan(
        _Operand(right[1], *axes["g_for_left"]),
        _Operand(right[2], *axes["right_for_left"]),
        rotations[1],
        1,
    )
    of_right = _Plan(
        _Operand(left[1], *axes["g_for_right"]),
        _Operand(left[2], *axes["left_for_right"]),
        rotations[0],
        2,
    )
    return forward, of_left, of_right


def _axes(product: Product) -> dict[str, tuple[int, int]]:
    """Returns the contracted axis, and its groups, of the operands of all products."""
    if not product.is_convolution:
        return {
            "left": (2, 1),
            "right": (1, 1),
            "g_for_left": (2, 1),
            "right_for_left": (2, 1),
            "g_for_right": (1, 1),
            "left_for_right": (1, 1),
        }
    params = dict(product.params)
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    batch, channel = numbers.lhs_spec[:2]
    out_channel, in_channel = numbers.rhs_spec[:2]
    return {
        "left": (channel, groups),
        "right": (in_channel, 1),
        "g_for_left": (numbers.out_spec[1], groups),
        "right_for_left": (out_channel, groups),
        "g_for_right": (numbers.out_spec[0], 1),
        "left_for_right": (batch, 1),
    }


def _contract(
    product: Product, is_exact: bool, left: jax.Array, right: jax.Array
) -> jax.Array:
    """The product itself; `is_exact`: in full float32 whatever the model asks for."""
    params = dict(product.params)
    if is_exact:
        # TF32 and bfloat16 passes would round what has been quantised once more.
        params["precision"] = lax.Precision.HIGHEST
        params["preferred_element_type"] = jnp.float32
    if product.is_convolution:
        return lax.conv_general_dilated_p.bind(left, right, **params)
    return lax.dot_general(left, right, (((2,), (1,)), ((0,), (0,))), **params)


# Traced once for each shape and format, not once for each operand.
_quantise = jax.jit(transforms.quantize_with_mask, static_argnums=(1, 2))
_rotate = jax.jit(transforms.rotate, static_argnums=(1, 2))
_rotate_back = jax.jit(transforms.rotate_back, static_argnums=(1, 2, 4))


def _signs(plan: _Plan, words: rounding.Words) -> jax.Array | None:
    if plan.rotation is None or not plan.rotation.random:
        return None
    return transforms.random_signs(
        rounding.stream(words, 100 + plan.number), plan.rotation.block
    )


def _grouped(x: jax.Array, operand: _Operand) -> tuple[jax.Array, int]:
    """Splits the axis into its groups, which no block may cross."""
    axis, groups = operand.axis, operand.groups
    if groups == 1:
        return x, axis
    shape = (*x.shape[:axis], groups, x.shape[axis] // groups, *x.shape[axis + 1 :])
    return x.reshape(shape), axis + 1


def _ungrouped(x: jax.Array, operand: _Operand) -> jax.Array:
    if operand.groups == 1:
        return x
    axis = operand.axis
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def _rotated(
    x: jax.Array, operand: _Operand, plan: _Plan, words: rounding.Words
) -> jax.Array:
    if plan.rotation is None:
        return x
    x, axis = _grouped(x, operand)
    rotated = _rotate(x, plan.rotation.block, axis, _signs(plan, words))
    return _ungrouped(rotated, operand)


def _rotated_back(
    x: jax.Array, operand: _Operand, plan: _Plan, words: rounding.Words, length: int
) -> jax.Array:
    if plan.rotation is None:
        return x
    x, axis = _grouped(x, operand)
    back = _rotate_back(
        x, plan.rotation.block, axis, _signs(plan, words), length // operand.groups
    )
    return _ungrouped(back, operand)


def _quantised(
    x: jax.Array,
    operand: _Operand,
    words: rounding.Words,
    slot: int,
    outliers: float = 0.0,
) -> tuple[jax.Array, jax.Array | None]:
    """Returns the quantised operand, and where it was not clipped."""
    if operand.fmt is None:
        return x, None
    kept: Any = None
    if outliers:
        x, kept = transforms.split_outliers(x, outliers)
    x, axis = _grouped(x, operand)
    own = rounding.stream(words, slot) if operand.fmt.is_stochastic else None
    values, mask = _quantise(x, operand.fmt, axis, own)
    values, mask = _ungrouped(values, operand), _ungrouped(mask, operand)
    return (values if kept is None else values + kept), mask


def _is_untouched(plan: _Plan) -> bool:
    return plan.rotation is None and plan.first.fmt is None and plan.second.fmt is None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def quantised_product(
    product: Product, left: jax.Array, right: jax.Array, words: rounding.Words
) -> jax.Array:
    """Returns the product of quantised operands; its gradient's products are too.

    Args:
      product: what to do.
      left, right: the operands, of any float dtype.
      words: uint32[2], the key; used only by what is random.
    """
    return _forward(product, left, right, words)[0]


def _forward(product, left, right, words):
    """Returns the result, the rotated operands, the quantised ones, and their masks."""
    plan = _plans(product)[0]
    if _is_untouched(plan):
        out = _contract(product, False, left, right)
        return out, (left, right), (left, right), (None, None)
    outliers = product.recipe.outliers
    rotated = (
        _rotated(left.astype(jnp.float32), plan.first, plan, words),
        _rotated(right.astype(jnp.float32), plan.second, plan, words),
    )
    left_q, left_mask = _quantised(rotated[0], plan.first, words, 0, outliers)
    right_q, right_mask = _quantised(rotated[1], plan.second, words, 1, outliers)
    out = _contract(product, True, left_q, right_q)
    dtype = dict(product.params)["preferred_element_type"]
    dtype = dtype or jnp.result_type(left, right)
    return out.astype(dtype), rotated, (left_q, right_q), (left_mask, right_mask)


def _forward_rule(product, left, right, words):
    out, _, quantised, masks = _forward(product, left, right, words)
    recipe = product.recipe
    masks = masks if recipe.estimator == "clipped" else (None, None)
    if recipe.backward_from == "original":
        return out, ((left, right), None, masks, words)
    # Kept is only what the backward products need: not the operands as they were.
    needs_originals = recipe.estimator in ("exact", "dge")
    originals = (left, right) if needs_originals else (None, None)
    return out, (originals, quantised, masks, words)


def _backward_rule(product, residuals, g):
    forward, of_left, of_right = _plans(product)
    originals, quantised, masks, words = residuals
    recipe = product.recipe
    plans = (of_left, of_right)
    is_plain = recipe.estimator == "straight_through" and quantised is None
    operands = (forward.first, forward.second)
    if quantised is not None:
        base = quantised
    elif is_plain or _is_untouched(forward):
        base = originals
    else:
        base = tuple(
            _rotated(a.astype(jnp.float32), operand, forward, words)
            for a, operand in zip(originals, operands, strict=True)
        )
    gradients = []
    for side in (0, 1):
        gradient = _gradient(product, plans[side], side, base, g, words)
        if not is_plain and not _is_untouched(forward):
            gradient = _pulled_back(
                product, side, gradient, originals[side], masks[side], words
            )
        gradients.append(gradient.astype(product.dtypes[side]))
    return (*gradients, None)


def _gradient(product, plan, side, base, g, words):
    """The gradient of left (side 0) or right (1), a product of g with the other."""
    other = base[1 - side]
    wanted = base[side]  # its type alone
    if _is_untouched(plan):
        transposed = functools.partial(_transposed, product, False)
        # The quantised operands are float32, g may be of the model's own dtype.
        if other.dtype == jnp.float32 and g.dtype != jnp.float32:
            transposed = functools.partial(_transposed, product, True)
            g = g.astype(jnp.float32)
        return transposed(side, wanted, other, g)
    g = _rotated(g.astype(jnp.float32), plan.first, plan, words)
    other = _rotated(other.astype(jnp.float32), plan.second, plan, words)
    slot = 2 * plan.number
    g, _ = _quantised(g, plan.first, words, slot)
    other, _ = _quantised(other, plan.second, words, slot + 1)
    return _transposed(product, True, side, wanted.astype(jnp.float32), other, g)


def _transposed(product, is_exact, side, wanted, other, g):
    """The product is linear in each operand; this is the transpose of that map."""

    def linear(operand):
        pair = (operand, other) if side == 0 else (other, operand)
        return _contract(product, is_exact, *pair)

    (gradient,) = jax.linear_transpose(linear, wanted)(g)
    return gradient


def _pulled_back(product, side, gradient, original, mask, words):
    """From the gradient of the quantised operand to that of the operand itself."""
    forward = _plans(product)[0]
    operand = (forward.first, forward.second)[side]
    estimator = product.recipe.estimator
    is_weight = side == (0 if product.weight_is_left else 1)
    if estimator == "clipped" and mask is not None:
        gradient = gradient * mask
    elif operand.fmt is not None and (
        estimator == "exact" or (estimator == "dge" and is_weight)
    ):
        x = _rotated(original.astype(jnp.float32), operand, forward, words)
        x, axis = _grouped(x, operand)
        grouped, _ = _grouped(gradient, operand)
        pull = estimators.exact if estimator == "exact" else estimators.dge
        gradient = _ungrouped(pull(x, grouped, operand.fmt, axis), operand)
    if forward.rotation is None:
        return gradient
    length = product.shapes[side][operand.axis]
    return _rotated_back(gradient, operand, forward, words, length)


quantised_product.defvjp(_forward_rule, _backward_rule)


def dot_general(
    recipe: Recipe,
    params: dict[str, Any],
    weight_is_left: bool,
    left: jax.Array,
    right: jax.Array,
    words: rounding.Words,
) -> jax.Array:
    """`lax.dot_general` with quantised operands; `params` are its primitive's."""
    (left_k, right_k), (left_b, right_b) = params["dimension_numbers"]
    left_m = [i for i in range(left.ndim) if i not in {*left_k, *left_b}]
    right_n = [i for i in range(right.ndim) if i not in {*right_k, *right_b}]
    batch = tuple(left.shape[i] for i in left_b)
    rows = tuple(left.shape[i] for i in left_m)
    columns = tuple(right.shape[i] for i in right_n)
    inner = math.prod(left.shape[i] for i in left_k)
    left_BMK = left.transpose(*left_b, *left_m, *left_k)
    left_BMK = left_BMK.reshape(math.prod(batch), math.prod(rows), inner)
    right_BKN = right.transpose(*right_b, *right_k, *right_n)
    right_BKN = right_BKN.reshape(math.prod(batch), inner, math.prod(columns))
    names = ("precision", "preferred_element_type")
    kept = tuple((name, params[name]) for name in names)
    shapes, dtypes = (left_BMK.shape, right_BKN.shape), (left.dtype, right.dtype)
    product = Product(recipe, False, kept, weight_is_left, shapes, dtypes)
    out_BMN = quantised_product(product, left_BMK, right_BKN, words)
    return out_BMN.reshape(*batch, *rows, *columns)


def convolution(
    recipe: Recipe,
    params: dict[str, Any],
    weight_is_left: bool,
    left: jax.Array,
    right: jax.Array,
    words: rounding.Words,
) -> jax.Array:
    """`lax.conv_general_dilated` with quantised operands; see `dot_general`."""
    shapes, dtypes = (left.shape, right.shape), (left.dtype, right.dtype)
    kept = tuple(sorted(params.items()))
    product = Product(recipe, True, kept, weight_is_left, shapes, dtypes)
    return quantised_product(product, left, right, words)
