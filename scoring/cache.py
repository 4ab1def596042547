"""Remembers parsed trials from one call to the next.

One file per DIR in the user's cache folder, an `.npz` without pickles. What is kept of
a trial counts as long as both of its files have the size and the time of change that
they had. Nothing depends on the cache: one that cannot be read is made anew, one that
cannot be written is done without, and both are said in the debug log alone.
"""

import dataclasses
import hashlib
import io
import json
import logging
import os
import time
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from algoperf import records
from algoperf.errors import UserError
from algoperf.records import Status
from scoring import parse
from scoring.parse import FloatArray, Parsed

VERSION = 1
# Clocks of file systems are coarse: a file may change twice within this time and keep
# its size and time of change.
SETTLED_SEC = 2.0
KEPT_SEC = 90 * 24 * 3600.0  # what no call has written for so long is deleted

_log = logging.getLogger(__name__)

# Size and time of change in ns of `eval_measurements.csv`, then of `record.json`; -1
# for a file that is not there.
Stamps = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Entry:
    """A parsed trial, and what its files were like."""

    stamps: Stamps
    parsed: Parsed


def default_folder() -> Path:
    """Returns `$XDG_CACHE_HOME/algoperf`, by default `~/.cache/algoperf`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # as the XDG specification asks
        return Path(base) / "algoperf"
    return Path(os.path.expanduser("~")) / ".cache" / "algoperf"


def stamps_of(folder: str) -> Stamps:
    """Returns sizes and times of change of the files of a trial."""
    return (
        *_stamp(f"{folder}/{records.EVAL_FILE}"),
        *_stamp(f"{folder}/{records.RECORD_FILE}"),
    )


def _stamp(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def load(folder: Path, root: Path) -> dict[str, Entry]:
    """Returns what is kept of the trials under `root`, by path; {} if nothing is."""
    path = _file(folder, root)
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            facts = json.loads(arrays["facts"].tobytes())
            if facts["version"] != _version():
                return {}
            return _unpack(facts, arrays["stamps"], arrays["values"])
    except FileNotFoundError:
        return {}
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        EOFError,
        MemoryError,
        RecursionError,
        NotImplementedError,  # a method of compression that nobody has
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        _log.debug("cache %s cannot be read: %r", path, error)
        return {}


def save(
    folder: Path, root: Path, entries: Mapping[str, Entry], before: Mapping[str, Entry]
) -> None:
    """Keeps entries, unless they are just those from `before`."""
    newest = (time.time() - SETTLED_SEC) * 1e9
    kept = {
        name: entry
        for name, entry in entries.items()
        if max(entry.stamps[1], entry.stamps[3]) < newest
    }
    if kept.keys() == before.keys() and all(kept[n] is before[n] for n in kept):
        return
    path = _file(folder, root)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        records.write_bytes(path, _pack(kept))
        _delete_old(folder)
    except (OSError, UserError) as error:
        _log.debug("cache %s cannot be written: %s", path, error)


def _file(folder: Path, root: Path) -> Path:
    digest = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()
    return folder / f"trials-{digest[:32]}.npz"


def _version() -> str:
    """Returns what changes with the code that parses."""
    digest = hashlib.sha256()
    for module in (parse, records):
        digest.update(Path(module.__file__ or "").read_bytes())
    return f"{VERSION}-{digest.hexdigest()}"


def _pack(entries: Mapping[str, Entry]) -> bytes:
    """Returns the file: the values of all columns in a row, JSON that tells them apart.

    Facts of a trial are its path, number of evaluations, index of its header, record
    and notes. Dimension key: N trials.
    """
    headers: dict[tuple[str, ...], int] = {}
    trials, values = [], [np.empty(0)]
    for name, entry in entries.items():
        columns = entry.parsed.columns
        header = headers.setdefault(tuple(columns), len(headers))
        rows = len(next(iter(columns.values()), ()))
        trials.append([name, rows, header, entry.parsed.record, entry.parsed.notes])
        values += columns.values()
    facts = {"version": _version(), "headers": list(headers), "trials": trials}
    stamps_Nx4 = np.array([e.stamps for e in entries.values()], np.int64)
    buffer = io.BytesIO()
    np.savez(
        buffer,
        facts=np.frombuffer(json.dumps(facts).encode(), np.uint8),
        stamps=stamps_Nx4.reshape(-1, 4),
        values=np.concatenate(values),
    )
    return buffer.getvalue()


def _unpack(
    facts: Mapping[str, list], stamps_Nx4: np.ndarray, values: FloatArray
) -> dict[str, Entry]:
    """Takes apart what `_pack` made.

    Raises:
      ValueError: the parts do not fit each other.
    """
    entries, start = {}, 0
    for trial, stamps in zip(facts["trials"], stamps_Nx4.tolist(), strict=True):
        name, rows, number, record, notes = trial
        header = facts["headers"][number]
        end = start + rows * len(header)
        block = values[start:end].reshape(len(header), rows)
        start = end
        if record is not None:
            record["status"] = Status(record["status"])
        parsed = Parsed(
            record=record,
            columns=dict(zip(header, block, strict=True)),
            notes=tuple(notes),
        )
        entries[name] = Entry(stamps=tuple(stamps), parsed=parsed)
    if start != values.size:
        raise ValueError("there are values that belong to no trial")
    return entries


def _delete_old(folder: Path) -> None:
    """Deletes files of DIRs that have not changed, or not been read, for long."""
    oldest = time.time() - KEPT_SEC
    for path in folder.glob("trials-*.npz"):
        if path.stat().st_mtime < oldest:
            path.unlink(missing_ok=True)
