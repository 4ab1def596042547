"""What a trial leaves on disk: the one definition of names, columns and meaning.

A record is the folder `<out>/<submission>/study_<i>/<workload>_jax/trial_<k>/`:

- `record.json`: status, target, seeds, hardware, versions, clock totals (ours)
- `eval_measurements.csv`: one row per evaluation (official columns)
- `measurements.csv`: the same rows and the scalars that the submission logged
- `hparams.json`, `flags_<n>.json`, `meta_data_<n>.json`: n counts preemptions
- `checkpoint_<step>/`: what a resumed run starts from

Every file is replaced as a whole (temporary file, fsync, rename), so that a record
can be read at any moment of a run. This module imports nothing that needs JAX.
"""

import contextlib
import csv
import enum
import io
import json
import math
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from algoperf.errors import UserError

SCHEMA_VERSION = 1
RULESETS = ("external", "self")  # tuning from a search space, or none at all
SCALES = ("mini", "full")
RECORD_FILE = "record.json"
EVAL_FILE = "eval_measurements.csv"
MEASUREMENTS_FILE = "measurements.csv"
HPARAMS_FILE = "hparams.json"
CHECKPOINT_PREFIX = "checkpoint"

# Columns that every evaluation row has, beside the workload's own metrics
# ('validation/loss', 'test/accuracy', ...). Times are in seconds.
SUBMISSION_TIME = "accumulated_submission_time"
EVAL_TIME = "accumulated_eval_time"
LOGGING_TIME = "accumulated_logging_time"
TOTAL_TIME = "total_duration"
GLOBAL_STEP = "global_step"
PREEMPTION_COUNT = "preemption_count"
SCORE = "score"  # the official name for the submission time of the row

Row = dict[str, float]


class Status(enum.StrEnum):
    """How a trial stands."""

    RUNNING = "running"
    REACHED = "reached"  # the validation target
    BUDGET = "budget"  # the time budget is spent
    COMPLETED = "completed"  # max_steps, or the submission said that it is done
    DIVERGED = "diverged"  # a loss is not finite
    FAILED = "failed"  # an exception; `message` has it
    PREEMPTED = "preempted"  # asked to stop; a checkpoint was saved

    @property
    def is_final(self) -> bool:
        """Whether the trial has its result; otherwise `--resume` goes on with it."""
        return self not in (Status.RUNNING, Status.PREEMPTED)


class Direction(enum.StrEnum):
    """Which way a metric improves."""

    MINIMIZE = "minimize"
    MAXIMIZE = "maximize"


class RecordError(UserError):
    """A record, or one file of it, cannot be read."""


def reaches(value: float, target: float, direction: Direction) -> bool:
    """Whether `value` is at least as good as `target`; never for NaN."""
    if direction is Direction.MINIMIZE:
        return value <= target
    return value >= target


def trial_folder(
    out: Path, submission: str, study: int, workload: str, trial: int
) -> Path:
    """Returns the folder of one trial; studies count from 0, trials from 1."""
    return out / submission / f"study_{study}" / f"{workload}_jax" / f"trial_{trial}"


def make_folder(folder: Path, flag: str = "--out") -> None:
    """Makes a folder, and those above it, where it is not there.

    Raises:
      UserError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make {folder}: {error.strerror}; choose another {flag}"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Replaces a file as a whole; whoever reads it sees the old text or the new."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces a file as a whole; whoever reads it sees the old bytes or the new."""
    if not path.name:
        raise UserError(f"cannot write {path}: that is no name of a file")
    # Process ids are the same in containers that share a file system.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        _remove(temporary)
        unharmed = "; what was there before is unharmed" if path.is_file() else ""
        raise UserError(f"cannot write {path}: {error.strerror}{unharmed}") from error


def _remove(temporary: Path) -> None:
    """Removes what a write has left, if anything, where that can be done."""
    with contextlib.suppress(OSError):
        temporary.unlink()


def write_json(path: Path, value: Any) -> None:
    """Writes JSON that any parser reads: NaN and infinities become null."""
    write_text(path, json.dumps(finite(value), indent=1) + "\n")


def finite(value: Any) -> Any:
    """Returns `value` with None for NaN and infinities, tuples as lists."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def parts(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns what a trial ran on from its start: earlier parts, then the record.

    Each has `devices`, `host`, `versions` and `git_revision`, as far as they are known.
    """
    earlier = record.get("earlier_environments") or []
    return [*(part or {} for part in earlier), record]


def write_measurements(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows as CSV: columns are the sorted union, missing values empty."""
    columns = sorted({column for row in rows for column in row})
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, buffer.getvalue())


def read_measurements(
    path: Path, required: Iterable[str] = (GLOBAL_STEP, SUBMISSION_TIME)
) -> list[Row]:
    """Reads rows of numbers; empty cells are left out of their row.

    Raises:
      RecordError: the file is missing, empty, lacks a required column, has one twice,
        or a row has a wrong number of cells or a cell that is not a number.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise RecordError(f"{path} is missing") from error
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error}") from error
    return parse_measurements(content, path, required)


def parse_measurements(
    content: bytes, path: Path, required: Iterable[str] = (GLOBAL_STEP, SUBMISSION_TIME)
) -> list[Row]:
    """Parses what `read_measurements` reads; `path` is for error messages."""
    try:
        lines = list(csv.reader(io.StringIO(content.decode("utf-8"), newline="")))
    except (UnicodeDecodeError, csv.Error) as error:
        raise RecordError(f"{path} cannot be read: {error}") from error
    if not lines:
        raise RecordError(f"{path} is empty")
    columns, *body = lines
    missing = [column for column in required if column not in columns]
    if missing:
        raise RecordError(f"{path} lacks the column {missing[0]!r}")
    if len(set(columns)) < len(columns):
        twice = next(column for column in columns if columns.count(column) > 1)
        raise RecordError(f"{path} has the column {twice!r} twice")
    rows = []
    for number, cells in enumerate(body, start=2):
        if len(cells) != len(columns):
            raise RecordError(
                f"{path}, line {number}: {len(cells)} cells, the header has "
                f"{len(columns)}"
            )
        try:
            row = {c: float(x) for c, x in zip(columns, cells, strict=True) if x != ""}
        except ValueError as error:
            raise RecordError(f"{path}, line {number}: {error}") from error
        rows.append(row)
    return rows


def read_record(folder: Path) -> dict[str, Any]:
    """Reads `record.json` of a trial folder.

    Raises:
      RecordError: missing, not JSON, or of a newer schema than this code knows.
    """
    path = folder / RECORD_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        version, status = record["schema_version"], Status(record["status"])
    except FileNotFoundError as error:
        raise RecordError(f"{path} is missing") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise RecordError(f"{path} cannot be read: {error!r}") from error
    if version != SCHEMA_VERSION:
        raise RecordError(
            f"{path} has schema version {version}, this code reads {SCHEMA_VERSION}"
        )
    return {**record, "status": status}
