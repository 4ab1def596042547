"""Scion: steps of a given norm by layer (Pethick et al. 2025, arXiv:2502.07529)."""

import jax
import jax.numpy as jnp
import optax

from algoperf import spec
from algoperf.matrices import hidden_matrices, in_matrix_shape, orthogonalise
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


def unit_steps(
    momentum: float, workload: spec.Workload
) -> optax.GradientTransformation:
    """Maps gradients to the unit steps that lower their linear model most (table 2).

    D <- b D + (1 - b) G; the step is -lmo(D) of the parameter's norm.
    """

    def kind_of(hidden, kind, shape):
        if hidden:
            return "spectral"
        if kind is spec.ParameterType.EMBEDDING:
            return "embedding"
        return (
            "sign" if len(shape.shape_tuple) >= 2 and "BIAS" not in kind.name else "rms"
        )

    kinds = jax.tree.map(
        kind_of,
        hidden_matrices(workload),
        workload.model_params_types,
        workload.param_shapes,
    )
    balls = {
        "spectral": spectral,
        "sign": sign,
        "embedding": embedding_sign,
        "rms": rms,
    }
    steps = {
        name: optax.stateless(lambda u, _, ball=ball: jax.tree.map(ball, u))
        for name, ball in balls.items()
    }
    direction = optax.chain(
        optax.ema(momentum, debias=False), optax.partition(steps, kinds)
    )
    return in_matrix_shape(workload, direction)


def build(workload, hyperparameters):
    """Returns Scion on SCG steps with `constrained`, else on uSCG steps (section 3).

    x <- x - s_t (radius lmo + x), where x stays within the ball of its radius; without
    the last x it is unconstrained.
    """
    schedule = warmup_stable_decay(
        workload.step_hint,
        hyperparameters.learning_rate,
        hyperparameters.warmup_factor,
        hyperparameters.decay_factor,
    )
    hidden = hidden_matrices(workload)

    def with_radius(updates, _):
        return jax.tree.map(
            lambda u, is_hidden: (
                u
                * (
                    hyperparameters.hidden_radius
                    if is_hidden
                    else hyperparameters.other_radius
                )
            ),
            updates,
            hidden,
        )

    return optax.chain(
        unit_steps(1.0 - hyperparameters.one_minus_beta1, workload),
        optax.stateless(with_radius),
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
