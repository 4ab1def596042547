"""Reads the files of one trial: bounded in size, strict in form, never executed.

A file that is damaged costs its trial, not the others. What can be told apart from
damage is mended, and said in a note:

- A file of evaluations whose last line has no end was cut off in that line, as happens
  to the official logger when it is killed; the cut may go through a number, so the line
  is left out, unless it looks whole. Our own files are replaced as a whole: if the
  record says that the trial has ended, the line that is missing may be the one that
  counts, and the trial is refused.
- An evaluation without a time or a step cannot be placed and is left out.
- Of two evaluations at the same step the first counts.

So steps rise and times never fall, in every trial that was read. E: evaluations.
"""

import dataclasses
import json
import math
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from algoperf import records
from algoperf.records import RecordError, Status

FloatArray = NDArray[np.float64]

MAX_CSV_BYTES = 2**24
# The longest run of the public archive has 186 evaluations of 18 cells.
MAX_LINES = 200_000
MAX_CELLS = 4_000_000
MAX_JSON_BYTES = 2**20
MAX_DEPTH = 16  # of objects within objects
MAX_TIME = 1e12  # seconds; thirty thousand years
MAX_NUMBER = 1e300  # beyond it sums and products overflow
REQUIRED = (records.GLOBAL_STEP, records.SUBMISSION_TIME)
_NUMERIC = b"0123456789.,+-eEnaifNAIF\r\n"  # what lines of numbers are made of

# What each field of `record.json` must be that scoring reads; null where unknown.
_FIELDS: Mapping[str, type] = {
    "message": str,
    "workload": str,
    "base_workload": str,
    "scale": str,
    "framework": str,
    "ruleset": str,
    "start_time": str,
    "end_time": str,
    "git_revision": str,
    "submission": dict,
    "hyperparameters": dict,
    "seeds": dict,
    "target": dict,
    "host": dict,
    "devices": dict,
    "versions": dict,
    "clock": dict,
    "compile": dict,
    "compile_saved": dict,
    "step_time": dict,
    "skipped_examples": dict,
    "sizes": dict,
    "earlier_environments": list,
    "study": int,
    "trial": int,
    "batch_size": int,
    "max_steps": int,
    "step_hint": int,
    "num_parameters": int,
    "preemption_count": int,
    "global_step": int,
    "budget_sec": float,
    "budget_ratio": float,
}
_TARGET_FIELDS: Mapping[str, type] = {
    "metric": str,
    "direction": str,
    "validation": float,
    "test": float,
}
# Objects of numbers, none negative.
_TIMES = ("clock", "compile", "compile_saved", "step_time")
_TEXTS = ("versions",)  # objects of texts
_KINDS = {
    str: "text",
    dict: "an object",
    list: "a list",
    int: "a whole number",
    float: "a number",
}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Parsed:
    """What the files of a trial say."""

    record: Mapping[str, Any] | None  # None if there is no `record.json`
    columns: Mapping[str, FloatArray]  # each [E]; {} before the first evaluation
    notes: tuple[str, ...] = ()  # what was mended


def parse_trial(folder: Path) -> Parsed:
    """Reads one trial; one that failed before its first evaluation has no CSV.

    Raises:
      RecordError: a file is missing, unreadable, too large or not of its form.
    """
    record = None
    if os.path.lexists(folder / records.RECORD_FILE):
        record = read_record(folder)
    path = folder / records.EVAL_FILE
    if record is not None and not os.path.lexists(path):
        return Parsed(record=record, columns={})
    content = read_bounded(path, MAX_CSV_BYTES)
    whole = _whole_lines(content)
    notes = []
    if len(whole) < len(content):
        if record is not None and record["status"].is_final:
            raise RecordError(
                f"{path} was cut off in its last line, after the trial had ended"
            )
        if not whole:
            raise RecordError(f"{path} was cut off in its first line")
        notes.append("the last line was cut off and is left out")
    if max(whole.count(b"\n"), whole.count(b"\r")) > MAX_LINES:
        raise RecordError(f"{path} has more than {MAX_LINES:,} lines")
    if whole.count(b",") > MAX_CELLS:
        raise RecordError(f"{path} has more than {MAX_CELLS:,} cells")
    columns = _parse_plain(whole)
    if columns is None:
        columns = _parse_unusual(path, whole)
    if not _is_orderly(columns):
        columns, more = _put_in_order(path, columns)
        notes += more
    return Parsed(record=record, columns=columns, notes=tuple(notes))


def one_line(text: str, length: int = 500) -> str:
    """Returns a text of unknown origin so that it can be printed as part of a line."""
    shown = "".join(c if c.isprintable() else " " for c in text[: 10 * length])
    shown = " ".join(shown.split())
    return shown if len(shown) <= length else f"{shown[:length]}..."


