"""Adam with its moments stored in a few bits.

    updates, state = scale_by_packed_adam(b1=0.9, b2=0.99).update(gradient, state)

Each step unpacks the moments, updates them in float32 and packs them again.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from algoperf.numerics.formats import FORMATS, Format, find_format
from algoperf.numerics.packed import Packed, pack, unpack

# Small parameters (biases, norms) are a small part of the state; they stay in float32
# (Dettmers et al. 2022, arXiv:2110.02861, section 4).
MIN_SIZE = 4096
LIMIT = 10.0  # of updates for which there is no bound


# MXFP8 without clipping, rounded at random. To nearest would not do: a moment that
# moves by less than half a step of the format would stay where it is for ever.
MOMENTS = FORMATS["mxfp8_ceil"].replace(rounding="stochastic")


class PackedAdamState(NamedTuple):
    """How many steps were made, and the two moments."""

    steps: jax.Array
    mu: Any
    nu: Any


def scale_by_packed_adam(
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    fmt: str | Format = MOMENTS,
    min_size: int = MIN_SIZE,
) -> optax.GradientTransformation:
    """Adam (Kingma and Ba 2015, arXiv:1412.6980) with packed moments.

    m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, update m' / (sqrt(v') + eps) with
    m' = m / (1 - b1^t), v' = v / (1 - b2^t).

    Where a small v was rounded to 0 and m was not, the update would explode; so it is
    limited to what Adam's can be. By Cauchy and Schwarz |m| / sqrt(v) is at most

      (1 - b1) / sqrt(1 - b2) / sqrt(1 - b1^2 / b2)    where b1^2 < b2

    and elsewhere grows without end, slowly: there the update is limited to 10.

    Args:
      b1, b2, eps: of Adam.
      fmt: of both moments, flattened. Random numbers follow from the step's number.
      min_size: parameters with fewer elements keep float32 moments.
    """
    fmt = find_format(fmt)
    limit = None
    if b1**2 < b2 < 1.0:
        limit = (1 - b1) / (1 - b2) ** 0.5 / (1 - b1**2 / b2) ** 0.5

    def stored(x: jax.Array, steps: jax.Array, number: int) -> jax.Array | Packed:
        if x.size < min_size:
            return x
        key = jnp.stack([steps.astype(jnp.uint32), jnp.uint32(number)])
        return pack(x.ravel(), fmt, key=key)

    def loaded(x: jax.Array | Packed, like: jax.Array) -> jax.Array:
        return unpack(x).reshape(like.shape) if isinstance(x, Packed) else x

    def init(params: optax.Params) -> PackedAdamState:
        steps = jnp.zeros((), jnp.int32)
        zeros = jax.tree.map(
            lambda p: stored(jnp.zeros(p.shape, jnp.float32), steps, 0), params
        )
        return PackedAdamState(steps, zeros, zeros)

    def update(
        updates: optax.Updates, state: optax.OptState, params: Any = None
    ) -> tuple[optax.Updates, optax.OptState]:
        del params
        assert isinstance(state, PackedAdamState)
        steps = state.steps + 1
        correct_mu, correct_nu = (1 - b ** steps.astype(jnp.float32) for b in (b1, b2))
        largest = limit * jnp.sqrt(correct_nu) / correct_mu if limit else LIMIT
        gradients, structure = jax.tree.flatten(updates)
        is_packed = {"is_leaf": lambda x: isinstance(x, Packed)}
        old_mu = jax.tree.leaves(state.mu, **is_packed)
        old_nu = jax.tree.leaves(state.nu, **is_packed)
        new = []
        for i, g in enumerate(gradients):
            g32 = g.astype(jnp.float32)
            mu = b1 * loaded(old_mu[i], g) + (1 - b1) * g32
            nu = b2 * loaded(old_nu[i], g) + (1 - b2) * jnp.square(g32)
            step = (mu / correct_mu) / (jnp.sqrt(nu / correct_nu) + eps)
            step = jnp.clip(step, -largest, largest).astype(g.dtype)
            packed = stored(mu, steps, 2 * i), stored(nu, steps, 2 * i + 1)
            new.append((step, *packed))
        parts = [jax.tree.unflatten(structure, part) for part in zip(*new, strict=True)]
        return parts[0], PackedAdamState(steps, parts[1], parts[2])

    return optax.GradientTransformation(init, update)
