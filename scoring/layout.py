"""Finds the trials under a DIR: ours, and those of the official logs of v0.5 and v0.6.

    DIR/<submission>/study_<i>/<workload>_jax/trial_<k>/     (or <workload>_pytorch)
    DIR/<submission>/<workload>_jax/trial_<k>/               (older runs: study 0)

Any of these folders may end in a timestamp, '-2023-10-11-16-58-40': that of its run,
and no part of its name. Official logs stand in `external_tuning/` and `self_tuning/`,
which may be named by the folder above them. Nothing is opened here; what is no trial is
listed with its reason.
"""

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from algoperf import records
from algoperf.errors import UserError

LAYOUT = (
    "expected DIR/<submission>/study_<i>/<workload>_jax/trial_<k>/"
    f"{records.EVAL_FILE} (or <workload>_pytorch)"
)
_STAMP = r"(?:-([0-9]{4}(?:-[0-9]{2}){5}))?"  # year to second
_SUBMISSION = re.compile(rf"(.+?){_STAMP}")
_STUDY = re.compile(rf"study_([0-9]{{1,6}}){_STAMP}")
_WORKLOAD = re.compile(rf"(.+)_(jax|pytorch){_STAMP}")
_TRIAL = re.compile(rf"trial_([0-9]{{1,6}}){_STAMP}")

Key = tuple[str, int, str, str, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Skipped:
    """A path that was not read, or not in full, and why."""

    path: Path
    reason: str  # without the path
    is_broken: bool = False  # a trial of this layout that should be readable
    is_read: bool = False  # all but what the reason names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """A folder of this layout that should hold one trial."""

    submission: str
    study: int
    workload: str  # without the framework
    framework: str  # 'jax' or 'pytorch'
    trial: int
    stamp: str  # the latest timestamp on its path, '' if there is none
    path: Path

    @property
    def key(self) -> Key:
        """What tells one trial from another."""
        return (
            self.submission,
            self.study,
            self.workload,
            self.framework,
            self.trial,
        )


def find_root(folder: Path, ruleset: str | None) -> Path:
    """Returns the folder of submissions that a DIR stands for.

    That is DIR itself, unless it holds official logs: then the part of the ruleset.

    Raises:
      UserError: it does not exist, is the folder of one submission, or holds logs of
        other rulesets alone.
    """
    if not str(folder).isprintable():
        raise UserError(f"the name {str(folder)!r} has characters that cannot be shown")
    try:
        if not folder.exists():
            raise UserError(f"no such folder: {folder}")
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}") from error
    if not os.path.isdir(folder):
        raise UserError(f"{folder} is not a folder; {LAYOUT}")
    for base in (folder, folder / "logs"):
        found = [r for r in records.RULESETS if _is_part(base / f"{r}_tuning")]
        if ruleset in found:
            return base / f"{ruleset}_tuning"
        if found:
            parts = " and ".join(f"{part}_tuning" for part in found)
            raise UserError(
                f"{folder} holds {parts}; give {base / f'{found[0]}_tuning'} "
                f"and --ruleset {found[0]}"
            )
    if _is_submission(folder):
        parent = folder.resolve().parent
        if _STUDY.fullmatch(folder.resolve().name):
            parent = parent.parent
        raise UserError(
            f"{folder} is the folder of one submission; give the folder that holds it, "
            f"{parent}"
        )
    return folder


def find_places(root: Path, skipped: list[Skipped]) -> Iterator[Place]:
    """Yields the trials of all submissions; adds what is none of them to `skipped`."""
    for name, path in _subfolders(root, skipped):
        submission = _SUBMISSION.fullmatch(name)
        assert submission is not None  # as any name does
        children = _subfolders(path, skipped, _STUDY)
        studies = [child for child in children if _STUDY.fullmatch(child[0])]
        if not studies and any(_holds_trials(*child) for child in children):
            studies, children = [("study_0", path)], []
        if not studies:
            if skipped and skipped[-1].path == path:
                continue  # it could not be listed
            reason = "holds no folder named study_<i> or <workload>_<framework>"
            skipped.append(Skipped(path=path, reason=reason))
            continue
        for child in children:
            if child not in studies:
                reason = "not a folder named study_<i>"
                skipped.append(Skipped(path=child[1], reason=reason))
        for study_name, folder in studies:
            study = _STUDY.fullmatch(study_name)
            assert study is not None
            number, stamp = int(study[1]), max(submission[2] or "", study[2] or "")
            yield from _find_in_study(folder, submission[1], number, stamp, skipped)


