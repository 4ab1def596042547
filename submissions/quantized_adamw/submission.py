"""AdamW with quantised matrix products, by a recipe of `algoperf.numerics`.

The hyperparameter `recipe` is a name in `numerics.RECIPES` ('mxfp8', 'quartet', ...);
`from_optax` quantises the loss by it, here as in any submission. `moment_bits` is 32,
or 8 for optimizer state in MXFP8.
"""

import optax

from algoperf.errors import UserError
from algoperf.numerics.moments import scale_by_packed_adam
from algoperf.submission import from_optax, mask_without, warmup_cosine


def build(workload, hyperparameters):
    """Returns AdamW; weight decay leaves biases and norms alone."""
    schedule = warmup_cosine(
        workload.step_hint,
        hyperparameters.learning_rate,
        hyperparameters.warmup_factor,
    )
    b1, b2 = 1.0 - hyperparameters.one_minus_beta1, hyperparameters.beta2
    adam = {32: optax.scale_by_adam(b1, b2), 8: scale_by_packed_adam(b1, b2)}
    bits = hyperparameters.moment_bits
    if bits not in adam:
        raise UserError(f"moment_bits is {bits}; give 32, or 8 for MXFP8")
    return optax.chain(
        optax.clip_by_global_norm(hyperparameters.grad_clip),
        adam[bits],
        optax.add_decayed_weights(
            hyperparameters.weight_decay, mask=mask_without(workload)
        ),
        optax.scale_by_learning_rate(schedule),
    )


(
    get_batch_size,
    init_optimizer_state,
    update_params,
    prepare_for_eval,
    data_selection,
) = from_optax(build)
