"""Finding the products of a traced function.

Goes through a jaxpr and those inside it. A place in it is a path of numbers, of the
equation and, for branches, of the branch; it names a product here and in `rewrite`.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend import core

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
      loops: lengths of the scans that it is in, the outermost first.
      repeats: how often it runs in one call; of a `while` loop, once.
      parameter: the name of the parameter that is one of its operands, if one is; of
        the first, where several are joined.
      weight_is_left: whether that operand is the left one.
      is_sharded: whether it is inside `shard_map`.
      reason: why it cannot be quantised; None if it can.
      units: of `units.KINDS`, where the forward product, the gradient of left and that
        of right run; empty where that was not asked.
    """

    place: Place
    name: str
    primitive: str
    shapes: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    params: Mapping[str, Any] = dataclasses.field(compare=False, repr=False)
    repeats: int = 1
    loops: tuple[int, ...] = ()
    parameter: Label = None
    weight_is_left: bool = False
    is_sharded: bool = False
    reason: str | None = None
    units: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Around:
    """What surrounds a jaxpr."""

    place: Place = ()
    name: str = ""
    repeats: int = 1
    loops: tuple[int, ...] = ()
    is_sharded: bool = False
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
        loops=here.loops,
        parameter=operands[1] or operands[0],
        weight_is_left=operands[1] is None and operands[0] is not None,
        is_sharded=here.is_sharded,
        reason=reason,
    )


def open_jaxpr(jaxpr: Any) -> Any:
    """Returns the jaxpr in a closed one, or the jaxpr itself."""
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
            here = dataclasses.replace(
                here,
                repeats=here.repeats * params["length"],
                loops=(*here.loops, params["length"]),
            )
        elif primitive == "shard_map":
            here = dataclasses.replace(here, is_sharded=True)
        yield open_jaxpr(params[CALLS[primitive]]), operands, here
    elif primitive in OPAQUE:
        reason = "it has a derivative rule of its own, which would be lost"
        yield open_jaxpr(params[OPAQUE[primitive]]), operands, because(reason)
    elif primitive == "cond":
        for branch, jaxpr in enumerate(params["branches"]):
            inside = dataclasses.replace(here, place=(*here.place, branch))
            yield open_jaxpr(jaxpr), operands[1:], inside
    elif primitive == "while":
        first, second = params["cond_nconsts"], params["body_nconsts"]
        condition = [*operands[:first], *operands[first + second :]]
        inside = dataclasses.replace(
            because("it is in the condition of a loop"), place=(*here.place, 1)
        )
        yield open_jaxpr(params["cond_jaxpr"]), condition, inside
        inside = dataclasses.replace(here, place=(*here.place, 0))
        yield open_jaxpr(params["body_jaxpr"]), operands[first:], inside
    else:
        for jaxpr in map(open_jaxpr, core.jaxprs_in_params(params)):
            inside = because(f"it is inside {primitive}")
            yield jaxpr, [None] * len(jaxpr.invars), inside
