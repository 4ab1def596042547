"""Times of a forward pass by size: of the batch, or of the input where it is a signal.

For workloads that decode nothing: images, graphs, tables, and speech, whose encoder
gives all logits at once.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from algoperf import spec
from algoperf.errors import UserError
from algoperf.inference.timing import profiler
from algoperf.inference.timing.programs import (
    forward_of,
    params_for_speed,
    program_batch,
)
from algoperf.inference.timing.size_time import SizeTime, fit_sizes

# Shares of the longest input: fitted, and held out.
SHARES = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8, 1)
HELD_OUT_SHARES = (3 / 16, 7 / 16, 11 / 16)


def reads_a_signal(workload: Any) -> bool:
    """Whether inputs are waveforms, of any length (the speech families)."""
    return workload.loss_type is spec.LossType.CTC_LOSS


def size_name(workload: Any) -> str:
    """Returns what the sizes of a workload's forward pass count."""
    return "samples" if reads_a_signal(workload) else "examples"


def default_sizes(workload: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns sizes to fit and sizes to hold out.

    Of a signal, shares of the longest. Of a batch, 1, 2, 4, ... to the workload's own,
    and half-way between.
    """
    if reads_a_signal(workload):
        longest = workload.input_shape[0]
        fitted, unseen = (
            tuple(int(longest * share) for share in shares)
            for shares in (SHARES, HELD_OUT_SHARES)
        )
        return fitted, unseen
    largest = workload.default_batch_size
    sizes = [2**power for power in range(int(math.log2(largest)) + 1)]
    fitted = tuple(sorted({*sizes, largest}))
    return fitted, tuple(3 * size for size in sizes[1::2] if 3 * size < largest)


def forward_batch(workload: Any, size: int) -> spec.Batch:
    """Returns a batch of this size: so many examples, or one signal so long.

    Raises:
      UserError: the signal is longer than the workload's.
    """
    if not reads_a_signal(workload):
        return program_batch(workload, size)
    longest = workload.input_shape[0]
    if not 0 < size <= longest:
        raise UserError(f"a signal of {size} samples: give 1 to {longest}")
    audio = jnp.ones((1, size), workload.input_dtype)
    return {"inputs": (audio, jnp.zeros(audio.shape, jnp.uint8))}


def forward_measure(
    workload: Any, clock: Callable[[], float] = time.perf_counter
) -> profiler.Measure:
    """Returns what takes (size, anything) to seconds of a forward pass.

    The first call with a size compiles.
    """
    params, state = params_for_speed(workload)
    run = jax.jit(forward_of(workload))
    batches: dict[int, spec.Batch] = {}

    def once(size: int, _: int) -> Callable[[], None]:
        if size not in batches:
            batches[size] = forward_batch(workload, size)
        return lambda: jax.block_until_ready(run(params, state, batches[size]))

    return profiler.repeated(once, clock)


def profile_forward(
    workload: Any,
    plan: profiler.Plan,
    clock: Callable[[], float],
    sizes: Sequence[int] = (),
    rule: str = "auto",
    say: Callable[[str], None] = profiler.silent,
) -> SizeTime:
    """Measures a forward pass at several sizes in turns, and fits T(n).

    Args:
      workload: any.
      plan: how often.
      clock: seconds.
      sizes: to fit; by default those of `default_sizes`, others held out.
      rule: of T.
      say: told of progress.
    """
    fitted, unseen = default_sizes(workload)
    if sizes:
        fitted, unseen = tuple(sorted(set(sizes))), ()
    if min(fitted) < 1:
        raise UserError("sizes must be at least 1")
    cells = [(size, 0) for size in (*fitted, *unseen)]
    aim = profiler.AIM * profiler.Limits.uncertainty
    times = profiler.measure_rounds(
        forward_measure(workload, clock), cells, plan, aim, say=say
    )
    return fit_sizes({size: t for (size, _), t in times.items()}, unseen, rule)
