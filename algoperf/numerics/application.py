"""A recipe applied to a function, and the list of what it did.

    quantised = numerics.apply("mxfp8", loss)
    loss_value, gradient = jax.value_and_grad(quantised)(params, batch)

Rewrite the function that goes forward, then differentiate: the products of its gradient
follow from its own.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from algoperf.errors import UserError
from algoperf.numerics import rewrite, rounding
from algoperf.numerics.find import Found, Label, find_products
from algoperf.numerics.products import units_of_found
from algoperf.numerics.recipes import Recipe, find_recipe
from algoperf.numerics.state import State, check_histories, first_state, next_state
from algoperf.numerics.units import Device, this_device


def apply(
    recipe: str | Recipe,
    fn: Callable[..., Any],
    *,
    key: Any = None,
    parameter_types: Any = None,
    state: State | None = None,
    device: Device | None = None,
) -> Callable[..., Any]:
    """Returns `fn` with its matrix products and convolutions quantised.

    The function is traced at each call, so call it inside `jax.jit`. Its gradient
    (reverse mode) is quantised too. Nothing outside changes: JAX is not patched.

    Parameters are the leaves of the first argument, if that is a container such as a
    dict; so it is known which operand of a product is the weight. Otherwise the right
    one is.

    Args:
      recipe: a `Recipe` or the name of one in `RECIPES`.
      fn: any function of arrays. Arguments that are no arrays (flags, modes, Python
        numbers) are handed on as they are.
      key: a JAX key, another one at each step; needed by recipes that round
        stochastically or rotate at random.
      parameter_types: the first argument's own tree with `spec.ParameterType` leaves,
        or any with names; needed by recipes with `keep_types`.
      state: of a recipe that has one (`init_state`); it is read. `value_and_grad`
        gives the next.
      device: whose low-precision units products may run in: where the numbers are the
        same but for the order of additions. By default JAX's default device;
        `units.EMULATOR` has none.

    Returns:
      A function of the same arguments and results. When called, it raises UserError
      where the recipe matches no product, or lacks a key, the types or its state.

    Raises:
      UserError: an unknown recipe.
    """
    recipe = find_recipe(recipe)

    @functools.wraps(fn)
    def quantised(*args: Any, **kwargs: Any) -> Any:
        if recipe.needs_key and key is None:
            raise UserError(
                f"recipe {recipe.name} is random; give apply a key=, another at each "
                "step"
            )
        if recipe.has_state and state is None:
            raise UserError(
                f"recipe {recipe.name} has state; train with numerics.value_and_grad, "
                "or give apply a state="
            )
        words = jnp.zeros(2, jnp.uint32) if key is None else rounding.words_of(key)
        traced = _trace(fn, args, kwargs)
        chosen = _quantised(recipe, _choose(recipe, traced, parameter_types))
        places = {item.place: item for item in chosen}
        rewriting = rewrite.Rewriting(recipe, places, device or this_device())
        histories: Any = ()
        scale: Any = recipe.loss_scale
        if state is not None:
            check_histories(recipe, state, chosen)
            histories, scale = state.histories, state.loss_scale
        consts, arguments = traced.consts, traced.arguments
        is_scaled = recipe.loss_scale != 1.0
        if is_scaled:
            consts = [_scale_gradient(value, 1.0 / scale) for value in consts]
            arguments = [_scale_gradient(value, 1.0 / scale) for value in arguments]
        given = rewrite.Given(rewriting.keys(words), dict(enumerate(histories)))
        results = rewrite.evaluate(rewriting, traced.jaxpr, consts, arguments, given)
        if is_scaled:
            results = [_scale_gradient(value, scale) for value in results]
        return jax.tree.unflatten(traced.structure, results)

    return quantised


def init_state(
    recipe: str | Recipe,
    fn: Callable[..., Any],
    *args: Any,
    parameter_types: Any = None,
) -> State:
    """Returns a recipe's state before the first step of training `fn(*args)`.

    Runs nothing: arrays may be `jax.ShapeDtypeStruct`, with other batch sizes than in
    training.

    Raises:
      UserError: an unknown recipe, one that matches nothing, or the types are missing.
    """
    recipe = find_recipe(recipe)
    found = _choose(recipe, _trace(fn, args, {}), parameter_types)
    return first_state(recipe, _quantised(recipe, found))


def value_and_grad(
    recipe: str | Recipe,
    fn: Callable[..., Any],
    *,
    key: Any = None,
    parameter_types: Any = None,
    has_aux: bool = False,
    device: Device | None = None,
) -> Callable[..., tuple[Any, Any, State]]:
    """As `jax.value_and_grad` of `apply(recipe, fn)`, for recipes with state too.

    Returns:
      A function `(state, params, *args) -> (value, gradient, next state)`; with
      `has_aux` the value is (value, aux). The gradient is by `params`, and free of the
      loss scale. Where `recipe.loss_scale` is dynamic and the next state's `is_finite`
      is false, the step should be skipped.

    Raises:
      UserError: as `apply`.
    """
    recipe = find_recipe(recipe)

    def run(state: State, params: Any, *args: Any) -> tuple[Any, Any, State]:
        def of_histories(params: Any, histories: Any) -> Any:
            quantised = apply(
                recipe,
                fn,
                key=key,
                parameter_types=parameter_types,
                state=state._replace(histories=histories),
                device=device,
            )
            return quantised(params, *args)

        # The gradient by a history is the next history: what backward products see is
        # known only there.
        value, (gradient, histories) = jax.value_and_grad(
            of_histories, argnums=(0, 1), has_aux=has_aux
        )(params, state.histories)
        return value, gradient, next_state(recipe, state, histories, gradient)

    return run


def products(
    recipe: str | Recipe,
    fn: Callable[..., Any],
    *args: Any,
    parameter_types: Any = None,
    device: Device | None = None,
    **kwargs: Any,
) -> tuple[Found, ...]:
    """Returns the products of `fn(*args, **kwargs)`, quantised ones and others.

    Those whose `reason` is None are quantised by the recipe, and their `units` say
    where they run on the device (see `apply`); `table` prints them. Runs nothing:
    arrays may be `jax.ShapeDtypeStruct`.

    Raises:
      UserError: an unknown recipe, or the types are missing.
    """
    recipe = find_recipe(recipe)
    found = _choose(recipe, _trace(fn, args, kwargs), parameter_types)
    device = device or this_device()
    return tuple(
        item
        if item.reason is not None
        else dataclasses.replace(item, units=units_of_found(recipe, item, device))
        for item in found
    )


def table(found: Sequence[Found]) -> str:
    """Returns a text with a line for each product: what it is, and why not if not."""
    rows = [("product", "left", "right", "runs", "quantised, in units of")]
    for item in found:
        left, right = ("x".join(map(str, shape)) for shape in item.shapes[:2])
        name = item.name or item.primitive
        status = f"yes: {_units(item)}" if item.reason is None else f"no: {item.reason}"
        rows.append((name, left, right, str(item.repeats), status))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append("  ".join([*cells, row[4]]).rstrip())
    quantised = sum(item.reason is None for item in found)
    return "\n".join([*lines, f"{quantised} of {len(found)} products are quantised"])


def _units(item: Found) -> str:
    """Says where the three products run, once if all run alike."""
    return item.units[0] if len(set(item.units)) == 1 else ", ".join(item.units)


def _quantised(recipe: Recipe, found: Sequence[Found]) -> list[Found]:
    """Returns the products that the recipe quantises.

    Raises:
      UserError: there is none.
    """
    chosen = [item for item in found if item.reason is None]
    if not chosen:
        raise UserError(_nothing(recipe, found))
    return chosen


class _Traced(NamedTuple):
    """A function's jaxpr, its arrays, and the parameters' names."""

    jaxpr: Any
    consts: Sequence[Any]
    arguments: Sequence[Any]
    labels: Sequence[Label]
    structure: Any


def _is_array(leaf: Any) -> bool:
    arrays = (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct)
    return isinstance(leaf, arrays)


def _trace(fn: Callable[..., Any], args: Any, kwargs: Any) -> _Traced:
    """Traces the function in the arrays among its arguments."""
    leaves, structure = jax.tree.flatten((args, kwargs))
    dynamic = [i for i, leaf in enumerate(leaves) if _is_array(leaf)]

    def of_arrays(*arrays: Any) -> Any:
        filled = list(leaves)
        for i, array in zip(dynamic, arrays, strict=True):
            filled[i] = array
        args, kwargs = jax.tree.unflatten(structure, filled)
        return fn(*args, **kwargs)

    arguments = [leaves[i] for i in dynamic]
    closed, shape = jax.make_jaxpr(of_arrays, return_shape=True)(*arguments)
    names = _parameter_names(args) if args else []
    names += [None] * (len(leaves) - len(names))
    return _Traced(
        closed.jaxpr,
        closed.consts,
        arguments,
        [names[i] for i in dynamic],
        jax.tree.structure(shape),
    )


def _parameter_names(args: Sequence[Any]) -> list[Label]:
    """The names of the first argument's leaves; None if it is no container."""
    with_path = jax.tree_util.tree_leaves_with_path(args[0])
    return [_path_name(path) if path else None for path, _ in with_path]


