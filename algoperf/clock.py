"""Where a trial's time goes, on the host and on the device.

Every moment of the training loop belongs to one phase, so the phases add up to the
loop's wall time. JAX returns before the device is done: the clock may leave the
submission's phase only after `wait_for_devices`, and `StepsInFlight` keeps the device
at most a few steps behind the host, so that the time read between evaluations is true
to a few steps as well.
"""

import contextlib
import dataclasses
import enum
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from jax.extend.backend import backends

TOKEN_PERIOD = 4  # steps
# A window of steps counts as contended when its mean step time is more than this
# factor above the lower quartile of all windows of the trial.
CONTENTION_FACTOR = 1.1
# The event with which JAX reports what reading a program from its cache saved (s).
SAVED_EVENT = "/jax/compilation_cache/compile_time_saved_sec"


class Phase(enum.StrEnum):
    """What the loop is doing."""

    SUBMISSION = "submission"
    EVALUATION = "evaluation"
    LOGGING = "logging"  # records, checkpoints, metrics


class Clock:
    """A stopwatch with phases; starts with the first `switch`.

    `now` returns seconds; tests pass their own.
    """

    def __init__(
        self,
        now: Callable[[], float] = time.perf_counter,
        totals: Mapping[str, float] | None = None,
    ):
        self.now = now
        self.phase: Phase | None = None
        self._since = 0.0
        self._totals = {p: (totals or {}).get(p.value, 0.0) for p in Phase}

    def switch(self, phase: Phase | None) -> None:
        """Ends the current phase and starts another; None stops the clock."""
        now = self.now()
        if self.phase is not None:
            self._totals[self.phase] += now - self._since
        self.phase, self._since = phase, now

    def add(self, phase: Phase, seconds: float) -> None:
        """Counts time that a phase would have taken, had nothing shortened it."""
        self._totals[phase] += seconds

    def seconds(self, phase: Phase) -> float:
        """Returns the time spent in a phase so far, in seconds."""
        running = self.now() - self._since if phase is self.phase else 0.0
        return self._totals[phase] + running

    def totals(self) -> dict[str, float]:
        """Returns all phases' times so far, in seconds."""
        return {phase.value: self.seconds(phase) for phase in Phase}


def wait_for_devices() -> None:
    """Waits for all that was dispatched, kept in a trial's state or anywhere else.

    On all backends: beside an accelerator, the host's processor is one too.
    """
    clients = backends().values()
    jax.block_until_ready([array for c in clients for array in c.live_arrays()])


@jax.jit
def _first_element(array: jax.Array) -> jax.Array:
    return array[(0,) * array.ndim]


class StepsInFlight:
    """Lets the host run ahead of the device by a few steps, twice `period` at most.

    A step's own outputs cannot be waited for later, since the next step may have
    donated them; so every `period` steps a step leaves a token, one number computed
    from its smallest output. Not every step: the next one waits for the token if it
    is to overwrite what the token reads.
    """

    def __init__(self, period: int = TOKEN_PERIOD):
        self.period = period
        self._steps = 0
        self._token: jax.Array | None = None

    def add(self, outputs: Any) -> bool:
        """Adds a dispatched step; returns whether it is the one that time counts from.

        Every `period` steps, waits until all but the newest `period` have finished. The
        first time it waits for the newest too: when a step ends that the host did not
        have to wait for, nobody knows.
        """
        self._steps += 1
        if self._steps % self.period:
            return False
        before, self._token = self._token, _token(outputs)
        is_first = self._steps == self.period
        jax.block_until_ready(self._token if is_first else before)
        return is_first

    def drain(self) -> None:
        """Waits for the step that left the newest token, and begins anew."""
        jax.block_until_ready(self._token)
        self._steps, self._token = 0, None


def _token(outputs: Any) -> jax.Array | None:
    arrays = [
        leaf
        for leaf in jax.tree.leaves(outputs)
        if isinstance(leaf, jax.Array) and leaf.size
    ]
    return _first_element(min(arrays, key=lambda a: a.size)) if arrays else None


