"""ImageNet as tensorflow-datasets stores it, through the whole pipeline."""

import io
import sys
import types

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from tfds_files import write_tfds

from algoperf import cli
from algoperf.data.examples import DataError, DataOptions
from algoperf.data.pipeline import SKIPPED, batches
from algoperf.errors import UserError
from workloads.common import imagenet, images

NUM = {"train": 13, "validation": 6, "test": 5}


def _photo(number):
    rng = np.random.default_rng(number)
    shape = (int(rng.integers(90, 160)), int(rng.integers(90, 160)), 3)
    return cv2.GaussianBlur(rng.integers(0, 256, shape).astype(np.uint8), (9, 9), 0)


def _jpeg(number):
    done, data = cv2.imencode(".jpg", _photo(number)[..., ::-1])
    assert done
    return data.tobytes()


def _features():
    return {
        "image": tfds.features.Image(encoding_format="jpeg"),
        "label": tfds.features.ClassLabel(num_classes=1000),
        "file_name": tfds.features.Text(),
    }


def _examples(split, change=lambda number, data: data):
    offset = {"train": 0, "validation": 100, "test": 200}[split]
    return [
        {
            "image": io.BytesIO(change(number, _jpeg(number))),
            "label": number,
            "file_name": f"{number}.JPEG",
        }
        for number in range(offset, offset + NUM[split])
    ]


