"""How far repeated measurements disagree. No JAX here."""

import math
from collections.abc import Collection, Sequence

import numpy as np

# From a spread to the standard error of a median, for normal noise.
_MAD_TO_DEVIATION = 1.4826
_MEDIAN_FACTOR = 1.2533
# The median absolute deviation of few numbers is too small; by how much, for 2 to 9
# (Croux and Rousseeuw 1992, Time-efficient algorithms for two highly robust estimators
# of scale, section 4). Beyond, n / (n - 0.8).
_OF_FEW = (1.196, 1.495, 1.363, 1.206, 1.200, 1.140, 1.129, 1.107)


def spread_of(times: Collection[Sequence[float]]) -> float:
    """Returns the relative deviation of a measurement, on average over the cells.

    1.4826 x median absolute deviation / median, corrected for few rounds: for normal
    noise the standard deviation.
    """
    spreads = []
    for found in times:
        middle = np.median(found)
        spreads.append(np.median(np.abs(np.array(found) - middle)) / middle)
    rounds = min(len(found) for found in times)
    few = rounds - 2
    factor = _OF_FEW[few] if 0 <= few < len(_OF_FEW) else rounds / (rounds - 0.8)
    return float(_MAD_TO_DEVIATION * factor * np.mean(spreads))


def uncertainty_of(times: Collection[Sequence[float]]) -> float:
    """Returns the relative standard error of a cell's median, on average."""
    rounds = min(len(found) for found in times)
    return _MEDIAN_FACTOR * spread_of(times) / math.sqrt(rounds)
