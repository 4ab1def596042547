"""RandAugment (Cubuk et al. 2020, arXiv:1909.13719): random distortions of an image.

The sixteen operations and their strengths are those of the published ViT pipeline.
What its TensorFlow code does differently from the papers is kept, since targets were
set with it: floats are cut to bytes, not rounded; `contrast` blends with a constant
that is the number of pixels / 256 (196 at 224 x 224), not with the mean grey; and at
full strength `solarize` inverts everything, because its threshold of 256 becomes the
byte 0.

Images are (H, W, 3) uint8; empty pixels are filled with 128.
"""

from collections.abc import Callable

import numpy as np

FILL = 128
MAX_LEVEL = 10.0
GREY = np.array([0.2989, 0.587, 0.114], np.float32)

Operation = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


def randaugment(
    image: np.ndarray,
    rng: np.random.Generator,
    num_layers: int = 2,
    magnitude: float = 10.0,
) -> np.ndarray:
    """Applies `num_layers` operations, drawn with replacement, one after another.

    Args:
      image: (H, W, 3) uint8.
      rng: draws operations, signs and places.
      num_layers: how many.
      magnitude: of all of them, from 0 to 10.
    """
    names = list(OPERATIONS)
    for _ in range(num_layers):
        operation = OPERATIONS[names[rng.integers(len(names))]]
        image = operation(image, magnitude / MAX_LEVEL, rng)
    return image


def autocontrast(image: np.ndarray) -> np.ndarray:
    """Stretches each channel to the whole range from 0 to 255."""
    tables = []
    for channel in np.moveaxis(image, -1, 0):
        low, high = float(channel.min()), float(channel.max())
        if high <= low:
            tables.append(np.arange(256, dtype=np.uint8))
            continue
        scale = np.float32(255.0 / (high - low))
        stretched = np.arange(256, dtype=np.float32) * scale - np.float32(low) * scale
        tables.append(np.clip(stretched, 0, 255).astype(np.uint8))
    return _look_up(image, tables)


