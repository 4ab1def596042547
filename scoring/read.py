"""Reads the records of trials, ours and those of the official benchmark alike.

A DIR holds one folder per submission, and that `study_<i>/<workload>_jax/trial_<k>/`
(or `_pytorch`) folders. Official logs have no `record.json`. What cannot be read is
listed with its reason, and the rest is read; judging is the business of other modules.
"""

import dataclasses
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from algoperf import records
from algoperf.errors import UserError
from algoperf.records import RecordError, Status

FloatArray = NDArray[np.float64]

LAYOUT = (
    "expected DIR/<submission>/study_<i>/<workload>_jax/trial_<k>/"
    f"{records.EVAL_FILE} (or <workload>_pytorch)"
)
_STUDY = re.compile(r"study_(\d+)")
_WORKLOAD = re.compile(r"(.+)_(jax|pytorch)")
_TRIAL = re.compile(r"trial_(\d+)")
_NUMERIC = b"0123456789.,+-eEnaifNAIF"  # what cells of numbers are made of
_REQUIRED = (records.GLOBAL_STEP, records.SUBMISSION_TIME)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Trial:
    """One training run, as recorded."""

    submission: str
    study: int
    workload: str  # without the framework
    framework: str  # 'jax' or 'pytorch'
    trial: int
    columns: Mapping[str, FloatArray]  # each [E], a value per eval; NaN if empty
    record: Mapping[str, Any] | None  # `record.json`; None in official logs
    path: Path

    @property
    def times(self) -> FloatArray:
        """Submission time of each evaluation in seconds, [E]."""
        return self.columns.get(records.SUBMISSION_TIME, np.empty(0))

    @property
    def status(self) -> Status | None:
        """How the trial stands; None if it has no record of ours."""
        return None if self.record is None else Status(self.record["status"])

    @property
    def place(self) -> str:
        """Where the trial stands in its submission: 'study_0/mnist/trial_1'."""
        return f"study_{self.study}/{self.workload}/trial_{self.trial}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Skipped:
    """A path that could not be read, and why."""

    path: Path
    reason: str
    is_broken: bool = False  # a trial of this layout that should be readable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Runs:
    """Everything found in the given DIRs, in the order of names and numbers."""

    trials: tuple[Trial, ...]
    skipped: tuple[Skipped, ...]

    @property
    def submissions(self) -> tuple[str, ...]:
        """Names of the submissions that have a readable trial, sorted."""
        return tuple(sorted({trial.submission for trial in self.trials}))


def read_runs(dirs: Iterable[str | Path]) -> Runs:
    """Reads every record under `dirs`; folders of one submission add up.

    Raises:
      UserError: a DIR does not exist, holds no record, or is not a folder of
        submission folders.
    """
    trials: dict[tuple[str, int, str, str, int], Trial] = {}
    skipped: list[Skipped] = []
    folders = [Path(folder) for folder in dirs]
    if not folders:
        raise UserError(f"no DIR given; {LAYOUT}")
    for folder in folders:
        _check_dir(folder)
        found = list(_read_dir(folder))
        if not any(isinstance(item, Trial) for item in found):
            raise _nothing_read(folder, found)
        for item in found:
            if isinstance(item, Skipped):
                skipped.append(item)
                continue
            key = _key(item)
            if key in trials:
                reason = f"the same trial was read from {trials[key].path}"
                skipped.append(Skipped(path=item.path, reason=reason))
            else:
                trials[key] = item
    ordered = tuple(trials[key] for key in sorted(trials))
    return Runs(trials=ordered, skipped=tuple(skipped))


