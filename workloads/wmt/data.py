"""Pairs of German and English sentences as subwords, packed or padded to 256.

Training pairs are those of WMT 2017, validation and test pairs newstest2013 and 2014 of
WMT 2014, from TensorFlow Datasets. Subwords are learned from the first 10 million
characters of the training pairs, both languages together. A training row takes pairs as
long as source and target fit; pairs with more than 256 subwords on a side are left out,
as published. In evaluation each pair has a row of its own, cut at 256.
"""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grain
import numpy as np

from algoperf.data import tfds
from algoperf.data.examples import (
    DataError,
    DataOptions,
    OnCorrupt,
    end,
    eval_examples,
)
from algoperf.data.mapped import mapped
from algoperf.data.packing import Packing, ranges
from algoperf.data.pipeline import ENDLESS, Batch
from algoperf.data.source import DataSource
from algoperf.errors import UserError
from workloads.common import sentencepiece

VOCAB_SIZE = 32_000
PAD, START, END, UNKNOWN = 0, 1, 2, 3
MAX_LENGTH = 256
NUM_TRAIN = 5_906_184
NUM_EVAL_TRAIN = 3_072
NUM_VALIDATION = 3_000
NUM_TEST = 3_003
VOCABULARY = "vocabulary.model"
VOCABULARY_CHARACTERS = 10_000_000
PAIRS_AT_ONCE = 4096
SPLITS = {  # -> data set and split in TensorFlow Datasets
    "train": ("wmt17_translate/de-en/1.0.0", "train"),
    "validation": ("wmt14_translate/de-en/1.0.0", "validation"),
    "test": ("wmt14_translate/de-en/1.0.0", "test"),
}

INSTRUCTIONS = """
WMT 2017 and 2014, German and English, as tensorflow-datasets stores them, about 4 GB:
  python -c "import tensorflow_datasets as tfds; [tfds.builder(name, data_dir='DIR',
  file_format='array_record').download_and_prepare() for name in
  ('wmt17_translate/de-en:1.0.0', 'wmt14_translate/de-en:1.0.0')]"
which downloads them from https://statmt.org (for research; needs TensorFlow, once: pip
install 'algoperf[prepare]'). Give DIR as --raw: it then holds
wmt17_translate/de-en/1.0.0 and wmt14_translate/de-en/1.0.0. The prepared set takes
0.8 GB.
"""


class Pairs:
    """The pairs of a split, in flat arrays; ids are mapped from disk."""

    def __init__(self, folder: Path, split: str):
        self._path = folder / f"{split}.ids"
        try:
            self.lengths = np.load(folder / f"{split}.lengths.npy")  # (pairs, 2)
            self._ids = mapped(self._path, np.uint16)
        except (OSError, ValueError) as error:
            raise DataError(f"{self._path} cannot be read ({error})") from error
        total = int(self.lengths.sum(dtype=np.int64))
        if self.lengths.ndim != 2 or total != len(self._ids):
            raise DataError(
                f"{self._path} has {len(self._ids):,} ids, expected {total:,}"
            )
        both = self.lengths.sum(axis=1, dtype=np.int64)
        self._starts = np.cumsum(both) - both

    def __len__(self) -> int:
        return len(self.lengths)

    def fitting(self) -> np.ndarray:
        """Returns the indices of the pairs that fit into a row."""
        return np.flatnonzero((self.lengths <= MAX_LENGTH).all(axis=1))

    def side(self, members: np.ndarray, side: int) -> np.ndarray:
        """Returns the ids of the members, one after another; side 0 is the source."""
        starts = self._starts[members] + (self.lengths[members, 0] if side else 0)
        return self._ids[ranges(starts, self.lengths[members, side])]


class TrainBatches:
    """`self[i]`: batch number i of packed rows; see `pipeline`."""

    def __init__(self, pairs: Pairs, batch_size: int, seed: int, options: DataOptions):
        self._pairs = pairs
        self._batch_size = batch_size
        self._rows = options.rows(batch_size)
        self._fitting = pairs.fitting()
        if not len(self._fitting):
            raise UserError(f"no training pair fits into {MAX_LENGTH} subwords")
        limits = np.array([MAX_LENGTH, MAX_LENGTH])
        self._packing = Packing(pairs.lengths[self._fitting], limits, seed)

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, position: int) -> Batch:
        first = position * self._batch_size
        numbers = range(first, first + self._batch_size)[self._rows]
        members = [self._fitting[self._packing.row(number)] for number in numbers]
        batch: Batch = {}
        for side, name in enumerate(("inputs", "targets")):
            batch |= self._packed(members, side, name)
        weights = (batch["targets"] != PAD).astype(np.float32)
        return {**batch, "weights": weights}

    def _packed(self, members: list[np.ndarray], side: int, name: str) -> Batch:
        """Lays one side of the rows' pairs one after another."""
        per_row = np.array([len(row) for row in members])
        pairs = np.concatenate(members)
        lengths = self._pairs.lengths[pairs, side].astype(np.int64)
        row = np.repeat(np.arange(len(members)), per_row)
        number = ranges(np.ones(len(members), np.int64), per_row)  # within the row
        # Where each pair starts in all rows laid end to end, without padding, and
        # where its row does.
        start = np.cumsum(lengths) - lengths
        row_start = start[np.cumsum(per_row) - per_row]
        place = ranges(row * MAX_LENGTH + start - row_start[row], lengths)
        arrays = {
            name: self._pairs.side(pairs, side),
            f"{name}_position": ranges(np.zeros_like(lengths), lengths),
            f"{name}_segmentation": np.repeat(number, lengths),
        }
        out = {}
        for key, values in arrays.items():
            flat = np.zeros(len(members) * MAX_LENGTH, np.int32)
            flat[place] = values
            out[key] = flat.reshape(-1, MAX_LENGTH)
        return out


