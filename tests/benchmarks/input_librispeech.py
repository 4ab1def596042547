"""LibriSpeech: utterances per second beside tf.data on the same utterances.

    python tests/benchmarks/input_librispeech.py

Utterances of 12 s on average, padded to 20 s. Ours maps samples of 16 bits from disk;
tf.data reads the same from TFRecord files, and in a second comparison numbers of 64
bits turned into float32 with float32 paddings, as the MLCommons pipeline stores and
gives them.
"""

import tempfile
from pathlib import Path

import numpy as np
from throughput import arguments, compare, import_tensorflow, write

from algoperf.data.pipeline import DataOptions, batches
from algoperf.data.source import write_manifest
from workloads.common.speech import librispeech

UTTERANCES = 400
BATCH = 32
SAMPLES, TOKENS = librispeech.MAX_SAMPLES, librispeech.MAX_TOKENS


def write_utterances(tf, folder: Path, paths: dict[str, Path]) -> None:
    """Writes noise as `librispeech.prepare` does, and as TFRecord of 16 and 64 bits."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    lengths: dict[str, list[int]] = {"audio": [], "tokens": []}
    writers = {kind: tf.io.TFRecordWriter(str(path)) for kind, path in paths.items()}
    with (
        (folder / "train.audio").open("wb") as audio,
        (folder / "train.tokens").open("wb") as tokens,
    ):
        for _ in range(UTTERANCES):
            size = int(np.clip(rng.normal(192_000, 60_000), 20_000, SAMPLES))
            samples = rng.integers(-3000, 3000, size).astype(np.int16)
            ids = rng.integers(3, 1024, rng.integers(10, 80)).astype(np.uint16)
            audio.write(samples.tobytes())
            tokens.write(ids.tobytes())
            lengths["audio"].append(size)
            lengths["tokens"].append(len(ids))
            for kind, writer in writers.items():
                values = {"audio": samples.astype(kind), "tokens": ids.astype(np.int32)}
                feature = {
                    name: tf.train.Feature(
                        bytes_list=tf.train.BytesList(value=[value.tobytes()])
                    )
                    for name, value in values.items()
                }
                example = tf.train.Example(features=tf.train.Features(feature=feature))
                writer.write(example.SerializeToString())
    for name, sizes in lengths.items():
        np.save(folder / f"train.{name}.lengths.npy", np.array(sizes))
    for writer in writers.values():
        writer.close()
    write_manifest(folder, {})


def tf_batches(tf, path: Path, stored, audio_type, padding_type):
    """Opens reading, shuffling and padding in tf.data."""
    auto = tf.data.AUTOTUNE

    def parse(serialized):
        feature = tf.io.FixedLenFeature([], tf.string)
        record = tf.io.parse_single_example(
            serialized, {"audio": feature, "tokens": feature}
        )
        audio = tf.cast(tf.io.decode_raw(record["audio"], stored), audio_type)
        tokens = tf.io.decode_raw(record["tokens"], tf.int32)

        def pad(values, size, kind):
            paddings = tf.cast(tf.range(size) >= tf.size(values), kind)
            padded = tf.pad(values, [[0, size - tf.size(values)]])
            return tf.ensure_shape(padded, [size]), paddings

        return {
            "inputs": pad(audio, SAMPLES, padding_type),
            "targets": pad(tokens, TOKENS, tf.float32),
        }

    stream = tf.data.TFRecordDataset(str(path)).shuffle(128).repeat()
    stream = stream.map(parse, num_parallel_calls=auto)
    stream = stream.batch(BATCH, drop_remainder=True)
    return stream.prefetch(auto).as_numpy_iterator()


def main() -> None:
    """Measures and prints."""
    options = arguments(__doc__ or "")
    tf = import_tensorflow()
    with tempfile.TemporaryDirectory() as name:
        paths = {k: Path(name, f"{k}.tfrecord") for k in ("int16", "int64")}
        write_utterances(tf, Path(name, "librispeech"), paths)

        def ours():
            # In the thread of the run: samples are copied faster than processes pass
            # them on.
            read = DataOptions(folder=Path(name))
            return batches(librispeech.pipeline("train", BATCH, 0, read))

        def same():
            return tf_batches(tf, paths["int16"], tf.int16, tf.int16, tf.uint8)

        def published():
            return tf_batches(tf, paths["int64"], tf.int64, tf.float32, tf.float32)

        results = [
            compare(options, "librispeech", BATCH, ours, same),
            compare(options, "librispeech, float32", BATCH, ours, published),
        ]
    write(options, results)


if __name__ == "__main__":
    main()
