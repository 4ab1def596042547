"""MRI reconstruction: U-Net, similarity, undersampling, volumes on disk."""

import dataclasses
import functools
import itertools
import json
from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import count_types, each_variant, evaluate, losses_on_one_batch
from devices import assert_agree
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity

from algoperf import cli, spec
from algoperf.data.examples import DataError, DataOptions
from algoperf.data.pipeline import SKIPPED, batches
from algoperf.data.source import write_manifest
from algoperf.errors import UserError
from algoperf.workload import derive
from workloads.fastmri import data, philox
from workloads.fastmri.model import ConvBlock, UNet, UpBlock
from workloads.fastmri.ssim import ssim
from workloads.fastmri.workload import FULL, WORKLOADS

KEY = jax.random.PRNGKey(0)
SMALL = {"channels": 4, "num_pools": 2}
FULL_SIZE = [w for w in WORKLOADS if w.scale == "full"]


def batch_of(size, height=16, width=20):
    rng = np.random.default_rng(0)
    shape = (size, height, width)
    return {
        "inputs": rng.standard_normal(shape).astype(np.float32),
        "targets": rng.standard_normal(shape).astype(np.float32),
        "mean": rng.random(size).astype(np.float32),
        "std": 1 + rng.random(size).astype(np.float32),
        "volume_max": 5 + rng.random(size).astype(np.float32),
        "weights": np.ones(size, np.float32),
    }


def small_evaluation():
    """For `devices`: a small model on 16 images, 3 of them padding."""
    batch = batch_of(16)
    batch["weights"][13:] = 0
    return derive(FULL, model=SMALL, input_shape=(16, 20)), [batch]


# Model.


def convolve(x, kernel):
    """A 3 x 3 convolution with zeros around, from the definition."""
    height, width, _ = x.shape
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    out = np.zeros((height, width, kernel.shape[-1]))
    for i in range(3):
        for j in range(3):
            out += padded[i : i + height, j : j + width] @ kernel[i, j]
    return out


def instance_norm(x):
    return (x - x.mean((0, 1))) / np.sqrt(x.var((0, 1)) + 1e-5)


def leaky(x):
    return np.where(x > 0, x, 0.2 * x)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_a_block_agrees_with_the_definition(layer_norm):
    x = np.random.default_rng(0).standard_normal((2, 6, 8, 3)).astype(np.float32)
    module = ConvBlock(5, leaky_relu_of_jax, layer_norm)
    p = module.init(KEY, x, False, 0.0)["params"]
    rng = np.random.default_rng(1)
    p = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), p)
    got = module.apply({"params": p}, x, False, 0.0)
    for b in range(2):
        y = x[b]
        for i in (1, 2):
            y = convolve(y, p[f"conv_{i}"]["kernel"])
            if layer_norm:
                y = (y - y.mean()) / np.sqrt(y.var() + 1e-6)
                y = y * p[f"norm_{i}"]["scale"] + p[f"norm_{i}"]["bias"]
            else:
                y = instance_norm(y)
            y = leaky(y)
        np.testing.assert_allclose(got[b], y, atol=1e-5)


def leaky_relu_of_jax(x):
    return jax.nn.leaky_relu(x, 0.2)


def test_going_up_agrees_with_the_definition():
    x = np.random.default_rng(0).standard_normal((1, 3, 4, 6)).astype(np.float32)
    module = UpBlock(2, leaky_relu_of_jax)
    params = module.init(KEY, x)["params"]
    kernel = np.asarray(params["conv"]["kernel"])
    # Flax turns the kernel of a transposed convolution by half a circle.
    want = np.zeros((6, 8, 2))
    for row, column, i, j in itertools.product(range(3), range(4), range(2), range(2)):
        want[2 * row + i, 2 * column + j] = x[0, row, column] @ kernel[1 - i, 1 - j]
    got = module.apply({"params": params}, x)[0]
    np.testing.assert_allclose(got, leaky(instance_norm(want)), atol=1e-5)


def test_odd_sizes_are_reflected():
    model = UNet(channels=4, num_pools=3)
    x = jnp.zeros((1, 21, 30))
    out, _ = jax.eval_shape(lambda: model.init_with_output(KEY, x, train=False))
    assert out.shape == (1, 21, 30)


