"""What the tests of several families do with a workload."""

import functools

import jax
import numpy as np
import optax
import pytest

from algoperf import sharding, spec


def each_variant(workloads):
    """Returns pytest's parameters: full-size ones, `long` but for the base."""

    def marks(workload):
        return () if workload.variant == workload.base_workload else pytest.mark.long

    return [
        pytest.param(workload, id=workload.variant, marks=marks(workload))
        for workload in workloads
        if workload.scale == "full"
    ]


def losses_on_one_batch(workload, batch, steps=6, learning_rate=1e-3):
    """Trains with AdamW on one batch; returns the loss before each step.

    Asserts that batch statistics keep their shapes and that the step compiles once.
    """
    params, state = workload.init_model_fn(jax.random.PRNGKey(0))
    optimizer = optax.adamw(learning_rate)
    opt_state = sharding.replicate(optimizer.init(params))
    batch = sharding.shard_along_batch_dim(batch)
    rng = sharding.replicate(jax.random.PRNGKey(1))

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(params, state, opt_state):
        def loss_fn(params):
            logits, new_state = workload.model_fn(
                params, batch, state, spec.ForwardPassMode.TRAIN, rng, True
            )
            loss = workload.loss_fn(batch["targets"], logits, batch.get("weights"))
            return loss["summed"] / loss["n_valid_examples"], new_state

        (loss, new_state), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), new_state, opt_state, loss

    shapes = jax.tree.map(np.shape, state)
    losses = []
    for _ in range(steps):
        params, state, opt_state, loss = step(params, state, opt_state)
        losses.append(float(loss))
    assert jax.tree.map(np.shape, state) == shapes
    assert step._cache_size() == 1
    return losses


def evaluate(workload, params, model_state, batches):
    """Returns the metrics over batches, as the harness computes them."""
    step = jax.jit(workload.evaluation_step)
    parts = [jax.device_get(step(params, model_state, batch)) for batch in batches]
    return workload.metrics_of(parts)


def count_types(workload):
    """Returns how many parameters (leaves) there are of each ParameterType."""
    counts: dict[spec.ParameterType, int] = {}
    for kind in jax.tree.leaves(workload.model_params_types):
        counts[kind] = counts.get(kind, 0) + 1
    return counts