def _find_in_study(
    folder: Path, submission: str, study: int, stamp: str, skipped: list[Skipped]
) -> Iterator[Place]:
    """Yields the trials in the folder of one study; `stamp` is that of the folder."""
    for name, path in _subfolders(folder, skipped, _WORKLOAD):
        workload = _WORKLOAD.fullmatch(name)
        if workload is None:
            reason = "not a folder named <workload>_jax or <workload>_pytorch"
            skipped.append(Skipped(path=path, reason=reason))
            continue
        for trial_name, trial_path in _subfolders(path, skipped, _TRIAL):
            trial = _TRIAL.fullmatch(trial_name)
            if trial is None:
                reason = "not a folder named trial_<k>"
                skipped.append(Skipped(path=trial_path, reason=reason))
                continue
            yield Place(
                submission=submission,
                study=study,
                workload=workload[1],
                framework=workload[2],
                trial=int(trial[1]),
                stamp=max(stamp, workload[3] or "", trial[2] or ""),
                path=trial_path,
            )


def choose_newest(
    found: Sequence[tuple[Path, Sequence[Place]]], skipped: list[Skipped]
) -> tuple[list[Place], list[str]]:
    """Keeps one place per trial: the one with the latest timestamp, then the first.

    An older run is no substitute for a newer one that is broken: which run counts must
    not depend on how it went.

    Args:
      found: each DIR and the places in it.
      skipped: where the other places are added.

    Returns:
      The places, and a warning for each submission that has trials in two DIRs of which
      only one is read.
    """
    newest: dict[Key, tuple[Path, Place]] = {}
    for root, places in found:
        for place in places:
            other = newest.get(place.key)
            if other is None or place.stamp > other[1].stamp:
                newest[place.key] = root, place
    again: Counter[tuple[str, Path, Path]] = Counter()
    for root, places in found:
        for place in places:
            source, chosen = newest[place.key]
            if place is chosen:
                continue
            reason = f"the same trial was read from {source}"
            if place.stamp < chosen.stamp:
                reason = f"an older run of a trial that was read from {source}"
            skipped.append(Skipped(path=place.path, reason=reason))
            if root != source:
                again[place.submission, source, root] += 1
    warnings = [
        f"trials of {submission} were read from {source} and found again in {root}, "
        f"where {count} {'was' if count == 1 else 'were'} ignored"
        for (submission, source, root), count in again.items()
    ]
    return [place for _, place in newest.values()], warnings


def _is_part(folder: Path) -> bool:
    """Whether a folder such as `external_tuning` is there, and no submission."""
    return os.path.isdir(folder) and not _is_submission(folder)


def _is_submission(folder: Path) -> bool:
    return any(
        _STUDY.fullmatch(name) or _holds_trials(name, path)
        for name, path in _subfolders(folder, [])
    )


def _holds_trials(name: str, path: Path) -> bool:
    """Whether a folder is that of a workload; a submission may be named like one."""
    return _WORKLOAD.fullmatch(name) is not None and any(
        _TRIAL.fullmatch(child) for child, _ in _subfolders(path, [])
    )


def _subfolders(
    folder: Path, skipped: list[Skipped], expected: re.Pattern[str] | None = None
) -> list[tuple[str, Path]]:
    """Returns name and path of folders in a folder, sorted.

    Hidden ones are nobody's record. Files are passed over, unless a folder of their
    name is `expected`.
    """
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith("."):
                    continue
                if not name.isprintable():
                    skipped.append(_unprintable(folder, name))
                elif _is_folder(entry):
                    found.append(name)
                elif expected is not None and expected.fullmatch(name):
                    reason = "not a folder, nor a link that leads to one"
                    path = folder / name
                    skipped.append(Skipped(path=path, reason=reason, is_broken=True))
    except OSError as error:
        reason = f"cannot be listed: {error.strerror}"
        skipped.append(Skipped(path=folder, reason=reason, is_broken=True))
        return []
    return [(name, folder / name) for name in sorted(found)]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads back to itself
        return False


def _unprintable(folder: Path, name: str) -> Skipped:
    """A name that would garble the list is shown with its odd characters escaped."""
    path = folder / ascii(name)[1:-1]
    return Skipped(path=path, reason="its name has characters that cannot be shown")
