"""Do two measures put things in the same order? Spearman's rank correlation."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from algoperf.errors import UserError

# Two-sided, 95 %.
NORMAL_QUANTILE = 1.959964


@dataclasses.dataclass(frozen=True)
class Correlation:
    """A rank correlation and how well it is known.

    Attributes:
      rho: Spearman's, in [-1, 1].
      low: end of its 95 % interval.
      high: the other end.
      count: of things.
    """

    rho: float
    low: float
    high: float
    count: int


def spearman(one: Sequence[float], other: Sequence[float]) -> Correlation:
    """Returns the correlation of ranks (Spearman 1904), of equals the mean rank.

    The interval is tanh(atanh(rho) -+ 1.96 sqrt((1 + rho^2 / 2) / (n - 3))) (Bonett and
    Wright 2000, Psychometrika 65). It says nothing with three things or fewer. A
    perfect order would make it a point, however few the things; its width is then that
    of an order with two neighbours exchanged.

    Args:
      one: (n,) values of one measure.
      other: (n,) values of the other, for the same things.

    Raises:
      UserError: not as many, fewer than 2, or all values of a measure equal.
    """
    count = len(one)
    if count != len(other) or count < 2:
        raise UserError(
            f"a rank correlation needs two values or more of both measures, not "
            f"{count} and {len(other)}"
        )
    ranks = [ranks_of(values) for values in (one, other)]
    if any(np.ptp(found) == 0 for found in ranks):
        raise UserError("a measure whose values are all equal has no ranks")
    rho = float(np.clip(np.corrcoef(ranks[0], ranks[1])[0, 1], -1.0, 1.0))
    if count <= 3:
        return Correlation(rho, -1.0, 1.0, count)
    nearly = 1 - 12 / (count * (count**2 - 1))
    center = math.atanh(max(-nearly, min(nearly, rho)))
    width = NORMAL_QUANTILE * math.sqrt((1 + rho**2 / 2) / (count - 3))
    low, high = math.tanh(center - width), math.tanh(center + width)
    return Correlation(rho, min(low, rho), max(high, rho), count)


def ranks_of(values: Sequence[float]) -> np.ndarray:
    """Returns ranks (n,) from 1, equals sharing the mean of theirs."""
    found = np.asarray(values, float)
    below = (found[:, None] > found[None, :]).sum(axis=1)
    equal = (found[:, None] == found[None, :]).sum(axis=1)
    return below + (equal + 1) / 2
