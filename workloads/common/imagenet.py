"""ImageNet (ILSVRC 2012) for training and validation, ImageNet-v2 for the test.

Both are read as TensorFlow Datasets stores them, in array_record files of JPEGs, at
random access and without TensorFlow (Russakovsky et al. 2015, arXiv:1409.0575; Recht et
al. 2019, arXiv:1902.10811, matched frequency). Images are cropped, resized to 224 x 224
and normalised as published; the ViT's training images also go through RandAugment and
mixup.
"""

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import numpy as np

from algoperf.data import tfds
from algoperf.data.examples import (
    DataOptions,
    Example,
    OnCorrupt,
    Source,
    end,
    eval_examples,
    train_examples,
)
from algoperf.data.pipeline import Batch
from algoperf.data.source import DataSource
from algoperf.errors import UserError
from workloads.common import images
from workloads.common.randaugment import randaugment

IMAGE_SIZE = 224
IMAGE_SHAPE = (IMAGE_SIZE, IMAGE_SIZE, 3)
NUM_CLASSES = 1000
NUM_TRAIN = 1_281_167
NUM_VALIDATION = 50_000
NUM_TEST = 10_000
RESNET_NUM_EVAL_TRAIN = 50_176
VIT_NUM_EVAL_TRAIN = 51_200
# Of the training images, in units of 0 to 255, per channel.
MEAN = (0.485 * 255, 0.456 * 255, 0.406 * 255)
STDDEV = (0.229 * 255, 0.224 * 255, 0.225 * 255)
CENTRAL_SHARE = 224 / 256  # of the shorter side

TRAIN_FOLDER = Path("imagenet2012", "5.1.0")
TEST_FOLDER = Path("imagenet_v2", "matched-frequency", "3.0.0")
# Split -> folder and the name of the split there.
STORED = {
    "train": (TRAIN_FOLDER, "train"),
    "eval_train": (TRAIN_FOLDER, "train"),
    "validation": (TRAIN_FOLDER, "validation"),
    "test": (TEST_FOLDER, "test"),
}

INSTRUCTIONS = """
ImageNet ILSVRC 2012 (for non-commercial research; needs an account), 145 GB:
  ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from
  https://image-net.org/challenges/LSVRC/2012/2012-downloads.php
ImageNet-v2, matched frequency, 1.2 GB:
  imagenetv2-matched-frequency.tar.gz from
  https://huggingface.co/datasets/vaishaal/ImageNetV2
Put the three files into one folder. Preparing them needs TensorFlow, once:
pip install 'algoperf[prepare]'; the prepared set takes 150 GB.

Or put what tensorflow-datasets has built into the folder, in array_record files:
imagenet2012/5.1.0 and imagenet_v2/matched-frequency/3.0.0.
"""


def read(
    split: str,
    batch_size: int,
    seed: int,
    options: DataOptions,
    *,
    num_eval_train: int,
    with_randaugment_and_mixup: bool,
) -> grain.MapDataset:
    """Returns the batches of a split.

    'inputs' are (B, 224, 224, 3) float32, normalised; 'targets' (B,) int32, or after
    mixup (B, 1000) float32. 'eval_train' is `num_eval_train` training images, spread
    over the set, prepared as for evaluation.
    """
    folder = DATA_SOURCE.folder(options.folder)
    part, name = STORED[split]
    source: Source = Photographs(folder / part, name)
    if split == "train":
        transform = functools.partial(distort, augment=with_randaugment_and_mixup)
        augment = mixup if with_randaugment_and_mixup else None
        return train_examples(source, batch_size, seed, options, transform, augment)
    if split == "eval_train":
        source = Spread(source, num_eval_train)
    return eval_examples(source, batch_size, options, centre)


resnet_pipeline = functools.partial(
    read, num_eval_train=RESNET_NUM_EVAL_TRAIN, with_randaugment_and_mixup=False
)
vit_pipeline = functools.partial(
    read, num_eval_train=VIT_NUM_EVAL_TRAIN, with_randaugment_and_mixup=True
)


class Photographs:
    """The stored images of a split: encoded bytes, a class, a name."""

    def __init__(self, folder: Path, split: str):
        self._name = f"{folder.parent.name}/{folder.name} {split}"
        skip = {"image": tfds.skip_decoding()}
        self._stored = tfds.open_split(folder, split, decoders=skip)

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, index: int) -> Example:
        record = self._stored[index]
        file = record.get("file_name", b"").decode(errors="replace")
        name = f"{self._name}, record {index} ({file})"
        return {"image": record["image"], "label": record["label"], "name": name}


