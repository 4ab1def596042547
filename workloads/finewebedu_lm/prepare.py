"""Turns the FineWeb-Edu sample of 10 billion tokens into packed sequences of ids.

Documents are tokenised with the byte-level BPE of GPT-2, each followed by the
end-of-text token, and joined; the stream is cut into rows of 1,025 ids, of which 1,024
are inputs and, one further on, 1,024 targets. A document goes to the validation set by
a draw of its own, until that set is full.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from algoperf.data.examples import DataError, OnCorrupt, end
from algoperf.data.mapped import mapped
from algoperf.errors import UserError

SEQUENCE_LENGTH = 1024
NUM_TRAIN = 8_749_870
NUM_VALIDATION = 100_000
END_OF_TEXT = 50_256
# The sample holds about 9.67 million documents; about 2 in 100 fill the validation set
# well before its end, however long the drawn ones are.
VALIDATION_SHARE = 0.02
SPLIT_SEED = 2024
DOCUMENTS_AT_ONCE = 1024

INSTRUCTIONS = """
FineWeb-Edu, sample of 10 billion tokens (licence ODC-By 1.0), about 29 GB:
  https://huggingface.co/datasets/HuggingFaceFW/fineweb-edu, folder sample/10BT
  (14 parquet files), for example with
  hf download HuggingFaceFW/fineweb-edu --repo-type dataset --include "sample/10BT/*"
The vocabulary of GPT-2 (MIT licence), 1.5 MB:
  vocab.json and merges.txt of https://huggingface.co/openai-community/gpt2
