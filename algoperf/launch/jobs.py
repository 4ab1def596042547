"""The trials of a sweep: their plan on disk, and how each of them stands.

The plan is `<out>/.sweep/trials.json`. It grows when other trials are asked for in the
same folder, and tells a trial that is waiting from one that nobody wants.
"""

import dataclasses
import json
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import logging

from algoperf import locks, records
from algoperf.errors import STOP_SIGNALS, UserError
from algoperf.records import Status

FOLDER = ".sweep"  # hidden: scoring passes over it
PLAN_WAIT_SEC = 60.0  # for the many processes that a cluster starts at once
WAITING = "waiting"
INTERRUPTED = "interrupted"  # begun, and its process was killed
UNREADABLE = "unreadable"  # its record or lock is broken; the message says which
# The exit status of a process that was stopped before its trial had a result
# (EX_TEMPFAIL of sysexits.h): run it again.
UNFINISHED = 75
# Arguments that a trial's result depends on: others may differ from call to call.
_BINDING = (
    "scale",
    "ruleset",
    "seed",
    "max_steps",
    "eval_period_steps",
    "official_metrics",
    "ignore_budget",
    "target_setting",
    "until",
    "microbatches",
)


@dataclasses.dataclass(frozen=True)
class Job:
    """One trial of a sweep: the arguments of `algoperf run`, and its record's place."""

    arguments: tuple[str, ...]
    folder: Path

    def command(self) -> list[str]:
        """Returns the command that begins the trial, or goes on with it."""
        return [sys.executable, "-m", "algoperf", "run", *self.arguments, "--resume"]


@dataclasses.dataclass(frozen=True)
class Standing:
    """How a trial stands; `status` is one of `Status`, or of the three above."""

    status: str
    owner: locks.Owner | None = None  # who writes its record now
    step: int | None = None  # of the newest evaluation, or the last
    metric: str = ""  # the one with the target, on validation data
    value: float | None = None
    seconds: float | None = None  # of submission time
    message: str = ""

    @property
    def is_finished(self) -> bool:
        """Whether the trial has its result."""
        return self.status in [status for status in Status if status.is_final]


def is_finished(folder: Path) -> bool:
    """Whether the trial of a folder has its result."""
    if not (folder / records.RECORD_FILE).exists():
        return False
    return records.read_record(folder)["status"].is_final


def standing(folder: Path) -> Standing:
    """Reads how the trial of a folder stands, also while it runs."""
    try:
        return _standing(folder)
    except UserError as error:
        return Standing(UNREADABLE, message=str(error))


def _standing(folder: Path) -> Standing:
    owner = locks.owner_of(folder) if folder.parent.is_dir() else None
    if not (folder / records.RECORD_FILE).exists():
        return Standing(Status.RUNNING if owner else WAITING, owner)
    record = records.read_record(folder)
    status = str(record["status"])
    if record["status"].is_final:
        owner = None
    elif owner is not None:
        status = str(Status.RUNNING)
    elif record["status"] is Status.RUNNING:
        status = INTERRUPTED
    metric = f"validation/{record.get('target', {}).get('metric', '')}"
    row: records.Row = {}
    if (folder / records.EVAL_FILE).exists():
        row = records.read_measurements(folder / records.EVAL_FILE)[-1]
    ended = record.get("clock", {}).get("submission")
    return Standing(
        status=status,
        owner=owner,
        step=int(record.get("global_step") or row.get(records.GLOBAL_STEP, 0)),
        metric=metric,
        value=row.get(metric),
        seconds=row.get(records.SUBMISSION_TIME) if ended is None else ended,
        message=record["message"],
    )


def plan(out: Path, jobs: Sequence[Job]) -> None:
    """Adds trials to the plan of a folder; writes nothing if they are all there.

    Raises:
      UserError: one of them is there with other arguments that its result depends on.
    """
    path = out / FOLDER / "trials.json"
    if _with_those(jobs, _read(path), out) is None:
        return
    records.make_folder(path.parent)
    with locks.hold(path, wait_sec=PLAN_WAIT_SEC):
        # Another process of the same sweep may have added to it since.
        if (known := _with_those(jobs, _read(path), out)) is not None:
            entries = [{"folder": f, "arguments": a} for f, a in known.items()]
            records.write_json(path, entries)


def _with_those(
    jobs: Sequence[Job], known: Mapping[str, list[str]], out: Path
) -> dict[str, list[str]] | None:
    """Returns a plan with trials added to it; None if they are all there."""
    added = dict(known)
    for job in jobs:
        name = str(job.folder.relative_to(out))
        if name in known:
            _check_same(name, known[name], job.arguments)
        else:
            added[name] = list(job.arguments)
    return added if added != known else None


def _check_same(name: str, planned: Sequence[str], asked: Sequence[str]) -> None:
    for flag in _BINDING:
        was, now = (_given(flag, arguments) for arguments in (planned, asked))
        if was != now:
            raise UserError(
                f"{name} was planned with {was}, asked for is {now}; choose another "
                "--out"
            )


def _given(flag: str, arguments: Sequence[str]) -> str:
    """Returns how a flag was given; `=False`, as of a newer flag, is as good as not."""
    given = (a for a in arguments if a.startswith(f"--{flag}="))
    return next((a for a in given if a != f"--{flag}=False"), f"no --{flag}")


def _read(path: Path) -> dict[str, list[str]]:
    """Returns the arguments of each trial of a plan, by its folder within `out`."""
    try:
        entries = json.loads(path.read_text())
        return {str(e["folder"]): [str(a) for a in e["arguments"]] for e in entries}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path} cannot be read; remove it, and call algoperf sweep again"
        ) from error


def trial_folders(out: Path) -> list[Path]:
    """Returns the folders of all trials, planned ones first, others by name."""
    planned = [out / name for name in _read(out / FOLDER / "trials.json")]
    found = out.glob(f"*/study_*/*_jax/trial_*/{records.RECORD_FILE}")
    others = sorted({path.parent for path in found} - set(planned))
    return [*planned, *others]


def mark_killed(job: Job, number: int) -> None:
    """Gives the trial of a process that a signal ended its result: it failed.

    A signal that asks to stop is no result: the next call goes on with the trial.
    """
    if number in (*STOP_SIGNALS, signal.SIGHUP):
        return
    name = signal.Signals(number).name
    if not (job.folder / records.RECORD_FILE).exists():
        return  # it never began
    try:
        with locks.hold(job.folder):
            record = records.read_record(job.folder)
            if record["status"].is_final:
                return
            hint = ", perhaps because memory ran out" if name == "SIGKILL" else ""
            message = f"killed by {name}{hint}"
            record |= {"status": Status.FAILED, "message": message}
            records.write_json(job.folder / records.RECORD_FILE, record)
    except UserError as error:  # somebody else goes on with it already
        logging.info("%s", error)
