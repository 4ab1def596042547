"""Finding the products of a traced function, and evaluating it with them replaced.

Both go through a jaxpr and those inside it. A place in it is a path of numbers, of the
equation and, for branches, of the branch; it names a product in both.
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core
from jax.sharding import PartitionSpec

from algoperf.numerics import products, rounding
from algoperf.numerics.recipes import Recipe

Place = tuple[int, ...]
Label = str | None  # the name of the parameter that a value is, if it is one

DOT, CONVOLUTION = "dot_general", "conv_general_dilated"
# Products that a recipe does not reach; they are named in the list.
UNKNOWN_PRODUCTS = ("ragged_dot_general", "ragged_dot", "scaled_matmul", "scaled_dot")
# A parameter stays one through these.
UNARY = frozenset(
    {
        "convert_element_type",
        "reshape",
        "transpose",
        "squeeze",
        "broadcast_in_dim",
        "slice",
        "dynamic_slice",
        "rev",
        "copy",
        "copy_p",
        "pvary",
        "reduce_precision",
        "sharding_constraint",
    }
)
JOINS = ("concatenate", "stack")  # so do several, joined
# Primitives whose jaxpr takes their operands one by one, and where it is.
CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "scan": "jaxpr",
    "shard_map": "jaxpr",
}
OPAQUE = {
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}


@dataclasses.dataclass(frozen=True)
class Found:
    """A product of a function.

    Attributes:
      place: where it is in the jaxpr.
      name: the modules around it, joined by '/'.
      primitive: 'dot_general', 'conv_general_dilated', ...
      shapes: of left, right and result.
      params: of the primitive.
      repeats: how often it runs in one call; of a `while` loop, once.
      parameter: the name of the parameter that is one of its operands, if one is; of
        the first, where several are joined.
      weight_is_left: whether that operand is the left one.
      reason: why it cannot be quantised; None if it can.
    """

    place: Place
    name: str
    primitive: str
    shapes: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    params: Mapping[str, Any] = dataclasses.field(compare=False, repr=False)
    repeats: int = 1
    parameter: Label = None
    weight_is_left: bool = False
    reason: str | None = None


@dataclasses.dataclass(frozen=True)
class _Around:
    """What surrounds a jaxpr."""

    place: Place = ()
    name: str = ""
    repeats: int = 1
    reason: str | None = None


def find_products(jaxpr: Any, labels: Sequence[Label]) -> list[Found]:
    """Returns all products of a jaxpr, in the order in which they run.

    Args:
      jaxpr: a `Jaxpr`, not closed.
      labels: for each input, the name of the parameter that it is.
    """
    return list(_find(jaxpr, labels, _Around())[0])


def _find(
    jaxpr: Any, labels: Sequence[Label], around: _Around
) -> tuple[list[Found], list[Label]]:
    """Returns the products, and the labels of the outputs."""
    known: dict[Any, Label] = dict(zip(jaxpr.invars, labels, strict=True))

    def label(atom: Any) -> Label:
        return None if isinstance(atom, core.Literal) else known.get(atom)

    found: list[Found] = []
    for number, eqn in enumerate(jaxpr.eqns):
        here = dataclasses.replace(
            around,
            place=(*around.place, number),
            name=_joined(around.name, str(eqn.source_info.name_stack)),
        )
        operands = [label(atom) for atom in eqn.invars]
        primitive = eqn.primitive.name
        if primitive in (DOT, CONVOLUTION, *UNKNOWN_PRODUCTS):
            found.append(_product(eqn, operands, here))
        elif primitive in UNARY:
            known[eqn.outvars[0]] = operands[0]
        elif primitive in JOINS and None not in operands:
            known[eqn.outvars[0]] = operands[0]  # such as gates that are kept apart
        elif primitive == "optimization_barrier":
            known.update(zip(eqn.outvars, operands, strict=True))
        else:
            for inner, inner_labels, inside in _inner(eqn, operands, here):
                more, results = _find(inner, inner_labels, inside)
                found += more
                if primitive in CALLS and primitive != "scan":
                    known.update(zip(eqn.outvars, results, strict=True))
    return found, [label(atom) for atom in jaxpr.outvars]


def _joined(name: str, more: str) -> str:
    return "/".join(part for part in (name, more) if part)


def _product(eqn: Any, operands: Sequence[Label], here: _Around) -> Found:
    left, right = (atom.aval for atom in eqn.invars[:2])
    reason = here.reason
    if eqn.primitive.name in UNKNOWN_PRODUCTS:
        reason = reason or "a kind of product that recipes do not know"
    elif not all(jnp.issubdtype(a.dtype, jnp.floating) for a in (left, right)):
        reason = reason or f"its operands are {left.dtype} and {right.dtype}"
    elif eqn.params.get("batch_group_count", 1) != 1:
        reason = reason or "its batch is grouped"
    elif eqn.params.get("out_sharding") is not None:
        reason = reason or "its result has an explicit sharding"
    return Found(
        place=here.place,
        name=here.name,
        primitive=eqn.primitive.name,
        shapes=(left.shape, right.shape, eqn.outvars[0].aval.shape),
        params=eqn.params,
        repeats=here.repeats,
        parameter=operands[1] or operands[0],
        weight_is_left=operands[1] is None and operands[0] is not None,
        reason=reason,
    )


def _open(jaxpr: Any) -> Any:
    return getattr(jaxpr, "jaxpr", jaxpr)


def _inner(
    eqn: Any, operands: Sequence[Label], here: _Around
) -> Iterator[tuple[Any, Sequence[Label], _Around]]:
    """Yields the jaxprs in an equation, their inputs' labels, and what is around."""
    primitive, params = eqn.primitive.name, eqn.params

    def because(reason: str) -> _Around:
        return dataclasses.replace(here, reason=here.reason or reason)

    if primitive in CALLS:
        if primitive == "scan":
            here = dataclasses.replace(here, repeats=here.repeats * params["length"])
        yield _open(params[CALLS[primitive]]), operands, here
    elif primitive in OPAQUE:
        reason = "it has a derivative rule of its own, which would be lost"
        yield _open(params[OPAQUE[primitive]]), operands, because(reason)
    elif primitive == "cond":
        for branch, jaxpr in enumerate(params["branches"]):
            inside = dataclasses.replace(here, place=(*here.place, branch))
            yield _open(jaxpr), operands[1:], inside
    elif primitive == "while":
        first, second = params["cond_nconsts"], params["body_nconsts"]
        condition = [*operands[:first], *operands[first + second :]]
        inside = dataclasses.replace(
            because("it is in the condition of a loop"), place=(*here.place, 1)
        )
        yield _open(params["cond_jaxpr"]), condition, inside
        inside = dataclasses.replace(here, place=(*here.place, 0))
        yield _open(params["body_jaxpr"]), operands[first:], inside
    else:
        for jaxpr in map(_open, core.jaxprs_in_params(params)):
            inside = because(f"it is inside {primitive}")
            yield jaxpr, [None] * len(jaxpr.invars), inside


