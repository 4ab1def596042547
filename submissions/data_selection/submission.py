"""Selective backprop: favours high losses (Jiang et al. 2019, arXiv:1910.00762).

With a pool of two batches a step costs two forward passes more: the schedule is for 0.7
of the step hint, which take about as long as all of it without a choice.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from algoperf import sharding, spec
from algoperf.submission import from_optax, standard_chain


def build(workload, hyperparameters):
    """Returns AdamW."""
    return standard_chain(
        workload,
        hyperparameters,
        optax.scale_by_adam(
            b1=1.0 - hyperparameters.one_minus_beta1, b2=hyperparameters.beta2
        ),
    )


get_batch_size, init_optimizer_state, update_params, prepare_for_eval, _ = from_optax(
    build
)


def choose(losses: jax.Array, count: int, power: float, rng: jax.Array) -> jax.Array:
    """Draws `count` of n examples without replacement, with weights CDF(loss)^power.

    The distribution of losses is that of the pool; with power 0 all are alike.

    Args:
      losses: (n,).
      count: how many.
      power: beta of the paper, section 3.2; the larger, the greedier.
      rng: key.

    Returns:
      Their places in `losses`: (count,) int32.
    """
    rank = jnp.argsort(jnp.argsort(losses)) + 1
    log_weights = power * jnp.log(rank / losses.size)
    # The largest of Gumbel-perturbed log-weights are such a draw.
    noisy = log_weights + jax.random.gumbel(rng, losses.shape)
    return jax.lax.top_k(noisy, count)[1]


def take(batch: spec.Batch, chosen: jax.Array, count: int) -> spec.Batch:
    """Returns the chosen of a batch's `count` rows.

    Leaves may have several entries for each row: a row of molecules is a pack of them.
    """
    place = sharding.get_batch_dim_sharding()

    def of_leaf(x):
        entries, rest = x.shape[0] // count, x.shape[1:]
        rows = x.reshape(count, entries, *rest)[chosen]
        rows = rows.reshape(len(chosen) * entries, *rest)
        return jax.lax.with_sharding_constraint(rows, place)

    return jax.tree.map(of_leaf, batch)


def losses_of_rows(
    workload: spec.Workload, logits: Any, batch: spec.Batch, count: int
) -> jax.Array:
    """Returns the mean loss of each of a batch's `count` rows: (count,) float32.

    Of what counts in the row, tokens for example: a sum would favour long sequences.
    """

    def of_row(labels, logits, weights):
        loss = workload.loss_fn(labels, logits, weights)
        return loss["summed"] / jnp.maximum(loss["n_valid_examples"], 1)

    rows = jax.tree.map(
        lambda x: x.reshape(count, x.shape[0] // count, *x.shape[1:]),
        (batch["targets"], logits, batch.get("weights")),
    )
    return jax.vmap(of_row)(*rows)


@functools.partial(jax.jit, static_argnames="workload")
def batch_from(workload, params, model_state, pool, power, rng):
    """Returns a batch chosen from several, by the loss of the model as evaluated."""
    count = min(leaf.shape[0] for leaf in jax.tree.leaves(pool[0]))
    joined = jax.tree.map(lambda *parts: jnp.concatenate(parts), *pool)
    logits, _ = workload.model_fn(
        params, joined, model_state, spec.ForwardPassMode.EVAL, None, False
    )
    total = count * len(pool)
    losses = losses_of_rows(workload, logits, joined, total)
    return take(joined, choose(losses, count, power, rng), total)


def data_selection(
    workload: spec.Workload,
    input_queue,
    optimizer_state: spec.OptimizerState,
    current_param_container: spec.ParameterContainer,
    model_state: spec.ModelAuxiliaryState,
    hyperparameters: spec.Hyperparameters,
    global_step: int,
    rng: spec.RandomState,
) -> spec.Batch:
    """Draws `pool` batches and returns one of the same size made of their examples."""
    pool = [next(input_queue) for _ in range(hyperparameters.pool)]
    return batch_from(
        workload,
        current_param_container,
        model_state,
        pool,
        hyperparameters.power,
        rng,
    )
