"""One product with quantised operands, forward and backward; see `plans`."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from algoperf.numerics import blocks, estimators, rounding, transforms, units
from algoperf.numerics.find import CONVOLUTION, Found
from algoperf.numerics.plans import Operand, Plan, Product, plans_of
from algoperf.numerics.recipes import Recipe
from algoperf.numerics.transforms import Factors

STRAIGHT = "straight_through"  # the estimator 1


class Given(NamedTuple):
    """What a product needs beside its operands.

    Attributes:
      words: uint32 (2,), the key; used only by what is random.
      history: float32 (6, steps), the largest magnitudes of the six operands in the
        steps before, the newest first, 0 where there was none; None without. Its
        gradient is the next history.
    """

    words: rounding.Words
    history: jax.Array | None = None


def units_of(product: Product, plan: Plan) -> str:
    """Returns the units that one of the three products runs in, of `units.KINDS`."""
    if plan.number == 0 and product.recipe.outliers:
        return units.EMULATED
    return units.choose(
        plan.first.fmt,
        plan.second.fmt,
        product.device,
        plan.length,
        product.is_convolution,
    )


def _multiply(kind: str, plan: Plan, pair: Any, axes: tuple[int, int]) -> jax.Array:
    formats: Any = (plan.first.fmt, plan.second.fmt)
    if axes == (1, 1):  # the operands of that product are swapped
        formats = formats[::-1]
    out = units.multiply(kind, pair[0].factors, pair[1].factors, formats, axes)
    # Casts to the units' own types would round tangents, or lose them.
    emulated = lax.dot_general(
        pair[0].values,
        pair[1].values,
        (((axes[0],), (axes[1],)), ((0,), (0,))),
        precision=lax.Precision.HIGHEST,
    )
    return estimators.with_derivative(out, emulated)


def _contract(
    product: Product, kind: str | None, left: jax.Array, right: jax.Array
) -> jax.Array:
    """The product itself; with a kind in float32 whatever the model asks for."""
    params = dict(product.params)
    if kind is not None:
        # TF32 and bfloat16 passes would round what has been quantised once more; but
        # where everything is exact in bfloat16, it is in those too.
        is_exact = kind == "bfloat16"
        precision = lax.Precision.DEFAULT if is_exact else lax.Precision.HIGHEST
        params["precision"] = precision
        params["preferred_element_type"] = jnp.float32
    if product.is_convolution:
        return lax.conv_general_dilated_p.bind(left, right, **params)
    return lax.dot_general(left, right, (((2,), (1,)), ((0,), (0,))), **params)


# Traced once for each shape and format, not once for each operand.
_quantise = jax.jit(transforms.quantize_in_full, static_argnums=(1, 2))
_rotate = jax.jit(transforms.rotate, static_argnums=(1, 2))
_rotate_back = jax.jit(transforms.rotate_back, static_argnums=(1, 2, 4))


def _signs(plan: Plan, words: rounding.Words) -> jax.Array | None:
    if plan.rotation is None or not plan.rotation.random:
        return None
    return transforms.random_signs(
        rounding.stream(words, 100 + plan.number), plan.rotation.block
    )


def _grouped(x: jax.Array, operand: Operand) -> tuple[jax.Array, int]:
    """Splits the axis into its groups, which no block may cross."""
    axis, groups = operand.axis, operand.groups
    if groups == 1:
        return x, axis
    shape = (*x.shape[:axis], groups, x.shape[axis] // groups, *x.shape[axis + 1 :])
    return x.reshape(shape), axis + 1


def _ungrouped(x: jax.Array, operand: Operand) -> jax.Array:
    if operand.groups == 1:
        return x
    axis = operand.axis
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def _rotated(
    x: jax.Array, operand: Operand, plan: Plan, words: rounding.Words
) -> jax.Array:
    if plan.rotation is None:
        return x
    x, axis = _grouped(x, operand)
    rotated = _rotate(x, plan.rotation.block, axis, _signs(plan, words))
    return _ungrouped(rotated, operand)


def _rotated_back(
    x: jax.Array, operand: Operand, plan: Plan, words: rounding.Words, length: int
) -> jax.Array:
    if plan.rotation is None:
        return x
    x, axis = _grouped(x, operand)
    back = _rotate_back(
        x, plan.rotation.block, axis, _signs(plan, words), length // operand.groups
    )
    return _ungrouped(back, operand)


class _Quantised(NamedTuple):
    """A quantised operand, where it was not clipped, and its largest magnitude."""

    values: jax.Array
    factors: Factors | None = None  # where the product may run in other units
    mask: jax.Array | None = None
    largest: jax.Array | None = None  # () where the recipe keeps a history


def _quantised(
    x: jax.Array,
    operand: Operand,
    given: Given,
    slot: int,
    estimator: str,
    outliers: float = 0.0,
) -> _Quantised:
    """Quantises an operand; slots count the six operands of the three products.

    The estimator gives the values' derivative, for derivatives of the gradient.
    """
    if operand.fmt is None:
        return _Quantised(x)
    kept: Any = None
    if outliers:
        x, kept = transforms.split_outliers(x, outliers)
    x, axis = _grouped(x, operand)
    own = rounding.stream(given.words, slot) if operand.fmt.is_stochastic else None
    now = before = None
    if given.history is not None:
        now = blocks.largest_magnitude(x, None).reshape(())
        before = jnp.max(given.history[slot])
        before = jnp.where(before > 0, before, now)  # no step before this one
    values, mask, factors = _quantise(
        lax.stop_gradient(x), operand.fmt, axis, own, before
    )
    values = estimators.with_derivative(
        values, estimators.passed(estimator, x, mask, operand.fmt, axis)
    )
    values, mask = _ungrouped(values, operand), _ungrouped(mask, operand)
    if kept is not None:
        return _Quantised(values + kept, None, mask, now)
    return _Quantised(values, factors, mask, now)


def _next_history(history: Any, largest: Sequence[Any]) -> Any:
    """Puts what is known of this step's largest magnitudes first, drops the last."""
    if history is None:
        return None
    now = jnp.stack([jnp.zeros(()) if a is None else a for a in largest])
    now = jnp.where(jnp.isfinite(now), now, 0.0)  # a step that is skipped
    return jnp.concatenate([now[:, None], history[:, :-1]], axis=1)


