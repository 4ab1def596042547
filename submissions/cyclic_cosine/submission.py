"""AdamW, cosine with restarts (Loshchilov and Hutter 2017, arXiv:1608.03983)."""

import optax

from algoperf.schedules import cosine_restarts
from algoperf.submission import from_optax, standard_chain


def build(workload, hyperparameters):
    """Returns AdamW; `cycles` of equal length fill the steps."""
    schedule = cosine_restarts(
        workload.step_hint,
        hyperparameters.learning_rate,
        hyperparameters.warmup_factor,
        hyperparameters.cycles,
    )
    direction = optax.scale_by_adam(
        b1=1.0 - hyperparameters.one_minus_beta1, b2=hyperparameters.beta2
    )
    return standard_chain(workload, hyperparameters, direction, schedule)


(
    get_batch_size,
    init_optimizer_state,
    update_params,
    prepare_for_eval,
    data_selection,
) = from_optax(build)
