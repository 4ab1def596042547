"""Numbered examples, some of them broken; importable by worker processes."""

import numpy as np

from algoperf.data.examples import DataError


class Numbers:
    """Example i holds i; the numbers in `broken` cannot be read."""

    def __init__(self, size, broken=()):
        self._size = size
        self._broken = frozenset(broken)

    def __len__(self):
        return self._size

    def __getitem__(self, index):
        if index in self._broken:
            raise DataError(f"numbers.bin, record {index}: it is broken")
        return {"inputs": {"value": np.float32(index)}, "targets": np.int32(index)}


def noisy(example, generator):
    return {**example, "noise": generator.random()}


def shifted(batch, generator):
    return {**batch, "shift": batch["targets"] + generator.random()}