def _path_name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _choose(recipe: Recipe, traced: _Traced, parameter_types: Any) -> tuple[Found, ...]:
    """Returns the products with the reasons that the recipe gives for leaving some."""
    found = find_products(traced.jaxpr, traced.labels)
    types = _type_names(recipe, parameter_types)
    weights = [
        item.place for item in found if item.parameter is not None and not item.reason
    ]
    first = set(weights[: recipe.keep_first])
    last = set(weights[len(weights) - recipe.keep_last :] if recipe.keep_last else ())

    def reason(item: Found) -> str | None:
        if item.reason is not None:
            return item.reason
        if recipe.amax_history and item.is_sharded:
            return "it is inside shard_map, where recipes keep no history"
        if recipe.weights_only and item.parameter is None:
            return "it has no parameter, and the recipe keeps such products"
        if types.get(item.parameter) in recipe.keep_types:
            return f"the recipe keeps products of type {types[item.parameter]}"
        for pattern in recipe.keep:
            if re.search(pattern, item.name):
                return f"the recipe keeps what {pattern!r} finds"
        if item.place in first:
            return f"it is among the first {recipe.keep_first}, which the recipe keeps"
        if item.place in last:
            return f"it is among the last {recipe.keep_last}, which the recipe keeps"
        return None

    return tuple(dataclasses.replace(item, reason=reason(item)) for item in found)


