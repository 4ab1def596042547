"""Batches of arrays held in memory, and the way of all batches to the device."""

import collections
import dataclasses
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from absl import flags

from algoperf.errors import STOP_SIGNALS, UserError
from algoperf.sharding import put_batches

Batch = dict[str, Any]  # trees of arrays that share their first axis
Augment = Callable[[Batch, np.random.Generator], Batch]

# Endless in practice: grain wants a length, and positions must stay exact in int64.
ENDLESS = 2**48
PREFETCH_BATCHES = 2  # at least so many wait on the device
# More are made in one go while they are small, and sent in one go.
MAX_BURST_BATCHES = 32
BURST_BYTES = 32 * 2**20


# A batch may say under this key how many corrupt examples it passed over: an integer.
SKIPPED = "skipped"


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """How a run reads its data.

    Attributes:
      folder: where `algoperf data prepare` has put the data sets.
      workers: processes that make batches; 0 makes them in the run's own process.
      threads: that make batches ahead, where there are no workers; with 0 they are
        made when they are asked for.
      skip_corrupt: pass over broken examples and count them, instead of ending.
      host: the index of this host among `num_hosts`, which share each batch.
      num_hosts: how many hosts.
    """

    folder: Path | None = None
    workers: int = 0
    threads: int = 0
    skip_corrupt: bool = False
    host: int = 0
    num_hosts: int = 1

    def rows(self, batch_size: int) -> slice:
        """Returns which rows of a global batch this host makes.

        Raises:
          UserError: the batch does not divide over the hosts.
        """
        if batch_size % self.num_hosts:
            raise UserError(
                f"batch size {batch_size} is not divisible by {self.num_hosts} hosts"
            )
        size = batch_size // self.num_hosts
        return slice(self.host * size, (self.host + 1) * size)


ALL_HERE = DataOptions()


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_examples)


def shuffled(seed: int, first: int, count: int, num_examples: int) -> np.ndarray:
    """Returns `count` example indices of an endless shuffled stream, from `first` on.

    Each epoch of `num_examples` holds every index once, in an order of its own.
    """
    epochs, offsets = np.divmod(np.arange(first, first + count), num_examples)
    return np.concatenate(
        [
            _permutation(seed, int(epoch), num_examples)[offsets[epochs == epoch]]
            for epoch in range(epochs[0], epochs[-1] + 1)
        ]
    )


class _TrainBatches:
    """`self[position]`: batch number `position` of an endless shuffled stream.

    Each epoch holds every example once, in an order of its own; a batch may straddle
    two epochs, so that nothing is dropped.
    """

    def __init__(self, arrays, batch_size, seed, augment, options, prepare):
        self._arrays = dict(arrays)
        self._num_examples = len(next(iter(self._arrays.values())))
        self._batch_size = batch_size
        self._seed = seed
        self._augment = augment
        self._prepare = prepare
        self._rows = options.rows(batch_size)
        self._host = options.host

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, position: int) -> Batch:
        first = position * self._batch_size + self._rows.start
        count = self._rows.stop - self._rows.start
        indices = shuffled(self._seed, first, count, self._num_examples)
        batch = {name: array[indices] for name, array in self._arrays.items()}
        batch = self._prepare(batch)
        if self._augment is None:  # a generator costs more than a small batch
            return batch
        stream = [self._seed, 1, position, *([self._host] if self._host else [])]
        return self._augment(batch, np.random.default_rng(stream))


class _EvalBatches:
    """`self[i]`: the i-th batch in order, all of one size, the last padded."""

    def __init__(self, arrays, batch_size, prepare, options):
        self._arrays = dict(arrays)
        self._num_examples = len(next(iter(self._arrays.values())))
        self._batch_size = batch_size
        self._prepare = prepare
        self._rows = options.rows(batch_size)

    def __len__(self) -> int:
        return -(-self._num_examples // self._batch_size)

    def __getitem__(self, index: int) -> Batch:
        size = self._batch_size
        wanted = np.arange(index * size, (index + 1) * size)[self._rows]
        real = wanted < self._num_examples
        batch = self._prepare(
            {
                name: array[np.where(real, wanted, 0)]
                for name, array in self._arrays.items()
            }
        )
        weights = batch.get("weights", np.ones(len(wanted), np.float32))
        mask = real.reshape(-1, *[1] * (weights.ndim - 1))
        return {**batch, "weights": (weights * mask).astype(np.float32)}


def train_batches(
    arrays: Mapping[str, np.ndarray],
    batch_size: int,
    seed: int,
    augment: Augment | None = None,
    options: DataOptions = ALL_HERE,
    prepare: Callable[[Batch], Batch] = dict,
) -> grain.MapDataset:
    """Returns the endless training stream over arrays of shape (examples, ...).

    Args:
      arrays: fields of the examples; all share their first axis.
      batch_size: examples in a batch.
      seed: fixes order and augmentation, with the position alone.
      augment: maps a prepared batch and a random generator to a batch.
      options: which rows of the batch are made here.
      prepare: maps a batch to a batch, without chance.
    """
    return grain.MapDataset.source(
        _TrainBatches(arrays, batch_size, seed, augment, options, prepare)
    )


def eval_batches(
    arrays: Mapping[str, np.ndarray],
    batch_size: int,
    prepare: Callable[[Batch], Batch] = dict,
    options: DataOptions = ALL_HERE,
) -> grain.MapDataset:
    """Returns all examples once, in order; 'weights' (batch, ...) is 0 on padding.

    `prepare` maps a batch to a batch (normalisation, say); where it gives 'weights'
    of its own, padding is multiplied in.
    """
    return grain.MapDataset.source(_EvalBatches(arrays, batch_size, prepare, options))


def batches(
    dataset: grain.MapDataset, workers: int = 0, threads: int = 0
) -> Iterator[Batch]:
    """Iterates over the batches in order, made ahead by processes or threads, if any.

    Batches do not depend on how many. Threads share one interpreter but need not copy
    batches between processes: on few cores they are faster.
    """
    ahead = 0 if workers else threads
    iterated = dataset.to_iter_dataset(
        grain.ReadOptions(num_threads=ahead, prefetch_buffer_size=2 * ahead)
    )
    if workers == 0:
        return iter(iterated)
    if not flags.FLAGS.is_parsed():  # grain reads a flag of its own from them
        flags.FLAGS.mark_as_parsed()
    return iter(
        iterated.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2),
            worker_init_fn=_begin_worker,
        )
    )


