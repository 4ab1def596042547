"""Measure a model so that other work on the machine does not spoil it; fit; refuse.

The protocol: every cell (p, o) once in a round, in an order drawn anew, round after
round; the median of a cell's rounds counts. A slow spell then touches some rounds of
all cells, not all rounds of some cells, which no statistic could mend. Cells that the
fit has not seen say how far to trust it. Where the rounds of a cell disagree too much,
or the fit misses, the profile is refused and says why.

What is measured is an argument, so that this module needs no JAX and tests need no
quiet machine.
"""

import dataclasses
import itertools
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from algoperf.errors import UserError
from algoperf.inference.timing.runtime import (
    RuntimeModel,
    check_enough,
    fit_quality,
    fit_runtime,
)
from algoperf.inference.timing.size_time import SizeTime
from algoperf.inference.timing.spread import spread_of, uncertainty_of

Cell = tuple[int, int]  # prompt and output tokens
Measure = Callable[[int, int], float]  # (prompt, output) -> seconds

# Rounds go on until the uncertainty is this share of its limit: the fit's own limits
# are tighter.
AIM = 1 / 3
BUSY_SPREAD = 0.1  # of one measurement; a quiet machine has 1 to 5 %
# `repeated` measures for about so long.
SHORTEST_SECONDS = 0.01
MOST_REPEATS = 50
SILENCE_SEC = 10.0  # while cells are compiled


def silent(text: str) -> None:
    """Says nothing."""
    del text


class NoisyMachineError(UserError):
    """The machine was too busy, or the model fits too badly, to state a runtime."""


@dataclasses.dataclass(frozen=True)
class Grid:
    """What is measured.

    Attributes:
      prompts: tokens, ascending.
      outputs: tokens, ascending, 1 first.
      held_out: cells that the fit does not see.
      max_length: cells with more tokens are left out.
    """

    prompts: tuple[int, ...]
    outputs: tuple[int, ...]
    held_out: tuple[Cell, ...]
    max_length: int

    def __post_init__(self) -> None:
        numbers = (*self.prompts, *self.outputs)
        if not self.prompts or len(self.outputs) < 2 or min(numbers) < 1:
            raise UserError(
                "a grid needs a prompt length and two output lengths, all at least 1"
            )
        if self.outputs[0] != 1:
            raise UserError("the output lengths must begin with 1, which gives F")
        if self.prompts[-1] + self.outputs[1] > self.max_length:
            raise UserError(
                f"a prompt of {self.prompts[-1]} tokens leaves no room for "
                f"{self.outputs[1]} more of {self.max_length}; take shorter prompts"
            )

    @property
    def cells(self) -> list[Cell]:
        """Those that the fit sees."""
        pairs = [(p, o) for p in self.prompts for o in self.outputs]
        return [(p, o) for p, o in pairs if p + o <= self.max_length]


