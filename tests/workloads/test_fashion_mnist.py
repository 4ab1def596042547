"""The embedded images: content, statistics, augmentation."""

import gzip
import hashlib

import numpy as np
import pytest

from workloads.common import fashion_mnist, make_fashion_mnist

SPLITS = {
    "train": fashion_mnist.NUM_TRAIN,
    "validation": fashion_mnist.NUM_VALIDATION,
    "test": fashion_mnist.NUM_TEST,
}


@pytest.mark.parametrize("split", SPLITS)
def test_splits_have_all_classes_in_about_equal_shares(split):
    examples = fashion_mnist.examples(split)
    assert examples["inputs"].shape == (SPLITS[split], 28, 28)
    shares = np.bincount(examples["targets"], minlength=10) / SPLITS[split]
    assert shares == pytest.approx(np.full(10, 0.1), abs=0.02)


def test_no_image_is_there_twice_within_or_across_splits():
    digests = [
        hashlib.sha256(image.tobytes()).digest()
        for split in SPLITS
        for image in fashion_mnist.examples(split)["inputs"]
    ]
    assert len(set(digests)) == sum(SPLITS.values())


def test_it_is_built_from_idx_files_without_repeats(tmp_path, monkeypatch):
    sizes = {"train": 6, "validation": 3, "test": 3}
    monkeypatch.setattr(make_fashion_mnist, "SIZES", sizes)
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(14, 28, 28), dtype=np.uint8)
    images[1] = images[0]  # a repeat in the training file
    images[11] = images[2]  # and one across the files
    labels = np.arange(14, dtype=np.uint8)
    for prefix, part in (("train", slice(0, 10)), ("t10k", slice(10, 14))):
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            rows = array[part]
            header = bytes([0, 0, 8, rows.ndim]) + np.array(rows.shape, ">i4").tobytes()
            path = tmp_path / f"{prefix}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(header + rows.tobytes()))
    found = make_fashion_mnist.build(tmp_path)
    assert set(found["test_labels"]) == {10, 12, 13}
    of_train = [*found["train_labels"], *found["validation_labels"]]
    assert sorted(of_train) == [0, *range(2, 10)]
    for split, size in sizes.items():
        assert found[f"{split}_images"].shape == (size, 28, 28)
        np.testing.assert_array_equal(
            found[f"{split}_images"], images[found[f"{split}_labels"]]
        )


def test_eval_train_is_part_of_train_with_all_classes():
    train = {image.tobytes() for image in fashion_mnist.examples("train")["inputs"]}
    part = fashion_mnist.examples("eval_train")
    assert len(part["inputs"]) == fashion_mnist.NUM_EVAL_TRAIN
    assert all(image.tobytes() in train for image in part["inputs"])
    assert np.bincount(part["targets"], minlength=10).min() > 40


def test_normalisation_uses_the_statistics_of_train():
    batch = fashion_mnist.normalise(fashion_mnist.examples("train"))
    assert batch["inputs"].mean() == pytest.approx(0, abs=1e-3)
    assert batch["inputs"].std() == pytest.approx(1, abs=1e-3)


def test_augmented_images_are_crops_and_flips_of_their_own():
    examples = {k: v[:64] for k, v in fashion_mnist.examples("train").items()}
    batch = fashion_mnist.augment(examples, np.random.default_rng(0))
    pad = fashion_mnist.PADDING
    flips, offsets = 0, set()
    for image, label, got, got_label in zip(
        examples["inputs"],
        examples["targets"],
        batch["inputs"],
        batch["targets"],
        strict=True,
    ):
        pixels = np.round(got[..., 0] * fashion_mnist.STDDEV + fashion_mnist.MEAN)
        padded = np.pad(image, pad)
        found = {
            (top, left, flip)
            for top in range(2 * pad + 1)
            for left in range(2 * pad + 1)
            for flip in (1, -1)
            if np.array_equal(
                padded[top : top + 28, left : left + 28][:, ::flip], pixels
            )
        }
        assert found
        assert label == got_label
        flips += all(flip == -1 for _, _, flip in found)
        offsets |= {(top, left) for top, left, _ in found}
    assert 16 < flips < 48
    assert len(offsets) > 15


def test_build_script_reads_idx_and_drops_repeats(tmp_path):
    images = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    sizes = np.array(images.shape, ">i4").tobytes()
    packed = gzip.compress(bytes([0, 0, 8, 3]) + sizes + images.tobytes())
    (tmp_path / "images.gz").write_bytes(packed)
    read = make_fashion_mnist.read_idx(tmp_path / "images.gz")
    assert np.array_equal(read, images)
    twice = np.concatenate([images, images])
    seen: set[bytes] = set()
    assert make_fashion_mnist.without_duplicates(twice, seen).tolist() == [0, 1]
    assert make_fashion_mnist.without_duplicates(images, seen).tolist() == []
