"""FineWeb-Edu: sequences per second beside tf.data on the same ids.

    python tests/benchmarks/input_finewebedu_lm.py

Ours maps rows of 1,025 ids from disk, shuffled globally; tf.data cuts the same stream,
shuffles 1,000 sequences and batches, as the MLCommons pipeline does (its Hugging Face
reader, which is slower, is left out).
"""

import tempfile
from pathlib import Path

import numpy as np
from throughput import arguments, compare, import_tensorflow, write

from algoperf.data.pipeline import DataOptions, batches
from algoperf.data.source import write_manifest
from workloads.finewebedu_lm import data

SEQUENCES = 50_000
LENGTH = 1024
BATCH = 64


def main() -> None:
    """Measures and prints."""
    options = arguments(__doc__ or "")
    tf = import_tensorflow()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "finewebedu_lm")
        folder.mkdir()
        ids = np.random.default_rng(0).integers(0, 50_257, SEQUENCES * (LENGTH + 1))
        for split in ("train", "validation"):
            ids.astype(np.uint16).tofile(folder / f"{split}.bin")
        write_manifest(folder, {})

        def ours():
            read = DataOptions(folder=Path(name))
            # In the thread of the run: rows are gathered faster than processes pass
            # them on.
            return batches(data.fineweb_edu("train", BATCH, 0, read))

        def theirs():
            stream = tf.data.FixedLengthRecordDataset(
                str(folder / "train.bin"), 2 * (LENGTH + 1)
            )
            auto = tf.data.AUTOTUNE

            def split(record):
                row = tf.cast(tf.io.decode_raw(record, tf.uint16), tf.int32)
                return {"inputs": row[:-1], "targets": row[1:]}

            stream = stream.repeat().map(split, num_parallel_calls=auto)
            stream = stream.shuffle(1000, seed=0).batch(BATCH, drop_remainder=True)
            return stream.prefetch(auto).as_numpy_iterator()

        write(options, [compare(options, "finewebedu_lm", BATCH, ours, theirs)])


if __name__ == "__main__":
    main()
