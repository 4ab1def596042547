"""Momentum in the style of an official submission of version 0.5: pmap, older names."""

import functools

import jax
import jax.numpy as jnp
import optax
from algorithmic_efficiency import spec
from flax import jax_utils
from jax import lax


def get_batch_size(workload_name):
    if workload_name == "synthetic":
        return 32
    raise ValueError(f"Unsupported workload name: {workload_name}.")


def init_optimizer_state(workload, model_params, model_state, hyperparameters, rng):
    del model_state, rng
    first = jax_utils.unreplicate(model_params)
    assert jax.tree_map(jnp.shape, first) == jax.tree_map(
        lambda shape: shape.shape_tuple, workload.param_shapes
    )
    init_fn, update_fn = optax.sgd(hyperparameters.learning_rate, momentum=0.9)
    zeros = jax.tree_map(lambda s: jnp.zeros(s.shape_tuple), workload.param_shapes)
    return jax_utils.replicate(init_fn(zeros)), update_fn


@functools.partial(
    jax.pmap,
    axis_name="batch",
    in_axes=(None, None, 0, 0, 0, 0, 0, None),
    static_broadcasted_argnums=(0, 1),
    donate_argnums=(2, 3, 4),
)
def pmapped_step(workload, update_fn, model_state, state, params, batch, rng, limit):
    def loss_fn(params):
        logits, new_model_state = workload.model_fn(
            params,
            batch,
            model_state,
            spec.ForwardPassMode.TRAIN,
            rng,
            update_batch_norm=True,
        )
        loss = workload.loss_fn(batch["targets"], logits, batch.get("weights"))
        return loss["summed"], (loss["n_valid_examples"], new_model_state)

    (total, (count, model_state)), gradient = jax.value_and_grad(loss_fn, has_aux=True)(
        params
    )
    total, count, gradient = lax.psum((total, count, gradient), axis_name="batch")
    gradient = jax.tree_map(
        lambda g: jnp.clip(g / count, a_min=-limit, a_max=limit), gradient
    )
    updates, state = update_fn(gradient, state, params)
    return state, optax.apply_updates(params, updates), model_state, total / count


def update_params(
    workload,
    current_param_container,
    current_params_types,
    model_state,
    hyperparameters,
    batch,
    loss_type,
    optimizer_state,
    eval_results,
    global_step,
    rng,
):
    del current_params_types, hyperparameters, loss_type, eval_results
    devices = jax.local_device_count()
    assert batch["inputs"].shape == (devices, 32 // devices, 4)
    state, update_fn = optimizer_state
    state, params, model_state, loss = pmapped_step(
        workload,
        update_fn,
        model_state,
        state,
        current_param_container,
        batch,
        jax.random.split(rng, devices),
        10.0,
    )
    if workload.metrics_logger is not None:
        workload.metrics_logger.append_scalar_metrics({"loss": loss[0]}, global_step)
    return (state, update_fn), params, model_state


def data_selection(
    workload,
    input_queue,
    optimizer_state,
    current_param_container,
    model_state,
    hyperparameters,
    global_step,
    rng,
):
    del workload, model_state, hyperparameters, global_step, rng
    state, _ = optimizer_state
    devices = jax.local_device_count()
    for leaf in jax.tree_leaves((state, current_param_container)):
        assert leaf.shape[0] == devices
    return next(input_queue)
