"""Turns Criteo's click logs into rows of integers, shuffled once.

A line of the logs is a label, 13 integers and 26 categories of 8 hexadecimal digits,
with tabs between; fields may be empty. A row is 40 int32: the label, the integers (-1
where empty), and for each category its bucket among `VOCAB_SIZES`. The bucket is that
of TensorFlow's `to_hash_bucket_fast`, of the digits with the column's number behind.

Training rows (days 0 to 22) are shuffled globally while they are converted: each goes
to one of many files at random, then each file is shuffled in memory.
"""

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from algoperf.data.examples import DataError, OnCorrupt, end
from algoperf.errors import UserError

NUM_INTEGERS = 13
VOCAB_SIZES = (
    *(39_884_406, 39_043, 17_289, 7_420, 20_263, 3, 7_120, 1_543, 63, 38_532_951),
    *(2_953_546, 403_346, 10, 2_208, 11_938, 155, 4, 976, 14, 39_979_771),
    *(25_641_295, 39_664_984, 585_935, 12_972, 108, 36),
)
NUM_CATEGORIES = len(VOCAB_SIZES)
ROW_INTEGERS = 1 + NUM_INTEGERS + NUM_CATEGORIES
ROW_BYTES = 4 * ROW_INTEGERS
EMPTY = b"00000000"  # what an empty category counts as
NUM_TRAIN = 4_195_197_692
NUM_VALIDATION = 83_274_637
NUM_TEST = 95_000_000  # the first of day 23; the rest of it is for validation
TRAIN_DAYS = range(23)
LAST_DAY = 23
SHUFFLE_SEED = 1_000
BUCKET_BYTES = 2**30
LINE_BYTES = 250  # of the logs, about

INSTRUCTIONS = """
Criteo 1 TB click logs (CC BY-NC-SA 4.0), 24 days, 340 GB compressed, 1.1 TB plain:
  day_0.gz ... day_23.gz from
  https://huggingface.co/datasets/criteo/CriteoClickLogs
Put them into one folder, compressed or not. Parts named day_0_00, day_0_01, ... are
taken too. The prepared set takes 700 GB.
"""


def prepare(
    raw: Path,
    folder: Path,
    say: Callable[[str], None],
    num_test: int = NUM_TEST,
    bucket_bytes: int = BUCKET_BYTES,
    on_corrupt: OnCorrupt = end,
) -> None:
    """Writes `train.bin`, `test.bin` and `validation.bin`, rows of 40 int32.

    The first `num_test` lines of the last day are for the test, whichever lines are
    passed over.

    Raises:
      UserError: a day is missing, or a line is broken.
    """
    days = [day_files(raw, day) for day in (*TRAIN_DAYS, LAST_DAY)]
    files = [file for files in days[:-1] for file in files]
    _shuffle(files, folder, say, bucket_bytes, on_corrupt)
    say(f"day {LAST_DAY}, in order")
    test_file, validation_file = folder / "test.bin", folder / "validation.bin"
    with test_file.open("wb") as test, validation_file.open("wb") as validation:
        for rows, places in placed_rows(days[-1], on_corrupt):
            of_test = np.searchsorted(places, num_test)
            test.write(rows[:of_test].tobytes())
            validation.write(rows[of_test:].tobytes())


def _shuffle(
    files: list[Path],
    folder: Path,
    say: Callable[[str], None],
    bucket_bytes: int,
    on_corrupt: OnCorrupt,
) -> None:
    """Writes all rows of the files to `train.bin`, in an order of chance."""
    size = sum(
        file.stat().st_size * (4 if file.suffix == ".gz" else 1) for file in files
    )
    num_buckets = max(1, round(size / LINE_BYTES * ROW_BYTES / bucket_bytes))
    rng = np.random.default_rng(SHUFFLE_SEED)
    paths = [folder / f"bucket_{i}.tmp" for i in range(num_buckets)]
    with contextlib.ExitStack() as stack:
        buckets = [stack.enter_context(path.open("wb")) for path in paths]
        for number, file in enumerate(files, start=1):
            say(f"{file.name} ({number} of {len(files)})")
            for rows in read_rows(file, on_corrupt):
                bucket_of = rng.integers(num_buckets, size=len(rows))
                order = np.argsort(bucket_of, kind="stable")
                ends = np.cumsum(np.bincount(bucket_of, minlength=num_buckets))
                parts = np.split(rows[order], ends[:-1])
                for bucket, part in zip(buckets, parts, strict=True):
                    bucket.write(part.tobytes())
    with (folder / "train.bin").open("wb") as out:
        for number, path in enumerate(paths, start=1):
            say(f"shuffling part {number} of {num_buckets}")
            rows = np.fromfile(path, np.int32).reshape(-1, ROW_INTEGERS)
            out.write(rows[rng.permutation(len(rows))].tobytes())
            path.unlink()


