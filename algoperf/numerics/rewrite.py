"""Evaluating a traced function with its products replaced."""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core
from jax.sharding import PartitionSpec

from algoperf.numerics import products, rounding
from algoperf.numerics.find import CALLS, CONVOLUTION, Found, Place, open_jaxpr
from algoperf.numerics.recipes import Recipe
from algoperf.numerics.units import EMULATOR, Device


class Given(NamedTuple):
    """What products are given beside their operands; see `products.Given`.

    Attributes:
      keys: uint32 (products, 2); each loop folds its iteration into them.
      histories: by the number of a product, with an axis before (6, steps) for each
        scan that it is in; without history empty.
    """

    keys: rounding.Words
    histories: Mapping[int, jax.Array]

    def folded(self, number: Any) -> "Given":
        """Returns it with other keys."""
        return self._replace(keys=rounding.fold(self.keys, number))


@dataclasses.dataclass(frozen=True)
class Rewriting:
    """What is replaced: the recipe, the products by place, and where they run."""

    recipe: Recipe
    chosen: Mapping[Place, Found]
    device: Device = EMULATOR

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
    given: Given,
    place: Place = (),
) -> list[Any]:
    """Evaluates a jaxpr with the chosen products replaced.

    Args:
      rewriting: what is replaced.
      jaxpr: a `Jaxpr`, not closed.
      consts: values of its constvars.
      arguments: values of its invars.
      given: keys and histories.
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
                results = [_replaced(rewriting, eqn, operands, given, here)]
            else:
                rule = RULES[eqn.primitive.name]
                results = rule(rewriting, eqn, operands, given, here)
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _scope(eqn: Any) -> Any:
    """Keeps the modules' names, for profiles and for rewriting once more."""
    return jax.named_scope(str(eqn.source_info.name_stack))


def _replaced(rewriting, eqn, operands, given, here):
    number = rewriting.numbers[here]
    own = products.Given(given.keys[number], given.histories.get(number))
    is_convolution = eqn.primitive.name == CONVOLUTION
    rule = products.convolution if is_convolution else products.dot_general
    weight_is_left = rewriting.chosen[here].weight_is_left
    left, right = operands
    return rule(
        rewriting.recipe,
        eqn.params,
        weight_is_left,
        left,
        right,
        own,
        rewriting.device,
    )


def _jit(rewriting, eqn, operands, given, here):
    """Inlined; what a user asked for with shardings stays."""
    closed = eqn.params[CALLS[eqn.primitive.name]]
    operands = _constrained(operands, eqn.params.get("in_shardings"))
    results = evaluate(
        rewriting,
        open_jaxpr(closed),
        getattr(closed, "consts", ()),
        operands,
        given,
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


def _remat(rewriting, eqn, operands, given, here):
    def body(given, *operands):
        return evaluate(rewriting, eqn.params["jaxpr"], (), operands, given, here)

    options = {name: eqn.params[name] for name in ("prevent_cse", "policy")}
    return jax.checkpoint(body, **options)(given, *operands)


def _scan(rewriting, eqn, operands, given, here):
    params = eqn.params
    closed = params["jaxpr"]
    split = _ends_of_consts_and_carry(params)
    consts, carry, xs = (
        operands[: split[0]],
        operands[slice(*split)],
        operands[split[1] :],
    )

    # Histories of products in the loop have an entry for each iteration.
    inside = {
        number: given.histories[number]
        for place, number in rewriting.numbers.items()
        if number in given.histories and place[: len(here)] == here
    }

    def body(state, x):
        iteration, carry = state
        x, histories = x
        own = given.folded(iteration)._replace(histories=histories)
        arguments = [*consts, *carry, *x]
        outs = evaluate(rewriting, closed.jaxpr, closed.consts, arguments, own, here)
        return (iteration + 1, outs[: len(carry)]), outs[len(carry) :]

    (_, carry), ys = lax.scan(
        body,
        (jnp.uint32(0), carry),
        (xs, inside),
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    return [*carry, *ys]


def _ends_of_consts_and_carry(params) -> tuple[int, int]:
    """Returns where they end among a scan's operands."""
    if "ft_in" in params:  # JAX 0.11.2 and newer
        consts, carry, _ = params["ft_in"].unpack()
        return len(consts), len(consts) + len(carry)
    return params["num_consts"], params["num_consts"] + params["num_carry"]


def _while(rewriting, eqn, operands, given, here):
    params = eqn.params
    first, second = params["cond_nconsts"], params["body_nconsts"]
    cond_consts, body_consts = operands[:first], operands[first : first + second]
    condition, closed = params["cond_jaxpr"], params["body_jaxpr"]

    def is_going_on(state):
        return core.jaxpr_as_fun(condition)(*cond_consts, *state[1])[0]

    def body(state):
        iteration, carry = state
        own = given.folded(iteration)
        arguments = [*body_consts, *carry]
        outs = evaluate(
            rewriting, closed.jaxpr, closed.consts, arguments, own, (*here, 0)
        )
        return iteration + 1, outs

    start = (jnp.uint32(0), list(operands[first + second :]))
    return lax.while_loop(is_going_on, body, start)[1]


def _cond(rewriting, eqn, operands, given, here):
    index, *operands = operands

    def branch(number, closed):
        return lambda *operands: evaluate(
            rewriting, closed.jaxpr, closed.consts, operands, given, (*here, number)
        )

    branches = [branch(*pair) for pair in enumerate(eqn.params["branches"])]
    return lax.switch(index, branches, *operands)


def _shard_map(rewriting, eqn, operands, given, here):
    params = eqn.params
    axes = params.get("newly_manual_axes", params.get("manual_axes"))

    def body(given, *operands):
        for axis in sorted(axes, key=str):  # each device rounds on its own
            given = given.folded(lax.axis_index(axis))
        return tuple(evaluate(rewriting, params["jaxpr"], (), operands, given, here))

    return jax.shard_map(
        body,
        mesh=params["mesh"],
        in_specs=(PartitionSpec(), *params["in_specs"]),
        out_specs=tuple(params["out_specs"]),
        axis_names=axes,
        check_vma=params["check_vma"],
    )(given, *operands)


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
