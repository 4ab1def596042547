"""The King James Bible in six parts: domains that models can be trained on apart.

The parts are the usual ones: law (Genesis to Deuteronomy), history (Joshua to Esther),
poetry (Job to the Song of Solomon), prophets (Isaiah to Malachi), gospels (with Acts)
and letters (with Revelation). Chapters stand in the canon's order; every so many went
to validation and test (`split_of`, which `make_king_james` splits by).
"""

import functools
from collections.abc import Mapping
from typing import Any

import grain
import numpy as np

from algoperf.data.examples import DataOptions
from algoperf.data.pipeline import eval_batches, train_batches
from workloads.finewebedu_lm import data

# The public part first, the largest; chapters are counted in the canon's order.
PUBLIC = "history"
CHAPTERS = {
    "law": 187,
    "history": 249,
    "poetry": 243,
    "prophets": 250,
    "gospels": 117,
    "letters": 143,
}
NAMES = (PUBLIC, *(name for name in CHAPTERS if name != PUBLIC))
EVERY = 60  # one chapter in so many is validation, the one after it is test
PLACES = {EVERY // 2: "validation", EVERY // 2 + 1: "test"}


def split_of(chapter: int) -> str:
    """Returns the split of a chapter, counted from 0 in the canon's order."""
    return PLACES.get(chapter % EVERY, "train")


def chapter_parts(split: str) -> list[str]:
    """Returns the part of each chapter of a split, in order."""
    parts = [name for name, chapters in CHAPTERS.items() for _ in range(chapters)]
    return [part for number, part in enumerate(parts) if split_of(number) == split]


@functools.cache
def streams(split: str) -> Mapping[str, np.ndarray]:
    """Returns the tokens of each part of a split, an end-of-text around each chapter.

    Raises:
      ValueError: the split has other chapters than the canon.
    """
    tokens = data.tokens(split)
    ends = np.flatnonzero(tokens == data.END_OF_TEXT)
    parts = chapter_parts(split)
    if len(ends) != len(parts) + 1:
        raise ValueError(f"{split} has {len(ends) - 1} chapters, not {len(parts)}")
    found = {}
    for name in NAMES:
        first = parts.index(name)
        last = first + parts.count(name)
        found[name] = tokens[ends[first] : ends[last] + 1]
    return found


def examples(part: str, split: str) -> dict[str, np.ndarray]:
    """Returns 'tokens' (n, L + 1) of a part of a split, all there are of it.

    Of 'eval_train' so many as of 'validation', spread over the training text.
    """
    if split != "eval_train":
        return {"tokens": data.pack(streams(split)[part], data.SEQUENCE_LENGTH)}
    packed = examples(part, "train")["tokens"]
    wanted = len(examples(part, "validation")["tokens"])
    return {"tokens": packed[np.arange(wanted) * len(packed) // wanted]}


def pipeline(
    part: str, split: str, batch_size: int, seed: int, options: DataOptions
) -> grain.MapDataset:
    """Returns the batches of a part, as `data.king_james` does of the whole."""
    found = examples(part, split)
    if split == "train":
        return train_batches(
            found, batch_size, seed, options=options, prepare=data.shift
        )
    return eval_batches(found, batch_size, data.shift_and_weigh, options)


def counts(part: str) -> dict[str, Any]:
    """Returns the facts of a workload that count the examples of a part."""
    return {
        f"num_{split}_examples": len(examples(part, split)["tokens"])
        for split in ("train", "eval_train", "validation", "test")
    }
