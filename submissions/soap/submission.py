"""SOAP: Adam in Shampoo's eigenbasis (Vyas et al. 2024, arXiv:2409.11321)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from algoperf.matrices import from_blocks, precondition_kernels, to_blocks
from algoperf.submission import from_optax, standard_chain

BLOCK_SIZE = 256


class SoapBlocks(NamedTuple):
    """The state of one matrix, cut into k blocks (p, q)."""

    first: jax.Array  # (k, p, q), in the original basis
    second: jax.Array  # (k, p, q), in the eigenbasis
    left: jax.Array  # (k, p, p), average of G G^T
    right: jax.Array  # (k, q, q), average of G^T G
    left_basis: jax.Array  # (k, p, p), eigenvectors of `left` in the columns
    right_basis: jax.Array  # (k, q, q)


class SoapState(NamedTuple):
    """Counts the steps; `blocks` has SoapBlocks in the place of each matrix."""

    steps: jax.Array  # () int32
    blocks: Any


def rotate(x: jax.Array, left: jax.Array, right: jax.Array) -> jax.Array:
    """Returns left^T x right of each block."""
    return left.mT @ x @ right


def largest_first(average: jax.Array) -> jax.Array:
    """Returns the eigenvectors in the columns, those of the largest values first."""
    return jnp.flip(jnp.linalg.eigh(average).eigenvectors, axis=-1)


def renewed(average: jax.Array, basis: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One step of orthogonal iteration, Q <- QR(L Q), and how it permutes columns.

    It settles in descending order of the eigenvalues alone. So columns are sorted by
    what they say of theirs, q' L q, as in the authors' code.
    """
    moved = average @ basis
    order = jnp.argsort(jnp.sum(basis * moved, axis=-2), axis=-1, descending=True)
    moved = jnp.take_along_axis(moved, order[:, None, :], axis=-1)
    return jnp.linalg.qr(moved).Q, order


def scale_by_soap(
    b1: float, b2: float, b_shampoo: float, every: int, eps: float = 1e-8
) -> optax.GradientTransformation:
    """SOAP of matrices (algorithm 3), with Adam's bias correction.

    The first gradient only makes the bases. They are renewed every so many steps
    (algorithm 4), and the second moment goes with the columns.
    """

    def start(g):
        left, right = (1 - b_shampoo) * g @ g.mT, (1 - b_shampoo) * g.mT @ g
        zeros = jnp.zeros_like(g)
        bases = largest_first(left), largest_first(right)
        return SoapBlocks(zeros, zeros, left, right, *bases), zeros

    def renew(old):
        left_basis, rows = renewed(old.left, old.left_basis)
        right_basis, columns = renewed(old.right, old.right_basis)
        second = jnp.take_along_axis(old.second, rows[:, :, None], axis=1)
        second = jnp.take_along_axis(second, columns[:, None, :], axis=2)
        return old._replace(
            second=second, left_basis=left_basis, right_basis=right_basis
        )

    def advance(g, old, count):
        rotated = rotate(g, old.left_basis, old.right_basis)
        first = b1 * old.first + (1 - b1) * g
        second = b2 * old.second + (1 - b2) * jnp.square(rotated)
        mean = rotate(first, old.left_basis, old.right_basis) / (1 - b1**count)
        step = mean / (jnp.sqrt(second / (1 - b2**count)) + eps)
        left = b_shampoo * old.left + (1 - b_shampoo) * g @ g.mT
        right = b_shampoo * old.right + (1 - b_shampoo) * g.mT @ g
        new = SoapBlocks(first, second, left, right, old.left_basis, old.right_basis)
        new = jax.lax.cond(count % every == 0, renew, lambda same: same, new)
        return new, rotate(step, old.left_basis.mT, old.right_basis.mT)

    def init(params):
        def blocks(x):
            zeros = to_blocks(jnp.zeros_like(x), BLOCK_SIZE)
            k, p, q = zeros.shape
            left, right = jnp.zeros((k, p, p)), jnp.zeros((k, q, q))
            return SoapBlocks(zeros, zeros, left, right, left, right)

        return SoapState(jnp.int32(0), jax.tree.map(blocks, params))

    def update(updates, state, params=None):
        count = state.steps

        def one(x, old):
            g = to_blocks(x, BLOCK_SIZE)
            new, step = jax.lax.cond(
                count == 0, lambda: start(g), lambda: advance(g, old, count)
            )
            return from_blocks(step, x.shape, BLOCK_SIZE), new

        pairs = jax.tree.map(one, updates, state.blocks)
        steps, blocks = (
            jax.tree.map(lambda _, pair, i=i: pair[i], updates, pairs) for i in (0, 1)
        )
        return steps, SoapState(count + 1, blocks)

    return optax.GradientTransformation(init, update)


def build(workload, hyperparameters):
    """Returns SOAP for kernels, Adam for embeddings and vectors; decoupled decay."""
    beta1 = 1.0 - hyperparameters.one_minus_beta1
    soap = scale_by_soap(
        b1=beta1,
        b2=hyperparameters.beta2,
        b_shampoo=hyperparameters.shampoo_beta,
        every=hyperparameters.precondition_every,
    )
    adam = optax.scale_by_adam(b1=beta1, b2=hyperparameters.beta2)
    direction = precondition_kernels(workload, soap, adam)
    return standard_chain(workload, hyperparameters, direction)


(
    get_batch_size,
    init_optimizer_state,
    update_params,
    prepare_for_eval,
    data_selection,
) = from_optax(build)
