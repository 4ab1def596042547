"""ImageNet: images per second beside tf.data on the same JPEG files.

    python tests/benchmarks/input_imagenet.py

Photographs of 500 x 375 pixels (that of ImageNet is as large on average), cut at
random, resized to 224 by bicubic interpolation, flipped and normalised as for ResNet.
Ours reads array_record files as tensorflow-datasets writes them, tf.data the same JPEGs
from TFRecord files. RandAugment and mixup, which ViT needs too, are measured alone.
"""

import io
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import tensorflow_datasets as tfds
from throughput import alone, arguments, compare, import_tensorflow, write

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from tfds_files import write_tfds

from algoperf.data.pipeline import DataOptions, batches
from algoperf.data.source import write_manifest
from workloads.common import imagenet

IMAGES = 512
BATCH = 64


def photograph(number: int) -> bytes:
    """Returns a JPEG of about the size in bytes of a photograph."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 256, (47, 63, 3)).astype(np.uint8)
    image = cv2.resize(coarse, (500, 375), interpolation=cv2.INTER_CUBIC)
    noisy = image + rng.normal(0, 12, image.shape)
    jpeg = cv2.imencode(".jpg", np.clip(noisy, 0, 255).astype(np.uint8))[1]
    return jpeg.tobytes()


def write_files(tf, root: Path) -> Path:
    """Writes the photographs in both formats; returns the TFRecord file."""
    jpegs = [photograph(number) for number in range(IMAGES)]
    features = {
        "image": tfds.features.Image(encoding_format="jpeg"),
        "label": tfds.features.ClassLabel(num_classes=1000),
        "file_name": tfds.features.Text(),
    }
    examples = [
        {"image": io.BytesIO(jpeg), "label": n, "file_name": f"{n}.JPEG"}
        for n, jpeg in enumerate(jpegs)
    ]
    folder = root / "imagenet"
    write_tfds(folder, "imagenet2012", "5.1.0", features, {"train": examples})
    write_manifest(folder, {})
    path = root / "train.tfrecord"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for number, jpeg in enumerate(jpegs):
            feature = {
                "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[jpeg])),
                "label": tf.train.Feature(
                    int64_list=tf.train.Int64List(value=[number])
                ),
            }
            example = tf.train.Example(features=tf.train.Features(feature=feature))
            writer.write(example.SerializeToString())
    print(f"mean size of a JPEG: {np.mean([len(j) for j in jpegs]):,.0f} bytes")
    return path


def tf_batches(tf, path: Path):
    """Opens the same preprocessing in tf.data."""
    auto = tf.data.AUTOTUNE
    mean, stddev = tf.constant(imagenet.MEAN), tf.constant(imagenet.STDDEV)

    def preprocess(serialized):
        parsed = tf.io.parse_single_example(
            serialized,
            {
                "image": tf.io.FixedLenFeature([], tf.string),
                "label": tf.io.FixedLenFeature([], tf.int64),
            },
        )
        start, size, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(parsed["image"]),
            tf.constant([0.0, 0.0, 1.0, 1.0], shape=[1, 1, 4]),
            min_object_covered=0.1,
            aspect_ratio_range=(0.75, 4 / 3),
            area_range=(0.08, 1.0),
            max_attempts=10,
        )
        window = tf.concat([start[:2], size[:2]], axis=0)
        image = tf.image.decode_and_crop_jpeg(parsed["image"], window, channels=3)
        image = tf.image.resize([image], (224, 224), method="bicubic")[0]
        image = tf.image.random_flip_left_right(image)
        inputs = (tf.cast(image, tf.float32) - mean) / stddev
        return {"inputs": inputs, "targets": tf.cast(parsed["label"], tf.int32)}

    stream = tf.data.TFRecordDataset(str(path)).repeat().shuffle(16 * BATCH)
    stream = stream.map(preprocess, num_parallel_calls=auto)
    return stream.batch(BATCH, drop_remainder=True).prefetch(auto).as_numpy_iterator()


def main() -> None:
    """Measures and prints."""
    options = arguments(__doc__ or "")
    tf = import_tensorflow()
    with tempfile.TemporaryDirectory() as name:
        path = write_files(tf, Path(name))

        def ours(pipeline):
            read = DataOptions(folder=Path(name))
            return lambda: batches(
                pipeline("train", BATCH, 0, read), options.workers, options.threads
            )

        results = [
            compare(
                options,
                "imagenet_resnet",
                BATCH,
                ours(imagenet.resnet_pipeline),
                lambda: tf_batches(tf, path),
            ),
            alone(options, "imagenet_vit", BATCH, ours(imagenet.vit_pipeline)),
        ]
    write(options, results)


if __name__ == "__main__":
    main()