@dataclasses.dataclass(frozen=True)
class Rewriting:
    """What is replaced: the recipe, and the products by place, numbered as listed."""

    recipe: Recipe
    chosen: Mapping[Place, Found]

    @functools.cached_property
    def numbers(self) -> Mapping[Place, int]:
        """The number of each product."""
        return {place: number for number, place in enumerate(self.chosen)}

    def keys(self, words: rounding.Words) -> rounding.Words:
        """Returns a key for each product, uint32 (products, 2), from that of all.

        Made at once: the same operations on single numbers would be compiled anew for
        each product.
        """
        places = [zlib.crc32(repr(place).encode()) for place in self.chosen]
        return rounding.fold(words, np.asarray(places, np.uint32))

    def reaches(self, place: Place) -> bool:
        """Whether a product at or inside this place is replaced."""
        return any(found[: len(place)] == place for found in self.chosen)


def evaluate(
    rewriting: Rewriting,
    jaxpr: Any,
    consts: Sequence[Any],
    arguments: Sequence[Any],
    words: rounding.Words,
    place: Place = (),
) -> list[Any]:
    """Evaluates a jaxpr with the chosen products replaced.

    Args:
      rewriting: what is replaced.
      jaxpr: a `Jaxpr`, not closed.
      consts: values of its constvars.
      arguments: values of its invars.
      words: uint32 (products, 2), see `Rewriting.keys`; each loop folds its iteration
        into them.
      place: where the jaxpr is in the whole.
    """
    values: dict[Any, Any] = {}

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    values.update(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, arguments, strict=True))
    for number, eqn in enumerate(jaxpr.eqns):
        here = (*place, number)
        operands = [read(atom) for atom in eqn.invars]
        with _scope(eqn), eqn.ctx.manager:
            if not rewriting.reaches(here):
                params = eqn.primitive.get_bind_params(eqn.params)
                results = eqn.primitive.bind(*operands, **params)
                if not eqn.primitive.multiple_results:
                    results = [results]
            elif here in rewriting.chosen:
                results = [_replaced(rewriting, eqn, operands, words, here)]
            else:
                rule = RULES[eqn.primitive.name]
                results = rule(rewriting, eqn, operands, words, here)
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _scope(eqn: Any) -> Any:
    """Keeps the modules' names, for profiles and for rewriting once more."""
    return jax.named_scope(str(eqn.source_info.name_stack))


