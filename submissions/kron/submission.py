"""Kron: PSGD with Kronecker factors (Li 2015, arXiv:1512.04202; arXiv:2402.04553)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.scipy.linalg import solve_triangular

from algoperf.matrices import from_blocks, precondition_kernels, to_blocks
from algoperf.submission import from_optax, standard_chain

BLOCK_SIZE = 256
LARGEST_RMS = 1.1  # of a direction, which is about 1 once the factors fit


class KronBlocks(NamedTuple):
    """The state of one matrix, cut into k blocks (p, q)."""

    momentum: jax.Array  # (k, p, q)
    left: jax.Array  # (k, p, p), upper triangular
    right: jax.Array  # (k, q, q), upper triangular


class KronState(NamedTuple):
    """Counts the steps; `blocks` has KronBlocks in the place of each matrix."""

    steps: jax.Array  # () int32
    blocks: Any


def spectral_norm(x: jax.Array) -> jax.Array:
    """Returns a lower bound for a symmetric matrix, from one power iteration."""
    column = x[:, jnp.argmax(jnp.sum(jnp.square(x), axis=0))]
    column = column / jnp.maximum(jnp.linalg.norm(column), 1e-30)
    return jnp.linalg.norm(x @ column)


def fitted(
    left: jax.Array, right: jax.Array, g: jax.Array, noise: jax.Array, rate: float
) -> tuple[jax.Array, jax.Array]:
    """Returns the factors after one step on E[g'Pg + v'P^-1 v], P = Q'Q.

    With Q = left x right, A = left G right^T and B = left^-T V right^-1,

        left  <- left  - rate triu(A A^T - B B^T) left  / ||A A^T + B B^T||
        right <- right - rate triu(A^T A - B^T B) right / ||A^T A + B^T B||

    which is a step in the group of triangular matrices (arXiv:2402.04553, section 3).
    At the optimum P^-1 = E[g g^T]^(1/2).
    """
    a = left @ g @ right.T
    b = solve_triangular(left, noise, trans=1)
    b = solve_triangular(right, b.T, trans=1).T

    def moved(q, plus, minus):
        step = rate * jnp.triu(plus - minus) @ q
        return q - step / jnp.maximum(spectral_norm(plus + minus), 1e-30)

    left, right = moved(left, a @ a.T, b @ b.T), moved(right, a.T @ a, b.T @ b)
    # Only their product counts: equal largest entries keep both well scaled.
    ratio = jnp.sqrt(jnp.max(jnp.abs(right)) / jnp.max(jnp.abs(left)))
    return left * ratio, right / ratio


def scale_by_kron(
    b1: float, rate: float, flat_steps: int, every: int
) -> optax.GradientTransformationExtraArgs:
    """Direction P M with M the momentum and P fitted to whiten it.

    Its root mean square is held at 1.1 or below. P is fitted at each of the first
    `flat_steps` steps, and then every so many.
    """

    def init(params):
        def blocks(x):
            momentum = to_blocks(jnp.zeros_like(x), BLOCK_SIZE)
            k, p, q = momentum.shape
            eyes = (jnp.broadcast_to(jnp.eye(n), (k, n, n)) for n in (p, q))
            return KronBlocks(momentum, *eyes)

        return KronState(jnp.int32(0), jax.tree.map(blocks, params))

    def advance(g, old, key, count):
        momentum = b1 * old.momentum + (1 - b1) * g
        corrected = momentum / (1 - b1**count)

        def fit():
            noise = jax.random.normal(key, g.shape, g.dtype)
            # A zero gradient (padding, dead units) would let the factors grow for ever.
            return jax.vmap(fitted, in_axes=(0, 0, 0, 0, None))(
                old.left, old.right, corrected + 1e-9 * noise, noise, rate
            )

        is_due = (count <= flat_steps) | (count % every == 0)
        left, right = jax.lax.cond(is_due, fit, lambda: (old.left, old.right))
        return KronBlocks(momentum, left, right)

    def direction(new, shape, count):
        mean = new.momentum / (1 - b1**count)
        step = new.left.mT @ new.left @ mean @ new.right.mT @ new.right
        step = from_blocks(step, shape, BLOCK_SIZE)
        root = jnp.sqrt(jnp.mean(jnp.square(step)))
        return step * jnp.minimum(1.0, LARGEST_RMS / jnp.maximum(root, 1e-30))

    def update(updates, state, params=None, *, objective, **extra):
        count = state.steps + 1
        leaves, structure = jax.tree.flatten(updates)
        key = jax.random.fold_in(objective.rng, 1)
        keys = jax.tree.unflatten(structure, jax.random.split(key, len(leaves)))
        blocks = jax.tree.map(
            lambda g, old, key: advance(to_blocks(g, BLOCK_SIZE), old, key, count),
            updates,
            state.blocks,
            keys,
        )
        steps = jax.tree.map(
            lambda g, new: direction(new, g.shape, count), updates, blocks
        )
        return steps, KronState(count, blocks)

    return optax.GradientTransformationExtraArgs(init, update)


def build(workload, hyperparameters):
    """Returns Kron for kernels, Adam for embeddings and vectors; decoupled decay."""
    beta1 = 1.0 - hyperparameters.one_minus_beta1
    kron = scale_by_kron(
        b1=beta1,
        rate=hyperparameters.precondition_rate,
        flat_steps=round(hyperparameters.flat_factor * workload.step_hint),
        every=hyperparameters.precondition_every,
    )
    adam = optax.scale_by_adam(b1=beta1, b2=hyperparameters.beta2)
    direction = precondition_kernels(workload, kron, adam)
    return standard_chain(workload, hyperparameters, direction)


(
    get_batch_size,
    init_optimizer_state,
    update_params,
    prepare_for_eval,
    data_selection,
) = from_optax(build)
