"""SGD with momentum (Polyak 1964), Nesterov's where asked; warm-up and cosine decay."""

import optax

from algoperf.submission import from_optax, mask_without, warmup_cosine


def build(workload, hyperparameters):
    """Returns SGD with momentum and L2 regularisation of the weights."""
    schedule = warmup_cosine(
        workload.step_hint,
        hyperparameters.learning_rate,
        hyperparameters.warmup_factor,
    )
    return optax.chain(
        optax.clip_by_global_norm(hyperparameters.grad_clip),
        optax.add_decayed_weights(
            hyperparameters.weight_decay, mask=mask_without(workload)
        ),
        optax.sgd(
            schedule,
            momentum=1.0 - hyperparameters.one_minus_beta1,
            nesterov=hyperparameters.nesterov,
        ),
    )


(
    get_batch_size,
    init_optimizer_state,
    update_params,
    prepare_for_eval,
    data_selection,
) = from_optax(build)
