"""LoRA: frozen matrices plus trained low-rank ones (Hu et al. 2021, arXiv:2106.09685).

Made for fine-tuning; here it trains from scratch, so embeddings, the output layer,
biases and norms are trained as they are. `rank` is a share of a matrix's smaller side.
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
    """Returns LoRA for all kernels but the output layer's."""
    chosen = reparam.select(workload, output=False)
    return low_rank.lora(workload, chosen, hyperparameters.rank)


(
    get_batch_size,
    init_optimizer_state,
    update_params,
    prepare_for_eval,
    data_selection,
) = from_optax(build, reparametrise=reparametrise)