def test_permuting_a_batch_permutes_the_images_and_norms_see_one_image():
    workload, _ = small_evaluation()
    params, _ = workload.init_model_fn(KEY)
    x = batch_of(4)["inputs"]
    order = np.array([2, 0, 3, 1])
    apply = jax.jit(lambda x: workload.model.apply({"params": params}, x, train=False))
    np.testing.assert_allclose(apply(x)[order], apply(x[order]), atol=1e-5)
    np.testing.assert_allclose(apply(x)[:1], apply(x[:1]), atol=1e-5)


def test_dropout_takes_whole_channels_in_training_only():
    block = ConvBlock(8, lambda x: x * 0 + 1, False)
    x = jnp.ones((3, 6, 6, 2))
    params = block.init(KEY, x, False, 0.0)
    out = block.apply(params, x, True, 0.5, rngs={"dropout": KEY})
    assert set(np.unique(out)) == {0.0, 2.0}
    assert (out == out[:, :1, :1]).all()
    assert (block.apply(params, x, False, 0.5) == 1).all()


def test_types_of_the_parameters():
    types = spec.ParameterType
    assert count_types(FULL) == {types.CONV_WEIGHT: 18 + 4 + 1, types.BIAS: 1}
    normed = next(w for w in WORKLOADS if w.variant == "fastmri_layernorm")
    assert count_types(normed)[types.LAYER_NORM_SCALE] == 18


# Metrics.


def test_similarity_is_that_of_scikit_image():
    rng = np.random.default_rng(0)
    a = rng.random((3, 24, 30)).astype(np.float32)
    b = (a + 0.2 * rng.standard_normal(a.shape)).astype(np.float32)
    b[1] = a[1]
    b[2] = 1 - a[2]
    ranges = np.array([1.0, 2.0, 0.7], np.float32)
    got = ssim(jnp.array(a), jnp.array(b), jnp.array(ranges))
    want = [
        structural_similarity(
            x.astype(float), y.astype(float), data_range=float(r), win_size=7
        )
        for x, y, r in zip(a, b, ranges, strict=True)
    ]
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert got[1] == pytest.approx(1)
    assert got[2] < 0


def test_similarity_is_exact_for_bright_images():
    rng = np.random.default_rng(0)
    a = 1000 + rng.random((1, 24, 24))
    b = a + 0.1 * rng.standard_normal(a.shape)
    want = structural_similarity(a[0], b[0], data_range=1.0, win_size=7)
    got = ssim(*(jnp.array(x, jnp.float32) for x in (a, b)), jnp.ones(1))
    assert got[0] == pytest.approx(want, abs=2e-3)


def test_metrics_leave_padding_out():
    workload, (padded,) = small_evaluation()
    params, state = workload.init_model_fn(KEY)
    exact = {name: array[:13] for name, array in padded.items()}
    broken = {name: array.copy() for name, array in padded.items()}
    broken["targets"][13:] = 100.0
    want = evaluate(workload, params, state, [exact])
    assert evaluate(workload, params, state, [broken]) == pytest.approx(want, rel=1e-5)
    logits = workload.model.apply({"params": params}, exact["inputs"], train=False)
    by_hand = np.abs(logits - exact["targets"]).mean()
    assert want["loss"] == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.slow
def test_one_and_eight_devices_agree():
    assert_agree(__file__)


# Data.


