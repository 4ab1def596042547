"""What the profiler measures: requests to a decoder on this machine's devices."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from algoperf.errors import UserError
from algoperf.inference.models import decoder, parallel
from algoperf.inference.models.shapes import DecoderShape
from algoperf.inference.timing.profiler import Measure

CLOCKS: dict[str, Callable[[], float]] = {
    "wall": time.perf_counter,
    "cpu": time.process_time,
}


def clock_name(cores: int | None) -> str:
    """Returns 'cpu', process time, for one core of a processor, else 'wall'."""
    return "cpu" if cores == 1 and jax.default_backend() == "cpu" else "wall"


# A measurement repeats a request until it is about this long.
SHORTEST_SECONDS = 0.002
MOST_REPEATS = 20


def decoder_measure(
    shape: DecoderShape,
    params: decoder.Params,
    batch_size: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    capacity: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Measure:
    """Returns what takes (prompt, output) to seconds of a batch of such requests.

    One prefill and one decoding loop on the device, from tokens on the device to tokens
    there. Short requests are repeated and the mean is taken. The first call with a pair
    of lengths compiles.

    Args:
      shape: the model's.
      params: its weights; split, if there is a mesh.
      batch_size: requests at once.
      clock: seconds; see `CLOCKS`. Process time of one core does not count what other
        processes do with it.
      capacity: of the cache, one for all lengths. None: sized for each request.
      mesh: of tensor parallelism.
    """
    dtype = params["embedding"].dtype
    key = jax.random.key(0)
    # One cache for each capacity, its buffers handed on from request to request.
    caches: dict[int, decoder.Cache] = {}
    repeats: dict[tuple[int, int], int] = {}

    def request(prompt_BP: jax.Array, output: int, size: int) -> None:
        prompt = prompt_BP.shape[1]
        logits_BV, cache = decoder.compiled_prefill(
            shape, params, prompt_BP, prompt, caches.pop(size)
        )
        tokens_BS, _, caches[size] = decoder.compiled_decode(
            shape, params, logits_BV, prompt, cache, output, key
        )
        jax.block_until_ready(tokens_BS)

    def new_cache(size: int) -> decoder.Cache:
        cache = decoder.empty_cache(shape, batch_size, size, dtype)
        return cache if mesh is None else parallel.shard_cache(shape, cache, mesh)

    def measure(prompt: int, output: int) -> float:
        decoder.check_lengths(shape, prompt, output)
        size = capacity or decoder.capacity_for(prompt + output)
        if prompt + output > size:
            raise UserError(
                f"{prompt} tokens of prompt and {output} of output do not fit a cache "
                f"of {size}; give a greater capacity"
            )
        if size not in caches:
            caches[size] = new_cache(size)
        prompt_BP = jnp.ones((batch_size, prompt), jnp.int32)
        if (prompt, output) not in repeats:
            request(prompt_BP, output, size)  # compiles
            taken = min(timed(prompt_BP, output, size, 1) for _ in range(3))
            wanted = int(SHORTEST_SECONDS / max(taken, 1e-9)) + 1
            repeats[prompt, output] = min(wanted, MOST_REPEATS)
        # Once before it counts: another cell's program was in the processor's caches.
        request(prompt_BP, output, size)
        return timed(prompt_BP, output, size, repeats[prompt, output])

    def timed(prompt_BP: jax.Array, output: int, size: int, count: int) -> float:
        start = clock()
        for _ in range(count):
            request(prompt_BP, output, size)
        return (clock() - start) / count

    return measure


def random_params(
    shape: DecoderShape, dtype: Any, mesh: jax.sharding.Mesh | None = None
) -> decoder.Params:
    """Returns random weights on the devices, split if there is a mesh.

    Speed does not depend on their values. They are made where they stay, so that a
    model that one device cannot hold is never whole on one.
    """

    def fresh() -> decoder.Params:
        return decoder.init_params(shape, jax.random.key(0), dtype)

    if mesh is None:
        return jax.jit(fresh)()
    shardings = parallel.param_shardings(shape, jax.eval_shape(fresh), mesh)
    return jax.jit(fresh, out_shardings=shardings)()
