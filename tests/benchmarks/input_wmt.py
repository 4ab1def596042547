"""WMT: packed rows per second beside tf.data on the same ids.

    python tests/benchmarks/input_wmt.py

Pairs of 27 subwords a side on average. Ours packs from flat arrays, shuffled globally;
tf.data reads the ids from a TFRecord file, shuffles 1,024 pairs and packs greedily, as
the MLCommons pipeline does (which also splits the text into subwords each time).
"""

import tempfile
from pathlib import Path

import numpy as np
from throughput import arguments, compare, import_tensorflow, write

from algoperf.data.pipeline import DataOptions, batches
from algoperf.data.source import write_manifest
from workloads.wmt import data

PAIRS = 100_000
BATCH = 128
LENGTH = data.MAX_LENGTH


def write_pairs(tf, folder: Path, path: Path) -> None:
    """Writes random pairs as `data.prepare` does, and as TFRecord."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.gamma(2, 13, (PAIRS, 2)), 2, 250).astype(np.int32)
    folder.mkdir()
    np.save(folder / "train.lengths.npy", lengths)
    with (
        (folder / "train.ids").open("wb") as file,
        tf.io.TFRecordWriter(str(path)) as writer,
    ):
        for source, target in lengths:
            ids = rng.integers(4, data.VOCAB_SIZE, source + target).astype(np.uint16)
            ids[[source - 1, -1]] = data.END
            file.write(ids.tobytes())
            feature = {
                name: tf.train.Feature(int64_list=tf.train.Int64List(value=part))
                for name, part in (("inputs", ids[:source]), ("targets", ids[source:]))
            }
            example = tf.train.Example(features=tf.train.Features(feature=feature))
            writer.write(example.SerializeToString())
    write_manifest(folder, {})


def tf_batches(tf, path: Path):
    """Opens reading, shuffling and greedy packing in tf.data."""
    auto = tf.data.AUTOTUNE
    kinds = ("", "_position", "_segmentation")
    names = [f"{side}{kind}" for side in ("inputs", "targets") for kind in kinds]
    empty = {name: tf.zeros([0], tf.int32) for name in names}

    def parse(serialized):
        feature = tf.io.VarLenFeature(tf.int64)
        record = tf.io.parse_single_example(
            serialized, {"inputs": feature, "targets": feature}
        )
        return {k: tf.cast(v.values, tf.int32) for k, v in record.items()}

    def step(state, pair):
        """Adds a pair to the row, or gives the row out and begins with the pair."""
        row, number = state
        fits = tf.reduce_all(
            [
                tf.size(row[s]) + tf.size(pair[s]) <= LENGTH
                for s in ("inputs", "targets")
            ]
        )
        number = tf.where(fits, number + 1, 1)
        more = {}
        for side in ("inputs", "targets"):
            ids = pair[side]
            more[side] = ids
            more[f"{side}_position"] = tf.range(tf.size(ids))
            more[f"{side}_segmentation"] = tf.fill([tf.size(ids)], number)
        begun = {
            name: tf.cond(
                fits,
                lambda n=name: tf.concat([row[n], more[n]], 0),
                lambda n=name: more[n],
            )
            for name in names
        }
        return (begun, number), (tf.logical_not(fits), row)

    def pad(_, row):
        padded = {k: tf.pad(v, [[0, LENGTH - tf.size(v)]]) for k, v in row.items()}
        weights = tf.cast(padded["targets"] > 0, tf.float32)
        fixed = {k: tf.ensure_shape(v, [LENGTH]) for k, v in padded.items()}
        return {**fixed, "weights": weights}

    stream = tf.data.TFRecordDataset(str(path)).map(parse, num_parallel_calls=auto)
    stream = stream.shuffle(1024).repeat().scan((empty, 0), step)
    stream = stream.filter(lambda is_full, _: is_full)
    stream = stream.map(pad, num_parallel_calls=auto)
    stream = stream.batch(BATCH, drop_remainder=True)
    return stream.prefetch(auto).as_numpy_iterator()


def main() -> None:
    """Measures and prints."""
    options = arguments(__doc__ or "")
    tf = import_tensorflow()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "train.tfrecord")
        write_pairs(tf, Path(name, "wmt"), path)

        def ours():
            # In the thread of the run: rows are gathered faster than processes pass
            # them on.
            read = DataOptions(folder=Path(name))
            return batches(data.pipeline("train", BATCH, 0, read))

        theirs = lambda: tf_batches(tf, path)  # noqa: E731
        write(options, [compare(options, "wmt", BATCH, ours, theirs)])


if __name__ == "__main__":
    main()
