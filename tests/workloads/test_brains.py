"""The slices of the brain: template, splits, scans, batches, the build script."""

import gzip
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from checks import losses_on_one_batch

from algoperf.data.embedded import load_embedded, read_about
from algoperf.data.pipeline import ALL_HERE
from algoperf.errors import UserError
from workloads.fastmri import brains, make_brains
from workloads.fastmri.ssim import ssim
from workloads.fastmri.workload import MINI, WORKLOADS

SPLITS = {
    "train": brains.NUM_TRAIN,
    "validation": brains.NUM_VALIDATION,
    "test": brains.NUM_TEST,
}
MINIS = [w for w in WORKLOADS if w.scale == "mini"]
GAP = 4  # mm
# Similarity of what the model is given.
ZERO_FILLED = {"validation": 0.5045, "test": 0.4805}


@pytest.fixture(scope="module")
def brain():
    return brains.template()


@pytest.fixture(scope="module")
def whole():
    """Each split as one batch."""
    return {
        split: brains.read(split, size, 0, ALL_HERE)[0]
        for split, size in (*SPLITS.items(), ("eval_train", brains.NUM_EVAL_TRAIN))
    }


# The template.


def test_the_brain_is_whole_and_symmetric(brain):
    assert brain.shape == (145, 181, 155)
    assert brain.dtype == np.uint8
    np.testing.assert_array_equal(brain, brain[::-1])
    # Skull and scalp are cut off: brains have about 1.9 litres with their fluid.
    assert 1.7e6 < (brain > 0).sum() < 2.1e6


def test_the_notice_comes_with_it():
    about = read_about(brains.EMBEDDED)
    assert "Permission to use, copy, modify, and distribute" in about["licence"]
    assert about["bytes"] < 3e6


# Splits.


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_planes_of_two_splits_are_never_neighbours(brain, axis):
    of = {split: brains.planes(brain, axis, split) for split in SPLITS}
    for split, places in of.items():
        assert len(places) >= brains.SLICES_PER_VOLUME
        for other, others in of.items():
            if other != split:
                assert np.abs(places[:, None] - others).min() > GAP


def test_no_plane_is_the_mirror_image_of_one_of_another_split(brain):
    seen: dict[bytes, str] = {}
    for axis in range(3):
        for split in SPLITS:
            for place in brains.planes(brain, axis, split):
                plane = brain.take(place, axis)
                for side in (plane, plane[::-1], plane[:, ::-1]):
                    assert seen.setdefault(side.tobytes(), split) == split
    middle = len(brain) // 2
    assert all(brains.planes(brain, 0, s).max() <= middle for s in SPLITS)


def test_scans_take_planes_of_their_split(brain):
    for split in ("validation", "test"):
        for number, volume in enumerate(brains.scan(split)):
            allowed = brains.planes(brain, number % 3, split)
            assert np.isin(volume.planes, allowed).all()
            assert len(set(volume.planes)) == brains.SLICES_PER_VOLUME


def test_no_slice_is_in_two_splits():
    for name in ("kspace", "target"):
        hashes = [
            {brains.slices(split)[i][name].tobytes() for i in range(size)}
            for split, size in SPLITS.items()
        ]
        assert [len(part) for part in hashes] == list(SPLITS.values())
        assert len(set().union(*hashes)) == sum(SPLITS.values())


# Scans.


def test_interpolation_is_that_of_scipy():
    rng = np.random.default_rng(0)
    images = rng.random((2, 9, 12)).astype(np.float32)
    places = rng.uniform(-2, 13, (2, 20, 30)).astype(np.float32)
    inside = ((places >= 0) & (places < np.array([8, 11])[:, None, None])).all(0)
    got = brains.interpolate(images, places)
    for one, image in zip(got, images, strict=True):
        want = scipy.ndimage.map_coordinates(image, places, order=1)
        np.testing.assert_allclose(one, want * inside, atol=1e-5)


