"""Schedule-Free AdamW: average, no schedule (Defazio et al. 2024, arXiv:2405.15682)."""

import jax.numpy as jnp
import optax

from algoperf.schedules import warmup_constant
from algoperf.submission import from_optax, mask_without


def build(workload, hyperparameters):
    """Returns Schedule-Free AdamW (algorithm 1).

    z is AdamW's iterate without momentum, x the average of the z's weighted by the
    square of the highest rate so far. The params are y = (1 - b) z + b x, where the
    gradient is taken; x is what is evaluated. Decay is of y.

    Adam's bias correction is in the rate, s_t sqrt(1 - b2^t), so it is in the decay and
    in the weights of the average too. Later versions of the authors' code, and optax's
    `schedule_free_adamw`, have it in the second moment alone.
    """
    warmup = warmup_constant(
        workload.step_hint,
        hyperparameters.learning_rate,
        hyperparameters.warmup_factor,
    )

    def rate(step):  # from 1
        return warmup(step) * jnp.sqrt(1.0 - hyperparameters.beta2**step)

    base = optax.chain(
        optax.scale_by_rms(hyperparameters.beta2, eps_in_sqrt=False),
        optax.add_decayed_weights(
            hyperparameters.weight_decay, mask=mask_without(workload)
        ),
        # One step ahead, like the weights of the average: the first rate is not 0.
        optax.scale_by_learning_rate(lambda step: rate(step + 1)),
    )
    return optax.contrib.schedule_free(
        base, rate, b1=1.0 - hyperparameters.one_minus_beta1
    )


SELF_TUNED = {
    "learning_rate": 0.0025,
    "one_minus_beta1": 0.1,
    "beta2": 0.99,
    "weight_decay": 0.1,
    "warmup_factor": 0.05,
}


(
    get_batch_size,
    init_optimizer_state,
    update_params,
    prepare_for_eval,
    data_selection,
) = from_optax(
    build, self_tuned=SELF_TUNED, eval_params=optax.contrib.schedule_free_eval_params
)
