"""Arrays that stay on disk, also on their way to worker processes.

NumPy pickles a memory map as all of its numbers, which may be hundreds of gigabytes. A
worker needs no more than the name of the file.
"""

import mmap
from pathlib import Path
from typing import Any

import numpy as np


class Mapped(np.memmap):
    """A memory map, or a part of one, that is pickled as a place in its file."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        pages = getattr(self, "_mmap", None)
        if pages is None:  # computed from one: numbers of its own
            return super().__reduce_ex__(protocol)
        begin = np.frombuffer(pages, np.uint8).ctypes.data
        skipped = self.offset - self.offset % mmap.ALLOCATIONGRANULARITY
        offset = self.ctypes.data - begin + skipped
        return _at, (self.filename, self.dtype, offset, self.shape, self.strides)


def _at(path: str, dtype: Any, offset: int, shape: Any, strides: Any) -> np.ndarray:
    """Returns the array that lies in a file at these bytes."""
    if 0 in shape:
        return np.zeros(shape, dtype)
    file = np.memmap(path, np.uint8, "r")
    return np.ndarray(shape, dtype, file, offset, strides)  # type: ignore[arg-type]


def mapped(
    path: Path, dtype: Any = None, shape: tuple[int, ...] | None = None
) -> np.ndarray:
    """Returns the array in a file, read when it is indexed, as `np.memmap`.

    Without `dtype` the file is one that `np.save` has written.

    Raises:
      OSError, ValueError: the file is missing, empty or of another size.
    """
    if dtype is None:
        return np.load(path, mmap_mode="r").view(Mapped)
    return np.memmap(path, dtype, "r", shape=shape).view(Mapped)