def _is_untouched(plan: Plan) -> bool:
    return plan.rotation is None and plan.first.fmt is None and plan.second.fmt is None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def quantised_product(
    product: Product, left: jax.Array, right: jax.Array, given: Given
) -> jax.Array:
    """Returns the product of quantised operands; its gradient's products are too.

    Args:
      product: what to do.
      left, right: the operands, of any float dtype.
      given: key and history.
    """
    return _forward(product, left, right, given)[0]


def _forward(product, left, right, given):
    """Returns the result, and the two operands quantised."""
    plan, words = plans_of(product)[0], given.words
    if _is_untouched(plan):
        out = _contract(product, None, left, right)
        return out, (_Quantised(left), _Quantised(right))
    outliers = product.recipe.outliers
    pulls = _estimator(product, 0), _estimator(product, 1)
    rotated = (
        _rotated(left.astype(jnp.float32), plan.first, plan, words),
        _rotated(right.astype(jnp.float32), plan.second, plan, words),
    )
    operands = (
        _quantised(rotated[0], plan.first, given, 0, pulls[0], outliers),
        _quantised(rotated[1], plan.second, given, 1, pulls[1], outliers),
    )
    kind = units_of(product, plan)
    if kind == units.EMULATED or product.is_convolution:
        out = _contract(product, kind, *(operand.values for operand in operands))
    else:
        out = _multiply(kind, plan, operands, (2, 1))
    dtype = dict(product.params)["preferred_element_type"]
    dtype = dtype or jnp.result_type(left, right)
    return out.astype(dtype), operands


def _forward_rule(product, left, right, given):
    out, operands = _forward(product, left, right, given)
    quantised = tuple(operand.values for operand in operands)
    recipe = product.recipe
    kept = tuple(
        operand._replace(
            values=None,
            factors=None,
            mask=operand.mask if recipe.estimator == "clipped" else None,
        )
        for operand in operands
    )
    if recipe.backward_from == "original":
        return out, ((left, right), None, kept, given)
    # Kept is only what the backward products need: not the operands as they were.
    needs_originals = recipe.estimator in ("exact", "dge")
    originals = (left, right) if needs_originals else (None, None)
    return out, (originals, quantised, kept, given)


def _backward_rule(product, residuals, g):
    forward, of_left, of_right = plans_of(product)
    originals, quantised, kept, given = residuals
    recipe = product.recipe
    plans = (of_left, of_right)
    is_plain = recipe.estimator == STRAIGHT and quantised is None
    operands = (forward.first, forward.second)
    if quantised is not None:
        base = quantised
    elif is_plain or _is_untouched(forward):
        base = originals
    else:
        base = tuple(
            _rotated(a.astype(jnp.float32), operand, forward, given.words)
            for a, operand in zip(originals, operands, strict=True)
        )
    gradients, largest = [], [operand.largest for operand in kept]
    for side in (0, 1):
        gradient, more = _gradient(product, plans[side], side, base, g, given)
        largest += more
        if not is_plain and not _is_untouched(forward):
            gradient = _pulled_back(
                product, side, gradient, originals[side], kept[side].mask, given.words
            )
        gradients.append(gradient.astype(product.dtypes[side]))
    return (*gradients, Given(None, _next_history(given.history, largest)))


