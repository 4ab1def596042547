"""IGNITE: bounds the output's sharpness (Dao et al. 2024, arXiv:2503.04242)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from algoperf.errors import UserError
from algoperf.submission import from_optax, standard_chain


class IgniteState(NamedTuple):
    """The Lagrange multiplier of the bound."""

    multiplier: jax.Array  # () float32


def bounded_sharpness(
    rho: float, radius: float, bound: float, rate: float, start: float
) -> optax.GradientTransformationExtraArgs:
    """Adds the gradient of lambda rho ||grad h|| to the loss's, h the mean output.

        g <- g + lambda rho / r (grad h(x + r u) - grad h(x)),  u = grad h / ||grad h||
        lambda <- max(0, lambda + rate (rho ||grad h|| - bound))

    The difference is a Hessian product to first order in r. The multiplier of an
    inequality is held at 0 or above. With several outputs, h is the mean of the first:
    logits, where their paddings are another.
    """

    def init(params):
        return IgniteState(jnp.float32(start))

    def update(updates, state, params=None, *, objective, **extra):
        def mean_output(x):
            return jnp.mean(jax.tree.leaves(objective.logits(x))[0])

        slope = jax.grad(mean_output)(params)
        norm = optax.tree.norm(slope)
        scale = radius / jnp.maximum(norm, 1e-12)
        ahead = jax.tree.map(lambda x, s: x + scale * s, params, slope)
        factor = state.multiplier * rho / radius
        updates = jax.tree.map(
            lambda g, s, a: g + factor * (a - s),
            updates,
            slope,
            jax.grad(mean_output)(ahead),
        )
        multiplier = jnp.maximum(0.0, state.multiplier + rate * (rho * norm - bound))
        return updates, IgniteState(multiplier)

    return optax.GradientTransformationExtraArgs(init, update)


def build(workload, hyperparameters):
    """Returns AdamW on the regularised gradient; three gradients a step.

    Raises:
      UserError: the run is in microbatches.
    """
    if workload.placement.microbatches > 1:
        raise UserError(
            "ignite takes the gradient of the outputs of the whole batch at once; run "
            "it with --microbatches 1"
        )
    base = standard_chain(
        workload,
        hyperparameters,
        optax.scale_by_adam(
            b1=1.0 - hyperparameters.one_minus_beta1, b2=hyperparameters.beta2
        ),
    )
    regularised = bounded_sharpness(
        rho=hyperparameters.rho,
        radius=hyperparameters.rho,
        bound=hyperparameters.bound,
        rate=hyperparameters.multiplier_rate,
        start=hyperparameters.multiplier_start,
    )
    return optax.chain(regularised, base)


(
    get_batch_size,
    init_optimizer_state,
    update_params,
    prepare_for_eval,
    data_selection,
) = from_optax(build)
