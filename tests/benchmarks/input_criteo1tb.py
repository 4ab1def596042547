"""Criteo: rows per second beside tf.data, on text and on the same prepared rows.

    python tests/benchmarks/input_criteo1tb.py

Ours reads rows that were parsed, hashed and shuffled when they were prepared. tf.data
does so once from the tab-separated text, as the MLCommons pipeline does in every epoch,
and once from our prepared rows, so that only the way of reading differs.
"""

import tempfile
from pathlib import Path

import numpy as np
from throughput import arguments, compare, import_tensorflow, write

from algoperf.data.pipeline import DataOptions, batches
from algoperf.data.source import write_manifest
from workloads.criteo1tb import data, prepare

ROWS = 400_000
BATCH = 16_384


def write_days(raw: Path) -> None:
    """Writes one small text file for each part of the published days."""
    rng = np.random.default_rng(0)
    raw.mkdir()
    lines = []
    for _ in range(ROWS // 40):
        integers = [str(i) for i in rng.integers(0, 5000, 13)]
        words = [f"{word:08x}" for word in rng.integers(0, 2**32, 26)]
        lines.append("\t".join([str(rng.integers(2)), *integers, *words]))
    text = "\n".join(lines) + "\n"
    for day in range(23):
        (raw / f"day_{day}").write_text(text * 2)
    (raw / "day_23").write_text(text)


def tf_text(tf, raw: Path):
    """Opens the published preprocessing of the text in tf.data."""
    auto = tf.data.AUTOTUNE
    files = sorted(map(str, raw.glob("day_?"))) + sorted(map(str, raw.glob("day_1?")))
    defaults = [[0]] + [[-1]] * 13 + [["-1"]] * 26

    def parse(lines):
        columns = tf.io.decode_csv(lines, defaults, field_delim="\t", na_value="-1")
        dense = tf.stack(columns[1:14], axis=1)
        dense = tf.math.log(tf.nn.relu(tf.cast(dense, tf.float32)) + 1)
        ids = [
            tf.strings.to_hash_bucket_fast(column + str(number), size)
            for number, (column, size) in enumerate(
                zip(columns[14:], prepare.VOCAB_SIZES, strict=True)
            )
        ]
        ids = tf.cast(tf.stack(ids, axis=1), tf.int32)
        targets = tf.cast(columns[0], tf.float32)[:, None]
        return {"inputs": {"dense": dense, "ids": ids}, "targets": targets}

    stream = tf.data.Dataset.from_tensor_slices(files).repeat().shuffle(1024)
    stream = stream.interleave(
        tf.data.TextLineDataset, cycle_length=8, block_length=BATCH // 8,
        num_parallel_calls=auto,
    )  # fmt: skip
    stream = stream.batch(BATCH, drop_remainder=True)
    stream = stream.map(parse, num_parallel_calls=auto)
    return stream.prefetch(auto).as_numpy_iterator()


def tf_rows(tf, path: Path):
    """Opens our prepared rows in tf.data, shuffled in a window of two batches."""
    auto = tf.data.AUTOTUNE
    width = prepare.ROW_INTEGERS

    def parse(records):
        rows = tf.reshape(tf.io.decode_raw(records, tf.int32), [-1, width])
        dense = tf.math.log1p(tf.nn.relu(tf.cast(rows[:, 1:14], tf.float32)))
        targets = tf.cast(rows[:, :1], tf.float32)
        return {"inputs": {"dense": dense, "ids": rows[:, 14:]}, "targets": targets}

    stream = tf.data.FixedLengthRecordDataset(str(path), prepare.ROW_BYTES).repeat()
    stream = stream.shuffle(2 * BATCH).batch(BATCH, drop_remainder=True)
    stream = stream.map(parse, num_parallel_calls=auto)
    return stream.prefetch(auto).as_numpy_iterator()


def main() -> None:
    """Measures and prints."""
    options = arguments(__doc__ or "")
    tf = import_tensorflow()
    with tempfile.TemporaryDirectory() as name:
        raw, folder = Path(name, "raw"), Path(name, "criteo1tb")
        write_days(raw)
        folder.mkdir()
        prepare.prepare(raw, folder, lambda _: None)
        write_manifest(folder, {})

        def ours():
            # In the thread of the run: rows are gathered faster than processes pass
            # them on.
            read = DataOptions(folder=Path(name))
            return batches(data.read("train", BATCH, 0, read))

        results = [
            compare(options, "criteo1tb, text", BATCH, ours, lambda: tf_text(tf, raw)),
            compare(
                options,
                "criteo1tb, rows",
                BATCH,
                ours,
                lambda: tf_rows(tf, folder / "train.bin"),
            ),
        ]
    write(options, results)


if __name__ == "__main__":
    main()
