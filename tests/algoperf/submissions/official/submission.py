"""AdamW in the style of an official JAX submission, compiled in update_params."""

import functools

import jax
import jax.numpy as jnp
import optax

from algoperf import jax_sharding_utils, spec

_GRAD_CLIP_EPS = 1e-6
BATCH_SIZES = {"synthetic": 32, "imagenet_resnet": 64, "finewebedu_lm": 8}


def get_batch_size(workload_name):
    if workload_name not in BATCH_SIZES:
        raise ValueError(f"Unsupported workload name: {workload_name}.")
    return BATCH_SIZES[workload_name]


def init_optimizer_state(workload, model_params, model_state, hyperparameters, rng):
    del model_params, model_state, rng
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=hyperparameters.learning_rate,
        warmup_steps=max(1, int(hyperparameters.warmup_factor * workload.step_hint)),
        decay_steps=workload.step_hint,
    )
    init_fn, update_fn = optax.adamw(
        schedule,
        b1=1.0 - hyperparameters.one_minus_beta1,
        b2=hyperparameters.beta2,
        weight_decay=hyperparameters.weight_decay,
    )
    zeros = jax.tree.map(
        lambda shape: jnp.zeros(shape.shape_tuple), workload.param_shapes
    )
    return init_fn(zeros), update_fn


_replicated = jax_sharding_utils.get_replicate_sharding()
_sharded = jax_sharding_utils.get_batch_dim_sharding()


@functools.partial(
    jax.jit,
    static_argnums=(0, 1),
    donate_argnums=(2, 3, 4),
    in_shardings=(
        _replicated,  # model_state
        _replicated,  # optimizer_state
        _replicated,  # params
        _sharded,  # batch
        _replicated,  # rng
        _replicated,  # grad_clip
        _replicated,  # label_smoothing
    ),
    out_shardings=_replicated,
)
def train_step(
    workload,
    opt_update_fn,
    model_state,
    optimizer_state,
    current_param_container,
    batch,
    rng,
    grad_clip,
    label_smoothing,
):
    def loss_fn(params):
        logits, new_model_state = workload.model_fn(
            params,
            batch,
            model_state,
            spec.ForwardPassMode.TRAIN,
            rng,
            update_batch_norm=True,
        )
        loss_dict = workload.loss_fn(
            label_batch=batch["targets"],
            logits_batch=logits,
            mask_batch=batch.get("weights"),
            label_smoothing=label_smoothing,
        )
        loss = loss_dict["summed"] / loss_dict["n_valid_examples"]
        return loss, new_model_state

    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, new_model_state), grad = grad_fn(current_param_container)
    grad_norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grad)))
    if grad_clip is not None:
        scale = jnp.clip(grad_clip / (grad_norm + _GRAD_CLIP_EPS), max=1.0)
        grad = jax.tree.map(lambda g: g * scale, grad)
    updates, new_optimizer_state = opt_update_fn(
        grad, optimizer_state, current_param_container
    )
    new_params = optax.apply_updates(current_param_container, updates)
    return new_optimizer_state, new_params, new_model_state, loss, grad_norm


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
    del current_params_types, loss_type, eval_results
    optimizer_state, opt_update_fn = optimizer_state
    if hasattr(hyperparameters, "label_smoothing"):
        label_smoothing = hyperparameters.label_smoothing
    else:
        label_smoothing = 0.0
    if hasattr(hyperparameters, "grad_clip"):
        grad_clip = hyperparameters.grad_clip
    else:
        grad_clip = None
    new_optimizer_state, new_params, new_model_state, loss, grad_norm = train_step(
        workload,
        opt_update_fn,
        model_state,
        optimizer_state,
        current_param_container,
        batch,
        rng,
        grad_clip,
        label_smoothing,
    )
    if global_step % 10 == 0 and workload.metrics_logger is not None:
        workload.metrics_logger.append_scalar_metrics(
            {"loss": loss.item(), "grad_norm": grad_norm.item()}, global_step
        )
    return (new_optimizer_state, opt_update_fn), new_params, new_model_state


def prepare_for_eval(
    workload,
    current_param_container,
    current_params_types,
    model_state,
    hyperparameters,
    loss_type,
    optimizer_state,
    eval_results,
    global_step,
    rng,
):
    del workload, hyperparameters, current_params_types, loss_type
    del eval_results, global_step, rng
    return optimizer_state, current_param_container, model_state


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
    del workload, optimizer_state, current_param_container, model_state
    del hyperparameters, global_step, rng
    return next(input_queue)
