"""Prodigy: AdamW that finds its rate (Mishchenko, Defazio 2023, arXiv:2306.06101)."""

import optax

from algoperf.schedules import warmup_cosine
from algoperf.submission import from_optax


def build(workload, hyperparameters):
    """Returns Prodigy (algorithm 4); the learning rate multiplies its estimate.

    Gradients are not clipped: the estimate needs their scale. The decay is of all
    parameters, as in the paper's experiments.
    """
    schedule = warmup_cosine(
        workload.step_hint,
        hyperparameters.learning_rate,
        hyperparameters.warmup_factor,
    )
    return optax.contrib.prodigy(
        schedule,
        betas=(1.0 - hyperparameters.one_minus_beta1, hyperparameters.beta2),
        weight_decay=hyperparameters.weight_decay,
        safeguard_warmup=True,
    )


SELF_TUNED = {
    "learning_rate": 1.0,
    "one_minus_beta1": 0.1,
    "beta2": 0.999,
    "weight_decay": 0.01,
    "warmup_factor": 0.05,
}


(
    get_batch_size,
    init_optimizer_state,
    update_params,
    prepare_for_eval,
    data_selection,
) = from_optax(build, self_tuned=SELF_TUNED)
