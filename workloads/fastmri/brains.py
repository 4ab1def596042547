"""Slices of an average brain, the MRI measurements of the mini scale.

The anatomy is the MNI ICBM-152 template (Fonov et al. 2011,
doi:10.1016/j.neuroimage.2010.07.033), the mean of 152 people's T1 images at 1 mm,
without skull. A volume is a few planes of it along one axis, seen by one imagined scan:
turned, smoothly deformed, with a contrast, a coil's sensitivity, a phase and noise of
its own. Its k-space then passes through the same undersampling as the knees (see
`data`), and its target is, as theirs, the image of all measurements, noise included.

Blocks of planes are training, validation or test, with gaps between them. The template
is symmetric, so sagittal planes are taken from one half only. But planes along
different axes cross: of a validation or test plane about three quarters of the brain's
voxels are in some training plane of another axis, each on a line of it. So no image is
in two splits, but they are of one brain: the task is to reconstruct, not to know it.
"""

import functools
from pathlib import Path
from typing import NamedTuple

import grain
import numpy as np
import scipy.fft

from algoperf.data.embedded import load_embedded
from algoperf.data.examples import DataOptions, Example
from workloads.fastmri import data

EMBEDDED = Path(__file__).parent / "embedded" / "icbm152"
IMAGE_SIZE = 64
KSPACE_SHAPE = (80, 72)
SLICES_PER_VOLUME = 4
VOLUMES = {"train": 512, "validation": 16, "test": 16}
NUM_TRAIN = SLICES_PER_VOLUME * VOLUMES["train"]
NUM_EVAL_TRAIN = 16
NUM_VALIDATION = SLICES_PER_VOLUME * VOLUMES["validation"]
NUM_TEST = SLICES_PER_VOLUME * VOLUMES["test"]
SEED = 152
NUM_AXES = 3
# Of each `PERIOD` planes along an axis (mm), from first to before last.
PERIOD = 40
BLOCKS = {"train": (0, 20), "validation": (24, 28), "test": (32, 36)}
MIN_BRAIN = 3_000  # mm^2 in a plane that is used
# What differs between scans.
PIXEL = (2.5, 3.0)  # mm
MAX_TURN = 0.3  # radians
MAX_SHIFT = 8.0  # mm
DEFORMATION = 3.0  # mm, standard deviation of a term of the series
SENSITIVITY = 0.15  # of the logarithm
PHASE = 0.7  # radians
NOISE = (0.01, 0.04)  # standard deviation; the brightest tissue is about 1
GREYS = (0, 60, 110, 160, 210, 255)  # where contrasts are drawn, linear in between
TERMS = 4  # of a smooth field along each side


class Scan(NamedTuple):
    """The slices of a volume, measured."""

    kspace: np.ndarray  # (slices, *KSPACE_SHAPE) complex64
    target: np.ndarray  # (slices, IMAGE_SIZE, IMAGE_SIZE) float32
    planes: np.ndarray  # (slices,) where they lie along the axis, in mm


def template() -> np.ndarray:
    """Returns both halves of the brain: left-right, back-front, bottom-top; uint8."""
    half = load_embedded(EMBEDDED)["half"]
    return np.concatenate([half, half[-2::-1]])


