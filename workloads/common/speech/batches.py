"""Batches of utterances, wherever their samples and tokens lie."""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import grain
import numpy as np

from algoperf.data.examples import DataOptions
from algoperf.data.pipeline import ENDLESS, Batch, shuffled


class Utterances(Protocol):
    """Utterances by index, and what all of them are padded to."""

    max_samples: int
    max_tokens: int

    def __len__(self) -> int: ...

    def samples(self, index: int) -> np.ndarray:
        """Returns the samples of an utterance, int16."""

    def tokens(self, index: int) -> np.ndarray:
        """Returns the tokens of a transcript, uint16."""


class _Padded:
    """Rows of one length, each written once: batches are large."""

    def __init__(self, rows: int, length: int, dtype: Any, padding_dtype: Any):
        self.values = np.empty((rows, length), dtype)
        self.paddings = np.empty((rows, length), padding_dtype)

    def fill(self, row: int, values: Sequence[int] | np.ndarray) -> None:
        size = len(values)
        self.values[row, :size] = values
        self.values[row, size:] = 0
        self.paddings[row, :size] = 0
        self.paddings[row, size:] = 1


def batch(utterances: Utterances, indices: Iterable[int | None]) -> Batch:
    """Returns 'inputs' and 'targets', values and paddings; None is all padding.

    'inputs' are samples (B, max_samples) int16 and their paddings uint8, 'targets' are
    tokens (B, max_tokens) int32 and their paddings float32: 1 on padding, else 0.
    """
    wanted = list(indices)
    inputs = _Padded(len(wanted), utterances.max_samples, np.int16, np.uint8)
    targets = _Padded(len(wanted), utterances.max_tokens, np.int32, np.float32)
    for row, index in enumerate(wanted):
        inputs.fill(row, () if index is None else utterances.samples(index))
        targets.fill(row, () if index is None else utterances.tokens(index))
    return {
        "inputs": (inputs.values, inputs.paddings),
        "targets": (targets.values, targets.paddings),
    }


class _TrainBatches:
    """`self[position]`: batch number `position` of an endless shuffled stream."""

    def __init__(
        self, utterances: Utterances, batch_size: int, seed: int, options: DataOptions
    ):
        self._utterances = utterances
        self._batch_size = batch_size
        self._seed = seed
        self._rows = options.rows(batch_size)

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, position: int) -> Batch:
        first = position * self._batch_size + self._rows.start
        count = self._rows.stop - self._rows.start
        order = shuffled(self._seed, first, count, len(self._utterances))
        return batch(self._utterances, map(int, order))


class _EvalBatches:
    """`self[i]`: the i-th batch of the chosen utterances, in order."""

    def __init__(
        self,
        utterances: Utterances,
        chosen: Sequence[int],
        batch_size: int,
        options: DataOptions,
    ):
        self._utterances, self._chosen = utterances, chosen
        self._batch_size = batch_size
        self._rows = options.rows(batch_size)

    def __len__(self) -> int:
        return -(-len(self._chosen) // self._batch_size)

    def __getitem__(self, index: int) -> Batch:
        first = index * self._batch_size
        places = range(first, first + self._batch_size)[self._rows]
        there = [self._chosen[p] if p < len(self._chosen) else None for p in places]
        weights = np.array([place is not None for place in there], np.float32)
        return {**batch(self._utterances, there), "weights": weights}


def read(
    utterances: Utterances,
    split: str,
    batch_size: int,
    seed: int,
    options: DataOptions,
    num_eval_train: int,
) -> grain.MapDataset:
    """Returns the batches of 'train' (endless) or of an evaluation split.

    They are described at `batch`; in evaluation 'weights' (B,) float32 is 0 on rows
    that are padding.

    Args:
      utterances: of the split, those of training for 'eval_train'.
      split: 'train', or one of EVAL_SPLITS.
      batch_size: utterances in a batch of all hosts together.
      seed: fixes the order of training.
      options: which rows of a batch are made here.
      num_eval_train: how many utterances, spread over the set, are 'eval_train'.
    """
    if split == "train":
        return grain.MapDataset.source(
            _TrainBatches(utterances, batch_size, seed, options)
        )
    chosen: Sequence[int] = range(len(utterances))
    if split == "eval_train":
        wanted = min(num_eval_train, len(utterances))
        chosen = [i * len(utterances) // wanted for i in range(wanted)]
    return grain.MapDataset.source(
        _EvalBatches(utterances, chosen, batch_size, options)
    )
