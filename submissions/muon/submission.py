"""Muon: orthogonalised momentum (Jordan et al. 2024, kellerjordan.github.io/muon)."""

import jax
import jax.numpy as jnp
import optax

from algoperf.matrices import hidden_matrices, in_matrix_shape, orthogonalise
from algoperf.schedules import warmup_stable_decay
from algoperf.submission import from_optax, mask_without


def scale_by_muon(momentum: float) -> optax.GradientTransformation:
    """Maps gradients of matrices (fan-in, fan-out) to steps of spectral norm about 1.

    B <- b B + G; direction sqrt(max(1, fan-out / fan-in)) NewtonSchulz(G + b B).
    """

    def direction(u):
        rows, columns = u.shape
        return orthogonalise(u) * jnp.sqrt(jnp.maximum(1.0, columns / rows))

    return optax.chain(
        optax.trace(momentum, nesterov=True),
        optax.stateless(lambda updates, _: jax.tree.map(direction, updates)),
    )


def build(workload, hyperparameters):
    """Returns Muon for hidden matrices, AdamW for embeddings, output and vectors.

    AdamW's rate is `adam_rate` times Muon's. The decay is decoupled.
    """
    schedule = warmup_stable_decay(
        workload.step_hint,
        hyperparameters.learning_rate,
        hyperparameters.warmup_factor,
        hyperparameters.decay_factor,
    )
    adam = optax.scale_by_adam(
        b1=1.0 - hyperparameters.one_minus_beta1, b2=hyperparameters.beta2
    )
    is_hidden = hidden_matrices(workload)
    kinds = jax.tree.map(lambda hidden: "muon" if hidden else "adam", is_hidden)
    direction = optax.partition(
        {"muon": scale_by_muon(hyperparameters.momentum), "adam": adam}, kinds
    )

    def at_own_rate(updates, _):
        return jax.tree.map(
            lambda u, hidden: u if hidden else hyperparameters.adam_rate * u,
            updates,
            is_hidden,
        )

    return optax.chain(
        optax.clip_by_global_norm(hyperparameters.grad_clip),
        in_matrix_shape(workload, direction),
        optax.add_decayed_weights(
            hyperparameters.weight_decay, mask=mask_without(workload)
        ),
        optax.stateless(at_own_rate),
        optax.scale_by_learning_rate(schedule),
    )


(
    get_batch_size,
    init_optimizer_state,
    update_params,
    prepare_for_eval,
    data_selection,
) = from_optax(build)
