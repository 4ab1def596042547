"""ReLoRA: LoRA, merged and restarted (Lialin et al. 2023, arXiv:2307.05695).

The factors are merged into the matrices `restarts` times in `step_hint` steps; after
each merge the rate warms up again over a tenth of the time to the next. The paper's
dense steps at the start are left out: they would need the state that LoRA saves.
"""

import optax

from algoperf import reparam
from algoperf.reparam import low_rank
from algoperf.submission import from_optax, standard_chain, warmup_cosine


def period(workload, hyperparameters):
    """Returns the steps between merges."""
    return max(1, workload.step_hint // (hyperparameters.restarts + 1))


def build(workload, hyperparameters):
    """Returns AdamW on a cosine that warms up again after each merge."""
    adam = optax.scale_by_adam(
        b1=1.0 - hyperparameters.one_minus_beta1, b2=hyperparameters.beta2
    )
    cosine = warmup_cosine(
        workload.step_hint,
        hyperparameters.learning_rate,
        hyperparameters.warmup_factor,
    )
    steps = period(workload, hyperparameters)
    schedule = low_rank.rewarmed(cosine, steps, max(1, steps // 10))
    return standard_chain(workload, hyperparameters, adam, schedule)


def reparametrise(workload, hyperparameters):
    """Returns ReLoRA for all kernels but the output layer's."""
    return low_rank.relora(
        workload,
        reparam.select(workload, output=False),
        hyperparameters.rank,
        period(workload, hyperparameters),
    )


(
    get_batch_size,
    init_optimizer_state,
    update_params,
    prepare_for_eval,
    data_selection,
) = from_optax(build, reparametrise=reparametrise)
