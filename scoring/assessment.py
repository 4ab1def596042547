"""All that is known of some runs, in one value that everything draws from."""

import dataclasses
from collections.abc import Sequence

from scoring.compare import (
    AtBudget,
    Comparison,
    compare_to,
    default_reference,
    field_at_budget,
)
from scoring.predict import Forecast
from scoring.read import Runs
from scoring.rules import Rules
from scoring.score import Result
from scoring.uncertainty import RESAMPLES, Uncertainty, estimate_uncertainty


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Assessment:
    """Runs, their result, and what is said beside it; None for what was left out."""

    runs: Runs
    result: Result
    uncertainty: Uncertainty | None  # how sure scores and ranks are
    comparison: Comparison | None  # with a reference
    at_budget: AtBudget | None  # what all had after the same time
    forecasts: tuple[Forecast, ...] | None  # of trials that missed their target

    @property
    def rules(self) -> Rules:
        """What the runs were judged by."""
        return self.result.rules


def assess(
    runs: Runs,
    result: Result,
    *,
    resamples: int = RESAMPLES,
    with_trials: bool = True,
    reference: str | None = None,
    budget: float | None = None,
    forecasts: Sequence[Forecast] | None = None,
) -> Assessment:
    """Says how sure a result is and how its submissions compare.

    Args:
      runs: what was read.
      result: what `score_runs` or `score_predicted` made of them.
      resamples: for the intervals of scores and ranks; 0 for none.
      with_trials: resample trials within studies too.
      reference: what speed-ups are over; by default `compare.default_reference`.
      budget: of each trial in `result.timing.unit`, to compare metrics at; None for
        no such comparison.
      forecasts: what `predict_runs` made of the runs, if it was asked.

    Raises:
      UserError: too few resamples, no such reference, or a budget that is none.
    """
    uncertainty = None
    if resamples:
        uncertainty = estimate_uncertainty(result, resamples, with_trials=with_trials)
    if reference is None:
        reference = default_reference(result)
    return Assessment(
        runs=runs,
        result=result,
        uncertainty=uncertainty,
        comparison=None if reference is None else compare_to(result, reference),
        at_budget=None if budget is None else field_at_budget(runs, result, budget),
        forecasts=None if forecasts is None else tuple(forecasts),
    )
