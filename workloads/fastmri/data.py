"""Slices of fastMRI's single-coil knee volumes, undersampled four times.

Zbontar et al. 2018, arXiv:1811.08839. A volume is an HDF5 file with its measurements in
k-space and the images reconstructed from all of them. A slice keeps the central 8 % of
the columns of k-space and others at random, a quarter in all; the input is the absolute
value of their inverse Fourier transform, the target the image from all columns.

In training the columns differ from epoch to epoch; the official code draws them once.
In evaluation they are the official ones, the same for all slices of one width: targets
were set on them.
"""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np
import scipy.fft

from algoperf.data.examples import (
    DataError,
    DataOptions,
    Example,
    OnCorrupt,
    Source,
    end,
    eval_examples,
    train_examples,
)
from algoperf.data.source import DataSource
from algoperf.errors import UserError
from workloads.fastmri import philox

IMAGE_SIZE = 320
ACCELERATION = 4
CENTRE_FRACTION = 0.08
CLIP = 6.0  # standard deviations
NUM_TRAIN = 34_742
NUM_EVAL_TRAIN = 3_584
NUM_VALIDATION = 3_554
NUM_TEST = 3_581
NUM_SLICES = {"train": NUM_TRAIN, "validation": NUM_VALIDATION, "test": NUM_TEST}
EVAL_SEED = (0, 0)  # of the columns
VALIDATION_FILES = 100  # of the published validation set; the others are the test set
OPEN_FILES = 32
INDEX = "index.json"
FOLDERS = {"train": "knee_singlecoil_train", "val": "knee_singlecoil_val"}

INSTRUCTIONS = """
fastMRI, single-coil knee (needs a form at https://fastmri.med.nyu.edu), 113 GB:
  knee_singlecoil_train.tar.xz and knee_singlecoil_val.tar.xz
Unpack them, so that --raw holds the folders singlecoil_train and singlecoil_val with
their .h5 files; knee_singlecoil_train and knee_singlecoil_val, as the official code
calls them, will do too. They are linked, not copied, where --raw and the data directory
are on one file system.
"""


class Slices:
    """The slices of a split, read from their volumes when they are asked for."""

    def __init__(self, folder: Path, split: str, count: int | None = None):
        """Takes all slices, or so many at equal distances."""
        try:
            index = json.loads((folder / INDEX).read_text())[split]
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"{folder / INDEX} cannot be read ({error}); delete the folder and run "
                "algoperf data prepare fastmri again"
            ) from error
        self._folder = folder
        self._files = [file for file, _ in index]
        self._ends = np.cumsum([slices for _, slices in index])
        total = int(self._ends[-1])
        self._count = total if count is None else min(count, total)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Example:
        number = index * int(self._ends[-1]) // self._count
        file = int(np.searchsorted(self._ends, number, side="right"))
        slice_number = number - (int(self._ends[file - 1]) if file else 0)
        path = self._folder / self._files[file]
        return read_slice(path, slice_number)


class Volume(NamedTuple):
    """An open volume; its arrays are read when they are indexed."""

    kspace: Any  # (slices, rows, columns) complex64
    target: Any  # (slices, 320, 320) float32
    max: float


@functools.lru_cache(maxsize=OPEN_FILES)
def _open(path: Path) -> Volume:
    """Opens a volume.

    Raises:
      OSError, KeyError: the file is broken.
    """
    try:
        import h5py
    except ImportError as error:
        raise UserError(
            "reading HDF5 needs h5py: pip install 'algoperf[full]'"
        ) from error
    file = h5py.File(path, "r")
    kspace, target = (_mapped(path, file[n]) for n in ("kspace", "reconstruction_esc"))
    return Volume(kspace, target, float(file.attrs["max"]))


def _mapped(path: Path, stored: Any) -> Any:
    """Returns the array mapped from disk, where it lies there in one piece.

    Then only the columns that are measured are read, and threads need no turns.
    """
    offset = stored.id.get_offset()
    if offset is None:
        return stored
    return np.memmap(path, stored.dtype, "r", offset, stored.shape)


