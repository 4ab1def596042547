"""Batches of examples that are read and transformed one by one, as from files.

A source is anything with `len(source)` and `source[index] -> dict of arrays`; where a
record is broken it raises `DataError`. What a transformation draws at random follows
from the seed and from the example's place in the stream alone.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import grain
import jax
import numpy as np

from algoperf.data.pipeline import (
    ENDLESS,
    SKIPPED,
    Augment,
    Batch,
    DataOptions,
    shuffled,
)
from algoperf.errors import UserError

Example = Mapping[str, Any]  # trees of arrays, without a batch axis
Transform = Callable[[Example, np.random.Generator], Example]
# So many broken examples in a row are no accident.
MAX_SKIPPED_IN_A_ROW = 100


class DataError(UserError):
    """A record that cannot be used; the message names file, record and what is wrong.

    Raised by sources and transformations. Ends the run, unless the user asked for such
    examples to be skipped.
    """


# What becomes of a record that a conversion cannot use: raises the error, or returns
# and the record is passed over.
OnCorrupt = Callable[[DataError], None]


def end(error: DataError) -> None:
    """Raises the error: the default of `OnCorrupt`."""
    raise error


class Source(Protocol):
    """Examples by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


class _TrainExamples:
    """`self[position]`: batch number `position` of an endless shuffled stream."""

    def __init__(self, source, batch_size, seed, options, transform, augment):
        self._source = source
        self._batch_size = batch_size
        self._seed = seed
        self._options = options
        self._transform = transform
        self._augment = augment
        self._rows = options.rows(batch_size)

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, position: int) -> Batch:
        size = self._batch_size
        places = np.arange(position * size, (position + 1) * size)[self._rows]
        order = shuffled(self._seed, places[0], len(places), len(self._source))
        examples, skipped = [], 0
        for place, index in zip(places, order, strict=True):
            example, passed_over = self._example(int(place), int(index))
            examples.append(example)
            skipped += passed_over
        batch = stack(examples)
        if self._augment is not None:
            generator = np.random.default_rng(
                [self._seed, 2, position, self._options.host]
            )
            batch = self._augment(batch, generator)
        return {**batch, SKIPPED: skipped} if skipped else batch

    def _example(self, place: int, index: int) -> tuple[Example, int]:
        """Returns the example, or the next good one, and how many were broken."""
        for skipped in range(MAX_SKIPPED_IN_A_ROW):
            generator = np.random.default_rng([self._seed, 1, place])
            try:
                raw = self._source[(index + skipped) % len(self._source)]
                return self._transform(raw, generator), skipped
            except DataError:
                if not self._options.skip_corrupt:
                    raise
        raise UserError(
            f"{MAX_SKIPPED_IN_A_ROW} examples in a row from number {index} on are "
            "corrupt; look at the data with algoperf data check"
        )


class _EvalExamples:
    """`self[i]`: the i-th batch in order, all of one size, 'weights' 0 on padding."""

    def __init__(self, source, batch_size, options, transform, seed):
        self._source = source
        self._batch_size = batch_size
        self._options = options
        self._transform = transform
        self._seed = seed
        self._rows = options.rows(batch_size)

    def __len__(self) -> int:
        return -(-len(self._source) // self._batch_size)

    def __getitem__(self, batch_index: int) -> Batch:
        size = self._batch_size
        wanted = np.arange(batch_index * size, (batch_index + 1) * size)[self._rows]
        examples: list[Example | None] = []
        skipped = 0
        for index in wanted:
            example = None
            if index < len(self._source):
                example = self._example(int(index))
                skipped += example is None
            examples.append(example)
        batch = stack(self._padded(examples))
        real = np.array([example is not None for example in examples], np.float32)
        weights = batch.get("weights", np.ones(len(real), np.float32))
        mask = real.reshape(-1, *[1] * (weights.ndim - 1))
        batch = {**batch, "weights": (weights * mask).astype(np.float32)}
        return {**batch, SKIPPED: skipped} if skipped else batch

    def _example(self, index: int) -> Example | None:
        generator = np.random.default_rng([self._seed, 1, index])
        try:
            return self._transform(self._source[index], generator)
        except DataError:
            if not self._options.skip_corrupt:
                raise
            return None

    def _padded(self, examples: list[Example | None]) -> list[Example]:
        """Puts a copy of some good example where there is none."""
        good = next((e for e in examples if e is not None), None)
        for index in range(len(self._source)):
            if good is not None:
                break
            good = self._example(index)
        if good is None:
            raise UserError("every example of the split is corrupt")
        return [good if example is None else example for example in examples]


def stack(examples: list[Example]) -> Batch:
    """Lays examples of equal shapes along a new first axis."""
    return jax.tree.map(lambda *arrays: np.stack(arrays), *map(dict, examples))


def train_examples(
    source: Source,
    batch_size: int,
    seed: int,
    options: DataOptions,
    transform: Transform,
    augment: Augment | None = None,
) -> grain.MapDataset:
    """Returns the endless training stream of a source, globally shuffled.

    Each epoch holds every example once; a batch may straddle two epochs, so that
    nothing is dropped. A skipped example is replaced by the next one that is good.

    Args:
      source: examples by index.
      batch_size: examples in a batch of all hosts together.
      seed: fixes order and augmentation, with the position alone.
      options: which rows of the batch are made here, and what to do about broken ones.
      transform: maps an example and a random generator to an example.
      augment: maps a batch and a random generator to a batch (mixup, say).
    """
    return grain.MapDataset.source(
        _TrainExamples(source, batch_size, seed, options, transform, augment)
    )


def eval_examples(
    source: Source,
    batch_size: int,
    options: DataOptions,
    transform: Transform,
    seed: int = 0,
) -> grain.MapDataset:
    """Returns all examples once, in order; 'weights' (batch, ...) is 0 on padding.

    A skipped example counts as padding. `seed` and the example's index fix what
    `transform` draws, so an evaluation always sees the same.
    """
    return grain.MapDataset.source(
        _EvalExamples(source, batch_size, options, transform, seed)
    )