def equalize(image: np.ndarray) -> np.ndarray:
    """Makes the distribution of each channel's values as even as a table can."""
    tables = []
    for channel in np.moveaxis(image, -1, 0):
        histogram = np.bincount(channel.ravel(), minlength=256)
        step = (channel.size - histogram[histogram.nonzero()[0][-1]]) // 255
        if step == 0:
            tables.append(np.arange(256, dtype=np.uint8))
            continue
        cumulated = (np.cumsum(histogram) + step // 2) // step
        shifted = np.concatenate([[0], cumulated[:-1]])
        tables.append(np.clip(shifted, 0, 255).astype(np.uint8))
    return _look_up(image, tables)


def invert(image: np.ndarray) -> np.ndarray:
    """Returns the negative."""
    return 255 - image


def posterize(image: np.ndarray, bits: int) -> np.ndarray:
    """Keeps so many leading bits of each value."""
    shift = 8 - bits
    return (image >> shift) << shift


def solarize(image: np.ndarray, threshold: int) -> np.ndarray:
    """Inverts values from the threshold (0 to 255) on."""
    return np.where(image < np.uint8(threshold), image, 255 - image)


def solarize_add(image: np.ndarray, addition: int, threshold: int = 128) -> np.ndarray:
    """Adds to the values below the threshold."""
    added = np.minimum(image.astype(np.int32) + addition, 255).astype(np.uint8)
    return np.where(image < threshold, added, image)


def color(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends with the grey image: 0 is grey, 1 the image, above 1 stronger colours."""
    return blend(_grey(image)[..., None], image, factor)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends with a constant, see the head of this file."""
    constant = min(image.shape[0] * image.shape[1] / 256, 255.0)
    return blend(np.full((1, 1, 1), constant, np.uint8), image, factor)


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends with black."""
    return blend(np.zeros((1, 1, 1), np.uint8), image, factor)


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """Blends with a smoothed image; pixels at the border stay."""
    wide = image.astype(np.float32)
    total = 4 * wide[1:-1, 1:-1]
    for row in range(3):
        for column in range(3):
            height, width = image.shape[0] - 2, image.shape[1] - 2
            total += wide[row : row + height, column : column + width]
    smooth = image.copy()
    smooth[1:-1, 1:-1] = np.clip(total / 13, 0, 255).astype(np.uint8)
    return blend(smooth, image, factor)


def cutout(
    image: np.ndarray, half_side: int, rng: np.random.Generator, fill: int = FILL
) -> np.ndarray:
    """Fills a square around a random pixel (DeVries and Taylor 2017, arXiv:1708.04552).

    The part of it that lies outside of the image is cut off.
    """
    row, column = rng.integers(image.shape[0]), rng.integers(image.shape[1])
    image = image.copy()
    rows = slice(max(0, row - half_side), row + half_side)
    image[rows, max(0, column - half_side) : column + half_side] = fill
    return image


def affine(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Moves pixels: output (x, y) takes the input nearest to matrix @ (x, y, 1).

    Args:
      image: (H, W, 3) uint8.
      matrix: (2, 3), from output to input coordinates (column, row).
    """
    height, width, _ = image.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    (a, b, c), (d, e, f) = matrix.astype(np.float32)
    columns = np.floor(a * x + b * y + c + 0.5).astype(np.int64)
    rows = np.floor(d * x + e * y + f + 0.5).astype(np.int64)
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    places = np.where(inside, rows * width + columns, 0)
    moved = image.reshape(-1, 3)[places]
    moved[~inside] = FILL
    return moved


def rotate(image: np.ndarray, degrees: float) -> np.ndarray:
    """Turns the image about its centre, counter-clockwise."""
    height, width, _ = image.shape
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    x, y = (width - 1) / 2, (height - 1) / 2
    return affine(
        image,
        np.array(
            [[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y]]
        ),
    )


def shear_x(image: np.ndarray, level: float) -> np.ndarray:
    """Shifts each row by `level` times its number, to the left."""
    return affine(image, np.array([[1, level, 0], [0, 1, 0]]))


def shear_y(image: np.ndarray, level: float) -> np.ndarray:
    """Shifts each column by `level` times its number, upwards."""
    return affine(image, np.array([[1, 0, 0], [level, 1, 0]]))


def translate_x(image: np.ndarray, pixels: float) -> np.ndarray:
    """Shifts the image to the left."""
    return affine(image, np.array([[1, 0, pixels], [0, 1, 0]]))


def translate_y(image: np.ndarray, pixels: float) -> np.ndarray:
    """Shifts the image upwards."""
    return affine(image, np.array([[1, 0, 0], [0, 1, pixels]]))


def blend(one: np.ndarray, other: np.ndarray, factor: float) -> np.ndarray:
    """Returns one + factor * (other - one), cut to bytes; factor 1 gives `other`."""
    if factor == 1.0:
        return other
    first = one.astype(np.float32)
    mixed = first + np.float32(factor) * (other.astype(np.float32) - first)
    return np.clip(mixed, 0, 255).astype(np.uint8)


def _grey(image: np.ndarray) -> np.ndarray:
    """Returns the luminance (H, W) uint8."""
    grey = image.astype(np.float32) @ GREY / np.float32(255)
    return (grey * np.float32(255.5)).astype(np.uint8)


def _look_up(image: np.ndarray, tables: list[np.ndarray]) -> np.ndarray:
    return np.stack([tables[c][image[..., c]] for c in range(3)], axis=-1)


def _signed(value: float, rng: np.random.Generator) -> float:
    return value if rng.random() < 0.5 else -value


# Name -> operation of image, strength from 0 to 1, and random generator.
OPERATIONS: dict[str, Operation] = {
    "autocontrast": lambda image, *_: autocontrast(image),
    "equalize": lambda image, *_: equalize(image),
    "invert": lambda image, *_: invert(image),
    "rotate": lambda image, s, rng: rotate(image, _signed(30 * s, rng)),
    "posterize": lambda image, s, *_: posterize(image, int(4 * s)),
    "solarize": lambda image, s, *_: solarize(image, int(256 * s) % 256),
    "solarize_add": lambda image, s, *_: solarize_add(image, int(110 * s)),
    "color": lambda image, s, *_: color(image, 1.8 * s + 0.1),
    "contrast": lambda image, s, *_: contrast(image, 1.8 * s + 0.1),
    "brightness": lambda image, s, *_: brightness(image, 1.8 * s + 0.1),
    "sharpness": lambda image, s, *_: sharpness(image, 1.8 * s + 0.1),
    "shear_x": lambda image, s, rng: shear_x(image, _signed(0.3 * s, rng)),
    "shear_y": lambda image, s, rng: shear_y(image, _signed(0.3 * s, rng)),
    "translate_x": lambda image, s, rng: translate_x(image, _signed(100 * s, rng)),
    "translate_y": lambda image, s, rng: translate_y(image, _signed(100 * s, rng)),
    "cutout": lambda image, s, rng: cutout(image, int(40 * s), rng),
}
