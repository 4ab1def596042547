"""Small data sets in the format of TensorFlow Datasets, written without TensorFlow."""

import json

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter


def write_tfds(folder, name, version, features, splits, num_shards=2):
    """Writes `<folder>/<name>/<version>` and returns that path.

    Args:
      folder: the data directory of tfds.
      name: 'imagenet2012'; may hold a config, 'wmt17_translate/de-en'.
      version: '5.1.0'.
      features: dict of tfds features; images are given as file objects (io.BytesIO of
        an encoded image), which need no TensorFlow.
      splits: split -> list of examples.
    """
    path = folder / name / version
    path.mkdir(parents=True)
    features = tfds.features.FeaturesDict(features)
    serializer = tfds.core.example_serializer.ExampleSerializer(
        features.get_serialized_info()
    )
    base = name.partition("/")[0]
    about = []
    for split, examples in splits.items():
        lengths = []
        for shard in range(num_shards):
            start = shard * len(examples) // num_shards
            stop = (shard + 1) * len(examples) // num_shards
            file = path / (
                f"{base}-{split}.array_record-{shard:05d}-of-{num_shards:05d}"
            )
            writer = ArrayRecordWriter(str(file), "group_size:1")
            for example in examples[start:stop]:
                encoded = features.encode_example(example)
                writer.write(serializer.serialize_example(encoded))
            writer.close()
            lengths.append(str(stop - start))
        about.append(
            {
                "name": split,
                "shardLengths": lengths,
                "numBytes": "1",
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            }
        )
    features.save_config(str(path))
    info = {
        "name": base,
        "version": version,
        "fileFormat": "array_record",
        "splits": about,
    }
    (path / "dataset_info.json").write_text(json.dumps(info))
    return path
