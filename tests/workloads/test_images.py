"""Cropping, resizing, distorting: against definitions and known values.

The numbers marked TF were computed with TensorFlow 2.21 on the same input.
"""

import math

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from algoperf.data.examples import DataError
from workloads.common import images, randaugment
from workloads.common.randaugment import OPERATIONS


@pytest.fixture(scope="module")
def photo():
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8)
    return cv2.GaussianBlur(noise, (7, 7), 0)


def _encoded(image, suffix, *options):
    done, data = cv2.imencode(suffix, image[..., ::-1], options)
    assert done
    return data.tobytes()


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_decoding_gives_rgb(photo, suffix):
    image = images.decode(_encoded(photo, suffix), "photo")
    assert image.shape == photo.shape
    assert image.dtype == np.uint8
    tolerance = 0 if suffix == ".png" else 5
    assert np.abs(image.astype(int) - photo).mean() <= tolerance
    assert np.abs(image[..., ::-1].astype(int) - photo).mean() > 10  # not BGR


def test_grey_images_become_rgb(photo):
    _, data = cv2.imencode(".jpg", photo[..., 0])
    image = images.decode(data.tobytes(), "grey")
    assert image.shape == photo.shape
    assert np.array_equal(image[..., 0], image[..., 2])


@pytest.mark.parametrize("break_it", [lambda d: d[: len(d) // 2], lambda d: b"", bytes])
def test_broken_images_are_named(photo, break_it):
    data = break_it(_encoded(photo, ".jpg"))
    if break_it is bytes:
        data = b"\x89PNG and nothing else"
    with pytest.raises(DataError, match="train, record 7"):
        images.decode(data, "train, record 7")


@pytest.mark.parametrize("progressive", [0, 1])
def test_bytes_behind_the_end_of_an_image_do_no_harm(photo, progressive):
    data = _encoded(photo, ".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, progressive)
    want = images.decode(data, "")
    for behind in (b"\0\0", b"made by a camera"):
        np.testing.assert_array_equal(images.decode(data + behind, ""), want)
    for size in (len(data) - 2, len(data) * 9 // 10, len(data) * 2 // 3):
        with pytest.raises(DataError, match="cut off"):
            images.decode(data[:size], "")


@given(
    height=st.integers(8, 700),
    width=st.integers(8, 700),
    seed=st.integers(0, 2**32 - 1),
)
def test_windows_lie_in_the_image_and_keep_their_bounds(height, width, seed):
    window = images.distorted_window(height, width, np.random.default_rng(seed))
    if window is None:
        assert not 3 / 4 < width / height < 4 / 3  # only long images
        return
    top, left, crop_height, crop_width = window
    assert 0 <= top <= height - crop_height
    assert 0 <= left <= width - crop_width
    area = crop_height * crop_width / (height * width)
    assert 0.1 - 1e-9 <= area <= 1
    # The width is rounded.
    assert (crop_width - 0.5) / crop_height <= 4 / 3 + 0.1
    assert (crop_width + 0.5) / crop_height >= 3 / 4 - 0.1


def test_windows_are_spread_over_sizes_and_places():
    rng = np.random.default_rng(0)
    found = np.array([images.distorted_window(300, 400, rng) for _ in range(2000)])
    share = found[:, 2] * found[:, 3] / 120_000
    assert 0.1 <= share.min() < 0.12
    assert share.max() > 0.9
    tensorflow = [0.1385, 0.2067, 0.3562, 0.5428, 0.6936]  # TF, of 20,000 windows
    quantiles = np.quantile(share, [0.1, 0.25, 0.5, 0.75, 0.9])
    np.testing.assert_allclose(quantiles, tensorflow, atol=0.02)
    centre = found[:, 0] + found[:, 2] / 2
    assert abs(centre.mean() - 150) < 3
    ratio = found[:, 3] / found[:, 2]
    assert abs(ratio.mean() - (3 / 4 + 4 / 3) / 2) < 0.02  # uniform, not in logarithm


def test_the_central_window():
    assert images.central_window(256, 256, 224 / 256) == (16, 16, 224, 224)
    assert images.central_window(300, 500, 224 / 256) == (19, 119, 262, 262)


def _bicubic(line, new):
    """Keys' interpolation of a line of pixels, from the definition."""
    out = []
    for i in range(new):
        x = (i + 0.5) * len(line) / new - 0.5
        total = weight = 0.0
        for j in range(math.floor(x) - 1, math.floor(x) + 3):
            d = abs(x - j)
            w = 1.5 * d**3 - 2.5 * d**2 + 1
            if d > 1:
                w = -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
            if 0 <= j < len(line):
                total, weight = total + w * line[j], weight + w
        out.append(total / weight)
    return np.array(out)


@pytest.mark.parametrize("shape", [(60, 80), (13, 31), (32, 32)])
def test_resizing_is_keys_interpolation(photo, shape):
    image = photo[: shape[0], : shape[1]]
    got = images.resize(image, 32)
    rows = np.apply_along_axis(_bicubic, 0, image.astype(float), 32)
    want = np.apply_along_axis(_bicubic, 1, rows, 32)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=1e-3)
    if shape == (32, 32):
        np.testing.assert_array_equal(got, image)


def test_resizing_agrees_with_tensorflow():
    line = np.array([10, 200, 30, 90, 250], np.uint8)
    image = np.broadcast_to(line[None, :, None], (5, 5, 3))
    tensorflow = [26.337374, 152.50978, 50.068367, 237.56758]  # TF
    np.testing.assert_allclose(images.resize(image, 4)[0, :, 0], tensorflow, atol=0.05)


def test_mixup_mixes_each_image_with_the_one_before():
    rng = np.random.default_rng(1)
    inputs = rng.random((5, 4, 4, 3)).astype(np.float32)
    targets = np.array([2, 0, 1, 1, 3])
    mixed, soft = images.mixup(inputs, targets, 4, np.random.default_rng(7), alpha=0.4)
    weight = np.float32(np.random.default_rng(7).beta(0.4, 0.4))
    assert 0.01 < weight < 0.99
    want = weight * inputs + (1 - weight) * np.roll(inputs, 1, axis=0)
    np.testing.assert_allclose(mixed, want, atol=1e-6)
    assert soft[0, 2] == pytest.approx(weight)
    assert soft[0, 3] == pytest.approx(1 - weight)
    assert soft[3, 1] == pytest.approx(1)
    np.testing.assert_allclose(soft.sum(axis=1), 1, atol=1e-6)
    inputs_after, _ = images.mixup(inputs, targets, 4, np.random.default_rng(7))
    assert inputs_after is not inputs


def test_tables_of_autocontrast_and_equalize():
    image = np.zeros((64, 64, 3), np.uint8)
    image[..., 0] = np.arange(4096).reshape(64, 64) // 32 + 10
    image[..., 1] = 77
    image[:32, :, 2] = 100
    stretched = randaugment.autocontrast(image)
    assert stretched[..., 0].min() == 0
    assert stretched[..., 0].max() == 255
    assert (stretched[..., 1] == 77).all()
    assert set(np.unique(stretched[..., 2])) == {0, 255}
    even = randaugment.equalize(image)
    # 32 pixels of each of 128 values: a step is (4096 - 32) // 255 = 15 pixels.
    steps = np.minimum((np.arange(128) * 32 + 7) // 15, 255)
    steps[0] = 0
    np.testing.assert_array_equal(np.unique(even[..., 0]), np.unique(steps))
    assert (even[..., 1] == 77).all()


def test_values_are_changed_as_defined(photo):
    wide = photo.astype(int)
    np.testing.assert_array_equal(randaugment.invert(photo), 255 - wide)
    np.testing.assert_array_equal(randaugment.posterize(photo, 4), wide // 16 * 16)
    below = np.where(wide < 100, wide, 255 - wide)
    np.testing.assert_array_equal(randaugment.solarize(photo, 100), below)
    added = np.where(wide < 128, np.minimum(wide + 110, 255), wide)
    np.testing.assert_array_equal(randaugment.solarize_add(photo, 110), added)
    bright = np.clip(1.9 * wide, 0, 255).astype(int)
    assert np.abs(randaugment.brightness(photo, 1.9) - bright).max() <= 1
    grey = wide @ [0.2989, 0.587, 0.114]
    strong = np.clip(grey[..., None] + 1.9 * (wide - grey[..., None]), 0, 255)
    assert np.abs(randaugment.color(photo, 1.9) - strong).max() <= 2
    constant = 60 * 80 // 256
    strong = np.clip(constant + 1.9 * (wide - constant), 0, 255)
    assert np.abs(randaugment.contrast(photo, 1.9) - strong).max() <= 1
    assert randaugment.blend(photo[:1], photo, 1.0) is photo


def test_sharpening_is_away_from_the_smoothed_image(photo):
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    smooth = cv2.filter2D(photo.astype(np.float64), -1, kernel)
    got = randaugment.sharpness(photo, 1.9)
    want = np.clip(smooth + 1.9 * (photo - smooth), 0, 255)
    assert np.abs(got[1:-1, 1:-1] - want[1:-1, 1:-1]).max() <= 2
    np.testing.assert_array_equal(got[0], photo[0])
    np.testing.assert_array_equal(got[:, -1], photo[:, -1])


def test_moving_pixels(photo):
    moved = randaugment.translate_x(photo, 10)
    np.testing.assert_array_equal(moved[:, :-10], photo[:, 10:])
    assert (moved[:, -10:] == 128).all()
    moved = randaugment.translate_y(photo, -7)
    np.testing.assert_array_equal(moved[7:], photo[:-7])
    assert (moved[:7] == 128).all()
    sheared = randaugment.shear_x(photo, 0.3)
    np.testing.assert_array_equal(sheared[0], photo[0])
    np.testing.assert_array_equal(sheared[50, :-15], photo[50, 15:])
    sheared = randaugment.shear_y(photo, -0.3)
    np.testing.assert_array_equal(sheared[15:, 50], photo[:-15, 50])
    square = photo[:60, :60]
    quarter = randaugment.rotate(square, 90)
    np.testing.assert_array_equal(quarter, np.rot90(square))
    turned = randaugment.rotate(square, 30)
    assert (turned[0, 0] == 128).all()
    same = np.abs(turned[25:35, 25:35].astype(int) - square[25:35, 25:35]).mean()
    assert 0 < same < 40


def test_cutout_fills_a_square(photo):
    areas = []
    for seed in range(50):
        cut = randaugment.cutout(photo, 10, np.random.default_rng(seed))
        filled = (cut == 128).all(axis=-1) & (photo != 128).any(axis=-1)
        rows, columns = np.nonzero(filled)
        assert np.ptp(rows) < 20
        assert np.ptp(columns) < 20
        areas.append(filled.sum())
    assert max(areas) == 400
    assert min(areas) < 400


def test_randaugment_draws_every_operation_and_twice(photo, monkeypatch):
    seen = []
    spies = {
        name: lambda image, strength, rng, name=name: seen.append(name) or image
        for name in OPERATIONS
    }
    monkeypatch.setattr(randaugment, "OPERATIONS", spies)
    rng = np.random.default_rng(0)
    for _ in range(200):
        randaugment.randaugment(photo, rng)
    assert len(seen) == 400
    assert set(seen) == set(OPERATIONS)
    assert len(OPERATIONS) == 16
    counts = [seen.count(name) for name in OPERATIONS]
    assert min(counts) > 10


@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_keeps_shape_and_type_and_its_input(photo, name):
    before = photo.copy()
    out = OPERATIONS[name](photo, 1.0, np.random.default_rng(0))
    assert out.shape == photo.shape
    assert out.dtype == np.uint8
    assert not np.array_equal(out, photo)
    np.testing.assert_array_equal(photo, before)
    if name == "solarize":
        np.testing.assert_array_equal(out, 255 - photo)
