"""Distributed Shampoo (Anil et al. 2020, arXiv:2002.09018; Shi et al. 2023)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from algoperf.matrices import from_blocks, precondition_kernels, to_blocks
from algoperf.submission import from_optax, standard_chain

BLOCK_SIZE = 512
RIDGE = 1e-6  # of the largest eigenvalue
FLOOR = 1e-24  # added to it where all gradients are 0


class ShampooBlocks(NamedTuple):
    """The state of one matrix, cut into k blocks (p, q)."""

    first: jax.Array  # (k, p, q), average of G
    second: jax.Array  # (k, p, q), average of G^2, for grafting
    left: jax.Array  # (k, p, p), average of G G^T
    right: jax.Array  # (k, q, q), average of G^T G
    left_root: jax.Array  # (k, p, p), left^(-1/4)
    right_root: jax.Array  # (k, q, q), right^(-1/4)


class ShampooState(NamedTuple):
    """Counts the steps; `blocks` has ShampooBlocks in the place of each matrix."""

    steps: jax.Array  # () int32
    blocks: Any


def inverse_fourth_root(x: jax.Array) -> jax.Array:
    """Returns (x + ridge)^(-1/4) of positive semi-definite matrices (k, n, n)."""
    values, vectors = jnp.linalg.eigh(x)
    values = jnp.maximum(values, 0.0)
    values = values + RIDGE * values[:, -1:] + FLOOR
    return (vectors * values[:, None, :] ** -0.25) @ vectors.mT


def scale_by_shampoo(
    b1: float, b2: float, every: int, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Direction L^(-1/4) M R^(-1/4), at the norm of Adam's (Shi et al., algorithm 2).

    L and R are moving averages with bias correction, their roots are renewed every so
    many steps, and until they first are the direction is Adam's. The norm is grafted
    block by block (arXiv:2309.06497, section 2.4.1).
    """

    def init(params):
        def blocks(x):
            zeros = to_blocks(jnp.zeros_like(x), BLOCK_SIZE)
            k, p, q = zeros.shape
            left, right = jnp.zeros((k, p, p)), jnp.zeros((k, q, q))
            return ShampooBlocks(zeros, zeros, left, right, left, right)

        return ShampooState(jnp.int32(0), jax.tree.map(blocks, params))

    def advance(g, old, count):
        left = b2 * old.left + (1 - b2) * g @ g.mT
        right = b2 * old.right + (1 - b2) * g.mT @ g
        correct = 1 - b2**count
        roots = jax.lax.cond(
            count % every == 0,
            lambda: (
                inverse_fourth_root(left / correct),
                inverse_fourth_root(right / correct),
            ),
            lambda: (old.left_root, old.right_root),
        )
        first = b1 * old.first + (1 - b1) * g
        second = b2 * old.second + (1 - b2) * jnp.square(g)
        return ShampooBlocks(first, second, left, right, *roots)

    def direction(new, count):
        mean = new.first / (1 - b1**count)
        adam = mean / (jnp.sqrt(new.second / (1 - b2**count)) + eps)
        step = new.left_root @ mean @ new.right_root
        norm, adam_norm = (
            jnp.linalg.norm(x, axis=(1, 2), keepdims=True) for x in (step, adam)
        )
        step = step * adam_norm / jnp.maximum(norm, 1e-30)
        return jnp.where(count < every, adam, step)

    def update(updates, state, params=None):
        count = state.steps + 1
        blocks = jax.tree.map(
            lambda g, old: advance(to_blocks(g, BLOCK_SIZE), old, count),
            updates,
            state.blocks,
        )
        steps = jax.tree.map(
            lambda g, new: from_blocks(direction(new, count), g.shape, BLOCK_SIZE),
            updates,
            blocks,
        )
        return steps, ShampooState(count, blocks)

    return optax.GradientTransformation(init, update)


def build(workload, hyperparameters):
    """Returns Shampoo for kernels, Adam for embeddings and vectors; decoupled decay."""
    beta1 = 1.0 - hyperparameters.one_minus_beta1
    shampoo = scale_by_shampoo(
        b1=beta1,
        b2=hyperparameters.beta2,
        every=hyperparameters.precondition_every,
    )
    adam = optax.scale_by_adam(b1=beta1, b2=hyperparameters.beta2)
    direction = precondition_kernels(workload, shampoo, adam)
    return standard_chain(workload, hyperparameters, direction)


(
    get_batch_size,
    init_optimizer_state,
    update_params,
    prepare_for_eval,
    data_selection,
) = from_optax(build)
