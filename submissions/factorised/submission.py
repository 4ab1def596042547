"""Factorised weights: trained as two factors (Khodak et al. 2021, arXiv:2105.01029).

Factors start at the truncated SVD of the initial matrix (spectral initialisation) and
decay as their product would (Frobenius decay). `rank` is a share of a matrix's smaller
side.
"""

import optax

from algoperf import reparam
from algoperf.reparam import low_rank
from algoperf.submission import from_optax, mask_without, warmup_cosine


def chosen(workload):
    """Returns the params' tree: True for what is factorised."""
    return reparam.select(workload, output=False)


def build(workload, hyperparameters):
    """Returns AdamW with Frobenius decay of the factors."""
    schedule = warmup_cosine(
        workload.step_hint,
        hyperparameters.learning_rate,
        hyperparameters.warmup_factor,
    )
    decay = hyperparameters.weight_decay
    others = low_rank.without_factors(mask_without(workload), chosen(workload))
    return optax.chain(
        optax.clip_by_global_norm(hyperparameters.grad_clip),
        optax.scale_by_adam(
            b1=1.0 - hyperparameters.one_minus_beta1, b2=hyperparameters.beta2
        ),
        low_rank.frobenius_decay(decay),
        optax.add_decayed_weights(decay, mask=others),
        optax.scale_by_learning_rate(schedule),
    )


def reparametrise(workload, hyperparameters):
    """Returns factors for all kernels but the output layer's."""
    return low_rank.factorised(workload, chosen(workload), hyperparameters.rank)


(
    get_batch_size,
    init_optimizer_state,
    update_params,
    prepare_for_eval,
    data_selection,
) = from_optax(build, reparametrise=reparametrise)