@dataclasses.dataclass(frozen=True)
class Window:
    """A stretch of steps between two evaluations, from step end to step end."""

    steps: int
    seconds: float
    compiled: bool  # something was compiled within


class StepTimes:
    """Mean step times of a trial, window by window; compilation left out.

    Contention on a shared machine only ever adds time, so a window well above the
    lower quartile of the windows is contended. Means within a window, not medians of
    single steps, so that work done every n-th step is not lost.
    """

    def __init__(self, windows: list[Window] | None = None):
        self.windows = list(windows or [])
        self._start: tuple[float, int, int] | None = None

    def open_window(self, now: float, step: int, compilations: int) -> None:
        """Begins a window after step number `step`, all steps being finished."""
        self._start = (now, step, compilations)

    def close_window(self, now: float, step: int, compilations: int) -> None:
        """Ends the window with step number `step`, all steps being finished."""
        if self._start is not None and step > self._start[1]:
            start, first, before = self._start
            compiled = compilations != before
            self.windows.append(Window(step - first, now - start, compiled))
        self._start = None

    def summary(self) -> dict[str, float | int | None]:
        """Returns the uncontended step time in seconds, and how it came about."""
        means = [w.seconds / w.steps for w in self.windows if not w.compiled]
        if not means:
            return {"seconds": None, "windows": 0, "contended_windows": 0}
        bound = CONTENTION_FACTOR * _lower_quartile(means)
        calm = [mean for mean in means if mean <= bound]
        return {
            "seconds": statistics.median(calm),
            "windows": len(means),
            "contended_windows": len(means) - len(calm),
            "slowest_window": max(means),
        }


def _lower_quartile(values: list[float]) -> float:
    return sorted(values)[(len(values) - 1) // 4]


class CompileTime:
    """Time that JAX spent tracing, lowering and compiling, by phase, in seconds.

    JAX reports each of these when it ends, with its duration; what went on within
    another, the tracing of an inner function say, is counted once.

    Attributes:
      seconds: by phase, those saved by a cache among them.
      saved: what a cache of compiled programs saved of them, by phase.
      events: how many were reported.
    """

    def __init__(
        self,
        totals: Mapping[str, float] | None = None,
        saved: Mapping[str, float] | None = None,
    ):
        self.saved = {p.value: (saved or {}).get(p.value, 0.0) for p in Phase}
        self.seconds = {p.value: (totals or {}).get(p.value, 0.0) for p in Phase}
        self.events = 0
        self._counted: list[tuple[float, float]] = []  # (start, end), one after another

    def add(self, phase: Phase, end: float, duration: float) -> None:
        """Counts what ended just now."""
        start = end - duration
        while self._counted and self._counted[-1][0] >= start:
            inner_start, inner_end = self._counted.pop()
            duration -= inner_end - inner_start
        self._counted.append((start, end))
        self.seconds[phase.value] += duration
        self.events += 1


@contextlib.contextmanager
def compile_time(
    clock: Clock,
    totals: Mapping[str, float] | None = None,
    saved: Mapping[str, float] | None = None,
    now: Callable[[], float] = time.perf_counter,
) -> Iterator[CompileTime]:
    """Counts compilation while the context lasts, under the clock's current phase.

    What JAX's cache of compiled programs saves is added to the clock: a trial is timed
    as if it had compiled everything, whoever compiled it before. JAX keeps it in whole
    seconds. What XLA would save by files of its own beside that cache, such as those of
    autotuning on GPUs, nothing reports: there are none from now on.
    """
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    counted = CompileTime(totals, saved)

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if clock.phase is None:
            return
        if event.startswith("/jax/core/compile/"):
            counted.add(clock.phase, now(), duration_secs)
        elif event == SAVED_EVENT and duration_secs > 0:
            clock.add(clock.phase, duration_secs)
            counted.seconds[clock.phase.value] += duration_secs
            counted.saved[clock.phase.value] += duration_secs

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield counted
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
