"""Dropout whose rate may be traced, so that changing it does not compile again."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp


class Dropout(nn.Module):
    """Drops elements in training (Srivastava et al. 2014), as `nn.Dropout` does.

    Attributes:
      broadcast_dims: axes along which elements are dropped together.
    """

    broadcast_dims: Sequence[int] = ()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, rate: float | jax.Array) -> jax.Array:
        """Returns `x`, a share `rate` of it 0, the rest larger by 1 / (1 - rate)."""
        if not train or (not isinstance(rate, jax.Array) and rate == 0):
            return x
        dims = {axis % x.ndim for axis in self.broadcast_dims}
        shape = [1 if axis in dims else size for axis, size in enumerate(x.shape)]
        kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - rate, shape)
        # A rate of 1 must not divide by 0, also not where the result is not used.
        scale = jnp.where(rate < 1, 1 / jnp.maximum(1 - rate, 1e-6), 0)
        return jnp.where(kept, x * scale.astype(x.dtype), 0)
