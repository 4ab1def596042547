"""Low-rank parametrisations: LoRA, its restarts (ReLoRA), factorised weights.

A matrix has shape (m, n) = (fan-in, fan-out) and is applied as x W.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from algoperf import spec
from algoperf.errors import UserError
from algoperf.numerics.formats import find_format
from algoperf.numerics.packed import Packed, pack, unpack
from algoperf.reparam.base import (
    Reparametrisation,
    Rule,
    State,
    per_matrix,
    rank_of,
)


class Factors(NamedTuple):
    """A matrix of rank r at most: left (m, r) times right (r, n)."""

    left: jax.Array
    right: jax.Array

    def product(self) -> jax.Array:
        """Returns the matrix (m, n)."""
        return self.left @ self.right


def is_factors(node: Any) -> bool:
    """Whether a node of a tree is a pair of factors, for `is_leaf`."""
    return isinstance(node, Factors)


def truncated(matrix: jax.Array, rank: int) -> Factors:
    """Returns the nearest matrix of a rank, with the singular values shared evenly.

    For W = U S V^T: left = U_r sqrt(S_r), right = sqrt(S_r) V_r^T. By Eckart and Young
    ||W - left right||_F^2 is the sum of the squared singular values after the r-th.
    """
    u, s, vt = jnp.linalg.svd(matrix.astype(jnp.float32), full_matrices=False)
    root = jnp.sqrt(s[:rank])
    left, right = u[:, :rank] * root, root[:, None] * vt[:rank]
    return Factors(left.astype(matrix.dtype), right.astype(matrix.dtype))


def adapter(key: Any, m: int, n: int, rank: int, dtype: Any = jnp.float32) -> Factors:
    """Returns fresh LoRA factors, whose product is 0.

    left is uniform in +-1/sqrt(m), which is Kaiming's with a = sqrt(5), as in the
    authors' code; right is 0 (Hu et al. 2021, arXiv:2106.09685, section 4.1).
    """
    bound = m**-0.5
    left = jax.random.uniform(key, (m, rank), dtype, -bound, bound)
    return Factors(left, jnp.zeros((rank, n), dtype))


def lora(
    workload: spec.Workload,
    chosen: Any,
    rank: int | float,
    alpha: float | None = None,
    base_format: str | None = None,
    train_others: bool = True,
) -> Reparametrisation:
    """W = W_0 + (alpha / r) left right; W_0 stays (Hu et al. 2021, arXiv:2106.09685).

    Args:
      workload: gives names, types and shapes.
      chosen: the params' tree of booleans, from `select`.
      rank: see `rank_of`.
      alpha: r if not given, so that the scale is 1.
      base_format: a name in `numerics.FORMATS` in whose bits W_0 is stored, as QLoRA
        does (Dettmers et al. 2023, arXiv:2305.14314); float32 if not given.
      train_others: whether the parameters that are not chosen are trained.

    Raises:
      UserError: a rank out of range, an unknown format.
    """

    fmt = None if base_format is None else find_format(base_format)

    def rule(name: str, shape: tuple[int, ...]) -> Rule:
        m, n = shape
        r = rank_of(rank, shape, name)
        scale = lora_scale(r, alpha)

        def init(matrix: jax.Array, key: Any) -> tuple[Factors, Any]:
            base = matrix if fmt is None else pack(matrix, fmt, 0)
            return adapter(key, m, n, r, matrix.dtype), base

        def materialise(factors: Factors, base: Any) -> jax.Array:
            full = unpack(base) if isinstance(base, Packed) else base
            return full + scale * factors.product()

        return Rule(init, materialise)

    return per_matrix(workload, chosen, rule, train_others)


def lora_scale(rank: int, alpha: float | None) -> float:
    """Returns alpha / r; 1 without alpha."""
    return 1.0 if alpha is None else alpha / rank


def merged(factors: Factors, base: jax.Array, scale: float, key: Any) -> Any:
    """Returns (fresh factors, base with the old ones added to it): the same matrix."""
    m, n = base.shape
    rank = factors.left.shape[1]
    fresh = adapter(key, m, n, rank, base.dtype)
    return fresh, base + scale * factors.product()


def relora(
    workload: spec.Workload,
    chosen: Any,
    rank: int | float,
    period: int,
    alpha: float | None = None,
    kept_moments: float = 0.001,
) -> Reparametrisation:
    """LoRA whose factors are merged and drawn anew every `period` steps.

    Lialin et al. 2023 (arXiv:2307.05695, section 3): so the sum of updates has a higher
    rank than each. At a merge, moments of the factors are set to 0 but for a random
    share of them. Give the rate `rewarmed` to warm up again. The paper's dense steps at
    the start are not part of this.

    Args:
      workload: gives names, types and shapes.
      chosen: the params' tree of booleans, from `select`.
      rank: see `rank_of`.
      period: steps between merges.
      alpha: as of `lora`.
      kept_moments: the share that is kept; the paper's 0.001 prunes 99.9 %.

    Raises:
      UserError: a rank or period out of range; when traced, an optimizer state in which
        no moments of the factors are found.
    """
    if period < 1:
        raise UserError(f"period {period} of ReLoRA: give at least 1 step")
    plain = lora(workload, chosen, rank, alpha)

    def merge(small: State, transformation: Any, key: Any) -> tuple[State, Any]:
        key, pruning_key = jax.random.split(key)
        structure: Any
        leaves, structure = jax.tree.flatten(small.trainable, is_leaf=is_factors)
        bases = structure.flatten_up_to(small.frozen)
        new = []
        for number, (leaf, base) in enumerate(zip(leaves, bases, strict=True)):
            if is_factors(leaf):
                scale = lora_scale(leaf.left.shape[1], alpha)
                own_key = jax.random.fold_in(key, number)
                leaf, base = merged(leaf, base, scale, own_key)
            new.append((leaf, base))
        trainable, frozen = zip(*new, strict=True)
        small = State(structure.unflatten(trainable), structure.unflatten(frozen))
        return small, prune_moments(
            transformation, small.trainable, kept_moments, pruning_key
        )

    def advance(small, transformation, steps, objective):
        key = jax.random.fold_in(objective.rng, 2)  # dropout has the key itself
        is_due = (steps > 0) & (steps % period == 0)
        return jax.lax.cond(
            is_due,
            lambda small, state: merge(small, state, key),
            lambda small, state: (small, state),
            small,
            transformation,
        )

    return Reparametrisation(plain.init, plain.materialise, advance)


def prune_moments(state: Any, trainable: Any, kept: float, key: Any) -> Any:
    """Returns an optimizer state with the moments of factors set to 0, but a share.

    Moments are what in the state has the structure of `trainable`; those of other
    parameters than `Factors` stay. All moments of a number stay or go together: a first
    moment of Adam's beside a second one of 0 is a step of about mu / 1e-8, for the left
    factors' gradients are 0 after a merge.

    Args:
      state: of any optax transformation.
      trainable: what it trains.
      kept: the share of numbers, drawn at random, whose moments stay.
      key: a JAX key.

    Raises:
      UserError: the state holds nothing of that structure.
    """
    wanted: Any = jax.tree.structure(trainable)

    def is_like_trainable(node: Any) -> bool:
        return wanted == jax.tree.structure(node)

    nodes, structure = jax.tree.flatten(state, is_leaf=is_like_trainable)
    if not any(map(is_like_trainable, nodes)):
        raise UserError(
            "the optimizer keeps no moments in the structure of what it trains, so "
            "there is nothing to prune at a merge; do without optax.partition and masks"
        )

    new = [
        _pruned(node, kept, key) if is_like_trainable(node) else node for node in nodes
    ]
    return jax.tree.unflatten(structure, new)


def _pruned(tree: Any, kept: float, key: Any) -> Any:
    """Keeps each entry of the factors in a tree with probability `kept`, else 0."""
    leaves, structure = jax.tree.flatten(tree, is_leaf=is_factors)
    for number, leaf in enumerate(leaves):
        if is_factors(leaf):
            keys = jax.random.split(jax.random.fold_in(key, number))
            leaves[number] = Factors(
                *(
                    part * jax.random.bernoulli(own_key, kept, part.shape)
                    for part, own_key in zip(leaf, keys, strict=True)
                )
            )
    return jax.tree.unflatten(structure, leaves)


def rewarmed(schedule: optax.Schedule, period: int, warmup: int) -> optax.Schedule:
    """Lets a schedule start from 0 after each merge: times min(1, s / warmup).

    s are the steps since the last merge; before the first one the schedule is as it is
    (Lialin et al. 2023, arXiv:2307.05695, section 3, jagged cosine).
    """

    def rate(step):
        since = step % period
        ramp = jnp.minimum(1.0, since / max(1, warmup))
        return schedule(step) * jnp.where(step < period, 1.0, ramp)

    return rate


def factorised(
    workload: spec.Workload, chosen: Any, rank: int | float
) -> Reparametrisation:
    """W = left right, from the truncated SVD of the initial W: spectral initialisation.

    Khodak et al. 2021 (arXiv:2105.01029, section 3.1). Give the optimizer
    `frobenius_decay` for its weight decay.

    Args:
      workload: gives names, types and shapes.
      chosen: the params' tree of booleans, from `select`.
      rank: see `rank_of`.

    Raises:
      UserError: a rank out of range.
    """

    def rule(name: str, shape: tuple[int, ...]) -> Rule:
        r = rank_of(rank, shape, name)
        return Rule(
            lambda matrix, _: (truncated(matrix, r), None),
            lambda factors, _: factors.product(),
        )

    return per_matrix(workload, chosen, rule)


def frobenius_decay(weight_decay: float) -> optax.GradientTransformation:
    """Adds the gradient of (weight_decay / 2) ||left right||_F^2 to that of factors.

    weight_decay left (right right^T) and weight_decay (left^T left) right: the decay of
    the product instead of the factors (Khodak et al. 2021, arXiv:2105.01029, section
    3.2). All else is left as it is.
    """

    def decayed(g: Any, x: Any) -> Any:
        if not is_factors(x):
            return g
        left = g.left + weight_decay * x.left @ (x.right @ x.right.T)
        right = g.right + weight_decay * (x.left.T @ x.left) @ x.right
        return Factors(left, right)

    def update(updates, state, params=None):
        return jax.tree.map(decayed, updates, params, is_leaf=is_factors), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def without_factors(mask: Any, chosen: Any) -> Any:
    """Returns a mask over the params with False where a matrix is factorised."""
    return jax.tree.map(lambda is_in, is_chosen: is_in and not is_chosen, mask, chosen)
