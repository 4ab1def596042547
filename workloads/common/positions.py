"""Fixed positions of a sequence."""

import numpy as np


def positions_1d(length: int, features: int) -> np.ndarray:
    """Sine, then cosine of a position at frequencies 10000^(-i / (features/2 - 1)).

    Vaswani et al. 2017, section 3.5, with the two halves laid side by side.

    Returns:
      (length, features) float32.
    """
    half = features // 2
    frequencies = 10_000.0 ** (-np.arange(half) / (half - 1))
    angles = np.arange(length)[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles)], 1).astype(np.float32)
