"""LAMB: Adam's step at each tensor's norm (You et al. 2020, arXiv:1904.00962)."""

import optax

from algoperf.schedules import warmup_cosine
from algoperf.submission import from_optax, mask_without

LEAST_NORM = 1.0  # of phi, section 3


def build(workload, hyperparameters):
    """Returns LAMB (algorithm 2): x <- x - s_t phi(||x||) r / ||r||, r = Adam + decay.

    As in the authors' code what is not decayed, biases and gains, takes Adam's step.
    phi is at least `LEAST_NORM` (and so is ||r||): a kernel that starts at 0 would have
    steps as small as itself, and at a small rate never grow.
    """
    decayed = mask_without(workload)
    schedule = warmup_cosine(
        workload.step_hint,
        hyperparameters.learning_rate,
        hyperparameters.warmup_factor,
    )
    return optax.chain(
        optax.clip_by_global_norm(hyperparameters.grad_clip),
        optax.scale_by_adam(
            b1=1.0 - hyperparameters.one_minus_beta1,
            b2=hyperparameters.beta2,
            eps=1e-6,
        ),
        optax.add_decayed_weights(hyperparameters.weight_decay, mask=decayed),
        optax.masked(optax.scale_by_trust_ratio(min_norm=LEAST_NORM), decayed),
        optax.scale_by_learning_rate(schedule),
    )


(
    get_batch_size,
    init_optimizer_state,
    update_params,
    prepare_for_eval,
    data_selection,
) = from_optax(build)