def read_hyperparameters(trial: Trial) -> dict[str, Any] | None:
    """Returns what `hparams.json` of the trial holds; None if missing or unreadable."""
    try:
        value = json.loads((trial.path / records.HPARAMS_FILE).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _key(trial: Trial) -> tuple[str, int, str, str, int]:
    return (
        trial.submission,
        trial.study,
        trial.workload,
        trial.framework,
        trial.trial,
    )


def _check_dir(folder: Path) -> None:
    if not folder.exists():
        raise UserError(f"no such folder: {folder}")
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; {LAYOUT}")
    if any(_STUDY.fullmatch(child.name) for child in _subfolders(folder)):
        raise UserError(
            f"{folder} is the folder of one submission; give the folder that holds it, "
            f"{folder.resolve().parent}"
        )


def _nothing_read(folder: Path, found: list[Trial | Skipped]) -> UserError:
    reasons = [item.reason for item in found if isinstance(item, Skipped)]
    if reasons:
        return UserError(
            f"no record in {folder} can be read ({len(reasons)} skipped; the first: "
            f"{reasons[0]})"
        )
    return UserError(f"no record in {folder}; {LAYOUT}")


def _subfolders(folder: Path) -> list[Path]:
    """Folders in a folder, sorted; hidden ones are nobody's record."""
    try:
        with os.scandir(folder) as entries:
            names = [
                entry.name
                for entry in entries
                if not entry.name.startswith(".") and entry.is_dir()
            ]
    except OSError as error:
        raise UserError(f"cannot list {folder}: {error.strerror}") from error
    return [folder / name for name in sorted(names)]


def _read_dir(folder: Path) -> Iterator[Trial | Skipped]:
    for submission in _subfolders(folder):
        studies = [
            child for child in _subfolders(submission) if _STUDY.fullmatch(child.name)
        ]
        for study in studies:
            yield from _read_study(submission.name, study)


def _read_study(submission: str, folder: Path) -> Iterator[Trial | Skipped]:
    for workload in _subfolders(folder):
        match = _WORKLOAD.fullmatch(workload.name)
        if match is None:
            reason = "not a folder named <workload>_jax or <workload>_pytorch"
            yield Skipped(path=workload, reason=reason)
            continue
        for path in _subfolders(workload):
            number = _TRIAL.fullmatch(path.name)
            if number is None:
                yield Skipped(path=path, reason="not a folder named trial_<k>")
                continue
            try:
                record, columns = _read_trial(path)
            except RecordError as error:
                yield Skipped(path=path, reason=str(error), is_broken=True)
                continue
            yield Trial(
                submission=submission,
                study=int(folder.name.removeprefix("study_")),
                workload=match[1],
                framework=match[2],
                trial=int(number[1]),
                columns=columns,
                record=record,
                path=path,
            )


def _read_trial(path: Path) -> tuple[dict[str, Any] | None, dict[str, FloatArray]]:
    """Reads one trial folder; a trial that failed before its first eval has no CSV."""
    has_record = (path / records.RECORD_FILE).exists()
    record = records.read_record(path) if has_record else None
    measurements = path / records.EVAL_FILE
    if record is not None and not measurements.exists():
        return record, {}
    return record, _read_columns(measurements)


def _read_columns(path: Path) -> dict[str, FloatArray]:
    """Reads steps, submission times and validation metrics as `{column: [E]}`.

    Plain files are parsed column by column: most of the time of reading goes into
    turning digits into numbers (the public archive has 2.7 million cells), and judging
    needs a third of them. Whatever is unusual goes through `read_measurements`, row by
    row, which knows what is wrong.
    """
    columns = _parse_plain(path)
    if columns is not None:
        return columns
    return _as_columns(records.read_measurements(path, _REQUIRED))


def _parse_plain(path: Path) -> dict[str, FloatArray] | None:
    """Parses a CSV without quotes or faults; None if it is not one."""
    try:
        header, *lines = path.read_bytes().splitlines()
        names = header.decode("utf-8").split(",")
        rows = [line.split(b",") for line in lines]
        is_regular = all(len(row) == len(names) for row in rows)
        is_numeric = not any(line.translate(None, _NUMERIC) for line in lines)
        if not (is_regular and is_numeric and set(_REQUIRED) <= set(names)):
            return None
        return {
            name: np.array([float(row[i]) if row[i] else np.nan for row in rows])
            for i, name in enumerate(names)
            if _is_kept(name)
        }
    except (OSError, ValueError):
        return None


def _is_kept(column: str) -> bool:
    return column in _REQUIRED or column.startswith("validation/")


def _as_columns(rows: list[records.Row]) -> dict[str, FloatArray]:
    found = {name for row in rows for name in row if _is_kept(name)}
    names = sorted(found.union(_REQUIRED))
    return {
        name: np.array([row.get(name, np.nan) for row in rows], np.float64)
        for name in names
    }
