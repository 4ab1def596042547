"""AdamW, evaluated at an exponential moving average (Polyak and Juditsky 1992)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from algoperf.submission import from_optax, standard_chain


class EmaState(NamedTuple):
    """State of the optimizer, and the average of the params it went through."""

    inner: Any
    average: Any  # starts from 0
    weight: jax.Array  # () float32: what the average must be divided by


def with_ema(
    inner: optax.GradientTransformation, decay: float
) -> optax.GradientTransformationExtraArgs:
    """Keeps a <- d a + (1 - d) x beside an optimizer, x being the new params."""
    inner = optax.with_extra_args_support(inner)

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return EmaState(inner.init(params), zeros, jnp.float32(0.0))

    def update(updates, state, params=None, **extra):
        updates, inner_state = inner.update(updates, state.inner, params, **extra)
        average = jax.tree.map(
            lambda a, x: decay * a + (1 - decay) * x,
            state.average,
            optax.apply_updates(params, updates),
        )
        weight = decay * state.weight + (1 - decay)
        return updates, EmaState(inner_state, average, weight)

    return optax.GradientTransformationExtraArgs(init, update)


def average_of(state: EmaState, params: Any) -> Any:
    """Returns the average without its bias towards 0; the mean of one is that one."""
    return jax.tree.map(lambda a: a / state.weight, state.average)


def build(workload, hyperparameters):
    """Returns AdamW with an average."""
    base = standard_chain(
        workload,
        hyperparameters,
        optax.scale_by_adam(
            b1=1.0 - hyperparameters.one_minus_beta1, b2=hyperparameters.beta2
        ),
    )
    return with_ema(base, hyperparameters.ema_decay)


(
    get_batch_size,
    init_optimizer_state,
    update_params,
    prepare_for_eval,
    data_selection,
) = from_optax(build, eval_params=average_of)
