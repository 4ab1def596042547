"""Batches of arrays held in memory, and their way to the device."""

import collections
import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grain
import jax
import numpy as np

Batch = dict[str, np.ndarray]
Augment = Callable[[Batch, np.random.Generator], Batch]

# Endless in practice: grain wants a length, and positions must stay exact in int64.
ENDLESS = 2**48
PREFETCH_BATCHES = 2  # at least so many wait on the device
# More are made in one go while they are small.
MAX_BURST_BATCHES = 32
BURST_BYTES = 32 * 2**20


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_examples)


class _TrainBatches:
    """`self[position]`: batch number `position` of an endless shuffled stream.

    Each epoch holds every example once, in an order of its own; a batch may straddle
    two epochs, so that nothing is dropped.
    """

    def __init__(self, arrays, batch_size: int, seed: int, augment: Augment | None):
        self._arrays = dict(arrays)
        self._num_examples = len(next(iter(self._arrays.values())))
        self._batch_size = batch_size
        self._seed = seed
        self._augment = augment

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, position: int) -> Batch:
        first = position * self._batch_size
        epochs, offsets = np.divmod(
            np.arange(first, first + self._batch_size), self._num_examples
        )
        indices = np.concatenate(
            [
                _permutation(self._seed, int(epoch), self._num_examples)[
                    offsets[epochs == epoch]
                ]
                for epoch in range(epochs[0], epochs[-1] + 1)
            ]
        )
        batch = {name: array[indices] for name, array in self._arrays.items()}
        if self._augment is None:
            return batch
        return self._augment(batch, np.random.default_rng([self._seed, 1, position]))


class _EvalBatches:
    """`self[i]`: the i-th batch in order, all of one size, the last padded."""

    def __init__(self, arrays, batch_size: int, prepare: Callable[[Batch], Batch]):
        self._arrays = dict(arrays)
        self._num_examples = len(next(iter(self._arrays.values())))
        self._batch_size = batch_size
        self._prepare = prepare

    def __len__(self) -> int:
        return -(-self._num_examples // self._batch_size)

    def __getitem__(self, index: int) -> Batch:
        wanted = np.arange(index * self._batch_size, (index + 1) * self._batch_size)
        real = wanted < self._num_examples
        batch = self._prepare(
            {
                name: array[np.where(real, wanted, 0)]
                for name, array in self._arrays.items()
            }
        )
        weights = batch.get("weights", np.ones(self._batch_size, np.float32))
        mask = real.reshape(-1, *[1] * (weights.ndim - 1))
        return {**batch, "weights": (weights * mask).astype(np.float32)}


def train_batches(
    arrays: Mapping[str, np.ndarray],
    batch_size: int,
    seed: int,
    augment: Augment | None = None,
) -> grain.MapDataset:
    """Returns the endless training stream over arrays of shape (examples, ...).

    Args:
      arrays: fields of the examples; all share their first axis.
      batch_size: examples in a batch.
      seed: fixes order and augmentation, with the position alone.
      augment: maps a batch and a random generator to a batch.
    """
    return grain.MapDataset.source(_TrainBatches(arrays, batch_size, seed, augment))


def eval_batches(
    arrays: Mapping[str, np.ndarray],
    batch_size: int,
    prepare: Callable[[Batch], Batch] = dict,
) -> grain.MapDataset:
    """Returns all examples once, in order; 'weights' (batch, ...) is 0 on padding.

    `prepare` maps a batch to a batch (normalisation, say); where it gives 'weights'
    of its own, padding is multiplied in.
    """
    return grain.MapDataset.source(_EvalBatches(arrays, batch_size, prepare))


class InputQueue(Iterator[dict[str, jax.Array]]):
    """What `data_selection` draws from: batches prefetched to the device.

    Batches are made and sent by a thread of their own, off the critical path, and
    small ones many at a time: where the device is the CPU, a thread that wakes for
    every batch takes a core from the training step that often.

    `position` counts the batches that were taken: a queue started there goes on
    exactly where this one stands.
    """

    def __init__(self, dataset: grain.MapDataset, sharding: Any, position: int = 0):
        self.position = position
        self._sharding = sharding
        self._ready: collections.deque[dict[str, jax.Array]] = collections.deque()
        self._changed = threading.Condition()
        self._closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(
            target=self._fill, args=(dataset[position:],), name="input", daemon=True
        )
        self._thread.start()

    def __next__(self) -> dict[str, jax.Array]:
        with self._changed:
            self._changed.wait_for(
                lambda: self._ready or self._error is not None or self._closed
            )
            if not self._ready:
                raise self._error or RuntimeError("the input queue is closed")
            batch = self._ready.popleft()
            if len(self._ready) == PREFETCH_BATCHES:
                self._changed.notify_all()
        self.position += 1
        return batch

    def _fill(self, dataset: grain.MapDataset) -> None:
        options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        try:
            for batch in dataset.to_iter_dataset(options):
                size = sum(array.nbytes for array in batch.values())
                burst = min(MAX_BURST_BATCHES, BURST_BYTES // max(size, 1))
                self._append(jax.device_put(batch, self._sharding))
                if len(self._ready) >= PREFETCH_BATCHES + burst:
                    self._wait_for_room()
                if self._closed:
                    return
        except BaseException as error:  # raised again where the batch is asked for
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _append(self, batch: dict[str, jax.Array]) -> None:
        with self._changed:
            self._ready.append(batch)
            if len(self._ready) == 1:
                self._changed.notify_all()

    def _wait_for_room(self) -> None:
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or len(self._ready) <= PREFETCH_BATCHES
            )

    def close(self) -> None:
        """Stops the prefetching thread; batches not taken are dropped."""
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()
        self._thread.join()
