"""AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101), warm-up and cosine decay."""

import optax

from algoperf.submission import from_optax, mask_without, warmup_cosine


def build(workload, hyperparameters):
    """Returns AdamW; weight decay leaves biases and norms alone."""
    schedule = warmup_cosine(
        workload.step_hint,
        hyperparameters.learning_rate,
        hyperparameters.warmup_factor,
    )
    return optax.chain(
        optax.clip_by_global_norm(hyperparameters.grad_clip),
        optax.adamw(
            schedule,
            b1=1.0 - hyperparameters.one_minus_beta1,
            b2=hyperparameters.beta2,
            weight_decay=hyperparameters.weight_decay,
            mask=mask_without(workload),
        ),
    )


(
    get_batch_size,
    init_optimizer_state,
    update_params,
    prepare_for_eval,
    data_selection,
) = from_optax(build)
