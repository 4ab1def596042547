"""Scion: steps of a given norm by layer (Pethick et al. 2025, arXiv:2502.07529)."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from algoperf import spec
from algoperf.matrices import (
    hidden_matrices,
    in_matrix_shape,
    kernel_matrices,
    orthogonalise,
)
from algoperf.schedules import warmup_stable_decay
from algoperf.submission import from_optax


def spectral(u: jax.Array) -> jax.Array:
    """Unit ball of hidden matrices (fan-in, fan-out): RMS to RMS operator norm."""
    rows, columns = u.shape
    return orthogonalise(u) * jnp.sqrt(columns / rows)


def sign(u: jax.Array) -> jax.Array:
    """Unit ball of the output layer (fan-in, fan-out): infinity norm / fan-in."""
    return jnp.sign(u) / u.shape[0]


def embedding_sign(u: jax.Array) -> jax.Array:
    """Unit ball of embeddings, whose inputs have one 1: infinity norm."""
    return jnp.sign(u)


def rms(u: jax.Array) -> jax.Array:
    """Unit ball of vectors and scalars: root mean square."""
    return u / (jnp.sqrt(jnp.mean(jnp.square(u))) + 1e-12)


def kinds_of(workload: spec.Workload) -> Any:
    """Returns which ball each parameter has: the params' tree of names."""

    def kind_of(is_hidden, is_kernel, kind):
        if is_hidden:
            return "hidden"
        if is_kernel:
            return "output"
        return "embedding" if kind is spec.ParameterType.EMBEDDING else "vector"

    return jax.tree.map(
        kind_of,
        hidden_matrices(workload),
        kernel_matrices(workload),
        workload.model_params_types,
    )


def shares_of_positions(workload: spec.Workload) -> Any:
    """Returns 1 / sqrt(kernel positions) for hidden convolutions, 1 for all else.

    Of a kernel of k x k positions the ball is sqrt(out / in) / k^2, of channels in and
    out, so that the sum over positions keeps the norm (the authors' code); `spectral`
    has sqrt(out / (k^2 in)).
    """

    def share(is_hidden, kind, shape):
        is_convolution = is_hidden and kind is spec.ParameterType.CONV_WEIGHT
        positions = shape.shape_tuple[:-2] if is_convolution else ()
        return 1.0 / math.sqrt(math.prod(positions))

    return jax.tree.map(
        share,
        hidden_matrices(workload),
        workload.model_params_types,
        workload.param_shapes,
    )


def build(workload, hyperparameters):
    """Returns Scion on SCG steps with `constrained`, else on uSCG steps (section 3).

    D <- b D + (1 - b) G, and x <- x - s_t (radius unit(D) + x), where unit(D) is the
    point of the parameter's unit ball that D grows most towards (table 2). So x stays
    within its radius; without the last x it is unconstrained.
    """
    schedule = warmup_stable_decay(
        workload.step_hint,
        hyperparameters.learning_rate,
        hyperparameters.warmup_factor,
        hyperparameters.decay_factor,
    )
    balls = {
        "hidden": (spectral, hyperparameters.hidden_radius),
        "output": (sign, hyperparameters.output_radius),
        "embedding": (embedding_sign, hyperparameters.other_radius),
        "vector": (rms, hyperparameters.other_radius),
    }
    steps = {
        name: optax.chain(
            optax.stateless(lambda u, _, unit=unit: jax.tree.map(unit, u)),
            optax.scale(radius),
        )
        for name, (unit, radius) in balls.items()
    }
    shares = shares_of_positions(workload)
    direction = optax.chain(
        optax.ema(1.0 - hyperparameters.one_minus_beta1, debias=False),
        optax.partition(steps, kinds_of(workload)),
        optax.stateless(lambda u, _: jax.tree.map(jnp.multiply, u, shares)),
    )
    return optax.chain(
        in_matrix_shape(workload, direction),
        optax.add_decayed_weights(1.0 if hyperparameters.constrained else 0.0),
        optax.scale_by_learning_rate(schedule),
    )


(
    get_batch_size,
    init_optimizer_state,
    update_params,
    prepare_for_eval,
    data_selection,
) = from_optax(build)
