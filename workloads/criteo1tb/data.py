"""Batches of click logs from prepared rows (see `prepare`).

Training rows were shuffled once and for all when they were prepared; each seed and
epoch then takes blocks of 4,096 neighbours in another order, and the rows of a block in
another order. So the disk is read in long pieces. The published training run is shorter
than one epoch.
"""

import functools
from pathlib import Path

import grain
import numpy as np

from algoperf.data.examples import DataError, DataOptions
from algoperf.data.mapped import mapped
from algoperf.data.pipeline import ENDLESS, Batch
from algoperf.data.source import DataSource
from workloads.criteo1tb import prepare

NUM_EVAL_TRAIN = 83_361_792
BLOCK_ROWS = 4096


def read(
    split: str, batch_size: int, seed: int, options: DataOptions
) -> grain.MapDataset:
    """Returns the batches of 'train' (endless) or of an evaluation split.

    'inputs' is a dict of 'dense' (B, 13) float32 and 'ids' (B, 26) int32, 'targets' are
    (B, 1) float32, and so are the 'weights' of evaluation. 'eval_train' is the first
    83,361,792 of the shuffled training rows.
    """
    folder = DATA_SOURCE.folder(options.folder)
    rows = open_rows(folder, "train" if split == "eval_train" else split)
    if split == "train":
        return grain.MapDataset.source(TrainRows(rows, batch_size, seed, options))
    if split == "eval_train":
        rows = rows[:NUM_EVAL_TRAIN]
    return grain.MapDataset.source(EvalRows(rows, batch_size, options))


def open_rows(folder: Path, split: str) -> np.ndarray:
    """Returns the rows of a split, (rows, 40) int32, mapped from disk.

    Raises:
      DataError: the file is missing or no whole number of rows.
    """
    path = folder / f"{split}.bin"
    size = path.stat().st_size if path.is_file() else 0
    if size == 0 or size % prepare.ROW_BYTES:
        raise DataError(
            f"{path} has {size:,} bytes, no whole number of rows of "
            f"{prepare.ROW_BYTES}; delete its folder and run algoperf data prepare "
            "criteo1tb again"
        )
    shape = (size // prepare.ROW_BYTES, prepare.ROW_INTEGERS)
    return mapped(path, np.int32, shape)


def as_batch(rows: np.ndarray) -> Batch:
    """Maps rows (B, 40) to a batch; integers x become log(max(x, 0) + 1)."""
    first_id = 1 + prepare.NUM_INTEGERS
    dense = np.log1p(np.maximum(rows[:, 1:first_id], 0).astype(np.float32))
    ids = np.ascontiguousarray(rows[:, first_id:])
    return {
        "inputs": {"dense": dense, "ids": ids},
        "targets": rows[:, :1].astype(np.float32),
    }


class TrainRows:
    """`self[position]`: batch number `position`; each epoch holds each row once."""

    def __init__(
        self, rows: np.ndarray, batch_size: int, seed: int, options: DataOptions
    ):
        self._rows = rows
        self._batch_size = batch_size
        self._seed = seed
        self._part = options.rows(batch_size)

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, position: int) -> Batch:
        start = position * self._batch_size + self._part.start
        stop = position * self._batch_size + self._part.stop
        pieces = []
        while start < stop:
            epoch, offset = divmod(start, len(self._rows))
            count = min(stop - start, len(self._rows) - offset)
            pieces += self._pieces(epoch, offset, offset + count)
            start += count
        return as_batch(np.concatenate(pieces))

    def _pieces(self, epoch: int, start: int, stop: int) -> list[np.ndarray]:
        """Returns the rows from start to stop of an epoch, block by block."""
        order, ends = _blocks(self._seed, epoch, len(self._rows))
        found = []
        for place in range(
            int(np.searchsorted(ends, start, side="right")),
            int(np.searchsorted(ends, stop, side="left")) + 1,
        ):
            block = int(order[place])
            rows = self._rows[block * BLOCK_ROWS : (block + 1) * BLOCK_ROWS]
            within = np.random.default_rng([self._seed, epoch, block]).permutation(
                len(rows)
            )
            first = ends[place] - len(rows)
            wanted = within[max(start - first, 0) : stop - first]
            found.append(np.asarray(rows)[wanted])
        return found


@functools.lru_cache(maxsize=4)
def _blocks(seed: int, epoch: int, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the order of the blocks in an epoch, and where each one ends in it."""
    num_blocks = -(-num_rows // BLOCK_ROWS)
    order = np.random.default_rng([seed, epoch]).permutation(num_blocks)
    sizes = np.full(num_blocks, BLOCK_ROWS)
    sizes[order == num_blocks - 1] = num_rows - (num_blocks - 1) * BLOCK_ROWS
    return order, np.cumsum(sizes)


class EvalRows:
    """`self[i]`: the i-th batch in order, the last one padded with weight 0."""

    def __init__(self, rows: np.ndarray, batch_size: int, options: DataOptions):
        self._rows = rows
        self._batch_size = batch_size
        self._part = options.rows(batch_size)

    def __len__(self) -> int:
        return -(-len(self._rows) // self._batch_size)

    def __getitem__(self, index: int) -> Batch:
        start = index * self._batch_size + self._part.start
        size = self._part.stop - self._part.start
        rows = np.zeros((size, prepare.ROW_INTEGERS), np.int32)
        found = self._rows[start : start + size]
        rows[: len(found)] = found
        weights = np.zeros((size, 1), np.float32)
        weights[: len(found)] = 1
        return {**as_batch(rows), "weights": weights}


def count(folder: Path) -> dict[str, int]:
    """Returns the number of rows of each split."""
    splits = ("train", "validation", "test")
    return {split: len(open_rows(folder, split)) for split in splits}


DATA_SOURCE = DataSource(
    name="criteo1tb",
    instructions=prepare.INSTRUCTIONS,
    prepare=prepare.prepare,
    count=count,
    num_examples={
        "train": prepare.NUM_TRAIN,
        "validation": prepare.NUM_VALIDATION,
        "test": prepare.NUM_TEST,
    },
)
