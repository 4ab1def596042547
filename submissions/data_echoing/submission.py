"""Data echoing: batches used again (Choi et al. 2019, arXiv:1907.05550)."""

import jax
import optax

from algoperf import spec
from algoperf.submission import from_optax, standard_chain


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


def update_params(
    workload: spec.Workload,
    current_param_container: spec.ParameterContainer,
    current_params_types: spec.ParameterTypeTree,
    model_state: spec.ModelAuxiliaryState,
    hyperparameters: spec.Hyperparameters,
    batch: spec.Batch,
    loss_type: spec.LossType,
    optimizer_state: spec.OptimizerState,
    eval_results: spec.EvalResults,
    global_step: int,
    rng: spec.RandomState,
) -> spec.UpdateReturn:
    """Updates `echoes` times from one batch, each time with other dropout."""
    params = current_param_container
    for echo in range(hyperparameters.echoes):
        optimizer_state, params, model_state = update_once(
            workload=workload,
            current_param_container=params,
            current_params_types=current_params_types,
            model_state=model_state,
            hyperparameters=hyperparameters,
            batch=batch,
            loss_type=loss_type,
            optimizer_state=optimizer_state,
            eval_results=eval_results,
            global_step=global_step,
            rng=jax.random.fold_in(rng, echo),
        )
    return optimizer_state, params, model_state