def read_slice(path: Path, number: int) -> Example:
    """Returns a slice: 'kspace' complex64, 'target' float32, 'volume_max', 'name'.

    Raises:
      DataError: the file is broken, or has no such slice.
    """
    name = f"{path}, slice {number}"
    try:
        volume = _open(path)
        kspace, target = volume.kspace[number], volume.target[number]
    except (OSError, KeyError, IndexError, ValueError, RuntimeError) as error:
        text = " ".join(str(error).split())[:200]
        raise DataError(f"{name}: cannot be read ({text})") from error
    if target.shape != (IMAGE_SIZE, IMAGE_SIZE) or min(kspace.shape) < IMAGE_SIZE:
        raise DataError(f"{name}: shapes {kspace.shape} and {target.shape}")
    return {
        "kspace": kspace.astype(np.complex64, copy=False),
        "target": target.astype(np.float32, copy=False),
        "volume_max": volume.max,
        "name": name,
    }


def column_mask(drawn: np.ndarray) -> np.ndarray:
    """Returns which columns of k-space are measured: (columns,) bool.

    The central 8 % always are, each other one with the probability that makes it a
    quarter on average (section 4.9 of the paper).

    Args:
      drawn: a number in [0, 1) for each column.
    """
    columns = len(drawn)
    num_central = int(np.float32(columns) * np.float32(CENTRE_FRACTION))
    first = (columns - num_central + 1) // 2
    others = columns - num_central
    mask = drawn < (columns / ACCELERATION - num_central) / others
    mask[first : first + num_central] = True
    return mask


def reconstruct(
    kspace: np.ndarray, mask: np.ndarray, size: int = IMAGE_SIZE
) -> np.ndarray:
    """Returns the central pixels of the image of the measured columns.

    The absolute value of the orthonormal inverse Fourier transform, of k-space with
    its zero frequency in the middle. Columns that are zero are left out of the first
    transform, rows that will be cut off out of the second. Shifting k-space would only
    change the phase.

    Args:
      kspace: (rows, columns) complex64.
      mask: (columns,) bool.
      size: how many pixels are kept on a side.

    Returns:
      (size, size) float32.
    """
    rows, columns = kspace.shape
    measured = scipy.fft.ifft(kspace[:, mask], axis=0, norm="ortho")
    half = np.zeros((size, columns), np.complex64)
    half[:, mask] = measured[_central(rows, size)]
    image = scipy.fft.ifft(half, axis=1, norm="ortho")[:, _central(columns, size)]
    return np.abs(image)


