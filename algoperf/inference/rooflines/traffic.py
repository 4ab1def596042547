"""What one decoding step moves, counted on the compiled program."""

import math

import jax
import jax.numpy as jnp

from algoperf.inference.models import decoder
from algoperf.inference.models.shapes import DecoderShape
from algoperf.inference.timing import hlo


def step_bytes(
    shape: DecoderShape, params: decoder.Params, batch_size: int, capacity: int
) -> float:
    """Returns the bytes that the kernels of one decoding step read and write.

    Each kernel's operands and results once, as if no cache kept them from one kernel to
    the next. Where packed weights are unpacked by a kernel of their own, the dense
    array that it writes and the product reads is in it: where that is so, packing saves
    memory and moves more.

    Args:
      shape: of the served model.
      params: as they are served; on one device.
      batch_size: requests at once.
      capacity: of the cache, all of which is read.
    """
    dtype = params["embedding"].dtype
    cache = jax.eval_shape(
        lambda: decoder.empty_cache(shape, batch_size, capacity, dtype)
    )
    tokens_B1 = jax.ShapeDtypeStruct((batch_size, 1), jnp.int32)
    step = decoder.compiled_extend.lower(shape, params, tokens_B1, 0, cache).compile()
    kernels = hlo.kernels(step.as_text() or "")
    return math.fsum(kernel.bytes * kernel.repeats for kernel in kernels)