def _replaced(rewriting, eqn, operands, words, here):
    own = words[rewriting.numbers[here]]
    is_convolution = eqn.primitive.name == CONVOLUTION
    rule = products.convolution if is_convolution else products.dot_general
    weight_is_left = rewriting.chosen[here].weight_is_left
    left, right = operands
    return rule(rewriting.recipe, eqn.params, weight_is_left, left, right, own)


def _jit(rewriting, eqn, operands, words, here):
    """Inlined; what a user asked for with shardings stays."""
    closed = eqn.params[CALLS[eqn.primitive.name]]
    operands = _constrained(operands, eqn.params.get("in_shardings"))
    results = evaluate(
        rewriting,
        _open(closed),
        getattr(closed, "consts", ()),
        operands,
        words,
        here,
    )
    return _constrained(results, eqn.params.get("out_shardings"))


def _constrained(values, shardings):
    if shardings is None:
        return values
    return [
        lax.with_sharding_constraint(value, sharding)
        if isinstance(sharding, jax.sharding.Sharding)
        else value
        for value, sharding in zip(values, shardings, strict=True)
    ]


def _remat(rewriting, eqn, operands, words, here):
    def body(words, *operands):
        return evaluate(rewriting, eqn.params["jaxpr"], (), operands, words, here)

    options = {name: eqn.params[name] for name in ("prevent_cse", "policy")}
    return jax.checkpoint(body, **options)(words, *operands)


def _scan(rewriting, eqn, operands, words, here):
    params = eqn.params
    closed = params["jaxpr"]
    split = params["num_consts"], params["num_consts"] + params["num_carry"]
    consts, carry, xs = (
        operands[: split[0]],
        operands[slice(*split)],
        operands[split[1] :],
    )

    def body(state, x):
        iteration, carry = state
        own = rounding.fold(words, iteration)
        arguments = [*consts, *carry, *x]
        outs = evaluate(rewriting, closed.jaxpr, closed.consts, arguments, own, here)
        return (iteration + 1, outs[: len(carry)]), outs[len(carry) :]

    (_, carry), ys = lax.scan(
        body,
        (jnp.uint32(0), carry),
        xs,
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    return [*carry, *ys]


def _while(rewriting, eqn, operands, words, here):
    params = eqn.params
    first, second = params["cond_nconsts"], params["body_nconsts"]
    cond_consts, body_consts = operands[:first], operands[first : first + second]
    condition, closed = params["cond_jaxpr"], params["body_jaxpr"]

    def is_going_on(state):
        return core.jaxpr_as_fun(condition)(*cond_consts, *state[1])[0]

    def body(state):
        iteration, carry = state
        own = rounding.fold(words, iteration)
        arguments = [*body_consts, *carry]
        outs = evaluate(
            rewriting, closed.jaxpr, closed.consts, arguments, own, (*here, 0)
        )
        return iteration + 1, outs

    start = (jnp.uint32(0), list(operands[first + second :]))
    return lax.while_loop(is_going_on, body, start)[1]


def _cond(rewriting, eqn, operands, words, here):
    index, *operands = operands

    def branch(number, closed):
        return lambda *operands: evaluate(
            rewriting, closed.jaxpr, closed.consts, operands, words, (*here, number)
        )

    branches = [branch(*pair) for pair in enumerate(eqn.params["branches"])]
    return lax.switch(index, branches, *operands)


def _shard_map(rewriting, eqn, operands, words, here):
    params = eqn.params
    axes = params.get("newly_manual_axes", params.get("manual_axes"))

    def body(words, *operands):
        for axis in sorted(axes, key=str):  # each device rounds on its own
            words = rounding.fold(words, lax.axis_index(axis))
        return tuple(evaluate(rewriting, params["jaxpr"], (), operands, words, here))

    return jax.shard_map(
        body,
        mesh=params["mesh"],
        in_specs=(PartitionSpec(), *params["in_specs"]),
        out_specs=tuple(params["out_specs"]),
        axis_names=axes,
        check_vma=params["check_vma"],
    )(words, *operands)


RULES: Mapping[str, Callable[..., Any]] = {
    "jit": _jit,
    "pjit": _jit,
    "closed_call": _jit,
    "core_call": _jit,
    "remat2": _remat,
    "checkpoint": _remat,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "shard_map": _shard_map,
}
