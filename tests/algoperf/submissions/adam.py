"""Adam from optax, the shortest submission."""

import optax

from algoperf.submission import from_optax


def build(workload, hyperparameters):
    return optax.adam(hyperparameters.learning_rate)


(
    get_batch_size,
    init_optimizer_state,
    update_params,
    prepare_for_eval,
    data_selection,
) = from_optax(build, self_tuned={"learning_rate": 0.01})