def _write(folder, change=lambda number, data: data):
    both = {split: _examples(split, change) for split in ("train", "validation")}
    write_tfds(folder, "imagenet2012", "5.1.0", _features(), both)
    test = {"test": _examples("test")}
    name = "imagenet_v2/matched-frequency"
    write_tfds(folder, name, "3.0.0", _features(), test)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A data directory, prepared by the command line."""
    folder = tmp_path_factory.mktemp("imagenet")
    _write(folder / "raw")
    arguments = [f"--raw={folder}/raw", f"--data_dir={folder}/data"]
    assert cli.main(["data", "prepare", "imagenet_vit", *arguments]) == 1  # too few
    arguments.append("--any_size")
    assert cli.main(["data", "prepare", "imagenet_vit", *arguments]) == 0
    return folder / "data"


def resnet(data_dir, split, size=4, seed=0, **options):
    options = DataOptions(folder=data_dir, **options)
    return imagenet.resnet_pipeline(split, size, seed, options)


def vit(data_dir, split, size=4, seed=0, **options):
    options = DataOptions(folder=data_dir, **options)
    return imagenet.vit_pipeline(split, size, seed, options)


@pytest.mark.parametrize("split", ["train", "eval_train", "validation", "test"])
@pytest.mark.parametrize("pipeline", [resnet, vit])
def test_shapes_and_types(data_dir, pipeline, split):
    batch = pipeline(data_dir, split)[0]
    assert batch["inputs"].shape == (4, 224, 224, 3)
    assert batch["inputs"].dtype == np.float32
    if pipeline is vit and split == "train":
        assert batch["targets"].shape == (4, 1000)
        assert batch["targets"].dtype == np.float32
        np.testing.assert_allclose(batch["targets"].sum(-1), 1, rtol=1e-5)
    else:
        assert batch["targets"].shape == (4,)
        assert batch["targets"].dtype == np.int32
    assert ("weights" in batch) == (split != "train")


def test_evaluation_sees_each_image_once_centred_and_normalised(data_dir):
    dataset = resnet(data_dir, "validation", 4)
    batch = dataset[1]
    assert batch["weights"].tolist() == [1, 1, 0, 0]
    labels = [int(t) for i in range(2) for t in dataset[i]["targets"]]
    assert labels[:6] == [100, 101, 102, 103, 104, 105]
    image = images.decode(_jpeg(104), "")
    side = int(0.875 * min(image.shape[:2]))
    top, left = ((n - side + 1) // 2 for n in image.shape[:2])
    image = images.resize(image[top : top + side, left : left + side], 224)
    mean = 255 * np.array([0.485, 0.456, 0.406])
    stddev = 255 * np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(batch["inputs"][0], (image - mean) / stddev, atol=1e-4)


def test_an_epoch_holds_each_image_once_in_an_order_of_its_own(data_dir):
    dataset = resnet(data_dir, "train", 13, seed=5)
    first, second = dataset[0]["targets"], dataset[1]["targets"]
    assert sorted(first) == sorted(second) == list(range(13))
    assert list(first) != list(second)


@pytest.mark.parametrize("pipeline", [resnet, vit])
def test_a_batch_depends_on_seed_and_position_alone(data_dir, pipeline):
    one, other = pipeline(data_dir, "train"), pipeline(data_dir, "train")
    later = next(batches(other[3:]))
    np.testing.assert_array_equal(one[3]["inputs"], later["inputs"])
    np.testing.assert_array_equal(one[3]["targets"], later["targets"])
    changed = pipeline(data_dir, "train", seed=1)[3]["inputs"]
    assert not np.array_equal(one[3]["inputs"], changed)


def test_augmentation_differs_between_epochs(data_dir):
    dataset = resnet(data_dir, "train", 13)
    first, second = dataset[0], dataset[1]
    a = first["inputs"][list(first["targets"]).index(7)]
    b = second["inputs"][list(second["targets"]).index(7)]
    assert not np.array_equal(a, b)


def test_half_of_the_images_are_flipped_and_long_ones_centred():
    record = {"image": _jpeg(3), "label": 3, "name": "3"}
    seen = {
        imagenet.distort(record, np.random.default_rng(seed), False)["inputs"].tobytes()
        for seed in range(8)
    }
    assert len(seen) == 8
    line = np.zeros((20, 400, 3), np.uint8)
    line[:, :200] = 255
    done, data = cv2.imencode(".png", line)
    assert done
    record = {"image": data.tobytes(), "label": 3, "name": "3"}
    lefts = []
    for seed in range(40):  # no window of the wanted shape has enough of the area
        inputs = imagenet.distort(record, np.random.default_rng(seed), False)["inputs"]
        lefts.append(inputs[0, 0, 0] > inputs[0, -1, 0])
    assert 8 < sum(lefts) < 32


def test_a_broken_image_is_named_or_skipped(tmp_path):
    def cut(number, data):
        return data[: len(data) // 2] if number in (3, 101) else data

    _write(tmp_path / "imagenet", cut)
    (tmp_path / "imagenet" / "manifest.json").write_text("{}")
    with pytest.raises(
        DataError, match=r"imagenet2012/5\.1\.0 train, record .*3\.JPEG"
    ):
        resnet(tmp_path, "train", 13)[0]
    batch = resnet(tmp_path, "train", 13, skip_corrupt=True)[0]
    assert batch[SKIPPED] == 1
    assert 3 not in batch["targets"]
    batch = resnet(tmp_path, "validation", 6, skip_corrupt=True)[0]
    assert batch["weights"].tolist() == [1, 0, 1, 1, 1, 1]


def test_a_missing_data_set_names_the_command(tmp_path):
    with pytest.raises(UserError, match="algoperf data prepare imagenet "):
        resnet(tmp_path, "train")


def test_missing_downloads_are_named(tmp_path):
    with pytest.raises(UserError, match=r"ILSVRC2012_img_train\.tar"):
        imagenet.prepare(tmp_path, tmp_path, print)
    (tmp_path / "imagenet2012" / "5.1.0").mkdir(parents=True)
    (tmp_path / "imagenet2012" / "5.1.0" / "a.tfrecord-00000-of-00001").touch()
    with pytest.raises(UserError, match="convert_format"):
        imagenet.prepare(tmp_path, tmp_path / "out", print)


class _Builder:
    """Leaves what tensorflow-datasets does: the set, and what it has unpacked."""

    def __init__(self, name, data_dir, file_format):
        assert file_format == "array_record"
        self._part = data_dir / name.replace(":", "/")
        self._unpacked = data_dir / "downloads" / "extracted" / "TAR_GZ.imagenetv2"

    def download_and_prepare(self, download_config):
        assert download_config.manual_dir.name == "raw"
        self._unpacked.mkdir(parents=True, exist_ok=True)
        (self._unpacked / "0.jpeg").touch()
        self._part.mkdir(parents=True)
        (self._part / "test.array_record-00000-of-00001").touch()


def test_what_was_unpacked_to_build_the_set_is_no_part_of_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", types.ModuleType("tensorflow"))
    monkeypatch.setattr(tfds, "builder", _Builder)
    raw, folder = tmp_path / "raw", tmp_path / "imagenet"
    raw.mkdir()
    for name in ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"):
        (raw / name).touch()
    (raw / "imagenetv2-matched-frequency.tar.gz").touch()
    imagenet.prepare(raw, folder, print)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.parent for path in files} == {
        folder / imagenet.TRAIN_FOLDER,
        folder / imagenet.TEST_FOLDER,
    }


def test_a_truncated_file_is_an_error(tmp_path):
    _write(tmp_path / "imagenet")
    (tmp_path / "imagenet" / "manifest.json").write_text("{}")
    info = tmp_path / "imagenet" / "imagenet2012" / "5.1.0" / "dataset_info.json"
    info.write_text(info.read_text()[:50])
    with pytest.raises(UserError, match="cannot be read"):
        resnet(tmp_path, "train")