def _central(pixels: int, size: int) -> np.ndarray:
    """Indices, before the shift of the origin to the middle, of the central pixels."""
    start = (pixels - size) // 2
    return (np.arange(start, start + size) - pixels // 2) % pixels


def undersample(record: Example, rng: np.random.Generator) -> Example:
    """Maps a slice to an example of `measured`, by columns of its own."""
    return measured(record, rng.random(record["kspace"].shape[1]))


def undersample_officially(record: Example, rng: np.random.Generator) -> Example:
    """As `undersample`, by the columns that the official code evaluates on."""
    del rng
    return measured(record, _official_draw(record["kspace"].shape[1]))


@functools.cache
def _official_draw(columns: int) -> np.ndarray:
    return philox.uniform(columns, EVAL_SEED)


def measured(record: Example, drawn: np.ndarray) -> Example:
    """Returns the example of a slice of which some columns are measured.

    'inputs' and 'targets' are square float32 images, of the size of the record's
    target, in standard deviations of the input, cut at 6; 'mean' and 'std' lead back,
    'volume_max' is the range of the volume.

    Args:
      record: of `Slices`.
      drawn: see `column_mask`.

    Raises:
      DataError: the slice is not finite, or of one value.
    """
    kspace, size = record["kspace"], len(record["target"])
    image = reconstruct(kspace, column_mask(drawn), size)
    mean, std = image.mean(), image.std()
    if not np.isfinite(std) or std == 0 or not np.isfinite(record["target"]).all():
        raise DataError(f"{record['name']}: not finite, or of one value")

    def normalise(pixels: np.ndarray) -> np.ndarray:
        scaled = np.subtract(pixels, mean, dtype=np.float32)
        scaled /= std
        return np.clip(scaled, -CLIP, CLIP, out=scaled)

    return {
        "inputs": normalise(image),
        "targets": normalise(record["target"]),
        "mean": np.float32(mean),
        "std": np.float32(std),
        "volume_max": np.float32(record["volume_max"]),
    }


def read(
    split: str, batch_size: int, seed: int, options: DataOptions
) -> grain.MapDataset:
    """Returns the batches of 'train' (endless) or of an evaluation split.

    Fields as of `undersample`; evaluation has 'weights' (B,) too.
    """
    folder = DATA_SOURCE.folder(options.folder)
    slices = (
        Slices(folder, "train", NUM_EVAL_TRAIN)
        if split == "eval_train"
        else Slices(folder, split)
    )
    return undersampled(
        slices, split, batch_size, seed, options, undersample_officially
    )


def undersampled(
    slices: Source,
    split: str,
    batch_size: int,
    seed: int,
    options: DataOptions,
    evaluated: Callable[[Example, np.random.Generator], Example],
) -> grain.MapDataset:
    """Returns the batches of a split of slices, whichever scanner they come from.

    Args:
      slices: what `undersample` takes, by index.
      split: 'train' draws new columns in each epoch, the others do not.
      batch_size: slices in a batch of all hosts together.
      seed: fixes order and columns, with the position alone.
      options: see `DataOptions`.
      evaluated: what takes the place of `undersample` in evaluation.
    """
    if split == "train":
        return train_examples(slices, batch_size, seed, options, undersample)
    return eval_examples(slices, batch_size, options, evaluated)


def prepare(
    raw: Path,
    folder: Path,
    say: Callable[[str], None],
    validation_files: int = VALIDATION_FILES,
    on_corrupt: OnCorrupt = end,
) -> None:
    """Links the volumes and writes how many slices each one has.

    The first `validation_files` names of the published validation set are for
    validation, the others for the test, whichever volumes are passed over.

    Raises:
      UserError: a folder is missing, a volume is broken, or a split has none.
    """
    splits: dict[str, list[tuple[str, int]]] = {split: [] for split in NUM_SLICES}
    for published, name in FOLDERS.items():
        files = _volumes(raw, name)
        (folder / name).mkdir()
        for place, file in enumerate(files):
            if place % 100 == 0:
                say(f"{name}: volume {place + 1} of {len(files)}")
            try:
                slices = _count_slices(file)
            except DataError as error:
                on_corrupt(error)
                continue
            held_out = "validation" if place < validation_files else "test"
            split = "train" if published == "train" else held_out
            splits[split].append((f"{name}/{file.name}", slices))
            _link(file, folder / name / file.name)
    for split, volumes in splits.items():
        if not volumes:
            raise UserError(
                f"{raw} holds no good volume for {split}; of the published validation "
                f"set the first {validation_files} are for validation, the others for "
                "the test"
            )
    (folder / INDEX).write_text(json.dumps(splits, indent=1))


def _volumes(raw: Path, name: str) -> list[Path]:
    """Returns the volumes of a folder, which the archives call without 'knee_'."""
    unpacked = name.removeprefix("knee_")
    for folder in (raw / name, raw / unpacked):
        if files := sorted(folder.glob("*.h5")):
            return files
    raise UserError(
        f"{raw} holds no .h5 files in {unpacked} or {name}; algoperf data prepare "
        "fastmri says what to download"
    )


def _count_slices(file: Path) -> int:
    """Returns the slices of a volume, after a look at the first and the last."""
    try:
        volume = _open(file)
        slices = len(volume.kspace)
    except (OSError, KeyError) as error:
        text = " ".join(str(error).split())[:200]
        raise DataError(
            f"{file}: cannot be read ({text}); download it again"
        ) from error
    read_slice(file, 0)
    read_slice(file, slices - 1)
    _open.cache_clear()
    return slices


def _link(file: Path, target: Path) -> None:
    try:
        target.hardlink_to(file)
    except OSError:  # another file system
        shutil.copyfile(file, target)


def count(folder: Path) -> dict[str, int]:
    """Returns the number of slices of each split."""
    return {split: len(Slices(folder, split)) for split in NUM_SLICES}


DATA_SOURCE = DataSource(
    name="fastmri",
    instructions=INSTRUCTIONS,
    prepare=prepare,
    count=count,
    num_examples=NUM_SLICES,
    max_examples_skipped=None,  # the slices of a volume that cannot be read
)
