"""The numbers of `tf.random.stateless_uniform`, without TensorFlow.

The generator is Philox 4x32 with ten rounds: Salmon et al. 2011, "Parallel random
numbers: as easy as 1, 2, 3", section 3.3 and table 2. TensorFlow makes its key and
counter from the seed by a block of the same generator.
"""

import numpy as np

_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_SEED_KEY = (0x3EC8F720, 0x02461E29)  # TensorFlow's, for the seed alone
_LOW = np.uint64(0xFFFFFFFF)


def blocks(counters: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Returns the random words of counters.

    Args:
      counters: (N, 4), words of 32 bits, the lowest first.
      key: two words of 32 bits.

    Returns:
      (N, 4) uint32.
    """
    c0, c1, c2, c3 = np.asarray(counters, np.uint64).T
    for number in range(_ROUNDS):
        k0, k1 = (
            np.uint64((start + number * step) % 2**32)
            for start, step in zip(key, _WEYL, strict=True)
        )
        p0, p1 = c0 * np.uint64(_MULTIPLIERS[0]), c2 * np.uint64(_MULTIPLIERS[1])
        c0, c1, c2, c3 = (
            (p1 >> np.uint64(32)) ^ c1 ^ k0,
            p1 & _LOW,
            (p0 >> np.uint64(32)) ^ c3 ^ k1,
            p0 & _LOW,
        )
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def uniform(count: int, seed: tuple[int, int]) -> np.ndarray:
    """Returns the same as `tf.random.stateless_uniform((count,), seed)` on a processor.

    Args:
      count: how many.
      seed: two words of 32 bits.

    Returns:
      (count,) float32 in [0, 1), multiples of 2^-23.
    """
    scrambled = blocks(np.array([[seed[0], 0, seed[1], 0]]), _SEED_KEY)[0]
    counters = np.zeros((-(-count // 4), 4), np.uint64)
    counters[:, 0] = np.arange(len(counters))
    counters[:, 2:] = scrambled[2:]
    words = blocks(counters, (int(scrambled[0]), int(scrambled[1]))).ravel()[:count]
    in_1_to_2 = (words & np.uint32(0x7FFFFF)) | np.uint32(0x3F800000)
    return in_1_to_2.view(np.float32) - np.float32(1)
