"""Data sets in the format of TensorFlow Datasets, read without TensorFlow."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from algoperf.data.examples import Source
from algoperf.errors import UserError


def open_split(
    folder: Path, split: str, decoders: Mapping[str, Any] | None = None
) -> Source:
    """Returns the examples of a split, by index: dicts of NumPy arrays and bytes.

    Args:
      folder: of one version, 'imagenet2012/5.1.0' say, with `dataset_info.json`,
        `features.json` and array_record files.
      split: a name, or a slice such as 'train[:100]'.
      decoders: as for `tfds.data_source`, for features to leave as bytes.

    Raises:
      UserError: no such folder or split, or files of another format.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(
            f"reading {folder} needs tensorflow-datasets: pip install 'algoperf[full]'"
        ) from error
    try:
        builder = tfds.builder_from_directory(str(folder))
        return builder.as_data_source(split, decoders=decoders)
    except Exception as error:  # of many kinds, tfds has no common one
        text = " ".join(str(error).split())[:300]
        raise UserError(
            f"{folder} cannot be read as an array_record data set of TensorFlow "
            f"Datasets: {text}"
        ) from error


def skip_decoding() -> Any:
    """Returns the decoder that leaves a feature as it is stored."""
    import tensorflow_datasets as tfds

    return tfds.decode.SkipDecoding()
