"""Adan: momentum of gradient differences (Xie et al. 2022, arXiv:2208.06677)."""

import optax

from algoperf.schedules import warmup_cosine
from algoperf.submission import from_optax, mask_without, standard_chain


def build(workload, hyperparameters):
    """Returns Adan (algorithm 1); the paper's betas are one minus these.

    The decay is proximal, x <- (x - s d) / (1 + s weight_decay): that is the decoupled
    step of `standard_chain`, divided by the same.
    """
    schedule = warmup_cosine(
        workload.step_hint,
        hyperparameters.learning_rate,
        hyperparameters.warmup_factor,
    )
    direction = optax.scale_by_adan(
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
