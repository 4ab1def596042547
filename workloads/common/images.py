"""Decoding, cropping and resizing of photographs, one at a time, in NumPy.

As TensorFlow does it in the published pipelines: `tf.io.decode_and_crop_jpeg`,
`tf.image.sample_distorted_bounding_box` and `tf.image.resize` by bicubic interpolation
without antialiasing.

Images are (height, width, 3), uint8 from 0 to 255 or float32 on the same scale.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse

from algoperf.data.examples import DataError
from algoperf.errors import UserError

Window = tuple[int, int, int, int]  # top, left, height, width in pixels
JPEG_START, JPEG_SCAN, JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
CUBIC_A = -0.5  # Keys (1981), 'Cubic convolution interpolation', equation 15


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise UserError(
            "reading images needs OpenCV: pip install 'algoperf[full]'"
        ) from error
    return cv2


def decode(encoded: bytes, name: str) -> np.ndarray:
    """Returns the image (H, W, 3) uint8 of JPEG or PNG bytes, of any colour space.

    Raises:
      DataError: the bytes are no whole image; `name` says whose.
    """
    cv2 = _opencv()
    if encoded[:2] == JPEG_START and _is_cut(encoded):
        raise DataError(f"{name}: the JPEG is cut off after {len(encoded):,} bytes")
    # Orientation flags are not applied, as by TensorFlow.
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    image = None
    if encoded:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    if image is None:
        raise DataError(f"{name}: {len(encoded):,} bytes are no image that can be read")
    return image


def _is_cut(jpeg: bytes) -> bool:
    """Whether the end is missing: none follows the last scan of pixels.

    Some cameras write more behind the end, and a thumbnail before the first scan.
    """
    return jpeg.rfind(JPEG_END) <= jpeg.rfind(JPEG_SCAN)


def distorted_window(
    height: int,
    width: int,
    rng: np.random.Generator,
    area: tuple[float, float] = (0.08, 1.0),
    aspect_ratio: tuple[float, float] = (3 / 4, 4 / 3),
    covered: float = 0.1,
    attempts: int = 10,
) -> Window | None:
    """Draws a part of an image (Szegedy et al. 2015, arXiv:1409.4842, section 6).

    The ratio width / height is uniform in `aspect_ratio`; the height is uniform among
    those that give a share of the image's area in `area`. A window with less than
    `covered` of the area is drawn again, as by TensorFlow, where the object that must
    be covered is the whole image.

    Returns:
      The window; None if no attempt gave one that fits.
    """
    for _ in range(attempts):
        ratio = rng.uniform(*aspect_ratio)
        low, high = (share * height * width for share in area)
        smallest = round(math.sqrt(low / ratio))
        largest = round(math.sqrt(high / ratio))
        if round(largest * ratio) > width:
            largest = math.floor((width + 0.5 - 1e-7) / ratio)
        largest = min(largest, height)
        crop_height = int(rng.integers(min(smallest, largest), largest + 1))
        crop_width = round(crop_height * ratio)
        if crop_height * crop_width < low:
            crop_height += 1
            crop_width = round(crop_height * ratio)
        if crop_height * crop_width > high:
            crop_height -= 1
            crop_width = round(crop_height * ratio)
        fits = 0 < crop_height <= height and 0 < crop_width <= width
        low = max(low, covered * height * width)
        if fits and low <= crop_height * crop_width <= high:
            top = int(rng.integers(height - crop_height + 1))
            left = int(rng.integers(width - crop_width + 1))
            return top, left, crop_height, crop_width
    return None


def central_window(height: int, width: int, share: float) -> Window:
    """Returns the central square of `share` times the shorter side."""
    side = int(share * min(height, width))
    return (height - side + 1) // 2, (width - side + 1) // 2, side, side


def crop(image: np.ndarray, window: Window) -> np.ndarray:
    """Returns a part of the image, as a view."""
    top, left, height, width = window
    return image[top : top + height, left : left + width]


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """Returns the image in (size, size, channels) float32, by bicubic interpolation.

    Pixel centres lie at halves; where a tap falls outside of the image, the weights of
    the others are scaled up. There is no low-pass filter, so detail aliases when an
    image is reduced, as in the published pipelines.
    """
    transpose = _opencv().transpose  # eight times as fast as NumPy's
    height, width, channels = image.shape
    pixels = image.astype(np.float32).reshape(height, -1)
    rows = interpolation_matrix(height, size) @ pixels
    # (size, W, C) -> (W, size, C): the columns become rows.
    turned = transpose(rows.reshape(size, width, channels)).reshape(width, -1)
    columns = interpolation_matrix(width, size) @ turned
    return transpose(columns.reshape(size, size, channels))


def flip(image: np.ndarray) -> np.ndarray:
    """Returns the image with left and right exchanged."""
    return _opencv().flip(image, 1)


def normalise(
    image: np.ndarray, mean: Sequence[float], stddev: Sequence[float]
) -> np.ndarray:
    """Returns (image - mean) / stddev of each channel, float32."""
    height, width, _ = image.shape
    # Over whole rows: a loop over three channels at a time is eight times as slow.
    rows = image.reshape(height, -1) - np.tile(np.array(mean, np.float32), width)
    rows /= np.tile(np.array(stddev, np.float32), width)
    return rows.reshape(image.shape)


@functools.lru_cache(maxsize=4096)
def interpolation_matrix(old: int, new: int) -> scipy.sparse.csr_array:
    """Returns the (new, old) matrix that resizes a line of pixels, four per row."""
    centres = (np.arange(new) + 0.5) * (old / new) - 0.5
    first = np.floor(centres).astype(np.int64) - 1
    taps = first[:, None] + np.arange(4)  # (new, 4)
    weights = _cubic(np.abs(centres[:, None] - taps))
    weights[(taps < 0) | (taps >= old)] = 0.0
    weights /= weights.sum(axis=1, keepdims=True)
    starts = np.arange(0, 4 * new + 1, 4)
    columns = np.clip(taps, 0, old - 1).ravel()
    return scipy.sparse.csr_array(
        (weights.ravel().astype(np.float32), columns, starts), shape=(new, old)
    )


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Keys' kernel at distances from 0 to 2 pixels."""
    d, a = distance, CUBIC_A
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def mixup(
    inputs: np.ndarray,
    targets: np.ndarray,
    num_classes: int,
    rng: np.random.Generator,
    alpha: float = 0.2,
) -> tuple[np.ndarray, np.ndarray]:
    """Mixes each image with the one before it (Zhang et al. 2018, arXiv:1710.09412).

    One weight from Beta(alpha, alpha) for the whole batch.

    Args:
      inputs: (B, ...) float32.
      targets: (B,) classes.
      num_classes: how many there are.
      rng: draws the weight.
      alpha: of the distribution; the smaller, the less is mixed.

    Returns:
      Inputs as they came in, and probabilities (B, num_classes) float32.
    """
    weight = np.float32(rng.beta(alpha, alpha))
    one_hot = np.eye(num_classes, dtype=np.float32)[targets]
    last = inputs[-1].copy()
    mixed = np.empty_like(inputs)
    # Image by image: no second copy of the batch is made.
    for i in range(len(inputs)):
        before = inputs[i - 1] if i else last
        np.multiply(inputs[i], weight, out=mixed[i])
        mixed[i] += (1 - weight) * before
    return mixed, weight * one_hot + (1 - weight) * np.roll(one_hot, 1, axis=0)