class _Rows:
    """One pair a row, for evaluation."""

    def __init__(self, pairs: Pairs, chosen: np.ndarray):
        self._pairs, self._chosen = pairs, chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Batch:
        member = self._chosen[index : index + 1]
        example = {}
        for side, name in enumerate(("inputs", "targets")):
            ids = self._pairs.side(member, side)[:MAX_LENGTH]
            example[name] = np.zeros(MAX_LENGTH, np.int32)
            example[name][: len(ids)] = ids
        weights = (example["targets"] != PAD).astype(np.float32)
        return {**example, "weights": weights}


def pipeline(
    split: str, batch_size: int, seed: int, options: DataOptions
) -> grain.MapDataset:
    """Returns the batches of 'train' (endless) or of an evaluation split.

    All have 'inputs' and 'targets' (B, 256) int32, 0 on padding, and 'weights' (B, 256)
    float32, 0 where 'targets' is. Those of 'train' hold several pairs a row, with
    'inputs_position', 'inputs_segmentation' (from 1), 'targets_position' and
    'targets_segmentation', (B, 256) int32. 'eval_train' is 3,072 training pairs, spread
    over the set.
    """
    folder = DATA_SOURCE.folder(options.folder)
    pairs = Pairs(folder, "train" if split == "eval_train" else split)
    if split == "train":
        return grain.MapDataset.source(TrainBatches(pairs, batch_size, seed, options))
    chosen = np.arange(len(pairs))
    if split == "eval_train":
        fitting = pairs.fitting()
        wanted = min(NUM_EVAL_TRAIN, len(fitting))
        chosen = fitting[np.arange(wanted) * len(fitting) // wanted]
    return eval_examples(
        _Rows(pairs, chosen), batch_size, options, lambda example, _: example
    )


def load_vocabulary(data_dir: Path | None) -> Any:
    """Returns the `SentencePieceProcessor` of the prepared set."""
    return sentencepiece.load(DATA_SOURCE.folder(data_dir) / VOCABULARY)


def prepare(
    raw: Path,
    folder: Path,
    say: Callable[[str], None],
    vocab_size: int = VOCAB_SIZE,
    on_corrupt: OnCorrupt = end,
) -> None:
    """Learns the subwords, and writes the ids of all pairs.

    Raises:
      UserError: a data set is missing or broken.
    """
    for data_set in sorted({name for name, _ in SPLITS.values()}):
        if not (raw / data_set).is_dir():
            raise UserError(
                f"{raw} holds no {data_set}; algoperf data prepare wmt says how to "
                "get it"
            )
    say("learning subwords")
    train = _texts(raw, "train", on_corrupt)
    vocabulary = folder / VOCABULARY
    sentencepiece.learn(
        _sample(train), vocabulary, vocab_size,
        pad_id=PAD, bos_id=START, eos_id=END, unk_id=UNKNOWN,
    )  # fmt: skip
    processor = sentencepiece.load(vocabulary)
    for split in SPLITS:
        _encode(_texts(raw, split, on_corrupt), processor, folder, split, say)


def _texts(raw: Path, split: str, on_corrupt: OnCorrupt) -> Iterator[tuple[str, str]]:
    """Yields the pairs of a split: German, English."""
    data_set, name = SPLITS[split]
    source = tfds.open_split(raw / data_set, name)
    for index in range(len(source)):
        try:
            record = source[index]
            pair = record["de"].decode(), record["en"].decode()
        except (KeyError, AttributeError, ValueError) as error:
            on_corrupt(
                DataError(
                    f"{raw / data_set} {name}, record {index}: no pair of texts 'de' "
                    f"and 'en' ({error})"
                )
            )
        else:
            yield pair


def _sample(pairs: Iterator[tuple[str, str]]) -> Iterator[str]:
    """Yields the sentences that the subwords are learned from."""
    characters = 0
    for pair in pairs:
        yield from pair
        characters += sum(map(len, pair))
        if characters >= VOCABULARY_CHARACTERS:
            break


def _encode(
    pairs: Iterator[tuple[str, str]],
    processor: Any,
    folder: Path,
    split: str,
    say: Callable[[str], None],
) -> None:
    lengths: list[np.ndarray] = []
    with (folder / f"{split}.ids").open("wb") as file:
        for chunk in _chunks(pairs):
            texts = [text for pair in chunk for text in pair]
            ids = processor.encode(texts, add_eos=True)
            file.write(np.concatenate([np.array(i, np.uint16) for i in ids]).tobytes())
            sizes = np.array([len(i) for i in ids], np.int32)
            lengths.append(sizes.reshape(-1, 2))
            if len(lengths) % 100 == 0:
                say(f"{split}: {len(lengths) * PAIRS_AT_ONCE:,} pairs")
    joined = np.concatenate([np.zeros((0, 2), np.int32), *lengths])
    np.save(folder / f"{split}.lengths.npy", joined)
    say(f"{split}: {len(joined):,} pairs")


def _chunks(pairs: Iterator[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    while chunk := list(itertools.islice(pairs, PAIRS_AT_ONCE)):
        yield chunk


def count(folder: Path) -> dict[str, int]:
    """Returns the number of pairs of each split."""
    return {split: len(Pairs(folder, split)) for split in SPLITS}


DATA_SOURCE = DataSource(
    name="wmt",
    instructions=INSTRUCTIONS,
    prepare=prepare,
    count=count,
    num_examples={
        "train": NUM_TRAIN,
        "validation": NUM_VALIDATION,
        "test": NUM_TEST,
    },
)
