"""fastMRI: slices per second beside tf.data with the same preprocessing.

    python tests/benchmarks/input_fastmri.py

Ours reads slices of 640 x 372 from HDF5 volumes; tf.data gets them from memory, where
the MLCommons pipeline caches all of them. Both mask columns, transform back, crop to
320 x 320, normalise and clip.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from throughput import arguments, compare, import_tensorflow, write

from algoperf.data.pipeline import DataOptions, batches
from algoperf.data.source import write_manifest
from workloads.fastmri import data

VOLUMES, SLICES, ROWS, COLUMNS = 4, 16, 640, 372
BATCH = 16


def write_volumes(raw: Path) -> tuple[np.ndarray, np.ndarray]:
    """Writes volumes; returns all k-spaces and targets."""
    import h5py

    rng = np.random.default_rng(0)
    shape = (VOLUMES * SLICES, ROWS, COLUMNS)
    kspace = rng.standard_normal((*shape, 2), np.float32).view(np.complex64)[..., 0]
    target = rng.random((len(kspace), 320, 320), np.float32)
    for folder in data.FOLDERS.values():
        (raw / folder).mkdir(parents=True)
        for volume in range(VOLUMES):
            part = slice(volume * SLICES, (volume + 1) * SLICES)
            with h5py.File(raw / folder / f"file{volume}.h5", "w") as file:
                file["kspace"] = kspace[part]
                file["reconstruction_esc"] = target[part]
                file.attrs["max"] = 1.0
    return kspace, target


def tf_batches(tf, kspace: np.ndarray, target: np.ndarray):
    """Opens the same preprocessing in tf.data."""
    auto = tf.data.AUTOTUNE
    num_central = int(COLUMNS * 0.08)
    pad = (COLUMNS - num_central + 1) // 2
    probability = (COLUMNS / 4 - num_central) / (COLUMNS - num_central)
    centre = (np.arange(COLUMNS) >= pad) & (np.arange(COLUMNS) < pad + num_central)

    def preprocess(index, kspace, target):
        seed = tf.stack([tf.constant(0, tf.int64), index])
        draws = tf.random.stateless_uniform([COLUMNS], seed)
        mask = tf.cast((draws < probability) | centre, tf.complex64)
        shifted = tf.signal.ifftshift(kspace * mask, axes=(0, 1))
        image = tf.signal.fftshift(tf.signal.ifft2d(shifted), axes=(0, 1))
        scale = tf.cast(tf.sqrt(float(ROWS * COLUMNS)), tf.complex64)
        top, left = (ROWS - 320) // 2, (COLUMNS - 320) // 2
        image = tf.abs((image * scale)[top : top + 320, left : left + 320])
        mean, std = tf.reduce_mean(image), tf.math.reduce_std(image)
        return {
            "inputs": tf.clip_by_value((image - mean) / std, -6, 6),
            "targets": tf.clip_by_value((target - mean) / std, -6, 6),
            "mean": mean,
            "std": std,
        }

    arrays = (np.arange(len(kspace)), kspace, target)
    stream = tf.data.Dataset.from_tensor_slices(arrays).shuffle(16 * BATCH).repeat()
    stream = stream.map(preprocess, num_parallel_calls=auto)
    return stream.batch(BATCH, drop_remainder=True).prefetch(auto).as_numpy_iterator()


def main() -> None:
    """Measures and prints."""
    options = arguments(__doc__ or "")
    tf = import_tensorflow()
    with tempfile.TemporaryDirectory() as name:
        kspace, target = write_volumes(Path(name, "raw"))
        folder = Path(name, "fastmri")
        folder.mkdir()
        data.prepare(Path(name, "raw"), folder, lambda _: None, validation_files=2)
        write_manifest(folder, {})

        def ours():
            read = DataOptions(folder=Path(name))
            return batches(
                data.read("train", BATCH, 0, read), options.workers, options.threads
            )

        theirs = lambda: tf_batches(tf, kspace, target)  # noqa: E731
        write(options, [compare(options, "fastmri", BATCH, ours, theirs)])


if __name__ == "__main__":
    sys.exit(main())
