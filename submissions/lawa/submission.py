"""LAWA: the mean of the latest checkpoints (Kaddour 2022, arXiv:2209.14981)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from algoperf.submission import from_optax, standard_chain


class LawaState(NamedTuple):
    """State of the optimizer, and a ring of the latest checkpoints."""

    inner: Any
    steps: jax.Array  # () int32: steps
    latest: Any  # leaves (k, ...)
    saved: jax.Array  # () int32: checkpoints so far


def with_lawa(
    inner: optax.GradientTransformation, size: int, period: int
) -> optax.GradientTransformationExtraArgs:
    """Keeps the latest `size` params of every `period`-th step beside an optimizer."""
    inner = optax.with_extra_args_support(inner)

    def init(params):
        ring = jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), params)
        return LawaState(inner.init(params), jnp.int32(0), ring, jnp.int32(0))

    def update(updates, state, params=None, **extra):
        updates, inner_state = inner.update(updates, state.inner, params, **extra)
        new = optax.apply_updates(params, updates)
        count = state.steps + 1
        is_due = count % period == 0

        def save(ring):
            place = state.saved % size
            return jax.tree.map(lambda r, x: r.at[place].set(x), ring, new)

        latest = jax.lax.cond(is_due, save, lambda ring: ring, state.latest)
        saved = state.saved + is_due
        return updates, LawaState(inner_state, count, latest, saved)

    return optax.GradientTransformationExtraArgs(init, update)


def average_of(state: LawaState, params: Any) -> Any:
    """Returns the mean of the checkpoints; of the params where there is none yet."""

    def mean(x, ring):
        kept = jnp.minimum(state.saved, ring.shape[0])
        is_kept = (jnp.arange(ring.shape[0]) < kept).reshape(-1, *[1] * x.ndim)
        # As distances from the first: so the mean of equal params is exactly those.
        distances = jnp.where(is_kept, ring - ring[0], 0)
        average = ring[0] + jnp.sum(distances, axis=0) / jnp.maximum(kept, 1)
        return jnp.where(kept > 0, average, x)

    return jax.tree.map(mean, params, state.latest)


def build(workload, hyperparameters):
    """Returns AdamW with an average."""
    base = standard_chain(
        workload,
        hyperparameters,
        optax.scale_by_adam(
            b1=1.0 - hyperparameters.one_minus_beta1, b2=hyperparameters.beta2
        ),
    )
    period = max(1, round(hyperparameters.period_factor * workload.step_hint))
    return with_lawa(base, hyperparameters.checkpoints, period)


(
    get_batch_size,
    init_optimizer_state,
    update_params,
    prepare_for_eval,
    data_selection,
) = from_optax(build, eval_params=average_of)
