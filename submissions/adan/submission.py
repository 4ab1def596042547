"""Adan: momentum of gradient differences (Xie et al. 2022, arXiv:2208.06677)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from algoperf.schedules import warmup_cosine
from algoperf.submission import from_optax, mask_without, standard_chain


class AdanState(NamedTuple):
    """Steps, the gradient before, and three moving averages."""

    steps: jax.Array  # () int32
    gradient: Any
    first: Any  # of gradients
    change: Any  # of their differences
    second: Any  # of (g + b2 difference)^2


def scale_by_adan(
    b1: float, b2: float, b3: float, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Direction (m + b2 v) / (sqrt(n) + eps), with the bias of each corrected.

    The paper's betas are one minus these, as in its code: the factor of differences is
    b2 = 0.92. (That of `optax.scale_by_adan` is 1 - b2.)
    """

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return AdanState(jnp.int32(0), zeros, zeros, zeros, zeros)

    def update(updates, state, params=None):
        count = state.steps + 1
        changes = jax.tree.map(
            lambda g, before: jnp.where(count > 1, g - before, 0.0),
            updates,
            state.gradient,
        )
        ahead = jax.tree.map(lambda g, d: jnp.square(g + b2 * d), updates, changes)
        first = optax.tree.update_moment(updates, state.first, b1, 1)
        change = optax.tree.update_moment(changes, state.change, b2, 1)
        second = optax.tree.update_moment(ahead, state.second, b3, 1)
        directions = jax.tree.map(
            lambda m, v, n: (
                (m / (1 - b1**count) + b2 * v / (1 - b2**count))
                / (jnp.sqrt(n / (1 - b3**count)) + eps)
            ),
            first,
            change,
            second,
        )
        return directions, AdanState(count, updates, first, change, second)

    return optax.GradientTransformation(init, update)


def build(workload, hyperparameters):
    """Returns Adan (algorithm 1).

    The decay is proximal, x <- (x - s d) / (1 + s weight_decay): that is the decoupled
    step of `standard_chain`, divided by the same.
    """
    schedule = warmup_cosine(
        workload.step_hint,
        hyperparameters.learning_rate,
        hyperparameters.warmup_factor,
    )
    direction = scale_by_adan(
        b1=1.0 - hyperparameters.one_minus_beta1,
        b2=hyperparameters.beta2,
        b3=hyperparameters.beta3,
    )
    proximal = optax.scale_by_schedule(
        lambda step: 1 / (1 + schedule(step) * hyperparameters.weight_decay)
    )
    return optax.chain(
        standard_chain(workload, hyperparameters, direction, schedule),
        optax.masked(proximal, mask_without(workload)),
    )


(
    get_batch_size,
    init_optimizer_state,
    update_params,
    prepare_for_eval,
    data_selection,
) = from_optax(build)
