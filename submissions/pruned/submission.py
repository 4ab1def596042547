"""Pruned at the start: kernels masked by a score (Frankle 2021, arXiv:2009.08576).

`score` is 'magnitude', 'snip', 'grasp' or, where inputs are images, 'synflow'; those
that need data take the first batch. A share `density` of the kernels' weights stays, by
the largest scores of all kernels together. Scores take batch norm scales of 0 for 1 and
a random output layer for one of 0, 'magnitude' an output layer of any scale for one of
the usual.

`score` 'lottery_ticket' prunes by magnitude and rewinds, three times within the first
three eighths of the training steps; what is left trains on (arXiv:1912.05671).
"""

import functools

import jax.numpy as jnp
import optax

from algoperf import reparam, spec
from algoperf.errors import UserError, unknown_name
from algoperf.reparam import pruning
from algoperf.submission import from_optax, standard_chain

SYNFLOW_ROUNDS = 100
TICKET = "lottery_ticket"
TICKET_ROUNDS = 3


def build(workload, hyperparameters):
    """Returns AdamW."""
    adam = optax.scale_by_adam(
        b1=1.0 - hyperparameters.one_minus_beta1, b2=hyperparameters.beta2
    )
    return standard_chain(workload, hyperparameters, adam)


def output_for_ones(objective, params):
    """Returns the sum of the model's outputs for inputs of ones, as in evaluation."""
    inputs = objective.batch["inputs"]
    kind = getattr(inputs, "dtype", None)  # a graph has none
    if kind is None or not jnp.issubdtype(kind, jnp.floating):
        raise UserError(
            "synflow needs inputs that may be all ones, such as images; this "
            f"workload's are {kind or type(inputs).__name__}: take another score"
        )
    batch = {**objective.batch, "inputs": jnp.ones_like(inputs[:1])}
    logits, _ = objective.workload.model_fn(
        params,
        batch,
        objective.model_state,
        spec.ForwardPassMode.EVAL,
        objective.rng,
        update_batch_norm=False,
    )
    return jnp.sum(logits)


def reparametrise(workload, hyperparameters):
    """Returns masks for all kernels."""
    chosen, density = reparam.select(workload), hyperparameters.density
    if hyperparameters.score == TICKET:
        period = max(1, workload.step_hint // 8)
        early = min(workload.step_hint // 50, period - 1)
        return pruning.lottery_ticket(chosen, density, period, TICKET_ROUNDS, early)

    def alive(params):
        params = pruning.with_unit_scales(params, workload.model_params_types)
        return pruning.with_drawn_outputs(params, workload)

    def once(score):
        return lambda params, objective: pruning.keep_largest(
            score(alive(params), objective), chosen, density
        )

    def synflow(params, objective):
        output = functools.partial(output_for_ones, objective)
        score = functools.partial(pruning.synflow, output)
        return pruning.iterated(score, alive(params), chosen, density, SYNFLOW_ROUNDS)

    masks = {
        "magnitude": once(
            lambda params, objective: pruning.magnitude(
                pruning.with_unit_outputs(params, workload)
            )
        ),
        # The objective's own gradient, which is computed in microbatches.
        "snip": once(
            lambda params, objective: pruning.snip(objective.gradient, params)
        ),
        "grasp": once(
            lambda params, objective: pruning.grasp(objective.gradient, params)
        ),
        "synflow": synflow,
    }
    if hyperparameters.score not in masks:
        raise unknown_name("score", hyperparameters.score, [*masks, TICKET])
    return pruning.masked(chosen, masks[hyperparameters.score], density)


FUNCTIONS = from_optax(build, reparametrise=reparametrise)
get_batch_size, init_optimizer_state, _, prepare_for_eval, data_selection = FUNCTIONS


@functools.wraps(FUNCTIONS.update_params)  # else it would take no microbatches
def update_params(*, hyperparameters, global_step, **facts):
    """One step; what the first has pruned is looked at, for a step cannot raise."""
    (state, step), params, model_state = FUNCTIONS.update_params(
        hyperparameters=hyperparameters, global_step=global_step, **facts
    )
    if global_step == 0 and hyperparameters.score != TICKET:
        pruning.check_masks(state.small.frozen)
    return (state, step), params, model_state