def _type_names(recipe: Recipe, parameter_types: Any) -> Mapping[Any, str]:
    """Returns parameter name -> name of its type."""
    if not recipe.keep_types:
        return {}
    if parameter_types is None:
        raise UserError(
            f"recipe {recipe.name} keeps parameters by type "
            f"({', '.join(recipe.keep_types)}); give parameter_types="
            "workload.model_params_types, or take keep_types=()"
        )
    leaves = jax.tree_util.tree_leaves_with_path(parameter_types)
    return {_path_name(path): getattr(leaf, "name", str(leaf)) for path, leaf in leaves}


def _nothing(recipe: Recipe, found: Sequence[Found]) -> str:
    if not found:
        return f"recipe {recipe.name} matches nothing: the function has no products"
    reasons = sorted({str(item.reason) for item in found})
    return (
        f"recipe {recipe.name} matches none of the function's {len(found)} products: "
        + "; ".join(reasons)
    )


@jax.custom_vjp
def _scale_gradient(value: Any, factor: Any) -> Any:
    """Returns the value; its gradient is multiplied by the factor."""
    del factor
    return value


def _scale_forward(value, factor):
    return value, factor


def _scale_backward(factor, g):
    if g.dtype == jax.dtypes.float0:
        return g, None
    return (g * factor).astype(g.dtype), None


_scale_gradient.defvjp(_scale_forward, _scale_backward)