def test_averages_are_those_of_scipy():
    images = np.random.default_rng(0).integers(0, 256, (2, 7, 9)).astype(np.uint8)
    for got, image in zip(brains.averaged(images), images, strict=True):
        want = scipy.ndimage.uniform_filter(image.astype(float), 3, mode="constant")
        np.testing.assert_allclose(got, want, atol=1e-4)


def test_a_field_is_smooth_and_differs():
    rng = np.random.default_rng(0)
    a, b = brains.smooth_field(rng), brains.smooth_field(rng)
    assert a.shape == brains.KSPACE_SHAPE
    assert max(np.abs(np.diff(a, axis=axis)).max() for axis in (0, 1)) < 0.3
    assert np.abs(a - b).max() > 0.5


def test_a_target_is_the_image_of_all_measurements():
    record = brains.slices("validation")[5]
    turned = np.fft.ifft2(np.fft.ifftshift(record["kspace"]), norm="ortho")
    image = np.abs(np.fft.fftshift(turned))
    top, left = ((n - brains.IMAGE_SIZE) // 2 for n in brains.KSPACE_SHAPE)
    cut = image[top : top + brains.IMAGE_SIZE, left : left + brains.IMAGE_SIZE]
    np.testing.assert_allclose(record["target"], cut, atol=1e-5)
    assert record["kspace"].dtype == np.complex64


def test_a_volume_has_one_range_and_is_always_the_same():
    records = [brains.slices("test")[i] for i in range(brains.SLICES_PER_VOLUME)]
    brightest = max(record["target"].max() for record in records)
    assert {record["volume_max"] for record in records} == {brightest}
    again = brains.Slices("test")[2]
    np.testing.assert_array_equal(again["kspace"], records[2]["kspace"])


# Batches.


@pytest.mark.parametrize("split", [*SPLITS, "eval_train"])
def test_shapes_types_and_sizes(whole, split):
    batch = whole[split]
    size = SPLITS.get(split, brains.NUM_EVAL_TRAIN)
    shapes = {name: array.shape for name, array in batch.items()}
    one = (size,)
    want = {"inputs": (size, 64, 64), "mean": one, "std": one, "volume_max": one}
    want["targets"] = want["inputs"]
    if split != "train":
        want["weights"] = one
        assert batch["weights"].all()
    assert shapes == want
    assert {array.dtype for array in batch.values()} == {np.dtype(np.float32)}
    np.testing.assert_allclose(batch["inputs"].mean((1, 2)), 0, atol=0.05)


def test_columns_differ_between_epochs_in_training_only():
    size = brains.NUM_TRAIN
    train = brains.read("train", size, 3, ALL_HERE)
    key = [batch["volume_max"] for batch in (train[0], train[1])]
    assert not np.array_equal(*key)  # another order
    np.testing.assert_array_equal(*map(np.sort, key))
    scanned = brains.slices("train")[0]["volume_max"]
    means = [set(train[i]["mean"][key[i] == scanned]) for i in (0, 1)]
    assert not means[0] & means[1]
    one = brains.read("validation", 16, 0, ALL_HERE)[1]
    other = brains.read("validation", 48, 9, ALL_HERE)[0]
    np.testing.assert_array_equal(one["inputs"], other["inputs"][16:32])


def test_a_batch_depends_on_seed_and_position_alone():
    a, b, c = (brains.read("train", 4, seed, ALL_HERE) for seed in (1, 1, 2))
    _ = a[3]
    for name, array in a[7].items():
        np.testing.assert_array_equal(array, b[7][name])
    assert not np.array_equal(a[7]["inputs"], c[7]["inputs"])
    assert not np.array_equal(a[7]["inputs"], a[8]["inputs"])


def test_evaluation_on_the_training_set_sees_training_slices():
    train = {
        brains.slices("train")[i]["target"].tobytes() for i in range(SPLITS["train"])
    }
    part = brains.slices("eval_train")
    assert len(part) == MINI.num_eval_train_examples
    assert all(part[i]["target"].tobytes() in train for i in range(len(part)))


# The problem.


@pytest.mark.parametrize("split", ["validation", "test"])
def test_what_needs_no_training_is_far_from_the_target(whole, split):
    """The network's own input, an image of its mean, a black one."""
    batch = whole[split]
    mean, std = (batch[name][:, None, None] for name in ("mean", "std"))
    target = batch["targets"] * std + mean

    def similarity(images):
        images, ranges = jnp.asarray(images), jnp.asarray(batch["volume_max"])
        return ssim(images, jnp.asarray(target), ranges).mean()

    assert similarity(batch["inputs"] * std + mean) == pytest.approx(
        ZERO_FILLED[split], abs=1e-3
    )
    assert similarity(np.broadcast_to(mean, target.shape)) < 0.15
    assert similarity(np.zeros_like(target)) < 0.15
    goal = {"validation": MINI.validation_target_value, "test": MINI.test_target_value}
    assert goal[split] > ZERO_FILLED[split] + 0.1


def test_variants_differ_in_one_thing():
    assert [w.variant for w in MINIS] == [
        "fastmri",
        "fastmri_model_size",
        "fastmri_tanh",
        "fastmri_layernorm",
    ]
    sizes = {w.variant: w.num_parameters for w in MINIS}
    assert sizes["fastmri"] == sizes["fastmri_tanh"] == 120_273
    assert (
        sizes["fastmri_layernorm"] == 120_273 + 2 * 2 * (8 + 16 + 32) * 2 + 2 * 2 * 64
    )
    assert 0.9 < sizes["fastmri_model_size"] / sizes["fastmri"] < 1.1
    for workload in MINIS:
        shape = jax.eval_shape(
            lambda w=workload: w.model.init_with_output(
                jax.random.PRNGKey(0), jnp.zeros((2, *w.input_shape)), train=False
            )[0]
        ).shape
        assert shape == (2, brains.IMAGE_SIZE, brains.IMAGE_SIZE)


@pytest.mark.slow
def test_the_model_learns_one_batch():
    losses = losses_on_one_batch(MINI, MINI.dataset("train", 4, 0)[0])
    assert losses[5] < 0.95 * losses[0]


# The build script.


def nifti(volume, kind=2):
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<4h", header, 40, 3, *volume.shape)
    struct.pack_into("<h", header, 70, kind)
    struct.pack_into("<f", header, 108, 352)
    return gzip.compress(bytes(header) + volume.tobytes(order="F"))


def build(tmp_path, monkeypatch, content):
    path = tmp_path / "brain.nii.gz"
    path.write_bytes(content)
    monkeypatch.setattr(brains, "EMBEDDED", tmp_path / "embedded" / "brain")
    monkeypatch.setattr("sys.argv", ["make_brains", str(path)])
    make_brains.main()
    return load_embedded(brains.EMBEDDED)


def test_build_script(tmp_path, monkeypatch):
    half = np.random.default_rng(0).integers(1, 256, (3, 4, 5)).astype(np.uint8)
    volume = np.pad(np.concatenate([half, half[-2::-1]]), ((2, 1), (0, 3), (1, 1)))
    made = build(tmp_path, monkeypatch, nifti(volume))
    np.testing.assert_array_equal(made["half"], half)
    np.testing.assert_array_equal(brains.template()[-3:], half[::-1])
    first = (tmp_path / "embedded" / "brain.npz.xz").read_bytes()
    build(tmp_path, monkeypatch, nifti(volume))
    assert (tmp_path / "embedded" / "brain.npz.xz").read_bytes() == first


def test_build_script_names_what_is_wrong(tmp_path, monkeypatch):
    lopsided = np.arange(1, 61, dtype=np.uint8).reshape(3, 4, 5)
    with pytest.raises(UserError, match="mirror images"):
        build(tmp_path, monkeypatch, nifti(lopsided))
    with pytest.raises(UserError, match=r"brain\.nii\.gz is no NIfTI-1 volume"):
        build(tmp_path, monkeypatch, nifti(lopsided, kind=16))