def _gradient(product, plan, side, base, g, given):
    """The gradient of left (side 0) or right (1), a product of g with the other.

    Returns it, and the largest magnitudes of g and of the other.
    """
    other = base[1 - side]
    wanted = base[side]  # its type alone
    if _is_untouched(plan):
        transposed = functools.partial(_transposed, product, None)
        # The quantised operands are float32, g may be of the model's own dtype.
        if other.dtype == jnp.float32 and g.dtype != jnp.float32:
            transposed = functools.partial(_transposed, product, units.EMULATED)
            g = g.astype(jnp.float32)
        return transposed(side, wanted, other, g), [None, None]
    g = _rotated(g.astype(jnp.float32), plan.first, plan, given.words)
    other = _rotated(other.astype(jnp.float32), plan.second, plan, given.words)
    slot = 2 * plan.number
    # 'exact' and 'dge' are of what the forward product rounds.
    estimator = "clipped" if product.recipe.estimator == "clipped" else STRAIGHT
    pair = (
        _quantised(g, plan.first, given, slot, estimator),
        _quantised(other, plan.second, given, slot + 1, estimator),
    )
    kind = units_of(product, plan)
    if kind == units.EMULATED or product.is_convolution:
        wanted = wanted.astype(jnp.float32)
        gradient = _transposed(
            product, kind, side, wanted, pair[1].values, pair[0].values
        )
    elif side == 0:
        gradient = _multiply(kind, plan, pair, (2, 2))  # g (B, M, N), right (B, K, N)
    else:  # left (B, M, K), g (B, M, N)
        gradient = _multiply(kind, plan, pair[::-1], (1, 1))
    return gradient, [operand.largest for operand in pair]


def _transposed(product, kind, side, wanted, other, g):
    """The product is linear in each operand; this is the transpose of that map."""

    def linear(operand):
        pair = (operand, other) if side == 0 else (other, operand)
        return _contract(product, kind, *pair)

    (gradient,) = jax.linear_transpose(linear, wanted)(g)
    return gradient


def _estimator(product: Product, side: int) -> str:
    """Returns what stands for the derivative of rounding left (0) or right (1)."""
    is_weight = side == (0 if product.weight_is_left else 1)
    estimator = product.recipe.estimator
    return STRAIGHT if estimator == "dge" and not is_weight else estimator


def _pulled_back(product, side, gradient, original, mask, words):
    """From the gradient of the quantised operand to that of the operand itself."""
    forward = plans_of(product)[0]
    operand = (forward.first, forward.second)[side]
    estimator = _estimator(product, side)
    if estimator == "clipped" and mask is not None:
        gradient = gradient * mask
    elif operand.fmt is not None and estimator in ("exact", "dge"):
        original = lax.stop_gradient(original)
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


def units_of_found(
    recipe: Recipe, item: Found, device: units.Device
) -> tuple[str, ...]:
    """Returns where the three products of a product of a function run."""
    product = product_of_found(recipe, item, device)
    return tuple(units_of(product, plan) for plan in plans_of(product))


def product_of_found(
    recipe: Recipe, item: Found, device: units.Device = units.EMULATOR
) -> Product:
    """Returns a product of a function as a recipe quantises it, but for its dtypes."""
    dtypes = (jnp.float32, jnp.float32)  # does not matter
    if item.primitive == CONVOLUTION:
        kept, shapes = tuple(sorted(item.params.items())), item.shapes[:2]
    else:
        kept, shapes = (), _matrix_shapes(item.params, *item.shapes[:2])
    return Product(
        recipe,
        item.primitive == CONVOLUTION,
        kept,
        item.weight_is_left,
        shapes,
        dtypes,
        device,
    )


def _matrix_shapes(params: Any, left: Any, right: Any) -> Any:
    """Returns the shapes (B, M, K) and (B, K, N) of a product with these operands."""
    (left_k, _), (left_b, _) = params["dimension_numbers"]
    batch = math.prod(left[i] for i in left_b)
    inner = math.prod(left[i] for i in left_k)
    rows = math.prod(left) // max(1, batch * inner)
    columns = math.prod(right) // max(1, batch * inner)
    return (batch, rows, inner), (batch, inner, columns)


def dot_general(
    recipe: Recipe,
    params: dict[str, Any],
    weight_is_left: bool,
    left: jax.Array,
    right: jax.Array,
    given: Given,
    device: units.Device = units.EMULATOR,
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
    product = Product(recipe, False, kept, weight_is_left, shapes, dtypes, device)
    out_BMN = quantised_product(product, left_BMK, right_BKN, given)
    return out_BMN.reshape(*batch, *rows, *columns)


def convolution(
    recipe: Recipe,
    params: dict[str, Any],
    weight_is_left: bool,
    left: jax.Array,
    right: jax.Array,
    given: Given,
    device: units.Device = units.EMULATOR,
) -> jax.Array:
    """`lax.conv_general_dilated` with quantised operands; see `dot_general`."""
    shapes, dtypes = (left.shape, right.shape), (left.dtype, right.dtype)
    kept = tuple(sorted(params.items()))
    product = Product(recipe, True, kept, weight_is_left, shapes, dtypes, device)
    return quantised_product(product, left, right, given)
