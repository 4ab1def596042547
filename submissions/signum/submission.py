"""Signum: the sign of the momentum (Bernstein et al. 2018, arXiv:1802.04434)."""

import optax

from algoperf.submission import from_optax, standard_chain


def build(workload, hyperparameters):
    """Returns Signum (algorithm 2): m <- b m + (1 - b) g, direction sign(m)."""
    direction = optax.chain(
        optax.ema(1.0 - hyperparameters.one_minus_beta1, debias=False),
        optax.scale_by_sign(),
    )
    return standard_chain(workload, hyperparameters, direction)


(
    get_batch_size,
    init_optimizer_state,
    update_params,
    prepare_for_eval,
    data_selection,
) = from_optax(build)