def read_bounded(path: Path, limit: int) -> bytes:
    """Reads a file of at most `limit` bytes; a larger one is not even opened.

    Raises:
      RecordError: missing, unreadable, too large, or no file at all.
    """
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise RecordError(f"{path} is a folder, not a file")
        if not stat.S_ISREG(status.st_mode):  # a pipe would keep us waiting
            raise RecordError(f"{path} is not an ordinary file")
        if status.st_size <= limit:
            with open(path, "rb") as file:
                return file.read(status.st_size)  # what grows meanwhile, comes later
    except FileNotFoundError as error:
        raise RecordError(f"{path} is missing") from error
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror}") from error
    raise RecordError(f"{path} has more than {limit:,} bytes, no such file is that big")


def read_json(path: Path) -> dict[str, Any]:
    """Reads an object of modest size and depth, all of whose texts can be shown.

    Raises:
      RecordError: the file is not of that form.
    """
    content = read_bounded(path, MAX_JSON_BYTES)
    try:
        value = json.loads(content.decode("utf-8"))
    except RecursionError as error:
        raise RecordError(f"{path} is nested too deep") from error
    except ValueError as error:
        raise RecordError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise RecordError(f"{path} holds no object, but {type(value).__name__}")
    _check_value(path, value, MAX_DEPTH)
    return value


def _check_value(path: Path, value: Any, depth: int) -> None:
    if isinstance(value, str):
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise RecordError(f"{path} has half a character: {error}") from error
    elif isinstance(value, dict | list):
        if depth == 0:
            raise RecordError(f"{path} is nested too deep")
        if isinstance(value, dict):
            _check_value(path, list(value), depth)
            value = value.values()
        for item in value:
            _check_value(path, item, depth - 1)
    elif isinstance(value, int) and abs(value) > 2**63:
        raise RecordError(f"{path} has a number of {value.bit_length()} bits")


def read_record(folder: Path) -> dict[str, Any]:
    """Reads `record.json` and checks every field that scoring looks at.

    Raises:
      RecordError: unreadable, of another schema, or a field is not what it should be.
    """
    path = folder / records.RECORD_FILE
    record = read_json(path)
    try:
        version, status = record["schema_version"], Status(record["status"])
    except (KeyError, ValueError, TypeError) as error:
        raise RecordError(f"{path} cannot be read: {error!r}") from error
    if version != records.SCHEMA_VERSION:
        raise RecordError(
            f"{path} has schema version {version!r}, this code reads "
            f"{records.SCHEMA_VERSION}"
        )
    _check_fields(path, record, _FIELDS, "")
    _check_fields(path, record.get("target") or {}, _TARGET_FIELDS, "target.")
    for name in _TIMES:
        values = record.get(name) or {}
        _check_fields(path, values, dict.fromkeys(values, float), f"{name}.")
        if any(value is not None and value < 0 for value in values.values()):
            raise RecordError(f"{path}: {name!r} has a number below zero")
    _check_texts(path, record, "")
    for number, earlier in enumerate(record.get("earlier_environments") or []):
        where = f"earlier_environments[{number}]"
        _check_fields(path, {where: earlier}, {where: dict}, "")
        _check_fields(path, earlier or {}, _FIELDS, f"{where}.")
        _check_texts(path, earlier or {}, f"{where}.")
    for name in ("budget_sec", "budget_ratio", "global_step"):
        if (record.get(name) or 0) < 0:
            raise RecordError(f"{path}: {name!r} is below zero")
    return {**record, "status": status}


def _check_fields(
    path: Path, values: Mapping[str, Any], fields: Mapping[str, type], where: str
) -> None:
    """Checks the fields that are there and not null."""
    for name, kind in fields.items():
        value = values.get(name)
        if value is None:
            continue
        is_right = isinstance(value, kind) and not isinstance(value, bool)
        if kind is float:
            is_right = type(value) in (int, float) and abs(value) < MAX_NUMBER
        if not is_right:
            shown = json.dumps(value)
            shown = shown if len(shown) <= 40 else f"{shown[:40]}..."
            raise RecordError(
                f"{path}: '{where}{name}' must be {_KINDS[kind]}, not {shown}"
            )


def _check_texts(path: Path, values: Mapping[str, Any], where: str) -> None:
    """Checks the objects that hold nothing but texts."""
    for name in _TEXTS:
        texts = values.get(name) or {}
        _check_fields(path, texts, dict.fromkeys(texts, str), f"{where}{name}.")


