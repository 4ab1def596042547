"""GaLore: Adam on projected gradients (Zhao et al. 2024, arXiv:2403.03507).

`rank` is a share of a matrix's smaller side; `gap` steps lie between projections.
"""

import optax

from algoperf.matrices import precondition_kernels
from algoperf.reparam.projections import scale_by_galore
from algoperf.submission import from_optax, standard_chain


def build(workload, hyperparameters):
    """Returns the rule for kernels, AdamW for all else."""
    adam = optax.scale_by_adam(
        b1=1.0 - hyperparameters.one_minus_beta1, b2=hyperparameters.beta2
    )
    small = scale_by_galore(
        hyperparameters.rank, hyperparameters.gap, hyperparameters.scale, adam
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
