"""Rebuilds the embedded Fashion-MNIST subset from the original IDX files.

    python -m workloads.common.make_fashion_mnist FOLDER

FOLDER holds the four `*-ubyte.gz` files as published by Zalando (MIT licence); the
Debian package `dataset-fashion-mnist` installs them under /usr/share/datasets. The
same input gives the same bytes.
"""

import argparse
import gzip
import hashlib
from pathlib import Path

import numpy as np

from algoperf.data.embedded import read_about, save_embedded
from workloads.common import fashion_mnist

SEED = 0
LICENCE = (
    "MIT. Copyright 2017 Zalando SE, https://tech.zalando.com. Permission is hereby "
    "granted, free of charge, to any person obtaining a copy of this software and "
    'associated documentation files (the "Software"), to deal in the Software without '
    "restriction, including without limitation the rights to use, copy, modify, merge, "
    "publish, distribute, sublicense, and/or sell copies of the Software, and to "
    "permit persons to whom the Software is furnished to do so, subject to the "
    "following conditions: The above copyright notice and this permission notice shall "
    "be included in all copies or substantial portions of the Software. THE SOFTWARE "
    'IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING '
    "BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR "
    "PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS "
    "BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF "
    "CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE "
    "SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE."
)
SIZES = {
    "train": fashion_mnist.NUM_TRAIN,
    "validation": fashion_mnist.NUM_VALIDATION,
    "test": fashion_mnist.NUM_TEST,
}


def read_idx(path: Path) -> np.ndarray:
    """Reads a gzipped IDX file of bytes: magic, one big-endian size per axis, data."""
    raw = gzip.decompress(path.read_bytes())
    num_axes = raw[3]
    shape = np.frombuffer(raw, ">i4", count=num_axes, offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * num_axes).reshape(shape)


def without_duplicates(images: np.ndarray, seen: set[bytes]) -> np.ndarray:
    """Returns the indices of images whose content is new; adds it to `seen`."""
    kept = []
    for index, image in enumerate(images):
        digest = hashlib.sha256(image.tobytes()).digest()
        if digest not in seen:
            seen.add(digest)
            kept.append(index)
    return np.array(kept)


def build(folder: Path) -> dict[str, np.ndarray]:
    """Returns `<split>_images` (n, 28, 28) and `<split>_labels` (n,), all uint8."""
    seen: set[bytes] = set()
    arrays = {}
    for prefix, splits in (("train", ["train", "validation"]), ("t10k", ["test"])):
        images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")
        labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz")
        kept = without_duplicates(images, seen)
        print(f"{prefix}: {len(images) - len(kept)} of {len(images)} are repeats")
        order = np.random.default_rng(SEED).permutation(kept)
        for split in splits:
            chosen, order = order[: SIZES[split]], order[SIZES[split] :]
            # Sorted by class, neighbours look alike and pack smaller; the stream is
            # shuffled anyway, and evaluation on a part takes every k-th example.
            chosen = chosen[np.argsort(labels[chosen], kind="stable")]
            arrays[f"{split}_images"] = images[chosen]
            arrays[f"{split}_labels"] = labels[chosen]
    return arrays


def main() -> None:
    """Builds, saves, and prints what was written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    arrays = build(parser.parse_args().folder)
    pixels = arrays["train_images"].astype(np.float64)
    about = {
        "name": "Fashion-MNIST, subset",
        "source": "https://github.com/zalandoresearch/fashion-mnist, "
        "as in the Debian package dataset-fashion-mnist",
        "licence": LICENCE,
        "citation": "Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747",
        "rebuild": "python -m workloads.common.make_fashion_mnist FOLDER",
        "split": "train and validation from the original training file, test from "
        "the original test file; repeated images dropped over both files; chosen by "
        f"numpy.random.default_rng({SEED})",
        "train_mean": pixels.mean(),
        "train_stddev": pixels.std(),
    }
    save_embedded(fashion_mnist.EMBEDDED, arrays, about)
    written = read_about(fashion_mnist.EMBEDDED)
    print(f"{written['bytes']} bytes, SHA-256 {written['sha256']}")
    print(f"train mean {about['train_mean']:.4f}, stddev {about['train_stddev']:.4f}")


if __name__ == "__main__":
    main()
