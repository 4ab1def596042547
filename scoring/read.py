"""Reads the records of trials, ours and those of the official benchmark alike.

`layout` finds the folders, `parse` reads what is in them, `cache` remembers it. What
cannot be read is listed with its reason, and the rest is read; judging is the business
of other modules.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from algoperf import records
from algoperf.errors import UserError
from algoperf.records import RecordError, Status
from scoring import cache, layout, parse
from scoring.layout import LAYOUT, Key, Place, Skipped
from scoring.parse import FloatArray, Parsed

__all__ = [
    "FloatArray",
    "Runs",
    "Skipped",
    "Trial",
    "read_hyperparameters",
    "read_runs",
]


MAX_REASON = 200  # characters of what is wrong with a trial, its path apart


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
        """Submission time of each evaluation in seconds, [E]; it never falls."""
        return self.columns.get(records.SUBMISSION_TIME, np.empty(0))

    @property
    def status(self) -> Status | None:
        """How the trial stands; None if it has no record of ours."""
        return None if self.record is None else Status(self.record["status"])

    @property
    def has_no_budget(self) -> bool:
        """Whether no time could have ended the trial.

        Its record says so by a null: one without the field, as official logs are,
        leaves open which budget there was.
        """
        record = self.record or {}
        return "budget_sec" in record and record["budget_sec"] is None

    @property
    def place(self) -> str:
        """Where the trial stands in its submission: 'study_0/mnist/trial_1'."""
        return f"study_{self.study}/{self.workload}/trial_{self.trial}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Runs:
    """Everything found in the given DIRs, in the order of names and numbers."""

    trials: tuple[Trial, ...]
    skipped: tuple[Skipped, ...]
    warnings: tuple[str, ...] = ()  # on the DIRs

    @property
    def submissions(self) -> tuple[str, ...]:
        """Names of the submissions that have a readable trial, sorted."""
        return tuple(sorted({trial.submission for trial in self.trials}))


def read_runs(
    dirs: Iterable[str | Path],
    *,
    ruleset: str | None = None,
    cache_folder: Path | None = None,
) -> Runs:
    """Reads every record under `dirs`; folders of one submission add up.

    Of a trial in several DIRs the newest run is read, else the first, with a warning; a
    DIR without a record is a warning too, if another one has any.

    Args:
      dirs: folders of submissions, or of official logs (see `layout`).
      ruleset: which part of official logs to read, 'external' or 'self'.
      cache_folder: where parsed files are kept for the next call, e.g.
        `cache.default_folder()`; by default nowhere.

    Raises:
      UserError: a DIR does not exist or is not a folder of submission folders, or
        none holds a record that can be read.
    """
    roots = [layout.find_root(Path(folder), ruleset) for folder in dirs]
    if not roots:
        raise UserError(f"no DIR given; {LAYOUT}")
    skipped: list[Skipped] = []
    found = [(root, list(layout.find_places(root, skipped))) for root in roots]
    chosen, warnings = layout.choose_newest(found, skipped)
    is_chosen = set(map(id, chosen))
    trials: dict[Key, Trial] = {}
    for root, part in found:
        places = [place for place in part if id(place) in is_chosen]
        failed = _read_places(root, places, trials, skipped, cache_folder)
        if not part or (failed and len(failed) == len(places)):
            warnings.append(f"no record in {root} can be read: nothing of it counts")
    if not trials:
        raise _nothing_read(roots, skipped)
    ordered = tuple(trials[key] for key in sorted(trials))
    return Runs(trials=ordered, skipped=tuple(skipped), warnings=tuple(warnings))


def _read_places(
    root: Path,
    places: Sequence[Place],
    trials: dict[Key, Trial],
    skipped: list[Skipped],
    cache_folder: Path | None,
) -> list[Skipped]:
    """Adds the trials of one DIR to `trials`; returns those that could not be read."""
    known = {} if cache_folder is None else cache.load(cache_folder, root)
    entries: dict[str, cache.Entry] = {}
    failed = []
    for place in places:
        name = str(place.path)
        stamps = cache.stamps_of(name)
        entry = known.get(name)
        try:
            if entry is None or entry.stamps != stamps:
                parsed = parse.parse_trial(place.path)
                _check_workload(place, parsed)
                entry = cache.Entry(stamps=stamps, parsed=parsed)
        except RecordError as error:
            reason = _shortened(str(error).replace(f"{name}/", ""), MAX_REASON)
            failed.append(Skipped(path=place.path, reason=reason, is_broken=True))
            continue
        entries[name] = entry
        trials[place.key] = _trial(place, entry.parsed)
        skipped += [
            Skipped(path=place.path, reason=note, is_read=True)
            for note in entry.parsed.notes
        ]
    skipped += failed
    if cache_folder is not None:
        cache.save(cache_folder, root, entries, known)
    return failed


def _check_workload(place: Place, parsed: Parsed) -> None:
    """Refuses the record of another workload, say of a folder that was copied."""
    workload = (parsed.record or {}).get("workload") or place.workload
    if workload != place.workload:
        raise RecordError(
            f"{place.path / records.RECORD_FILE} is of {parse.one_line(workload, 80)}, "
            f"not of {place.workload}"
        )


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}..."


def _trial(place: Place, parsed: Parsed) -> Trial:
    return Trial(
        submission=place.submission,
        study=place.study,
        workload=place.workload,
        framework=place.framework,
        trial=place.trial,
        columns=parsed.columns,
        record=parsed.record,
        path=place.path,
    )


def read_hyperparameters(trial: Trial) -> dict[str, Any] | None:
    """Returns what `hparams.json` of the trial holds; None if missing or unreadable."""
    try:
        return parse.read_json(trial.path / records.HPARAMS_FILE)
    except RecordError:
        return None


def _nothing_read(roots: Sequence[Path], skipped: Sequence[Skipped]) -> UserError:
    folders = " and ".join(map(str, roots))
    if skipped:
        first = next((item for item in skipped if item.is_broken), skipped[0])
        return UserError(
            f"no record in {folders} can be read ({len(skipped)} skipped; for one: "
            f"{first.path}: {first.reason})"
        )
    return UserError(f"no record in {folders}; {LAYOUT}")