@settings(max_examples=50)
@given(columns=st.integers(320, 400), seed=st.integers(0, 2**32 - 1))
def test_the_centre_is_measured_and_a_quarter_in_all(columns, seed):
    mask = data.column_mask(np.random.default_rng(seed).random(columns))
    central = int(columns * 0.08)
    middle = columns // 2
    assert mask[middle - central // 2 + 1 : middle + central // 2].all()
    assert abs(mask.sum() - columns / 4) < 6 * np.sqrt(columns * 0.2 * 0.8)


def test_philox_is_the_published_one():
    """Random123's known answers."""
    for word, key, answer in (
        (0, 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (2**32 - 1, 2**32 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ):
        (block,) = philox.blocks(np.full((1, 4), word), (key, key))
        assert tuple(block) == answer


def test_uniform_numbers_are_those_of_tensorflow():
    """Its guide prints `tf.random.stateless_normal([2, 3], seed=[1, 2])`.

    That is made of the same numbers by Box and Muller.
    """
    u, angle = philox.uniform(6, (1, 2)).astype(float).reshape(3, 2).T
    radius, angle = np.sqrt(-2 * np.log(u)), 2 * np.pi * angle
    normal = np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=1).ravel()
    printed = [0.5441101, 0.20738031, 0.07356433, 0.04643455, -1.30159, -0.95385665]
    np.testing.assert_allclose(normal, printed, rtol=3e-7)
    assert len(philox.uniform(367, (0, 0))) == 367


def test_evaluation_measures_the_official_columns(monkeypatch):
    """97 of 368, as `stateless_uniform` with the seed (0, 0) gives, in every slice."""
    masks = []

    def reconstruct(kspace, mask, size):
        masks.append(mask)
        return np.random.default_rng(0).random((size, size), np.float32)

    monkeypatch.setattr(data, "reconstruct", reconstruct)
    record = {"kspace": np.zeros((640, 368), np.complex64), "name": "x"}
    record |= {"target": np.ones((320, 320), np.float32), "volume_max": 1.0}
    for seed in (0, 1):
        data.undersample_officially(record, np.random.default_rng(seed))
    assert [mask.sum() for mask in masks] == [97, 97]
    np.testing.assert_array_equal(*masks)


def test_masks_have_a_quarter_of_the_columns_on_average_and_differ():
    rng = np.random.default_rng(0)
    masks = np.array([data.column_mask(rng.random(368)) for _ in range(2000)])
    assert masks.mean() == pytest.approx(0.25, abs=0.002)
    always = np.flatnonzero(masks.all(0))
    assert len(always) == 29
    assert always[0] == (368 - 29 + 1) // 2
    assert len(np.unique(masks, axis=0)) == 2000


@pytest.mark.parametrize("shape", [(640, 368), (641, 373)])
def test_the_image_is_the_centred_inverse_transform_of_what_was_measured(shape):
    rng = np.random.default_rng(0)
    kspace = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(
        np.complex64
    )
    mask = data.column_mask(rng.random(shape[1]))
    whole = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace * mask), norm="ortho"))
    top, left = ((n - 320) // 2 for n in shape)
    want = np.abs(whole)[top : top + 320, left : left + 320]
    got = data.reconstruct(kspace, mask)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=1e-5)


def kspace_of(image):
    """All measurements of an image, padded to 640 x 368."""
    rows, columns = (640 - 320) // 2, (368 - 320) // 2
    wide = np.pad(image, ((rows, rows), (columns, columns)))
    shifted = np.fft.fft2(np.fft.ifftshift(wide), norm="ortho")
    return np.fft.fftshift(shifted).astype(np.complex64)


def volume(path, seed, slices=2, change=lambda file: None):
    rng = np.random.default_rng(seed)
    images = np.abs(rng.standard_normal((slices, 320, 320))).astype(np.float32)
    images += np.linspace(0, 5, 320, dtype=np.float32)
    with h5py.File(path, "w") as file:
        file["kspace"] = np.stack([kspace_of(image) for image in images])
        file["reconstruction_esc"] = images
        file.attrs["max"] = images.max()
        change(file)
    return images


