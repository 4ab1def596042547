"""AdamW on a warm-up-stable-decay schedule (Hu et al. 2024, arXiv:2404.06395)."""

import optax

from algoperf.schedules import warmup_stable_decay
from algoperf.submission import from_optax, standard_chain


def build(workload, hyperparameters):
    """Returns AdamW; the rate falls in the last `decay_factor` of the steps."""
    schedule = warmup_stable_decay(
        workload.step_hint,
        hyperparameters.learning_rate,
        hyperparameters.warmup_factor,
        hyperparameters.decay_factor,
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
