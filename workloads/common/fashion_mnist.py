"""Fashion-MNIST, the images of the ImageNet families at mini scale.

28 x 28 grey images of clothes in 10 classes (Xiao, Rasul and Vollgraf 2017,
arXiv:1708.07747): a fixed subset that ships with the package, see
`make_fashion_mnist`. Augmentation is random crop and flip, on whole batches of bytes.
"""

import functools
from pathlib import Path

import grain
import numpy as np

from algoperf.data.embedded import load_embedded
from algoperf.data.examples import DataOptions
from algoperf.data.pipeline import Batch, eval_batches, train_batches
from workloads.common.images import mixup

EMBEDDED = Path(__file__).parent / "embedded" / "fashion_mnist"
IMAGE_SHAPE = (28, 28, 1)
NUM_CLASSES = 10
NUM_TRAIN = 15_000
# Evaluation is to cost little beside training: it takes part of what is there for it.
NUM_EVAL_TRAIN = 500
NUM_VALIDATION = 2_000
NUM_TEST = 1_000
NUM_EXAMPLES = {
    "train": NUM_TRAIN,
    "eval_train": NUM_EVAL_TRAIN,
    "validation": NUM_VALIDATION,
    "test": NUM_TEST,
}
# Of the training pixels, in bytes.
MEAN = 72.9
STDDEV = 90.0
PADDING = 2  # pixels on each side before the random crop


@functools.cache
def _load() -> dict[str, np.ndarray]:
    return load_embedded(EMBEDDED)


def examples(split: str) -> dict[str, np.ndarray]:
    """Returns 'inputs' (n, 28, 28) uint8 and 'targets' (n,) uint8 of a split.

    A part of what is there is spread over it, since images lie in order of class.
    """
    name = "train" if split == "eval_train" else split
    arrays = _load()
    images, labels = arrays[f"{name}_images"], arrays[f"{name}_labels"]
    wanted = NUM_EXAMPLES[split]
    places = np.arange(wanted) * len(images) // wanted
    return {"inputs": images[places], "targets": labels[places]}


def normalise(batch: Batch) -> Batch:
    """Maps bytes (B, 28, 28) to float32 (B, 28, 28, 1) of mean 0 and variance 1."""
    pixels = batch["inputs"][..., None].astype(np.float32)
    return {
        **batch,
        "inputs": (pixels - np.float32(MEAN)) * np.float32(1 / STDDEV),
        "targets": batch["targets"].astype(np.int32),
    }


def augment(batch: Batch, rng: np.random.Generator) -> Batch:
    """Pads, crops at random, flips half of the images, normalises.

    Args:
      batch: 'inputs' (B, 28, 28) uint8 and 'targets' (B,).
      rng: one draw of offsets and sides per image.
    """
    images = batch["inputs"]
    size, height, width = images.shape
    padded = np.zeros((size, height + 2 * PADDING, width + 2 * PADDING), np.uint8)
    padded[:, PADDING:-PADDING, PADDING:-PADDING] = images
    # (B, offsets, offsets, 28, 28): every crop as a view; indexing copies one each.
    crops = np.lib.stride_tricks.sliding_window_view(padded, (height, width), (1, 2))
    top, left = rng.integers(0, 2 * PADDING + 1, (2, size))
    images = crops[np.arange(size), top, left]
    flipped = rng.random(size) < 0.5
    images[flipped] = images[flipped, :, ::-1]
    return normalise({**batch, "inputs": images})


def augment_and_mix(batch: Batch, rng: np.random.Generator) -> Batch:
    """As `augment`, then mixes neighbours; targets become probabilities (B, 10)."""
    batch = augment(batch, rng)
    inputs, targets = mixup(batch["inputs"], batch["targets"], NUM_CLASSES, rng)
    return {**batch, "inputs": inputs, "targets": targets}


def dataset(
    split: str, batch_size: int, seed: int, options: DataOptions, mixed: bool = False
) -> grain.MapDataset:
    """Returns the batches of 'train' (endless, augmented) or of an evaluation split.

    Training images are mixed with their neighbours if `mixed`.
    """
    if split == "train":
        change = augment_and_mix if mixed else augment
        return train_batches(examples("train"), batch_size, seed, change, options)
    return eval_batches(examples(split), batch_size, normalise, options)