Put the parquet files (or .jsonl files with a field "text", or .txt files with one
document each) and the two vocabulary files into one folder; subfolders are searched.
The prepared set takes 18 GB.
"""


class RowWriter:
    """Cuts a stream of ids into rows of one length, in a file of uint16."""

    def __init__(self, path: Path, row_length: int, max_rows: int):
        self._file = path.open("wb")
        self._row_length = row_length
        self._rest = np.zeros(0, np.uint16)
        self._max_rows = max_rows
        self.num_rows = 0

    @property
    def is_full(self) -> bool:
        """Whether all rows that are wanted have been written."""
        return self.num_rows == self._max_rows

    def add(self, ids: np.ndarray) -> None:
        """Appends ids (n,) to the stream; drops them once all rows are written."""
        if self.is_full:  # else what is left over would grow, and be copied each time
            return
        stream = np.concatenate([self._rest, ids.astype(np.uint16)])
        rows = min(len(stream) // self._row_length, self._max_rows - self.num_rows)
        self._file.write(stream[: rows * self._row_length].tobytes())
        self._rest = stream[rows * self._row_length :]
        self.num_rows += rows

    def close(self) -> None:
        """Closes the file; ids that fill no row are dropped."""
        self._file.close()


def prepare(
    raw: Path,
    folder: Path,
    say: Callable[[str], None],
    num_train: int = NUM_TRAIN,
    num_validation: int = NUM_VALIDATION,
    validation_share: float = VALIDATION_SHARE,
    on_corrupt: OnCorrupt = end,
) -> None:
    """Writes `train.bin` and `validation.bin`, rows of 1,025 uint16.

    Raises:
      UserError: the vocabulary or all documents are missing, or a file is broken.
    """
    tokenizer = _load_tokenizer(raw)
    files = document_files(raw)
    draws = np.random.default_rng(SPLIT_SEED)
    row_length = SEQUENCE_LENGTH + 1
    train = RowWriter(folder / "train.bin", row_length, num_train)
    validation = RowWriter(folder / "validation.bin", row_length, num_validation)
    for number, file in enumerate(files):
        say(
            f"{file.name} ({number + 1} of {len(files)}): {train.num_rows:,} training "
            f"and {validation.num_rows:,} validation sequences so far"
        )
        for texts in _chunks(documents(file, on_corrupt)):
            for encoding in tokenizer.encode_batch(texts):
                ids = np.array([*encoding.ids, END_OF_TEXT], np.uint16)
                is_drawn = draws.random() < validation_share
                (validation if is_drawn and not validation.is_full else train).add(ids)
            if train.is_full and validation.is_full:
                break
        if train.is_full and validation.is_full:
            break
    train.close()
    validation.close()


def count(folder: Path) -> dict[str, int]:
    """Returns the number of sequences of each split."""
    return {split: len(rows(folder, split)) for split in ("train", "validation")}


def rows(folder: Path, split: str) -> np.ndarray:
    """Returns the sequences of a split: (sequences, 1025) uint16, mapped from disk.

    Raises:
      DataError: the file is missing or no whole number of rows.
    """
    path = folder / f"{split}.bin"
    row_bytes = 2 * (SEQUENCE_LENGTH + 1)
    size = path.stat().st_size if path.is_file() else 0
    if size == 0 or size % row_bytes:
        raise DataError(
            f"{path} has {size:,} bytes, no whole number of rows of {row_bytes:,}; "
            "delete its folder and run algoperf data prepare finewebedu_lm again"
        )
    shape = (size // row_bytes, SEQUENCE_LENGTH + 1)
    return mapped(path, np.uint16, shape)


def document_files(raw: Path) -> list[Path]:
    """Returns the files that hold documents, in the order of their names.

    Raises:
      UserError: there is none.
    """
    found: list[Path] = []
    for pattern in ("*.parquet", "*.jsonl", "*.txt"):
        found += [p for p in sorted(raw.rglob(pattern)) if p.name != "merges.txt"]
    if not found:
        raise UserError(
            f"{raw} holds no .parquet, .jsonl or .txt files of documents; "
            "algoperf data prepare finewebedu_lm says what to download"
        )
    return found


def documents(file: Path, on_corrupt: OnCorrupt = end) -> Iterator[str]:
    """Yields the texts of a file; empty ones are passed over.

    Raises:
      DataError: from `on_corrupt`, the file is broken, or has no texts.
    """
    readers = {".parquet": _parquet, ".jsonl": _json_lines, ".txt": _text}
    try:
        for text in readers[file.suffix](file, on_corrupt):
            if text:
                yield text
    except (OSError, ValueError) as error:  # pyarrow's errors are of these kinds too
        text = " ".join(str(error).split())[:200]
        on_corrupt(DataError(f"{file} cannot be read ({text}); download it again"))


def _parquet(file: Path, on_corrupt: OnCorrupt) -> Iterator[str]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            "reading parquet needs pyarrow: pip install 'algoperf[full]'"
        ) from error
    with pyarrow.parquet.ParquetFile(file) as table:
        if "text" not in table.schema_arrow.names:
            on_corrupt(DataError(f"{file} has no column 'text'"))
            return
        for batch in table.iter_batches(columns=["text"]):
            yield from batch.column(0).to_pylist()


def _json_lines(file: Path, on_corrupt: OnCorrupt) -> Iterator[str]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                text = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError):
                message = "no JSON object with a field 'text'"
                on_corrupt(DataError(f"{file}, line {number}: {message}"))
            else:
                yield text


def _text(file: Path, on_corrupt: OnCorrupt) -> Iterator[str]:
    del on_corrupt  # a file is one document
    yield file.read_text(encoding="utf-8")


def _chunks(texts: Iterator[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    for text in texts:
        chunk.append(text)
        if len(chunk) == DOCUMENTS_AT_ONCE:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _load_tokenizer(raw: Path) -> Any:
    """Returns GPT-2's tokenizer from `vocab.json` and `merges.txt`."""
    found = {}
    for name in ("vocab.json", "merges.txt"):
        paths = sorted(raw.rglob(name))
        if not paths:
            raise UserError(
                f"{raw} holds no {name} of GPT-2; algoperf data prepare finewebedu_lm "
                "says where to get it"
            )
        found[name] = paths[0]
    try:
        from tokenizers import ByteLevelBPETokenizer
    except ImportError as error:
        raise UserError(
            "tokenising needs the package tokenizers: pip install 'algoperf[prepare]'"
        ) from error
    try:
        return ByteLevelBPETokenizer(
            str(found["vocab.json"]), str(found["merges.txt"]), add_prefix_space=False
        )
    except Exception as error:  # tokenizers raises plain Exception
        raise DataError(
            f"{found['vocab.json']} and merges.txt are no vocabulary of GPT-2: {error}"
        ) from error
