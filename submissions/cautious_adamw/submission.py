"""Cautious AdamW: never against the gradient (Liang et al. 2024, arXiv:2411.16085)."""

import jax
import jax.numpy as jnp
import optax

from algoperf.submission import from_optax, standard_chain


def cautious(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Masks a direction u where its sign is not the gradient's (algorithm 1).

    u <- u [u g > 0] n / (number kept + 1), tensor by tensor, n its size. An entry
    without a gradient is not kept: of embeddings, whose rows are mostly not in a batch,
    the others take steps many times as large.
    """

    def mask(direction, gradient):
        kept = direction * gradient > 0
        return direction * kept * (gradient.size / (jnp.sum(kept) + 1.0))

    def update(updates, state, params=None):
        directions, state = inner.update(updates, state, params)
        return jax.tree.map(mask, directions, updates), state

    return optax.GradientTransformation(inner.init, update)


def build(workload, hyperparameters):
    """Returns AdamW with a cautious direction; the decay is not masked."""
    direction = optax.scale_by_adam(
        b1=1.0 - hyperparameters.one_minus_beta1, b2=hyperparameters.beta2
    )
    return standard_chain(workload, hyperparameters, cautious(direction))


(
    get_batch_size,
    init_optimizer_state,
    update_params,
    prepare_for_eval,
    data_selection,
) = from_optax(build)
