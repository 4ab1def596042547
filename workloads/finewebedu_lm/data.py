"""Token streams of the language model, packed to sequences of fixed length.

At full scale the text is FineWeb-Edu (Penedo et al. 2024, arXiv:2406.17557), see
`prepare`. At mini scale it is the King James Bible, tokenised beforehand (see
`make_king_james`): chapters are the documents, one end-of-text token between them.
"""

import functools
import itertools
from pathlib import Path

import grain
import numpy as np

from algoperf.data.embedded import load_embedded
from algoperf.data.examples import DataOptions
from algoperf.data.pipeline import Batch, eval_batches, train_batches
from algoperf.data.source import DataSource
from workloads.finewebedu_lm import prepare

EMBEDDED = Path(__file__).parent / "embedded" / "king_james"
VOCAB_SIZE = 1024
END_OF_TEXT = 0
SEQUENCE_LENGTH = 64
NUM_TRAIN = 20_515
# Evaluation is to cost little beside training: it takes part of what is there for it.
NUM_EVAL_TRAIN = 32
NUM_VALIDATION = 256
NUM_TEST = 96
NUM_EXAMPLES = {
    "train": NUM_TRAIN,
    "eval_train": NUM_EVAL_TRAIN,
    "validation": NUM_VALIDATION,
    "test": NUM_TEST,
}


@functools.cache
def _load() -> dict[str, np.ndarray]:
    return load_embedded(EMBEDDED)


def tokens(split: str) -> np.ndarray:
    """Returns the stream of 'train', 'validation' or 'test': (tokens,) uint16."""
    return _load()[f"{split}_tokens"]


@functools.cache
def spellings() -> list[bytes]:
    """Returns the bytes of each token; end-of-text is a form feed."""
    arrays = _load()
    ends = np.cumsum(arrays["vocabulary_lengths"], dtype=np.int64)
    raw = arrays["vocabulary_bytes"].tobytes()
    return [b"\f", *(raw[a:b] for a, b in itertools.pairwise(ends))]


def decode(ids: np.ndarray) -> str:
    """Returns the text of token ids, of any shape; end-of-text is a form feed."""
    pieces = spellings()
    joined = b"".join(pieces[i] for i in np.ravel(ids))
    return joined.decode(errors="replace")


def pack(stream: np.ndarray, length: int) -> np.ndarray:
    """Cuts a stream into (sequences, length + 1); neighbours share one token.

    So each token but the first is predicted once; a rest shorter than `length` is
    left out.
    """
    starts = np.arange(0, len(stream) - length, length)
    return stream[starts[:, None] + np.arange(length + 1)]


def shift(batch: Batch) -> Batch:
    """Maps 'tokens' (B, L + 1) to 'inputs' and 'targets', both (B, L) int32."""
    ids = batch["tokens"].astype(np.int32)
    return {"inputs": ids[:, :-1], "targets": ids[:, 1:]}


def shift_and_weigh(batch: Batch) -> Batch:
    """As `shift`, with a weight of 1 for each target."""
    shifted = shift(batch)
    return {**shifted, "weights": np.ones(shifted["targets"].shape, np.float32)}


def examples(split: str) -> dict[str, np.ndarray]:
    """Returns 'tokens' (n, L + 1) of a split; a part of one is spread over it."""
    name = "train" if split == "eval_train" else split
    packed = pack(tokens(name), SEQUENCE_LENGTH)
    wanted = NUM_EXAMPLES[split]
    return {"tokens": packed[np.arange(wanted) * len(packed) // wanted]}


def king_james(
    split: str, batch_size: int, seed: int, options: DataOptions
) -> grain.MapDataset:
    """Returns the batches of 'train' (endless) or of an evaluation split."""
    if split == "train":
        return train_batches(
            examples("train"),
            batch_size,
            seed,
            options=options,
            prepare=shift,
        )
    return eval_batches(examples(split), batch_size, shift_and_weigh, options)


DATA_SOURCE = DataSource(
    name="finewebedu_lm",
    instructions=prepare.INSTRUCTIONS,
    prepare=prepare.prepare,
    count=prepare.count,
    num_examples={
        "train": prepare.NUM_TRAIN,
        "validation": prepare.NUM_VALIDATION,
    },
)
# Of the published workload, which has no test split.
FULL_NUM_EVAL_TRAIN = 10_000


def fineweb_edu(
    split: str, batch_size: int, seed: int, options: DataOptions
) -> grain.MapDataset:
    """Returns the batches of 'train' (endless), 'eval_train' or 'validation'.

    'inputs' and 'targets' are (B, 1024) int32; rows are read from disk when needed.
    """
    folder = DATA_SOURCE.folder(options.folder)
    if split == "train":
        return train_batches(
            {"tokens": prepare.rows(folder, "train")},
            batch_size,
            seed,
            options=options,
            prepare=shift,
        )
    rows = prepare.rows(folder, "train" if split == "eval_train" else split)
    if split == "eval_train":  # spread over the training set
        wanted = min(FULL_NUM_EVAL_TRAIN, len(rows))
        rows = rows[:: len(rows) // wanted][:wanted]
    return eval_batches({"tokens": rows}, batch_size, shift_and_weigh, options)
