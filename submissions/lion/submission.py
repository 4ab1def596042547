"""Lion: the sign of an interpolated momentum (Chen et al. 2023, arXiv:2302.06675)."""

import optax

from algoperf.submission import from_optax, standard_chain


def build(workload, hyperparameters):
    """Returns Lion (algorithm 2); its rates are a tenth of AdamW's, its decay 10x."""
    direction = optax.scale_by_lion(
        b1=1.0 - hyperparameters.one_minus_beta1, b2=hyperparameters.beta2
    )
    return standard_chain(workload, hyperparameters, direction)


(
    get_batch_size,
    init_optimizer_state,
    update_params,
    prepare_for_eval,
    data_selection,
) = from_optax(build)