def day_files(raw: Path, day: int) -> list[Path]:
    """Returns the files of a day, in order.

    Raises:
      UserError: there is none.
    """
    found = [
        path for path in (raw / f"day_{day}", raw / f"day_{day}.gz") if path.exists()
    ]
    found = found[:1] or sorted(raw.glob(f"day_{day}_*"))
    if not found:
        raise UserError(
            f"{raw} holds no day_{day} or day_{day}.gz; algoperf data prepare "
            "criteo1tb says what to download"
        )
    return found


def read_rows(file: Path, on_corrupt: OnCorrupt = end) -> Iterator[np.ndarray]:
    """Yields the rows of a file of logs: (rows, 40) int32.

    Raises:
      DataError: a line has another number of fields, or a field that is no number or
        no 8 digits; or what `on_corrupt` raises. A file that breaks off is always an
        error.
    """
    for rows, _ in placed_rows([file], on_corrupt):
        yield rows


def placed_rows(
    files: Sequence[Path], on_corrupt: OnCorrupt = end
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields rows as `read_rows` does, and the places (rows,) of their lines.

    Places are counted from 0 through all files; lines that are passed over have theirs.
    """
    before = 0
    for file in files:
        before = yield from _placed_rows(file, before, on_corrupt)


def _placed_rows(
    file: Path, before: int, on_corrupt: OnCorrupt
) -> Generator[tuple[np.ndarray, np.ndarray], None, int]:
    """As `placed_rows`, of a file behind so many lines; returns the lines so far."""
    try:
        import pyarrow
        from pyarrow import csv
    except ImportError as error:
        raise UserError(
            "reading the logs needs pyarrow: pip install 'algoperf[full]'"
        ) from error
    names = [f"field {i}" for i in range(ROW_INTEGERS)]
    # Numbers that pyarrow parses end the file at the first one that is none.
    number = pyarrow.int32() if on_corrupt is end else pyarrow.binary()
    types = {
        name: number if i <= NUM_INTEGERS else pyarrow.binary()
        for i, name in enumerate(names)
    }
    left_out: list[int] = []

    def pass_over(row: Any) -> str:
        if on_corrupt is end:
            return "error"
        message = f"{row.actual_columns} columns, not {row.expected_columns}"
        on_corrupt(DataError(f"{file}, line {row.number}: {message}"))
        left_out.append(row.number)
        return "skip"

    try:
        reader = csv.open_csv(
            file,
            read_options=csv.ReadOptions(
                column_names=names,
                block_size=2**24,
                use_threads=on_corrupt is end,  # else rows have no numbers
            ),
            parse_options=csv.ParseOptions(
                delimiter="\t",
                quote_char=False,
                ignore_empty_lines=False,
                invalid_row_handler=pass_over,
            ),
            convert_options=csv.ConvertOptions(
                column_types=types, null_values=[""], strings_can_be_null=True
            ),
        )
        first = 1
        for batch in reader:
            numbers = np.arange(first, first + len(batch) + len(left_out))
            lines = np.setdiff1d(numbers, left_out)[: len(batch)]
            rows, good_lines = _convert(batch, file, lines, on_corrupt)
            yield rows, before + good_lines - 1
            first = int(lines[-1]) + 1 if len(lines) else first
    except (pyarrow.ArrowInvalid, OSError, EOFError) as error:
        text = " ".join(str(error).split())[:300]
        raise DataError(f"{file} cannot be read: {text}") from error
    return before + max(first - 1, *left_out, 0)


def _convert(
    batch: Any, file: Path, lines: np.ndarray, on_corrupt: OnCorrupt
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows of a pyarrow RecordBatch, and from which of its lines."""
    rows = np.empty((len(batch), ROW_INTEGERS), np.int32)
    is_fine = np.ones(len(batch), bool)

    def leave_out(wrong: np.ndarray, column: int, what: str) -> None:
        for row in np.flatnonzero(wrong & is_fine):
            found = _text(batch.column(column)[int(row)].as_py())
            on_corrupt(DataError(f"{file}, line {lines[row]}: {what}: {found}"))
        is_fine[wrong] = False

    for i in range(1 + NUM_INTEGERS):
        rows[:, i], wrong = _integers(batch.column(i))
        leave_out(wrong, i, f"field {i} is no number")
    leave_out(~np.isin(rows[:, 0], (0, 1)), 0, "the label is not 0 or 1")
    for i in range(NUM_CATEGORIES):
        place = 1 + NUM_INTEGERS + i
        column = batch.column(place).fill_null(EMPTY)
        _, ends, digits = column.buffers()
        start, stop = column.offset, column.offset + len(column) + 1
        ends = np.frombuffer(ends, np.int32)[start:stop]
        wrong = np.diff(ends) != len(EMPTY)
        if wrong.any():
            leave_out(wrong, place, f"category {i} is not of 8 digits")
            continue
        keys = np.frombuffer(digits, np.uint8)[ends[0] : ends[-1]].reshape(-1, 8)
        rows[:, place] = buckets(keys, i)
    if is_fine.all():
        return rows, lines
    return _convert(batch.filter(is_fine), file, lines[is_fine], on_corrupt)


def _integers(column: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns a column's numbers, -1 where empty, and which ones are none."""
    import pyarrow

    if pyarrow.types.is_int32(column.type):
        filled = column.fill_null(-1).to_numpy(zero_copy_only=False)
        return filled, np.zeros(len(filled), bool)
    numbers, wrong = np.full(len(column), -1, np.int32), np.zeros(len(column), bool)
    for row, text in enumerate(column.to_pylist()):
        if text is not None:
            try:
                numbers[row] = int(text)
            except (ValueError, OverflowError):
                wrong[row] = True
    return numbers, wrong


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def buckets(digits: np.ndarray, column: int) -> np.ndarray:
    """Returns the bucket of each category (n, 8) uint8 of a column, as int32."""
    suffix = np.frombuffer(str(column).encode(), np.uint8)
    text = np.concatenate([digits, np.tile(suffix, (len(digits), 1))], axis=1)
    return (fingerprint64(text) % np.uint64(VOCAB_SIZES[column])).astype(np.int32)


def fingerprint64(text: np.ndarray) -> np.ndarray:
    """FarmHash's Fingerprint64 of strings of one length, from 8 to 16 bytes.

    The branch for short strings of https://github.com/google/farmhash.

    Args:
      text: (strings, length) uint8.

    Returns:
      (strings,) uint64.
    """
    length = text.shape[1]
    if not 8 <= length <= 16:
        raise ValueError(f"strings of {length} bytes")
    k2 = np.uint64(0x9AE16A3B2F90404F)
    with np.errstate(over="ignore"):
        mul = k2 + np.uint64(2 * length)
        first = np.ascontiguousarray(text[:, :8]).view("<u8")[:, 0]
        last = np.ascontiguousarray(text[:, -8:]).view("<u8")[:, 0]
        a = first + k2
        c = _rotate(last, 37) * mul + a
        d = (_rotate(a, 25) + last) * mul
        mixed = (c ^ d) * mul
        mixed ^= mixed >> np.uint64(47)
        mixed = (d ^ mixed) * mul
        mixed ^= mixed >> np.uint64(47)
        return mixed * mul


def _rotate(x: np.ndarray, bits: int) -> np.ndarray:
    """Rotates 64-bit integers to the right."""
    return (x >> np.uint64(bits)) | (x << np.uint64(64 - bits))
