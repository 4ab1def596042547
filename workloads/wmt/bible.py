"""Verses of the Bible in German and English: the pairs of the mini scale.

Short verses, as subwords that were learned from the training verses of both languages
(see `make_bible`). They fill rows as the pairs of WMT do (see `data`).
"""

import functools
from pathlib import Path
from typing import Any

import grain
import numpy as np

from algoperf.data.embedded import load_embedded
from algoperf.data.examples import DataOptions
from workloads.common import sentencepiece
from workloads.wmt import data

EMBEDDED = Path(__file__).parent / "embedded" / "bible"
VOCAB_SIZE = 2000
ROW_LENGTH = 64  # of training, in subwords
MAX_LENGTH = 36  # of a verse with its end
NUM_TRAIN = 9_876
NUM_EVAL_TRAIN = 32
NUM_VALIDATION = 64
NUM_TEST = 32


@functools.cache
def _load() -> dict[str, np.ndarray]:
    return load_embedded(EMBEDDED)


def pairs(split: str) -> data.Pairs:
    """Returns the pairs of 'train', 'validation' or 'test'."""
    arrays = _load()
    return data.Pairs(
        arrays[f"{split}_lengths"].astype(np.int32),
        arrays[f"{split}_ids"],
        f"{EMBEDDED.name}, {split},",
    )


@functools.cache
def load_vocabulary(data_dir: Path | None = None) -> Any:  # noqa: ARG001
    """Returns the `SentencePieceProcessor`; it ships with the package."""
    return sentencepiece.from_bytes(_load()["vocabulary"].tobytes())


def pipeline(
    split: str, batch_size: int, seed: int, options: DataOptions
) -> grain.MapDataset:
    """Returns the batches of 'train' (endless) or of an evaluation split."""
    return data.batches(
        split,
        pairs("train" if split == "eval_train" else split),
        ROW_LENGTH if split == "train" else MAX_LENGTH,
        NUM_EVAL_TRAIN,
        batch_size,
        seed,
        options,
    )
