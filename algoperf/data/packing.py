"""Which examples of different sizes share a row, fixed by seed and row number alone.

Sentences are packed into rows of a fixed number of tokens, graphs into packs of a fixed
number of nodes and edges. Each epoch is shuffled, then cut greedily: a row takes the
next examples as long as they fit. Every example comes once per epoch.
"""

import bisect
import functools
import threading

import numpy as np


def greedy_starts(sizes: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Returns where each row begins when examples fill rows in their order.

    Args:
      sizes: (examples, resources) integers, what each example takes.
      limits: (resources,) what a row holds.

    Returns:
      (rows,) increasing indices of examples, the first is 0.

    Raises:
      ValueError: an example is larger than a row.
    """
    too_large = np.flatnonzero((sizes > limits).any(axis=1))
    if len(too_large):
        raise ValueError(f"example {too_large[0]} is larger than a row")
    ends = np.full(len(sizes), len(sizes))
    for size, limit in zip(sizes.T, limits, strict=True):
        total = np.concatenate([[0], np.cumsum(size, dtype=np.int64)])
        # The first example that no longer fits into a row that begins at i.
        fitting = np.searchsorted(total, total[:-1] + limit, side="right") - 1
        ends = np.minimum(ends, fitting)
    next_start = ends.tolist()
    starts, start = [], 0
    while start < len(next_start):
        starts.append(start)
        start = next_start[start]
    return np.array(starts, np.int64)


class Packing:
    """The rows of an endless stream of epochs, or of one epoch in order.

    Finding a row far into the stream plans all epochs before it, once. Threads may ask
    for rows at the same time.
    """

    def __init__(self, sizes: np.ndarray, limits: np.ndarray, seed: int | None):
        """Takes sizes (examples, resources), limits (resources,), None for in order."""
        self._sizes = np.asarray(sizes, np.int64)
        self._limits = np.asarray(limits, np.int64)
        self._seed = seed
        self._ends: list[int] = []  # rows until the end of each epoch
        self._planning = threading.Lock()

    def num_rows(self) -> int:
        """Returns the rows of the first epoch."""
        return len(self._epoch(0)[1])

    def row(self, number: int) -> np.ndarray:
        """Returns the examples of a row, as indices."""
        with self._planning:
            while not self._ends or number >= self._ends[-1]:
                before = self._ends[-1] if self._ends else 0
                self._ends.append(before + len(self._epoch(len(self._ends))[1]))
        epoch = bisect.bisect_right(self._ends, number)
        order, starts = self._epoch(epoch)
        place = number - (self._ends[epoch - 1] if epoch else 0)
        stop = starts[place + 1] if place + 1 < len(starts) else len(order)
        return order[starts[place] : stop]

    def __getstate__(self) -> dict[str, object]:
        """Leaves cache and lock behind, for worker processes."""
        own = ("_epoch", "_planning")
        return {k: v for k, v in self.__dict__.items() if k not in own}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _planning=threading.Lock())

    @functools.cached_property
    def _epoch(self):
        return functools.lru_cache(maxsize=2)(self._plan)

    def _plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the order of an epoch, and where its rows begin."""
        order = np.arange(len(self._sizes))
        if self._seed is not None:
            order = np.random.default_rng([self._seed, epoch]).permutation(order)
        return order, greedy_starts(self._sizes[order], self._limits)


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns starts[0], starts[0] + 1, ... for each range, one after another."""
    first = np.cumsum(lengths) - lengths
    return np.repeat(starts - first, lengths) + np.arange(lengths.sum())
