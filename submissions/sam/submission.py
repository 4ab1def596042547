"""SAM: gradients at the worst nearby point (Foret et al. 2021, arXiv:2010.01412)."""

import jax
import jax.numpy as jnp
import optax

from algoperf.submission import from_optax, standard_chain


def sharpness_aware(rho: float) -> optax.GradientTransformationExtraArgs:
    """Replaces the gradient g at x by that at x + rho g / ||g|| (equations 2 and 3)."""

    def update(updates, state, params=None, *, objective, **extra):
        scale = rho / jnp.maximum(optax.tree.norm(updates), 1e-12)
        worst = jax.tree.map(lambda x, g: x + scale * g, params, updates)
        return objective.gradient(worst), state

    return optax.GradientTransformationExtraArgs(
        lambda params: optax.EmptyState(), update
    )


def build(workload, hyperparameters):
    """Returns SAM over AdamW; two gradients a step, of the same batch and dropout."""
    base = standard_chain(
        workload,
        hyperparameters,
        optax.scale_by_adam(
            b1=1.0 - hyperparameters.one_minus_beta1, b2=hyperparameters.beta2
        ),
    )
    return optax.chain(sharpness_aware(hyperparameters.rho), base)


(
    get_batch_size,
    init_optimizer_state,
    update_params,
    prepare_for_eval,
    data_selection,
) = from_optax(build)
