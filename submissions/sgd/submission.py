"""SGD at a constant rate (Robbins and Monro 1951); it must miss the mini targets.

No momentum, no schedule, no weight decay.
"""

import optax

from algoperf.submission import from_optax


def build(workload, hyperparameters):
    """Returns plain SGD."""
    return optax.sgd(hyperparameters.learning_rate)


(
    get_batch_size,
    init_optimizer_state,
    update_params,
    prepare_for_eval,
    data_selection,
) = from_optax(build)