def _begin_worker(index: int, count: int) -> None:
    """Makes a worker process live as long as the run that it makes batches for.

    A signal that asks to stop often reaches all processes of a run: a terminal's, those
    of Slurm and of service managers. The run still takes batches until it has ended its
    step. And a run that is killed cannot end its workers.
    """
    del index, count
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_run, daemon=True).start()


def _end_with_the_run() -> None:
    run = multiprocessing.parent_process()
    if run is not None:
        run.join()
        os._exit(1)


def _burst(batch: Batch) -> int:
    """Returns how many batches like this one are made in one go."""
    size = sum(array.nbytes for array in jax.tree.leaves(batch))
    return min(MAX_BURST_BATCHES, BURST_BYTES // max(size, 1))


class InputQueue(Iterator[dict[str, Any]]):
    """What `data_selection` draws from: batches prefetched to the device.

    Batches are made and sent by a thread of their own, off the critical path, and
    small ones many at a time: where the device is the CPU, a thread that wakes for
    every batch takes a core from the training step that often. With `workers` or
    `threads`, they are made by so many processes or threads, and this one only sends
    them.

    `position` counts the batches that were taken: a queue started there goes on
    exactly where this one stands. `skipped` counts the corrupt examples that the taken
    batches passed over. The queue of a finite dataset ends.
    """

    def __init__(
        self,
        dataset: grain.MapDataset,
        sharding: Any,
        position: int = 0,
        workers: int = 0,
        threads: int = 0,
        skipped: int = 0,
    ):
        self.position = position
        self.skipped = skipped
        self._sharding = sharding
        self._workers, self._threads = workers, threads
        self._ready: collections.deque[tuple[dict[str, Any], int]] = collections.deque()
        self._changed = threading.Condition()
        self._refill_at = PREFETCH_BATCHES
        self._closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(
            target=self._fill, args=(dataset[position:],), name="input", daemon=True
        )
        self._thread.start()

    def __next__(self) -> dict[str, Any]:
        with self._changed:
            self._changed.wait_for(
                lambda: self._ready or self._error is not None or self._closed
            )
            if not self._ready:
                raise self._error or RuntimeError("the input queue is closed")
            batch, skipped = self._ready.popleft()
            if len(self._ready) == self._refill_at:
                self._changed.notify_all()
        self.position += 1
        self.skipped += skipped
        return batch

    def _fill(self, dataset: grain.MapDataset) -> None:
        error: BaseException = StopIteration()
        try:
            self._make_and_send(dataset)
        except BaseException as caught:  # raised again where the batch is asked for
            error = caught
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def _make_and_send(self, dataset: grain.MapDataset) -> None:
        """Prefetches until the dataset ends or the queue is closed."""
        made = batches(dataset, self._workers, self._threads)
        group: list[tuple[dict[str, Any], int]] = []
        try:
            for batch in made:
                group.append((batch, int(batch.pop(SKIPPED, 0))))
                burst = _burst(batch)
                # What waits lasts while a group as large is made.
                if len(group) >= min(burst, len(self._ready)):
                    ready, group = group, []
                    self._send(ready)
                self._refill_at = max(PREFETCH_BATCHES, burst // 2)
                if len(self._ready) >= self._refill_at + burst:
                    self._wait_for_room()
                if self._closed:
                    return
        finally:
            if hasattr(made, "close"):  # grain's, of worker processes
                made.close()
            if not self._closed:  # made before the end, or before an error
                self._send(group)

    def _send(self, group: list[tuple[dict[str, Any], int]]) -> None:
        sent = put_batches([batch for batch, _ in group], self._sharding)
        with self._changed:
            skipped = [number for _, number in group]
            self._ready.extend(zip(sent, skipped, strict=True))
            self._changed.notify_all()

    def _wait_for_room(self) -> None:
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or len(self._ready) <= self._refill_at
            )

    def close(self) -> None:
        """Stops the prefetching thread; batches not taken are dropped."""
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()
        self._thread.join()
