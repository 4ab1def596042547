"""When has a run no hope left to reach its target? For searches that then stop it.

A run is hopeless at an evaluation if half of its steps or more are done and neither of
two forecasts has it at the target by its last step: not the earliest time that
`learning_curve.predict_time` thinks possible, nor a straight line through the second
half of the run made steeper by PACE. The second guards against curves that a falling
learning rate has yet to bend. docs/tuning.md says how often that is wrong.
"""

import numpy as np

from algoperf.records import Direction
from scoring.learning_curve import MIN_EVALUATIONS, predict_time
from scoring.read import FloatArray
from scoring.rules import Goal

SEEN = 0.5  # of the steps must be done
PACE = 2.0  # times the present pace of improvement


def first_hopeless(
    steps_E: FloatArray, values_E: FloatArray, goal: Goal, end: float
) -> int | None:
    """Returns the first evaluation at which a run is hopeless; None if none is.

    What comes after an evaluation does not change what is said of it: so the answer is
    the same whether the run was stopped there or went on.

    Args:
      steps_E: steps of the evaluations, increasing; seconds do as well.
      values_E: the metric of the goal.
      goal: metric, direction and target.
      end: the last step that the run may take.
    """
    for count in range(MIN_EVALUATIONS, len(steps_E) + 1):
        if is_hopeless(steps_E[:count], values_E[:count], goal, end):
            return count - 1
    return None


def is_hopeless(
    steps_E: FloatArray, values_E: FloatArray, goal: Goal, end: float
) -> bool:
    """Whether a run is hopeless at its last evaluation; arguments as above."""
    is_used_E = np.isfinite(values_E) & (steps_E > 0)
    steps_E, values_E = steps_E[is_used_E], values_E[is_used_E]
    if len(steps_E) < MIN_EVALUATIONS or not SEEN * end <= steps_E[-1] < end:
        return False
    sign = 1.0 if goal.direction is Direction.MAXIMIZE else -1.0
    gains_E, target = sign * values_E, sign * goal.target
    if gains_E.max() >= target:
        return False
    half = min(int(np.searchsorted(steps_E, steps_E[-1] / 2)), len(steps_E) - 3)
    slope = np.polyfit(steps_E[half:], gains_E[half:], 1)[0]
    steepest = gains_E.max() + PACE * max(slope, 0.0) * (end - steps_E[-1])
    if steepest >= target:
        return False
    return predict_time(steps_E, values_E, goal).low > end
