"""LoRA over matrices kept in few bits (Dettmers et al. 2023, arXiv:2305.14314).

`base_format` is a name in `numerics.FORMATS` that the frozen matrices are stored in,
`recipe` one in `numerics.RECIPES` that `from_optax` computes all products by, forward
and backward. QLoRA's own format, NF4, is not among them. Numbers are those of the
formats, times are not.
"""

import optax

from algoperf import reparam
from algoperf.reparam import low_rank
from algoperf.submission import from_optax, standard_chain


def build(workload, hyperparameters):
    """Returns AdamW for the factors and for what is not factorised."""
    adam = optax.scale_by_adam(
        b1=1.0 - hyperparameters.one_minus_beta1, b2=hyperparameters.beta2
    )
    return standard_chain(workload, hyperparameters, adam)


def reparametrise(workload, hyperparameters):
    """Returns LoRA over quantised kernels, but for the output layer's."""
    return low_rank.lora(
        workload,
        reparam.select(workload, output=False),
        hyperparameters.rank,
        base_format=hyperparameters.base_format,
    )


(
    get_batch_size,
    init_optimizer_state,
    update_params,
    prepare_for_eval,
    data_selection,
) = from_optax(build, reparametrise=reparametrise)