class Spread:
    """Some examples of a source, at equal distances."""

    def __init__(self, source: Source, count: int):
        self._source = source
        self._count = min(count, len(source))

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Example:
        return self._source[index * len(self._source) // self._count]


def distort(record: Example, rng: np.random.Generator, augment: bool) -> Example:
    """Crops at random, resizes, flips half of the images, normalises.

    Where no window fits, the centre is taken, as for evaluation. With `augment`,
    RandAugment is applied before the normalisation.
    """
    image = images.decode(record["image"], record["name"])
    height, width, _ = image.shape
    window = images.distorted_window(height, width, rng)
    if window is None or window[2:] == (height, width):
        window = images.central_window(height, width, CENTRAL_SHARE)
    image = images.resize(images.crop(image, window), IMAGE_SIZE)
    if rng.random() < 0.5:
        image = images.flip(image)
    if augment:
        image = randaugment(np.clip(image, 0, 255).astype(np.uint8), rng)
    return _example(image, record)


def centre(record: Example, rng: np.random.Generator) -> Example:
    """Crops the centre, resizes, normalises; nothing is random."""
    del rng
    image = images.decode(record["image"], record["name"])
    height, width, _ = image.shape
    window = images.central_window(height, width, CENTRAL_SHARE)
    return _example(images.resize(images.crop(image, window), IMAGE_SIZE), record)


def mixup(batch: Batch, rng: np.random.Generator) -> Batch:
    """Mixes neighbours of a batch; targets become probabilities."""
    inputs, targets = images.mixup(batch["inputs"], batch["targets"], NUM_CLASSES, rng)
    return {**batch, "inputs": inputs, "targets": targets}


def _example(image: np.ndarray, record: Example) -> Example:
    pixels = images.normalise(image, MEAN, STDDEV)
    return {"inputs": pixels, "targets": np.int32(record["label"])}


def prepare(
    raw: Path,
    folder: Path,
    say: Callable[[str], None],
    on_corrupt: OnCorrupt = end,
) -> None:
    """Links what tensorflow-datasets has built, or has it build the set.

    Images are looked at when they are read, not here.

    Raises:
      UserError: something is missing, or is in another format.
    """
    del on_corrupt
    for part, archives in (
        (TRAIN_FOLDER, ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")),
        (TEST_FOLDER, ("imagenetv2-matched-frequency.tar.gz",)),
    ):
        if (raw / part).is_dir():
            say(f"taking {raw / part}")
            _take(raw / part, folder / part)
            continue
        missing = [name for name in archives if not (raw / name).is_file()]
        if missing:
            raise UserError(
                f"{raw} holds neither {part} nor {', '.join(missing)}; "
                "algoperf data prepare imagenet says what to download"
            )
        say(f"building {part} from {', '.join(archives)}; this takes hours")
        _build(part, raw, folder)


def count(folder: Path) -> dict[str, int]:
    """Returns the number of images of each split."""
    return {
        split: len(Photographs(folder / STORED[split][0], STORED[split][1]))
        for split in ("train", "validation", "test")
    }


def _take(built: Path, folder: Path) -> None:
    """Links the files of a built set, or copies them from another file system."""
    if not list(built.glob("*.array_record*")):
        raise UserError(
            f"{built} holds no array_record files; convert it with python -m "
            "tensorflow_datasets.scripts.convert_format --out_file_format=array_record "
            "(needs algoperf[prepare])"
        )
    folder.mkdir(parents=True)
    for file in sorted(built.iterdir()):
        try:
            (folder / file.name).hardlink_to(file)
        except OSError:
            shutil.copyfile(file, folder / file.name)


def _build(part: Path, raw: Path, folder: Path) -> None:
    try:
        import tensorflow  # noqa: F401
        import tensorflow_datasets
    except ImportError as error:
        raise UserError(
            "building ImageNet from its archives needs TensorFlow, once: "
            "pip install 'algoperf[prepare]'"
        ) from error
    *names, version = part.parts
    builder: Any = tensorflow_datasets.builder(
        f"{'/'.join(names)}:{version}", data_dir=folder, file_format="array_record"
    )
    builder.download_and_prepare(
        download_config=tensorflow_datasets.download.DownloadConfig(manual_dir=raw)
    )
    unpacked = folder / "downloads"  # of ImageNet-v2, 10,000 files beside the set
    if unpacked.is_dir():
        shutil.rmtree(unpacked)


DATA_SOURCE = DataSource(
    name="imagenet",
    instructions=INSTRUCTIONS,
    prepare=prepare,
    count=count,
    num_examples={
        "train": NUM_TRAIN,
        "validation": NUM_VALIDATION,
        "test": NUM_TEST,
    },
)