def planes(brain: np.ndarray, axis: int, split: str) -> np.ndarray:
    """Returns which planes along an axis belong to a split.

    Args:
      brain: (x, y, z) as of `template`.
      axis: 0 for sagittal, 1 for coronal, 2 for axial planes.
      split: 'train', 'validation' or 'test'.
    """
    area = (brain > 0).sum(tuple(i for i in range(NUM_AXES) if i != axis))
    places = np.arange(len(area))
    if axis == 0:
        area = area[: (len(area) + 1) // 2]
        places = places[: len(area)]
    first, stop = BLOCKS[split]
    phase = places % PERIOD
    return places[(phase >= first) & (phase < stop) & (area >= MIN_BRAIN)]


def smooth_field(rng: np.random.Generator) -> np.ndarray:
    """Draws a field over the image, a short cosine series: KSPACE_SHAPE float32."""
    order = np.arange(TERMS)
    terms = rng.standard_normal((TERMS, TERMS)) / (1 + order[:, None] + order)
    rows, columns = map(_cosines, KSPACE_SHAPE)
    return (rows @ terms @ columns.T).astype(np.float32)


@functools.cache
def _cosines(pixels: int) -> np.ndarray:
    return np.cos(np.pi * np.outer((np.arange(pixels) + 0.5) / pixels, range(TERMS)))


def positions(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Draws where in a plane each pixel lies: (2, *KSPACE_SHAPE) float32, in mm.

    Args:
      shape: of the plane; its middle comes near the middle of the image.
      rng: gives pixel size, side, turn, shift and deformation.
    """
    pixel = rng.uniform(*PIXEL)
    turn = rng.uniform(-MAX_TURN, MAX_TURN)
    side = rng.choice([-1.0, 1.0])
    shift = rng.uniform(-MAX_SHIFT, MAX_SHIFT, 2)
    grid = [(np.arange(n) - n // 2) * pixel for n in KSPACE_SHAPE]
    down, right = np.meshgrid(*grid, indexing="ij")
    right = side * right
    turned = (
        np.cos(turn) * down - np.sin(turn) * right,
        np.sin(turn) * down + np.cos(turn) * right,
    )
    return np.stack(
        [
            along + (n - 1) / 2 + offset + DEFORMATION * smooth_field(rng)
            for along, n, offset in zip(turned, shape, shift, strict=True)
        ]
    ).astype(np.float32)


def interpolate(images: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Reads images between their pixels, linearly; 0 outside.

    Args:
      images: (slices, rows, columns) float32.
      places: (2, height, width) rows and columns, the same in all images.

    Returns:
      (slices, height, width) float32.
    """
    count, *shape = images.shape
    limit = np.array(shape)[:, None, None] - 1
    inside = ((places >= 0) & (places < limit)).all(0)
    whole = np.clip(places.astype(np.int64), 0, limit - 1)
    row_part, column_part = np.where(inside, places - whole, 0)
    corner = whole[0] * shape[1] + whole[1]
    flat = images.reshape(count, -1)
    result = np.zeros((count, *corner.shape), np.float32)
    for down, row_weight in ((0, 1 - row_part), (1, row_part)):
        for right, column_weight in ((0, 1 - column_part), (1, column_part)):
            values = flat[:, corner + down * shape[1] + right]
            result += values * (row_weight * column_weight).astype(np.float32)
    return result * inside


def averaged(images: np.ndarray) -> np.ndarray:
    """Means over 3 x 3 pixels of (slices, rows, columns), for pixels of 3 mm; float32.

    Only within planes, so that no plane is part of another one.
    """
    padded = np.pad(images.astype(np.float32), ((0, 0), (1, 1), (1, 1)))
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    return (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]) / np.float32(9)


def measure(images: np.ndarray, places: np.ndarray, rng: np.random.Generator) -> Scan:
    """Scans some planes.

    Args:
      images: (planes, rows, columns) float32 greys from 0 to 255.
      places: which planes the volume may have.
      rng: draws them and everything that differs between scans.
    """
    chosen = np.sort(rng.choice(len(places), SLICES_PER_VOLUME, replace=False))
    where = positions(images.shape[1:], rng)
    contrast = [0.0, *rng.uniform(0.2, 1.0, len(GREYS) - 1)]
    greys = interpolate(images[chosen], where)
    bright = np.interp(greys, GREYS, contrast).astype(np.float32)
    bright *= np.exp(SENSITIVITY * smooth_field(rng))
    wave = bright * np.exp(1j * PHASE * smooth_field(rng)).astype(np.complex64)
    kspace = scipy.fft.fftshift(
        scipy.fft.fft2(scipy.fft.ifftshift(wave, axes=(1, 2)), norm="ortho"),
        axes=(1, 2),
    )
    level = np.exp(rng.uniform(*np.log(NOISE))) / np.sqrt(2)  # of each of two parts
    noise = rng.standard_normal((*kspace.shape, 2), np.float32).view(np.complex64)
    kspace = kspace + np.float32(level) * noise[..., 0]
    everything = np.ones(KSPACE_SHAPE[1], bool)
    target = [data.reconstruct(one, everything, IMAGE_SIZE) for one in kspace]
    return Scan(kspace, np.stack(target), places[chosen])


def scan(split: str) -> list[Scan]:
    """Returns the volumes of a split; number n is along axis n % 3."""
    brain = template()
    number = list(VOLUMES).index(split)
    volumes: dict[int, Scan] = {}
    for axis in range(NUM_AXES):
        places = planes(brain, axis, split)
        # The later axis goes down the image, so columns, which are left out, are of
        # the earlier one.
        images = averaged(np.moveaxis(brain, axis, 0)[places].swapaxes(1, 2))
        for n in range(axis, VOLUMES[split], NUM_AXES):
            rng = np.random.default_rng([SEED, number, n])
            volumes[n] = measure(images, places, rng)
    return [volumes[n] for n in range(VOLUMES[split])]


class Slices:
    """The slices of a split, by index."""

    def __init__(self, split: str, step: int = 1):
        """Scans all volumes and keeps every `step`-th slice."""
        volumes = scan(split)
        self._split = split
        self._kspace = np.concatenate([v.kspace for v in volumes])[::step]
        self._target = np.concatenate([v.target for v in volumes])[::step]
        brightest = [v.target.max() for v in volumes]
        self._max = np.repeat(brightest, SLICES_PER_VOLUME)[::step]

    def __len__(self) -> int:
        return len(self._kspace)

    def __getitem__(self, index: int) -> Example:
        return {
            "kspace": self._kspace[index],
            "target": self._target[index],
            "volume_max": self._max[index],
            "name": f"{EMBEDDED.name}, {self._split}, slice {index}",
        }


@functools.cache
def slices(split: str) -> Slices:
    """Returns the slices of 'train' or of an evaluation split, made once."""
    if split == "eval_train":
        return Slices("train", NUM_TRAIN // NUM_EVAL_TRAIN)
    return Slices(split)


def read(
    split: str, batch_size: int, seed: int, options: DataOptions
) -> grain.MapDataset:
    """Returns the batches of 'train' (endless) or of an evaluation split.

    Fields are those of `data.undersample`; evaluation has 'weights' (B,) too.
    """
    return data.undersampled(
        slices(split), split, batch_size, seed, options, undersample_alike
    )


def undersample_alike(record: Example, rng: np.random.Generator) -> Example:
    """As `data.undersample`, with the same columns for all slices."""
    del rng
    columns = record["kspace"].shape[1]
    return data.measured(record, np.random.default_rng(0).random(columns))
