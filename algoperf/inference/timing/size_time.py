"""Seconds by size where nothing is decoded: T(n) of n examples or samples.

Fitted as F(p) is: by the rules of `prompt_time`, the one chosen that predicts best what
it has not seen. No JAX here.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from algoperf.errors import UserError, unknown_name
from algoperf.inference.timing.prompt_time import (
    FITTED,
    RULES,
    PromptTime,
    hinge_candidates,
    prompt_columns,
)
from algoperf.inference.timing.runtime import r_squared
from algoperf.inference.timing.spread import spread_of, uncertainty_of


@dataclasses.dataclass(frozen=True)
class SizeTime:
    """Measured times by size, and the fitted T(n).

    Attributes:
      times: for each size, held-out ones too, seconds by round.
      held_out: sizes that the fit has not seen.
      seconds: T; callable for any size.
      r2: of the fitted sizes' medians.
      held_out_error: mean relative error on the others; None where there are none.
      uncertainty: relative standard error of a median, on average.
      spread: relative deviation of one measurement, on average.
      rounds: of all sizes.
    """

    times: Mapping[int, tuple[float, ...]]
    held_out: tuple[int, ...]
    seconds: PromptTime
    r2: float
    held_out_error: float | None
    uncertainty: float
    spread: float
    rounds: int

    @property
    def medians(self) -> dict[int, float]:
        """Seconds of each size, ascending, held-out ones too."""
        return {n: float(np.median(self.times[n])) for n in sorted(self.times)}


def fit_sizes(
    times: Mapping[int, tuple[float, ...]],
    held_out: Sequence[int] = (),
    rule: str = "auto",
) -> SizeTime:
    """Returns T(n) for medians of measured seconds.

    Args:
      times: seconds by round, for each size.
      held_out: sizes that judge, and are not fitted.
      rule: as `PromptTime` has them; auto: what predicts sizes best that are left out.

    Raises:
      UserError: an unknown rule, or too few sizes for it.
    """
    medians = {n: float(np.median(found)) for n, found in times.items()}
    fitted = sorted(set(medians) - set(held_out))
    sizes = np.array(fitted, float)
    seconds = np.array([medians[n] for n in fitted])
    chosen = _choose(rule, sizes, seconds)
    found = fit_rule(chosen, sizes, seconds)
    predicted = np.array([found(n) for n in fitted])
    errors = [abs(found(n) / medians[n] - 1) for n in held_out]
    return SizeTime(
        times=times,
        held_out=tuple(held_out),
        seconds=found,
        r2=r_squared(seconds, predicted),
        held_out_error=float(np.mean(errors)) if errors else None,
        uncertainty=uncertainty_of(times.values()),
        spread=spread_of(times.values()),
        rounds=min(len(of_size) for of_size in times.values()),
    )


def _choose(rule: str, sizes: np.ndarray, seconds: np.ndarray) -> str:
    if rule != "auto":
        if rule not in FITTED:
            raise unknown_name("rule", rule, ("auto", *FITTED))
        if len(sizes) < RULES[rule]:
            raise UserError(
                f"rule {rule} needs {RULES[rule]} sizes, not {len(sizes)}; measure more"
            )
        return rule
    if not len(sizes):
        raise UserError("measure at least one size")
    # A size less is left for each that is left out.
    possible = [name for name in FITTED if len(sizes) > RULES[name]] or ["table"]
    return min(possible, key=lambda name: _error_left_out(name, sizes, seconds))


def _error_left_out(rule: str, sizes: np.ndarray, seconds: np.ndarray) -> float:
    """Mean relative error on inner sizes, left out one at a time."""
    errors = []
    for at in range(1, len(sizes) - 1):
        found = fit_rule(rule, np.delete(sizes, at), np.delete(seconds, at))
        errors.append(abs(found(sizes[at]) / seconds[at] - 1))
    return float(np.mean(errors)) if errors else math.inf


def fit_rule(rule: str, sizes: np.ndarray, seconds: np.ndarray) -> PromptTime:
    """Returns T(n) of one rule by least squares of relative errors.

    Args:
      rule: table, affine, hinge or quadratic.
      sizes: (n,) ascending.
      seconds: (n,).
    """
    known = tuple((int(n), float(s)) for n, s in zip(sizes, seconds, strict=True))
    if rule == "table":
        return PromptTime("table", known)
    fits = []
    for hinge in hinge_candidates(sizes) if rule == "hinge" else (0.0,):
        columns = prompt_columns(rule, sizes, float(hinge)) / seconds[:, None]
        scale = np.linalg.norm(columns, axis=0)
        scale[scale == 0] = 1.0
        solution = np.linalg.lstsq(columns / scale, np.ones_like(seconds))[0] / scale
        error = float(np.sum((columns @ solution - 1) ** 2))
        fits.append((error, float(hinge), [float(x) for x in solution]))
    _, hinge, numbers = min(fits)
    coefficients = (*numbers, hinge) if rule == "hinge" else tuple(numbers)
    found = PromptTime(rule, (), coefficients)
    knots = tuple((n, found(n)) for n, _ in known)
    return dataclasses.replace(found, knots=knots)
