"""What a recipe hands on from step to step: scales of operands and of the loss."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from algoperf.errors import UserError
from algoperf.numerics.find import Found
from algoperf.numerics.recipes import DynamicLossScale, Recipe

OPERANDS = 6  # of the three products: two forward, two of each gradient


class State(NamedTuple):
    """State of a recipe; a pytree.

    Attributes:
      histories: of each quantised product float32 (..., 6, steps): the largest
        magnitudes of its six operands in the steps before, the newest first, 0 where
        there was none; an axis before them for each scan that the product is in. Empty
        where the recipe has no `amax_history`.
      loss_scale: float32 ().
      finite_steps: int32 (), in a row since the loss scale was changed.
      is_finite: bool (), whether the last gradient was finite, and what more is known
        (`rescaled`); if not, and the recipe has a `DynamicLossScale`, its step should
        be skipped.
    """

    histories: tuple[jax.Array, ...]
    loss_scale: jax.Array
    finite_steps: jax.Array
    is_finite: jax.Array


def first_state(recipe: Recipe, chosen: Sequence[Found]) -> State:
    """Returns the state before the first step, for these quantised products."""
    shapes = history_shapes(recipe, chosen)
    scale = recipe.loss_scale
    return State(
        histories=tuple(jnp.zeros(shape, jnp.float32) for shape in shapes),
        loss_scale=jnp.float32(
            scale.initial if isinstance(scale, DynamicLossScale) else scale
        ),
        finite_steps=jnp.int32(0),
        is_finite=jnp.bool_(True),
    )


def next_state(recipe: Recipe, state: State, histories: Any, gradient: Any) -> State:
    """Returns the state after a step.

    Args:
      recipe: the recipe.
      state: before the step.
      histories: as the step leaves them; all 0 of a product in a branch that was not
        taken, whose history stays.
      gradient: of the step; a pytree.
    """
    is_finite = jnp.bool_(True)
    for leaf in jax.tree.leaves(gradient):
        is_finite &= jnp.all(jnp.isfinite(leaf))
    kept = tuple(
        jnp.where(jnp.any(new > 0, axis=(-2, -1), keepdims=True), new, old)
        for new, old in zip(histories, state.histories, strict=True)
    )
    return rescaled(recipe, state, state._replace(histories=kept), is_finite)


def rescaled(
    recipe: Recipe, before: State, after: State, is_finite: jax.Array
) -> State:
    """Returns the state after a step, with the loss scale that follows from it.

    Args:
      recipe: the recipe.
      before: the state before the step.
      after: the state after it; of this, the histories are taken.
      is_finite: bool (), whether all that the step computed is.
    """
    scale, steps = before.loss_scale, before.finite_steps
    if isinstance(recipe.loss_scale, DynamicLossScale):
        scale, steps = next_scale(recipe.loss_scale, scale, steps, is_finite)
    return State(after.histories, scale, steps, is_finite)


def next_scale(
    rule: DynamicLossScale, scale: jax.Array, steps: jax.Array, is_finite: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns the next loss scale, and its finite steps in a row.

    s <- min(2 s, largest) after `period` finite steps, max(s / 2, smallest) after one
    that is not finite (Micikevicius et al. 2018, arXiv:1710.03740, section 3.2).
    """
    steps = jnp.where(is_finite, steps + 1, 0)
    is_due = steps >= rule.period
    grown = jnp.where(is_due, jnp.minimum(2 * scale, rule.largest), scale)
    halved = jnp.maximum(scale / 2, rule.smallest)
    return jnp.where(is_finite, grown, halved), jnp.where(is_due, 0, steps)


def check_histories(recipe: Recipe, state: State, chosen: Sequence[Found]) -> None:
    """Checks that a state is one of these products.

    Raises:
      UserError: it is not.
    """
    wanted = history_shapes(recipe, chosen)
    given = [history.shape for history in state.histories]
    if wanted != given:
        raise UserError(
            f"the state of recipe {recipe.name} is of {len(given)} products, and the "
            f"function has {len(wanted)} that it quantises, or other loops around "
            "them; take numerics.init_state of the same function"
        )


def history_shapes(recipe: Recipe, chosen: Sequence[Found]) -> list[Any]:
    """Returns the shapes of the histories."""
    steps = recipe.amax_history
    return [(*item.loops, OPERANDS, steps) for item in chosen if steps]
