"""Optimizer state in a small space: GaLore, Fira, APOLLO.

The parameters stay whole; a gradient G is projected, an elementwise rule such as Adam
keeps its moments there, and the update comes back. All of them see matrices: wrap them
in `matrices.precondition_kernels`. Shapes: a matrix is turned so that its short side
comes first, (s, l) with s <= l; a projector P is (s, r), moments are (r, l).

optax.contrib.galore projects the long side instead: its P is (l, r), and at full rank
it still drops a part of the gradients that come between two refreshes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from algoperf.errors import UserError
from algoperf.reparam.base import rank_of

EPSILON = 1e-8  # beside norms that are divided by, as in the authors' code


class ProjectedState(NamedTuple):
    """State of all three rules; trees have one entry for each matrix."""

    steps: jax.Array  # () int32
    projectors: Any  # (s, r) of GaLore and Fira; None of APOLLO, which draws them anew
    norms: Any  # () of the last scaled gradient, for the limiter; None of GaLore
    base: Any  # the inner rule's, on (r, l)


def short_side_first(x: jax.Array) -> jax.Array:
    """Returns a matrix or its transpose, so that it is (s, l) with s <= l."""
    return x if x.shape[0] <= x.shape[1] else x.T


def top_directions(gradient: jax.Array, rank: int) -> jax.Array:
    """Returns the first left singular vectors (s, r) of a matrix (s, l).

    A vector's largest entry is positive. Singular vectors have no sign of their own,
    and moments outlive a refresh, so without this the trajectory would be the linear
    algebra library's choice.
    """
    u, _, _ = jnp.linalg.svd(gradient.astype(jnp.float32), full_matrices=False)
    u = u[:, :rank]
    largest = jnp.take_along_axis(u, jnp.argmax(jnp.abs(u), axis=0)[None], axis=0)
    return (u * jnp.sign(largest)).astype(gradient.dtype)


def scale_by_galore(
    rank: int | float,
    gap: int = 200,
    scale: float = 0.25,
    base: optax.GradientTransformation | None = None,
) -> optax.GradientTransformation:
    """GaLore: update = scale P rho(P^T G), rho the base rule.

    P holds the top r singular vectors of the short side of G, anew every `gap` steps;
    the moments go on from one P to the next (Zhao et al. 2024, arXiv:2403.03507,
    algorithm 2).

    Args:
      rank: see `rank_of`.
      gap: steps between refreshes of P.
      scale: the paper's alpha.
      base: an elementwise rule that needs no parameters; Adam if not given.

    Raises:
      UserError: a gap out of range; a rank, at `init`.
    """
    _check_gap(gap)
    base = optax.scale_by_adam() if base is None else base

    def update(updates, state, params=None):
        del params
        gradients = jax.tree.map(short_side_first, updates)
        projectors = _refreshed(state, gradients, gap)
        small = jax.tree.map(lambda p, g: p.T @ g, projectors, gradients)
        directions, base_state = base.update(small, state.base)
        new = jax.tree.map(
            lambda p, n, g: _turned_like(scale * (p @ n), g),
            projectors,
            directions,
            updates,
        )
        return new, ProjectedState(state.steps + 1, projectors, None, base_state)

    return optax.GradientTransformation(
        lambda params: _initial(params, rank, base, projectors=True, norms=False),
        update,
    )


def scale_by_fira(
    rank: int | float,
    gap: int = 200,
    scale: float = 0.25,
    base: optax.GradientTransformation | None = None,
    growth: float = 1.01,
) -> optax.GradientTransformation:
    """Fira: GaLore, and what it leaves of the gradient, scaled as its update is.

    update = scale (P N + limit(phi (G - P P^T G))) with R = P^T G, N = rho(R) and, for
    each column j of (r, l), phi_j = ||N_j|| / ||R_j|| (Chen et al. 2024,
    arXiv:2410.01623, section 4). The limiter lets the norm of the second term grow by a
    factor of `growth` in a step at most. `scale` is on both terms, as in the paper.

    Args and errors as of `scale_by_galore`.
    """
    _check_gap(gap)
    base = optax.scale_by_adam() if base is None else base

    def update(updates, state, params=None):
        del params
        gradients = jax.tree.map(short_side_first, updates)
        projectors = _refreshed(state, gradients, gap)
        small = jax.tree.map(lambda p, g: p.T @ g, projectors, gradients)
        directions, base_state = base.update(small, state.base)
        rest = jax.tree.map(
            lambda p, g, r, n: (g - p @ r) * _ratio(n, r, axis=0),
            projectors,
            gradients,
            small,
            directions,
        )
        rest, norms = _limited(rest, state.norms, growth)
        new = jax.tree.map(
            lambda p, n, x, g: _turned_like(scale * (p @ n + x), g),
            projectors,
            directions,
            rest,
            updates,
        )
        return new, ProjectedState(state.steps + 1, projectors, norms, base_state)

    return optax.GradientTransformation(
        lambda params: _initial(params, rank, base, projectors=True, norms=True), update
    )


def scale_by_apollo(
    rank: int | float,
    gap: int = 200,
    scale: float = 1.0,
    base: optax.GradientTransformation | None = None,
    per_tensor: bool = False,
    growth: float = 1.01,
    seed: int = 0,
    projector: Callable[[Any, int, int], jax.Array] | None = None,
) -> optax.GradientTransformation:
    """APOLLO: the gradient, scaled as Adam would in a random small space.

    update = sqrt(scale) limit(phi G) with R = P^T G, N = rho(R), phi_j = ||N_j|| /
    ||R_j|| for each column j of the long side, or one ||N|| / ||R|| for all
    (`per_tensor`). P is Gaussian with variance 1/r, drawn anew from its seed every
    `gap` steps and never stored (Zhu et al. 2024, arXiv:2412.05270, algorithm 1).
    APOLLO-Mini is rank 1 with `per_tensor` and scale 128.

    Args:
      rank: see `rank_of`; the paper takes a quarter of the short side.
      gap: steps between new P.
      scale: makes up for the norm that a small rank loses.
      base: an elementwise rule that needs no parameters; Adam if not given.
      per_tensor: one factor for a whole matrix.
      growth: how much the norm of an update may grow in a step.
      seed: of the projections.
      projector: (key, s, r) -> P (s, r), in place of the Gaussian.

    Raises:
      UserError: a gap out of range; a rank, at `init`.
    """
    _check_gap(gap)
    base = optax.scale_by_adam() if base is None else base
    draw = gaussian if projector is None else projector
    axis = None if per_tensor else 0

    def update(updates, state, params=None):
        del params
        turned = jax.tree.map(short_side_first, updates)
        gradients = jax.tree.leaves(turned)
        key = jax.random.fold_in(jax.random.PRNGKey(seed), state.steps // gap)
        small = []
        for number, g in enumerate(gradients):
            p = draw(
                jax.random.fold_in(key, number), g.shape[0], rank_of(rank, g.shape)
            )
            small.append(p.T.astype(g.dtype) @ g)
        small = jax.tree.unflatten(jax.tree.structure(turned), small)
        directions, base_state = base.update(small, state.base)
        scaled = jax.tree.map(
            lambda g, r, n: g * _ratio(n, r, axis),
            turned,
            small,
            directions,
        )
        scaled, norms = _limited(scaled, state.norms, growth)
        new = jax.tree.map(
            lambda x, g: _turned_like(scale**0.5 * x, g), scaled, updates
        )
        return new, ProjectedState(state.steps + 1, None, norms, base_state)

    return optax.GradientTransformation(
        lambda params: _initial(params, rank, base, projectors=False, norms=True),
        update,
    )


def gaussian(key: Any, s: int, r: int) -> jax.Array:
    """Returns (s, r) of independent N(0, 1/r)."""
    return jax.random.normal(key, (s, r)) / r**0.5


def _check_gap(gap: int) -> None:
    if gap < 1:
        raise UserError(f"gap {gap} between projections: give at least 1 step")


def _initial(
    params: Any,
    rank: int | float,
    base: optax.GradientTransformation,
    projectors: bool,
    norms: bool,
) -> ProjectedState:
    """Zeros of the right shapes."""

    def zeros(x: jax.Array, rows: int, columns: int) -> jax.Array:
        return jnp.zeros((rows, columns), x.dtype)

    def shapes(x: jax.Array) -> tuple[int, int, int]:
        if x.ndim != 2:
            raise UserError(
                f"a projection needs matrices, got shape {x.shape}; wrap it in "
                "matrices.precondition_kernels"
            )
        s, long = sorted(x.shape)
        return s, long, rank_of(rank, (s, long))

    def moments(x: jax.Array) -> jax.Array:
        _, long, r = shapes(x)
        return zeros(x, r, long)

    def projector(x: jax.Array) -> jax.Array:
        s, _, r = shapes(x)
        return zeros(x, s, r)

    return ProjectedState(
        jnp.int32(0),
        jax.tree.map(projector, params) if projectors else None,
        jax.tree.map(lambda x: jnp.zeros((), x.dtype), params) if norms else None,
        base.init(jax.tree.map(moments, params)),
    )


def _refreshed(state: ProjectedState, gradients: Any, gap: int) -> Any:
    """Returns the projectors, anew if they are due.

    A gradient of 0 has no directions, and its singular vectors would be arbitrary axes
    for `gap` steps: it changes nothing, and a projector that is still 0 is due as soon
    as its gradient is not.
    """
    is_due = state.steps % gap == 0

    def refreshed(p: jax.Array, g: jax.Array) -> jax.Array:
        return jax.lax.cond(
            g.any() & (is_due | ~p.any()),
            lambda: top_directions(g, p.shape[1]),
            lambda: p,
        )

    return jax.tree.map(refreshed, state.projectors, gradients)


def _ratio(n: jax.Array, r: jax.Array, axis: int | None) -> jax.Array:
    """Returns ||n|| / ||r|| over an axis, which stays with length 1."""
    size, other = (
        jnp.sqrt(jnp.sum(jnp.square(x), axis, keepdims=True)) for x in (n, r)
    )
    return size / (other + EPSILON)


def _limited(tree: Any, last_norms: Any, growth: float) -> tuple[Any, Any]:
    """Caps norms at `growth` times the last ones; returns the tree and its norms.

    A norm after 0 is not capped, as the first is not: behind parameters that start at
    0 first gradients are 0, and from 0 a norm could not grow in thousands of steps.
    """
    norms = jax.tree.map(jnp.linalg.norm, tree)

    def factor(norm: jax.Array, last: jax.Array) -> jax.Array:
        limit = jnp.maximum(norm / (last + EPSILON), growth) / growth
        return jnp.where(last == 0, 1.0, 1.0 / limit)

    factors = jax.tree.map(factor, norms, last_norms)
    multiply = jnp.multiply
    return jax.tree.map(multiply, tree, factors), jax.tree.map(multiply, norms, factors)


def _turned_like(x: jax.Array, like: jax.Array) -> jax.Array:
    """Returns a matrix (s, l), or its transpose where `like` is turned."""
    return x if x.shape == like.shape else x.T
