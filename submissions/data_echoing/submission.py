"""Data echoing: batches used again (Choi et al. 2019, arXiv:1907.05550)."""

import functools

import jax
import optax

from algoperf import spec
from algoperf.submission import from_optax, planned_steps, standard_chain


def build(workload, hyperparameters):
    """Returns AdamW; its schedule counts updates, several to a step of the harness."""
    return standard_chain(
        workload,
        hyperparameters,
        optax.scale_by_adam(
            b1=1.0 - hyperparameters.one_minus_beta1, b2=hyperparameters.beta2
        ),
    )


(
    get_batch_size,
    init_optimizer_state,
    update_once,
    prepare_for_eval,
    data_selection,
) = from_optax(build)


@functools.wraps(update_once)  # which takes recipes and microbatches
def update_params(
    *,
    current_param_container,
    model_state,
    hyperparameters,
    optimizer_state,
    rng,
    workload,
    global_step,
    **facts,
):
    """Updates `echoes` times from one batch, each time with other dropout.

    Raises:
      TrainingCompleteError: the schedule is at its end, and its rate at 0.
    """
    updates = planned_steps(workload, hyperparameters)
    if global_step * hyperparameters.echoes >= updates:
        raise spec.TrainingCompleteError
    params = current_param_container
    for echo in range(hyperparameters.echoes):
        optimizer_state, params, model_state = update_once(
            current_param_container=params,
            model_state=model_state,
            hyperparameters=hyperparameters,
            optimizer_state=optimizer_state,
            rng=jax.random.fold_in(rng, echo),
            workload=workload,
            global_step=global_step,
            **facts,
        )
    return optimizer_state, params, model_state
