"""Adan: momentum of gradient differences (Xie et al. 2022, arXiv:2208.06677)."""

import optax

from algoperf.submission import from_optax, standard_chain


def build(workload, hyperparameters):
    """Returns Adan (algorithm 1); the paper's betas are one minus these."""
    direction = optax.scale_by_adan(
        b1=1.0 - hyperparameters.one_minus_beta1,
        b2=hyperparameters.beta2,
        b3=hyperparameters.beta3,
    )
    return standard_chain(workload, hyperparameters, direction)


(
    get_batch_size,
    init_optimizer_state,
    update_params,
    prepare_for_eval,
    data_selection,
) = from_optax(build)
