"""Learning-rate schedules: maps from a step, counted from 0, to a rate."""

import optax


def warmup_cosine(
    num_steps: int, peak: float, warmup_factor: float = 0.05
) -> optax.Schedule:
    """Linear warm-up to `peak` over a share of the steps, then cosine to zero.

    Args:
      num_steps: where the rate is zero again, usually `workload.step_hint`.
      peak: the highest rate.
      warmup_factor: share of `num_steps` spent warming up, from 0 to below 1; with 0
        the first step has the highest rate.
    """
    warmup_steps = _warmup_steps(num_steps, warmup_factor)
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=peak,
        warmup_steps=warmup_steps,
        decay_steps=max(num_steps, warmup_steps + 1),
    )


def warmup_linear(
    num_steps: int, peak: float, warmup_factor: float = 0.05
) -> optax.Schedule:
    """Linear warm-up to `peak`, then linear to zero; arguments as `warmup_cosine`."""
    return warmup_stable_decay(num_steps, peak, warmup_factor, decay_factor=1.0)


def warmup_constant(
    num_steps: int, peak: float, warmup_factor: float = 0.05
) -> optax.Schedule:
    """Linear warm-up to `peak`, which then stays; arguments as `warmup_cosine`."""
    if warmup_factor == 0:
        return optax.constant_schedule(peak)
    return optax.linear_schedule(0.0, peak, _warmup_steps(num_steps, warmup_factor))


def warmup_stable_decay(
    num_steps: int, peak: float, warmup_factor: float = 0.05, decay_factor: float = 0.2
) -> optax.Schedule:
    """Linear warm-up to `peak`, a plateau, then linear to zero.

    Hu et al. 2024, arXiv:2404.06395, section 4.

    Args:
      num_steps: where the rate is zero again, usually `workload.step_hint`.
      peak: the highest rate.
      warmup_factor: share of `num_steps` spent warming up, from 0 to below 1.
      decay_factor: share of `num_steps` spent decaying, at the end; at most what the
        warm-up leaves.
    """
    warmup_steps = _warmup_steps(num_steps, warmup_factor)
    decay_steps = min(round(decay_factor * num_steps), num_steps - warmup_steps)
    decay_steps = max(1, decay_steps)
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, peak, warmup_steps),
            optax.linear_schedule(
                peak,
                0.0,
                decay_steps,
                transition_begin=max(0, num_steps - warmup_steps - decay_steps),
            ),
        ],
        [warmup_steps],
    )


def cosine_restarts(
    num_steps: int, peak: float, warmup_factor: float = 0.05, cycles: int = 3
) -> optax.Schedule:
    """Cycles of equal length, each a warm-up to `peak` and a cosine to zero.

    Loshchilov and Hutter 2017, arXiv:1608.03983, equation 5, with T_mult = 1.

    Args:
      num_steps: of all cycles together, usually `workload.step_hint`. Where it is no
        multiple of `cycles`, the last one ends a step or so early or late.
      peak: the highest rate.
      warmup_factor: share of each cycle spent warming up, from 0 to below 1.
      cycles: how many.
    """
    length = max(1, round(num_steps / cycles))
    return optax.join_schedules(
        [warmup_cosine(length, peak, warmup_factor)] * cycles,
        [length * cycle for cycle in range(1, cycles)],
    )


def _warmup_steps(num_steps: int, warmup_factor: float) -> int:
    """At least 1, unless no warm-up is asked for."""
    if warmup_factor == 0:
        return 0
    return max(1, round(warmup_factor * num_steps))
