"""Adafactor: factored second moments (Shazeer and Stern 2018, arXiv:1804.04235)."""

import optax

from algoperf.submission import from_optax, standard_chain


def build(workload, hyperparameters):
    """Returns Adafactor (algorithm 6) with momentum, on a schedule of its own.

    The second moment of a matrix is (row sums)(column sums) / sum, with decay
    1 - t^-0.8; updates are clipped at RMS 1 and scaled by the RMS of the parameter,
    at least 1e-3.
    """
    direction = optax.chain(
        optax.scale_by_factored_rms(
            factored=hyperparameters.factored, min_dim_size_to_factor=2
        ),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_param_block_rms(),
        optax.ema(1.0 - hyperparameters.one_minus_beta1, debias=False),
    )
    return standard_chain(workload, hyperparameters, direction)


(
    get_batch_size,
    init_optimizer_state,
    update_params,
    prepare_for_eval,
    data_selection,
) = from_optax(build)
