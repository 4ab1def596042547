"""Molecules of the blood-brain barrier database B3DB, the assays of the mini scale.

Real molecules with 64 tasks: whether it was measured not to pass the barrier, and 63
computed properties (see `b3db_tasks`), some of the labels left out at random as in
ogbg-molpcba. No Bemis-Murcko framework (rings and what links them) is in two splits.
Because the database has only 4,000 different structures, training has molecules more
that were recombined from halves of its own ones, with an unknown first label; all
validation and test molecules are real. Batches are those of the full scale.
"""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

import grain
import numpy as np

from algoperf.data.embedded import load_embedded
from algoperf.data.examples import DataOptions
from workloads.ogbg import data

EMBEDDED = Path(__file__).parent / "embedded" / "b3db"
NUM_TASKS = 64
NUM_TRAIN = 12_000
NUM_EVAL_TRAIN = 128
NUM_VALIDATION = NUM_TEST = 500
SIZES = {"train": NUM_TRAIN, "validation": NUM_VALIDATION, "test": NUM_TEST}
# A framework with more molecules is in training.
MAX_HELD_OUT_GROUP = 20


def split(frameworks: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns the indices of the molecules of each split, ascending.

    Frameworks are taken in the order of their SHA-256; small ones fill validation, then
    test, as long as they fit. '' (no ring) is a framework like others.
    """
    groups: dict[str, list[int]] = {}
    for index, framework in enumerate(frameworks):
        groups.setdefault(framework, []).append(index)
    found: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for framework in sorted(groups, key=_digest):
        members = groups[framework]
        fits = [
            name
            for name in ("validation", "test")
            if len(members) <= MAX_HELD_OUT_GROUP
            and len(found[name]) + len(members) <= SIZES[name]
        ]
        found[fits[0] if fits else "train"] += members
    return {name: np.sort(np.array(members)) for name, members in found.items()}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def molecules(name: str) -> data.Molecules:
    """Returns the molecules of 'train', 'validation' or 'test'."""
    arrays = load_embedded(EMBEDDED)
    first, last = _rows(name)
    sizes = arrays["sizes"].astype(np.int64)
    # The file lists one feature of all atoms or bonds after another.
    atoms, bonds = (
        slice(column[:first].sum(), column[:last].sum()) for column in sizes.T
    )
    return data.Molecules(
        {
            "nodes": np.ascontiguousarray(arrays["nodes"].T[atoms]),
            "bonds": np.ascontiguousarray(arrays["bonds"].T[bonds]),
            "ends": arrays["ends"].T[bonds].astype(np.uint16),
            "labels": arrays["labels"][first:last],
            "sizes": sizes[first:last],
        },
        f"{EMBEDDED} {name}",
    )


def _rows(name: str) -> tuple[int, int]:
    """Returns the first molecule of a split in the file, and the one after it."""
    names = list(SIZES)
    first = sum(SIZES[before] for before in names[: names.index(name)])
    return first, first + SIZES[name]


def pipeline(
    split: str, batch_size: int, seed: int, options: DataOptions
) -> grain.MapDataset:
    """Returns the batches of 'train' (endless) or of an evaluation split."""
    source = molecules("train" if split == "eval_train" else split)
    return data.batched(source, split, NUM_EVAL_TRAIN, batch_size, seed, options)