def make_grid(
    max_length: int,
    prompts: Sequence[int] = (),
    outputs: Sequence[int] = (),
    longest: int = 1024,
) -> Grid:
    """Returns a grid for a model of this length; lengths are spread where not given.

    Held out are prompt lengths half-way between the grid's, with output lengths that it
    lacks; where lengths are close together, those that are not fitted.

    Raises:
      UserError: lengths that do not fit.
    """
    span = min(max_length, longest)
    shares = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4)
    lengths = tuple(sorted(set(prompts)))
    if not lengths:
        lengths = tuple(sorted({1, *(max(1, int(span * share)) for share in shares)}))
    counts = tuple(sorted(set(outputs)))
    if not counts:
        counts = tuple(2**i for i in range(7) if 2**i <= max(span // 4, 2))
    between = [(low + high) // 2 for low, high in itertools.pairwise(lengths)]
    unseen = [o + o // 2 for o in counts if o >= 2]
    pairs = [(p, o) for p in between[1::2] or between for o in unseen[-2:]]
    held_out = tuple(
        (p, o)
        for p, o in pairs
        if p + o <= max_length and not (p in lengths and o in counts)
    )
    return Grid(lengths, counts, held_out, max_length)


@dataclasses.dataclass(frozen=True)
class Limits:
    """Beyond these a profile is refused.

    Attributes:
      r2: least share of variance that the fit explains.
      held_out_error: greatest mean relative error on cells that it has not seen.
      uncertainty: greatest relative standard error of a cell's median (on average).
    """

    r2: float = 0.995
    held_out_error: float = 0.07
    uncertainty: float = 0.03


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long to measure.

    Attributes:
      rounds: of all cells, at least.
      max_rounds: at most, where the uncertainty is still over its limit.
      seconds: no further round begins after so many, warming up not counted, once
        there are 3.
      seed: of the order of cells.
    """

    rounds: int = 8
    max_rounds: int = 100
    seconds: float = 60.0
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Result:
    """Measured times, the fitted model, and how far to trust it.

    Attributes:
      times: for each cell, held-out ones too, seconds by round.
      held_out: cells that the fit has not seen.
      runtime: F, g and R2.
      held_out_error: mean relative error on them; None where there are none.
      uncertainty: see `Limits`.
      spread: relative deviation of one measurement (on average over the cells).
      rounds: of all cells.
    """

    times: Mapping[Cell, tuple[float, ...]]
    held_out: tuple[Cell, ...]
    runtime: RuntimeModel
    held_out_error: float | None
    uncertainty: float
    spread: float
    rounds: int

    @property
    def r2(self) -> float | None:
        """Of the fit."""
        return self.runtime.r2

    @property
    def medians(self) -> dict[Cell, float]:
        """Seconds of each cell, held-out ones too."""
        return {cell: float(np.median(times)) for cell, times in self.times.items()}


def measure_rounds(
    measure: Measure,
    cells: Sequence[Cell],
    plan: Plan,
    uncertainty: float,
    clock: Callable[[], float] = time.monotonic,
    say: Callable[[str], None] = silent,
) -> dict[Cell, tuple[float, ...]]:
    """Measures every cell once a round, in an order drawn anew.

    Args:
      measure: seconds of a request; called once for each cell before it counts, to
        compile and to warm up.
      cells: to measure.
      plan: how often.
      uncertainty: rounds go on beyond the plan's least until it is as low as this.
      clock: seconds, for the plan's limit.
      say: told of progress: while cells are compiled, and after each round.
    """
    order = random.Random(plan.seed)
    start = clock()
    said = -math.inf  # the first cell is what a mistake is found by
    for number, cell in enumerate(cells, start=1):
        measure(*cell)
        if clock() - said > SILENCE_SEC:
            said = clock()
            say(f"compiled and warmed up {number} of {len(cells)} cells")
    times: dict[Cell, list[float]] = {cell: [] for cell in cells}
    say(f"compiled and warmed up {len(cells)} cells in {clock() - start:.0f} s")
    start = clock()
    for done in range(1, plan.max_rounds + 1):
        for cell in order.sample(list(cells), len(cells)):
            times[cell].append(measure(*cell))
        now = uncertainty_of(times.values()) if done > 2 else math.inf
        if done > 2:
            say(f"round {done}: medians within {100 * now:.1f} %")
        is_late = clock() - start > plan.seconds
        if done >= 3 and (is_late or (done >= plan.rounds and now <= uncertainty)):
            break
    return {cell: tuple(found) for cell, found in times.items()}


def repeated(
    run_of: Callable[[int, int], Callable[[], None]], clock: Callable[[], float]
) -> Measure:
    """Returns what takes a cell to seconds of its run.

    Each first runs once, to compile. Short ones are repeated and the mean is taken.

    Args:
      run_of: a cell's run, to its end.
      clock: seconds.
    """
    repeats: dict[Cell, int] = {}

    def timed(run: Callable[[], None], count: int) -> float:
        start = clock()
        for _ in range(count):
            run()
        return (clock() - start) / count

    def seconds(one: int, other: int) -> float:
        run = run_of(one, other)
        if (one, other) not in repeats:
            run()
            wanted = math.ceil(SHORTEST_SECONDS / max(timed(run, 1), 1e-9))
            repeats[one, other] = min(wanted, MOST_REPEATS)
        return timed(run, repeats[one, other])

    return seconds


def profile(
    measure: Measure,
    grid: Grid,
    plan: Plan = Plan(),
    limits: Limits = Limits(),
    rule: str = "auto",
    context_slope: bool | None = None,
    clock: Callable[[], float] = time.monotonic,
    say: Callable[[str], None] = silent,
) -> Result:
    """Measures a grid, fits F and g, and tells how well; see `refusal`.

    Args:
      measure: seconds of a request (prompt, output).
      grid: of lengths.
      plan: how often.
      limits: when rounds may end.
      rule: of F, see `PromptTime`; auto takes the best on lengths left out.
      context_slope: whether g grows with the context; None: where that is better.
      clock: for the plan's limit.
      say: told of progress.

    Raises:
      UserError: the grid has too few cells for a fit; nothing is measured then.
    """
    check_enough(grid.cells, rule, context_slope)
    cells = [*grid.cells, *grid.held_out]
    aim = AIM * limits.uncertainty
    times = measure_rounds(measure, cells, plan, aim, clock, say)
    return fit_result(times, grid, rule, context_slope)


def fit_result(
    times: Mapping[Cell, tuple[float, ...]],
    grid: Grid,
    rule: str = "auto",
    context_slope: bool | None = None,
) -> Result:
    """Fits measured times; the held-out cells judge."""
    fitted = [cell for cell in times if cell not in grid.held_out]
    samples = [(*cell, s) for cell in fitted for s in times[cell]]
    runtime = fit_runtime(
        samples, rule, context_slope, "median", max_length=grid.max_length
    )
    error = None
    if grid.held_out:
        prompts, outputs = np.array(grid.held_out).T
        seconds = np.array([np.median(times[cell]) for cell in grid.held_out])
        quality = fit_quality(runtime, prompts, outputs, seconds)
        error = quality["mean_relative_error"]
    return Result(
        times=times,
        held_out=grid.held_out,
        runtime=runtime,
        held_out_error=error,
        uncertainty=uncertainty_of(times.values()),
        spread=spread_of(times.values()),
        rounds=min(len(found) for found in times.values()),
    )


def refusal(result: Result | SizeTime, limits: Limits = Limits()) -> str | None:
    """Returns why a result should not be used, and what to do; None where it may be."""
    found = []
    if result.uncertainty > limits.uncertainty:
        found.append(
            f"medians of {result.rounds} rounds are only known within "
            f"{100 * result.uncertainty:.1f} % (limit {100 * limits.uncertainty:g} %)"
        )
    r2 = result.r2
    if r2 is None or r2 < limits.r2:
        known = "not known" if r2 is None else f"{r2:.4f}"
        found.append(f"R2 of the fit is {known} (limit {limits.r2:g})")
    error = result.held_out_error
    if error is not None and error > limits.held_out_error:
        found.append(
            f"what the fit has not seen is {100 * error:.1f} % off "
            f"(limit {100 * limits.held_out_error:g} %)"
        )
    if isinstance(result, Result) and result.runtime.seconds_per_token <= 0:
        found.append("time does not grow with the output")
    if not found:
        return None
    if result.uncertainty > limits.uncertainty or result.spread > BUSY_SPREAD:
        remedy = (
            f"the machine is busy (one measurement deviates by "
            f"{100 * result.spread:.0f} %): end other work, or measure more rounds"
        )
    else:
        remedy = (
            f"single measurements deviate by {100 * result.spread:.0f} % only, so the "
            "form is wrong or a spell of other work was long: measure again, or at "
            "more lengths"
        )
    return f"{'; '.join(found)}; {remedy}"


def check(result: Result, limits: Limits = Limits()) -> None:
    """Raises NoisyMachineError where `refusal` has a reason."""
    reason = refusal(result, limits)
    if reason is not None:
        raise NoisyMachineError(reason)
