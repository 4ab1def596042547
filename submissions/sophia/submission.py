"""Sophia-H: momentum over a clipped Hessian (Liu et al. 2023, arXiv:2305.14342).

The Hessian's diagonal is Hutchinson's estimate, which any loss allows; the paper's
other one, of Gauss and Newton, needs class probabilities.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from algoperf.submission import from_optax, standard_chain


class SophiaState(NamedTuple):
    """Moving averages of the gradient and of the Hessian's diagonal."""

    steps: jax.Array  # () int32
    momentum: Any
    hessian: Any


def hutchinson(objective: Any, params: Any, rng: jax.Array) -> Any:
    """Returns u * (H u) with u from a normal distribution: H's diagonal on average."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(rng, len(leaves))
    draws = [
        jax.random.normal(key, x.shape, x.dtype)
        for key, x in zip(keys, leaves, strict=True)
    ]
    u = jax.tree.unflatten(structure, draws)
    _, product = jax.jvp(objective.gradient, (params,), (u,))
    return jax.tree.map(jnp.multiply, u, product)


def scale_by_sophia(
    b1: float, b2: float, gamma: float, every: int, eps: float = 1e-12
) -> optax.GradientTransformationExtraArgs:
    """Direction clip(m / max(gamma h, eps), 1), elementwise (algorithm 3).

    h is renewed every so many steps, from the first on, by `hutchinson` on the whole
    batch (algorithm 1).
    """

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return SophiaState(jnp.int32(0), zeros, zeros)

    def update(updates, state, params=None, *, objective, **extra):
        def renewed(old):
            new = hutchinson(objective, params, jax.random.fold_in(objective.rng, 1))
            return jax.tree.map(lambda h, n: b2 * h + (1 - b2) * n, old, new)

        momentum = jax.tree.map(
            lambda m, g: b1 * m + (1 - b1) * g, state.momentum, updates
        )
        hessian = jax.lax.cond(
            state.steps % every == 0, renewed, lambda old: old, state.hessian
        )
        directions = jax.tree.map(
            lambda m, h: jnp.clip(m / jnp.maximum(gamma * h, eps), -1.0, 1.0),
            momentum,
            hessian,
        )
        return directions, SophiaState(state.steps + 1, momentum, hessian)

    return optax.GradientTransformationExtraArgs(init, update)


def build(workload, hyperparameters):
    """Returns Sophia-H with decoupled decay; a Hessian product every tenth step."""
    direction = scale_by_sophia(
        b1=1.0 - hyperparameters.one_minus_beta1,
        b2=hyperparameters.beta2,
        gamma=hyperparameters.gamma,
        every=10,
    )
    return standard_chain(workload, hyperparameters, direction)


(
    get_batch_size,
    init_optimizer_state,
    update_params,
    prepare_for_eval,
    data_selection,
) = from_optax(build)
