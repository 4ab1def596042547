"""Adam-mini: one second moment for each block (Zhang et al. 2024, arXiv:2406.16793)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from algoperf import spec
from algoperf.matrices import KERNELS
from algoperf.submission import from_optax, standard_chain


class AdamMiniState(NamedTuple):
    """Moments; those of second order have one entry for each block."""

    steps: jax.Array  # () int32
    first: Any
    second: Any


def averaged_axes(kind: spec.ParameterType, ndim: int) -> tuple[int, ...]:
    """Returns the axes that a block spans (section 2.3, as in the authors' code).

    A block is a token's row of an embedding, all weights into one output of a layer
    (a class or token of the output layer among them), a head of queries or keys, a
    whole tensor of anything else. In Flax the last axis of a kernel goes out.
    """
    types = spec.ParameterType
    axes = tuple(range(ndim))
    if kind is types.EMBEDDING:
        return axes[1:]
    if kind in (types.ATTENTION_Q, types.ATTENTION_K) and ndim == 3:
        return (0, 2)  # of (width, heads, size)
    if kind is types.ATTENTION_V:
        return axes[:1]
    return axes[:-1] if kind in KERNELS and ndim >= 2 else axes


def scale_by_adam_mini(
    workload: spec.Workload, b1: float, b2: float, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Adam with v of a block = moving average of the mean of g^2 over the block."""

    def mean_square(x, kind):
        axes = averaged_axes(kind, x.ndim)
        return jnp.mean(jnp.square(x), axis=axes, keepdims=True)

    def mean_squares(tree):
        return jax.tree.map(mean_square, tree, workload.model_params_types)

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return AdamMiniState(jnp.int32(0), zeros, mean_squares(zeros))

    def update(updates, state, params=None):
        count = state.steps + 1
        first = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.first, updates)
        second = jax.tree.map(
            lambda v, g2: b2 * v + (1 - b2) * g2, state.second, mean_squares(updates)
        )
        correct1, correct2 = 1 - b1**count, 1 - b2**count
        directions = jax.tree.map(
            lambda m, v: (m / correct1) / (jnp.sqrt(v / correct2) + eps), first, second
        )
        return directions, AdamMiniState(count, first, second)

    return optax.GradientTransformation(init, update)


def build(workload, hyperparameters):
    """Returns Adam-mini with decoupled decay (algorithm 1)."""
    direction = scale_by_adam_mini(
        workload,
        b1=1.0 - hyperparameters.one_minus_beta1,
        b2=hyperparameters.beta2,
    )
    return standard_chain(workload, hyperparameters, direction)


(
    get_batch_size,
    init_optimizer_state,
    update_params,
    prepare_for_eval,
    data_selection,
) = from_optax(build)
