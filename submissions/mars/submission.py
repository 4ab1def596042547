"""MARS: Adam with variance reduction (Yuan et al. 2024, arXiv:2411.10438)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from algoperf.submission import from_optax, standard_chain


class CorrectionState(NamedTuple):
    """The gradient of the step before, and how many there were."""

    previous: Any
    steps: jax.Array  # () int32


def corrected_gradient(gamma: float, beta1: float) -> optax.GradientTransformation:
    """Maps g_t to c_t = g_t + gamma b1 / (1 - b1) (g_t - g_{t-1}), clipped at norm 1.

    This is MARS-approx, section 3.2: g_{t-1} is of the batch before, so there is one
    gradient a step. The first step has no correction.
    """
    factor = gamma * beta1 / (1.0 - beta1)

    def init(params):
        return CorrectionState(jax.tree.map(jnp.zeros_like, params), jnp.int32(0))

    def update(updates, state, params=None):
        scale = jnp.where(state.steps == 0, 0.0, factor)
        corrected = jax.tree.map(
            lambda g, old: g + scale * (g - old), updates, state.previous
        )
        clip = jnp.maximum(optax.tree.norm(corrected), 1.0)
        corrected = jax.tree.map(lambda c: c / clip, corrected)
        return corrected, CorrectionState(updates, state.steps + 1)

    return optax.GradientTransformation(init, update)


def build(workload, hyperparameters):
    """Returns MARS-AdamW (algorithm 2): Adam on corrected gradients."""
    beta1 = 1.0 - hyperparameters.one_minus_beta1
    direction = optax.chain(
        corrected_gradient(hyperparameters.gamma, beta1),
        optax.scale_by_adam(b1=beta1, b2=hyperparameters.beta2),
    )
    return standard_chain(workload, hyperparameters, direction)


(
    get_batch_size,
    init_optimizer_state,
    update_params,
    prepare_for_eval,
    data_selection,
) = from_optax(build)