def _whole_lines(content: bytes) -> bytes:
    """Returns the lines that have an end; a last line that needs none gets one.

    That is one with all its cells, the last of them no shorter than its column has
    them elsewhere: written by hand, most likely, not cut off in a number.
    """
    end = max(content.rfind(b"\n"), content.rfind(b"\r")) + 1
    whole, last = content[:end], content[end:]
    if not last:
        return content
    header, *rows = whole.splitlines() or [b""]
    if rows and last.count(b",") == header.count(b","):
        shortest = min(len(row.rpartition(b",")[2]) for row in rows)
        if len(last.rpartition(b",")[2]) >= max(shortest, 1):
            return content + b"\n"
    return whole


def _parse_plain(content: bytes) -> dict[str, FloatArray] | None:
    """Parses a CSV without quotes or faults; None if it is not one.

    Column by column: most of the time of reading goes into turning digits into numbers
    (the public archive has 2.7 million cells), and judging needs a third of them.
    """
    header, _, body = content.partition(b"\n")
    names = header.removesuffix(b"\r").split(b",")
    width, rows = len(names), body.count(b"\n")
    if (
        b"\r" in header[:-1]
        or len(set(names)) < width
        or body.translate(None, _NUMERIC)
    ):
        return None
    # A line feed stays with the cell after it, where `float` does not mind it.
    cells = body.replace(b"\n", b",\n").split(b",")
    firsts = b"".join(cells[width::width])  # every line feed, if lines are regular
    is_regular = len(cells) == rows * width + 1 and firsts.count(b"\n") == rows
    if not is_regular:
        return None
    try:
        columns = {
            name.decode("utf-8"): _numbers(cells[i:-1:width])
            for i, name in enumerate(names)
            if is_kept(name.decode("utf-8"))
        }
    except ValueError:
        return None
    return columns if set(REQUIRED) <= set(columns) else None


def _numbers(cells: Sequence[bytes]) -> FloatArray:
    """Returns the numbers in cells, NaN for empty ones."""
    try:
        return np.array(list(map(float, cells)), np.float64)
    except ValueError:
        return np.array([float(c) if c.strip() else math.nan for c in cells])


def _parse_unusual(path: Path, content: bytes) -> dict[str, FloatArray]:
    """Parses row by row what is quoted, or says what is wrong with it."""
    rows = records.parse_measurements(content, path, REQUIRED)
    found = {name for row in rows for name in row if is_kept(name)}
    names = sorted(found.union(REQUIRED))
    return {
        name: np.array([row.get(name, np.nan) for row in rows], np.float64)
        for name in names
    }


def is_kept(column: str) -> bool:
    """Whether judging may need a column: times, steps and validation metrics."""
    return column in REQUIRED or (
        column.startswith("validation/") and column != "validation/num_examples"
    )


def _is_orderly(columns: Mapping[str, FloatArray]) -> bool:
    """Whether steps rise and times never fall, all finite and not negative."""
    steps_E, times_E = (columns[name] for name in REQUIRED)
    if not times_E.size:
        return True
    return bool(
        times_E[0] >= 0
        and times_E[-1] <= MAX_TIME
        and steps_E[0] >= 0
        and steps_E[-1] <= 2**53
        and (times_E[1:] >= times_E[:-1]).all()
        and (steps_E[1:] > steps_E[:-1]).all()
    )


def _put_in_order(
    path: Path, columns: Mapping[str, FloatArray]
) -> tuple[dict[str, FloatArray], list[str]]:
    """Leaves out rows without a place; refuses a clock that runs backwards."""
    notes = []
    steps_E, times_E = (columns[name] for name in REQUIRED)
    is_placed_E = np.isfinite(steps_E) & np.isfinite(times_E)
    if missing := int((~is_placed_E).sum()):
        notes.append(f"{missing} of {len(times_E)} evaluations have no time or step")
    for name, limit in ((records.GLOBAL_STEP, 2**53), (REQUIRED[1], MAX_TIME)):
        values_E = columns[name][is_placed_E]
        if (values_E < 0).any() or (values_E > limit).any():
            worst = values_E[(values_E < 0) | (values_E > limit)][0]
            raise RecordError(f"{path}: {name} cannot be {worst:g}")
        falls_E = np.flatnonzero(np.diff(values_E) < 0)
        if falls_E.size:
            before, after = values_E[falls_E[0] : falls_E[0] + 2]
            raise RecordError(f"{path}: {name} falls from {before:g} to {after:g}")
    is_new_E = is_placed_E.copy()
    is_new_E[is_placed_E] = np.diff(steps_E[is_placed_E], prepend=-1) > 0
    if repeated := int(is_placed_E.sum() - is_new_E.sum()):
        notes.append(f"{repeated} evaluations repeat the step before and are left out")
    return {name: values_E[is_new_E] for name, values_E in columns.items()}, notes
