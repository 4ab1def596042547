"""APOLLO: gradients scaled by a small Adam (Zhu et al. 2024, arXiv:2412.05270).

`rank` is a share of a matrix's smaller side, or 1 for APOLLO-Mini, with `per_tensor`
true and a `scale` of 128. `gap` steps lie between random projections.
"""

import optax

from algoperf.matrices import precondition_kernels
from algoperf.reparam.projections import scale_by_apollo
from algoperf.submission import from_optax, standard_chain


def build(workload, hyperparameters):
    """Returns the rule for kernels, AdamW for all else."""
    adam = optax.scale_by_adam(
        b1=1.0 - hyperparameters.one_minus_beta1, b2=hyperparameters.beta2
    )
    small = scale_by_apollo(
        hyperparameters.rank,
        hyperparameters.gap,
        hyperparameters.scale,
        adam,
        hyperparameters.per_tensor,
    )
    direction = precondition_kernels(workload, small, adam)
    return standard_chain(workload, hyperparameters, direction)


(
    get_batch_size,
    init_optimizer_state,
    update_params,
    prepare_for_eval,
    data_selection,
) = from_optax(build)
