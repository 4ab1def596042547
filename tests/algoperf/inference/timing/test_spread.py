import numpy as np
import pytest

from algoperf.inference.timing.spread import spread_of, uncertainty_of


@pytest.mark.parametrize("rounds", [3, 4, 5, 8, 20])
def test_spread_is_the_standard_deviation_however_few_rounds(rounds):
    rng = np.random.default_rng(0)
    times = 1 + 0.05 * rng.standard_normal((2000, rounds))
    assert spread_of(times) == pytest.approx(0.05, rel=0.06)
    # What the medians of so many rounds deviate by.
    medians = np.std(np.median(times, axis=1))
    assert uncertainty_of(times) == pytest.approx(medians, rel=0.15)
