"""Pairs of German and English sentences as subwords, packed or padded to 256.

Training pairs are those of WMT 2017, validation and test pairs newstest2013 and 2014 of
WMT 2014, from TensorFlow Datasets. Subwords are learned from the first 10 million
characters of the training pairs, both languages together. A training row takes pairs as
long as source and target fit; pairs with more than 256 subwords on a side are left out,
as published. In evaluation each pair has a row of its own, cut at 256.

The mini scale has its own pairs (`bible`), and the same rows.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
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
    """The pairs of a split, in flat arrays."""

    def __init__(self, lengths: np.ndarray, ids: np.ndarray, name: str):
        """Takes lengths (pairs, 2) of source and target, and the ids of all pairs.

        Raises:
          DataError: they do not belong together; `name` says what is broken.
        """
        total = int(lengths.sum(dtype=np.int64))
        if lengths.ndim != 2 or total != len(ids):
            raise DataError(f"{name} has {len(ids):,} ids, expected {total:,}")
        self.lengths = lengths
        self._ids = ids
        both = lengths.sum(axis=1, dtype=np.int64)
        self._starts = np.cumsum(both) - both

    def __len__(self) -> int:
        return len(self.lengths)

    def fitting(self, length: int) -> np.ndarray:
        """Returns the indices of the pairs that fit into a row of `length`."""
        return np.flatnonzero((self.lengths <= length).all(axis=1))

    def side(self, members: np.ndarray, side: int) -> np.ndarray:
        """Returns the ids of the members, one after another; side 0 is the source."""
        starts = self._starts[members] + (self.lengths[members, 0] if side else 0)
        return self._ids[ranges(starts, self.lengths[members, side])]


def open_pairs(folder: Path, split: str) -> Pairs:
    """Returns the pairs of a prepared split; ids are mapped from disk."""
    path = folder / f"{split}.ids"
    try:
        lengths = np.load(folder / f"{split}.lengths.npy")
        ids = mapped(path, np.uint16)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error})") from error
    return Pairs(lengths, ids, str(path))


class TrainBatches:
    """`self[i]`: batch number i of packed rows; see `batches`."""

    def __init__(
        self,
        pairs: Pairs,
        length: int,
        batch_size: int,
        seed: int,
        options: DataOptions,
    ):
        self._pairs = pairs
        self._length = length
        self._batch_size = batch_size
        self._rows = options.rows(batch_size)
        self._fitting = pairs.fitting(length)
        if not len(self._fitting):
            raise UserError(f"no training pair fits into {length} subwords")
        limits = np.array([length, length])
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
        place = ranges(row * self._length + start - row_start[row], lengths)
        arrays = {
            name: self._pairs.side(pairs, side),
            f"{name}_position": ranges(np.zeros_like(lengths), lengths),
            f"{name}_segmentation": np.repeat(number, lengths),
        }
        out = {}
        for key, values in arrays.items():
            flat = np.zeros(len(members) * self._length, np.int32)
            flat[place] = values
            out[key] = flat.reshape(-1, self._length)
        return out


class _Rows:
    """One pair a row, for evaluation."""

    def __init__(self, pairs: Pairs, length: int, chosen: np.ndarray):
        self._pairs, self._length, self._chosen = pairs, length, chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: int) -> Batch:
        member = self._chosen[index : index + 1]
        example = {}
        for side, name in enumerate(("inputs", "targets")):
            ids = self._pairs.side(member, side)[: self._length]
            example[name] = np.zeros(self._length, np.int32)
            example[name][: len(ids)] = ids
        weights = (example["targets"] != PAD).astype(np.float32)
        return {**example, "weights": weights}


def batches(
    split: str,
    pairs: Pairs,
    length: int,
    num_eval_train: int,
    batch_size: int,
    seed: int,
    options: DataOptions,
) -> grain.MapDataset:
    """Returns the batches of 'train' (endless) or of an evaluation split.

    All have 'inputs' and 'targets' (B, length) int32, 0 on padding, and 'weights'
    (B, length) float32, 0 where 'targets' is. Those of 'train' hold several pairs a
    row, with 'inputs_position', 'inputs_segmentation' (from 1), 'targets_position' and
    'targets_segmentation', (B, length) int32. 'eval_train' is `num_eval_train` of the
    training pairs, spread over the set.

    Args:
      split: 'train', 'eval_train', 'validation' or 'test'.
      pairs: of this split, for 'eval_train' those of 'train'.
      length: of a row, in subwords.
      num_eval_train: at most so many training pairs are evaluated.
      batch_size: rows of a batch on all hosts together.
      seed: fixes the order of training pairs.
      options: which rows are made here.
    """
    if split == "train":
        return grain.MapDataset.source(
            TrainBatches(pairs, length, batch_size, seed, options)
        )
    chosen = np.arange(len(pairs))
    if split == "eval_train":
        fitting = pairs.fitting(length)
        wanted = min(num_eval_train, len(fitting))
        chosen = fitting[np.arange(wanted) * len(fitting) // wanted]
    return eval_examples(
        _Rows(pairs, length, chosen), batch_size, options, lambda example, _: example
    )


def pipeline(
    split: str, batch_size: int, seed: int, options: DataOptions
) -> grain.MapDataset:
    """Returns the batches of WMT, of rows of 256; see `batches`."""
    folder = DATA_SOURCE.folder(options.folder)
    pairs = open_pairs(folder, "train" if split == "eval_train" else split)
    return batches(split, pairs, MAX_LENGTH, NUM_EVAL_TRAIN, batch_size, seed, options)


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
    vocabulary.write_bytes(learn_vocabulary(_sample(train), vocab_size))
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


def learn_vocabulary(texts: Iterator[str], vocab_size: int) -> bytes:
    """Learns the subwords of both languages; returns the model."""
    ids = {"pad_id": PAD, "bos_id": START, "eos_id": END, "unk_id": UNKNOWN}
    return sentencepiece.trained(texts, vocab_size, **ids)


def encode(
    pairs: Sequence[tuple[str, str]], processor: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Returns lengths (pairs, 2) int32 and the ids of all pairs, uint16, with ends."""
    texts = [text for pair in pairs for text in pair]
    ids = processor.encode(texts, add_eos=True)
    lengths = np.array([len(i) for i in ids], np.int32).reshape(-1, 2)
    return lengths, np.concatenate([np.array(i, np.uint16) for i in ids])


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
            sizes, ids = encode(chunk, processor)
            file.write(ids.tobytes())
            lengths.append(sizes)
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
    return {split: len(open_pairs(folder, split)) for split in SPLITS}


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
