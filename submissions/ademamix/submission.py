"""AdEMAMix: Adam, two momenta (Pagliardini et al. 2024, arXiv:2409.03137)."""

import math

import jax.numpy as jnp
import optax

from algoperf.submission import from_optax, standard_chain


def slow_beta(num_steps: int, start: float, end: float) -> optax.Schedule:
    """Grows a decay rate so that its half-life grows linearly (appendix A.1)."""

    def beta(step):
        share = jnp.minimum(step / num_steps, 1.0)
        low, high = math.log(start), math.log(end)
        return jnp.exp(low * high / ((1 - share) * high + share * low))

    return beta


def build(workload, hyperparameters):
    """Returns AdEMAMix; alpha and the slow beta grow until `step_hint`."""
    steps = workload.step_hint
    beta1 = 1.0 - hyperparameters.one_minus_beta1
    direction = optax.contrib.scale_by_ademamix(
        b1=beta1,
        b2=hyperparameters.beta2,
        b3=slow_beta(steps, beta1, hyperparameters.beta3),
        alpha=optax.linear_schedule(0.0, hyperparameters.alpha, steps),
    )
    return standard_chain(workload, hyperparameters, direction)


(
    get_batch_size,
    init_optimizer_state,
    update_params,
    prepare_for_eval,
    data_selection,
) = from_optax(build)