def test_with_all_columns_the_input_is_the_target(monkeypatch):
    image = np.random.default_rng(0).random((320, 320)).astype(np.float32)
    monkeypatch.setattr(data, "column_mask", lambda drawn: np.ones(len(drawn), bool))
    record = {
        "kspace": kspace_of(image),
        "target": image,
        "volume_max": 1.0,
        "name": "x",
    }
    example = data.undersample(record, np.random.default_rng(0))
    np.testing.assert_allclose(example["inputs"], example["targets"], atol=1e-4)
    assert example["inputs"].mean() == pytest.approx(0, abs=1e-4)
    assert example["inputs"].std() == pytest.approx(1, abs=1e-3)
    back = example["targets"] * example["std"] + example["mean"]
    np.testing.assert_allclose(back, image, atol=1e-4)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Five training and four validation volumes, two of these for the test."""
    raw, data_dir = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("data")
    for name, count in (("knee_singlecoil_train", 5), ("knee_singlecoil_val", 4)):
        (raw / name).mkdir()
        for i in range(count):
            volume(raw / name / f"file{i}.h5", i, slices=1 + i % 2)
    folder = data_dir / "fastmri"
    folder.mkdir()
    data.prepare(raw, folder, print, validation_files=2)
    write_manifest(folder, data.count(folder))
    return data_dir


def read(data_dir, split, size=3, seed=0, **options):
    return data.read(split, size, seed, DataOptions(folder=data_dir, **options))


def test_splits_shapes_and_types(data_dir):
    counts = data.count(data_dir / "fastmri")
    assert counts == {"train": 7, "validation": 3, "test": 3}
    for split in ("train", "eval_train", "validation", "test"):
        batch = read(data_dir, split)[0]
        for name in ("inputs", "targets"):
            assert batch[name].shape == (3, 320, 320)
            assert np.abs(batch[name]).max() <= 6
        for name in ("mean", "std", "volume_max"):
            assert batch[name].shape == (3,)
        assert {a.dtype for a in batch.values()} == {np.dtype(np.float32)}
        assert ("weights" in batch) == (split != "train")


def test_an_epoch_holds_each_slice_once_with_columns_of_its_own(data_dir):
    dataset = read(data_dir, "train", 7, seed=2)
    first, second = dataset[0], dataset[1]
    key = [batch["targets"].std((1, 2)) * batch["std"] for batch in (first, second)]
    np.testing.assert_allclose(np.sort(key[0]), np.sort(key[1]), rtol=1e-3)
    assert not np.allclose(key[0], key[1], rtol=1e-3)
    a, b = (
        batch["inputs"][np.argmax(k)]
        for batch, k in zip((first, second), key, strict=True)
    )
    assert not np.allclose(a, b, atol=0.1)  # the mask has changed


def test_batches_depend_on_seed_and_position_and_evaluation_never_changes(data_dir):
    later = next(batches(read(data_dir, "train")[4:]))
    jax.tree.map(np.testing.assert_array_equal, later, read(data_dir, "train")[4])
    other = read(data_dir, "train", seed=1)[4]
    assert not np.array_equal(other["inputs"], later["inputs"])
    one, two = read(data_dir, "test")[0], read(data_dir, "test", 2)[0]
    np.testing.assert_array_equal(one["inputs"][:2], two["inputs"])


def _break(kind):
    def change(file):
        if kind == "nan":
            file["kspace"][0, 3, :] = np.nan
        elif kind == "constant":
            file["kspace"][0] = 0
        elif kind == "shape":
            del file["reconstruction_esc"]
            file["reconstruction_esc"] = np.zeros((2, 300, 320), np.float32)
        elif kind == "key":
            del file["kspace"]

    return change


@pytest.mark.parametrize("kind", ["nan", "constant", "shape", "key", "cut"])
def test_a_broken_slice_is_named(tmp_path, kind):
    path = tmp_path / "file7.h5"
    volume(path, 0, change=_break(kind))
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(DataError, match=r"file7\.h5, slice 0"):
        data.undersample(data.read_slice(path, 0), np.random.default_rng(0))
    data._open.cache_clear()


def test_a_broken_slice_can_be_skipped(data_dir, tmp_path):
    import shutil

    shutil.copytree(data_dir / "fastmri", tmp_path / "fastmri")
    path = tmp_path / "fastmri" / "knee_singlecoil_train" / "file3.h5"
    path.unlink()
    volume(path, 3, change=_break("nan"))
    with pytest.raises(DataError, match=r"file3\.h5, slice 0"):
        read(tmp_path, "train", 7)[0]
    batch = read(tmp_path, "train", 7, skip_corrupt=True)[0]
    assert batch[SKIPPED] == 1
    assert np.isfinite(batch["inputs"]).all()
    data._open.cache_clear()


def test_folders_are_taken_as_the_archives_call_them(tmp_path):
    raw, folder = tmp_path / "raw", tmp_path / "out"
    for name in ("singlecoil_train", "singlecoil_val"):
        (raw / name).mkdir(parents=True)
        for number in range(2):
            volume(raw / name / f"file{number}.h5", number)
        assert name in data.INSTRUCTIONS
        assert f"knee_{name}" in data.INSTRUCTIONS
    folder.mkdir()
    data.prepare(raw, folder, print, validation_files=1)
    assert data.count(folder) == {"train": 4, "validation": 2, "test": 2}
    assert (folder / "knee_singlecoil_train" / "file0.h5").is_file()


def test_a_volume_that_is_passed_over_moves_no_other_to_another_split(
    tmp_path, monkeypatch
):
    raw = tmp_path / "raw"
    for name, count in (("singlecoil_train", 2), ("singlecoil_val", 4)):
        (raw / name).mkdir(parents=True)
        for number in range(count):
            volume(raw / name / f"file{number}.h5", number, slices=3)
    (raw / "singlecoil_val" / "file0.h5").write_bytes(b"no HDF5")
    source = dataclasses.replace(
        data.DATA_SOURCE,
        prepare=functools.partial(data.prepare, validation_files=2),
        num_examples={"train": 6, "validation": 6, "test": 6},
    )
    monkeypatch.setattr("algoperf.cli.data._find", lambda name: source)
    arguments = ["fastmri", f"--raw={raw}", f"--data_dir={tmp_path}", "--skip_corrupt"]
    assert cli.main(["data", "prepare", *arguments]) == 0
    index = json.loads((tmp_path / "fastmri" / data.INDEX).read_text())
    names = {
        split: [Path(file).name for file, _ in volumes]
        for split, volumes in index.items()
    }
    assert names["validation"] == ["file1.h5"]
    assert names["test"] == ["file2.h5", "file3.h5"]
    assert source.num_skipped(tmp_path) == 1


def test_a_split_without_a_volume_is_named(tmp_path):
    for name in data.FOLDERS.values():
        (tmp_path / name).mkdir()
        volume(tmp_path / name / "file0.h5", 0)
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="no good volume for test"):
        data.prepare(tmp_path, tmp_path / "out", print)


def test_missing_data_are_named(data_dir, tmp_path):
    with pytest.raises(UserError, match="algoperf data prepare fastmri"):
        read(tmp_path, "train")
    with pytest.raises(UserError, match="singlecoil_train or knee_singlecoil_train"):
        data.prepare(tmp_path, tmp_path, print)
    (tmp_path / "knee_singlecoil_train").mkdir()
    (tmp_path / "knee_singlecoil_train" / "a.h5").write_bytes(b"no HDF5")
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=r"a\.h5"):
        data.prepare(tmp_path, tmp_path / "out", print)
    skipped = []
    for name in data.FOLDERS.values():
        (tmp_path / name).mkdir(exist_ok=True)
        for number in range(3):
            volume(tmp_path / name / f"file{number}.h5", number)
    (tmp_path / "out2").mkdir()
    data.prepare(tmp_path, tmp_path / "out2", print, 1, on_corrupt=skipped.append)
    assert [str(tmp_path / "knee_singlecoil_train/a.h5") in str(s) for s in skipped]
    assert len(skipped) == 1
    assert not (tmp_path / "out2" / "knee_singlecoil_train" / "a.h5").exists()
    (tmp_path / "index.json").write_text("{}")
    with pytest.raises(DataError, match=r"index\.json"):
        data.Slices(tmp_path, "train")


# Full size.


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("workload", each_variant(FULL_SIZE))
def test_the_full_model_learns_one_batch(workload):
    batch = batch_of(1, 320, 320)
    del batch["weights"]
    smooth = jnp.cumsum(jnp.cumsum(batch["inputs"], 1), 2) / 300
    losses = losses_on_one_batch(workload, {**batch, "targets": np.asarray(smooth)})
    assert 0.2 < losses[0] < 5
    assert losses[5] < losses[0]
