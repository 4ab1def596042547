"""Records of a suite that pages keep in an archive, and what they say of the runs."""

import io
import math
import tarfile
from pathlib import Path

import scoring
from algoperf import hardware, records
from algoperf.errors import UserError
from scoring import time_to_target

KEPT = (records.RECORD_FILE, records.EVAL_FILE, records.HPARAMS_FILE)
# Between evaluations, whose period would be a tenth of a time, it interpolates.
STEPS = scoring.Timing(kind=scoring.TimeKind.STEPS, interpolate=True)


def pack(runs: Path, archive: Path) -> int:
    """Keeps the records of all trials under a folder; returns how many there are.

    The same records give the same bytes. The archive is replaced as a whole.

    Raises:
      UserError: there are none, one cannot be read or is not at its end, or they are
        of several versions.
    """
    found = scoring.read_runs([runs])
    if broken := [item for item in found.skipped if item.is_broken]:
        raise UserError(
            f"{len(broken)} trials cannot be read, such as {broken[0].path}: "
            f"{broken[0].reason}; mend or remove them"
        )
    scoring.check_mixed(found, scoring.load_rules("mini"))
    unfinished = [
        f"{trial.submission}/{trial.place}"
        for trial in found.trials
        if trial.status is None or not trial.status.is_final
    ]
    if unfinished:
        raise UserError(
            f"{len(unfinished)} trials are not at their end, such as {unfinished[0]}; "
            "the same `algoperf sweep` goes on with them"
        )
    places = sorted(trial.path for trial in found.trials)
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:xz") as tar:
        for path in [folder / name for folder in places for name in KEPT]:
            if not path.exists():  # a trial that failed before its first evaluation
                continue
            entry = tarfile.TarInfo(str(path.relative_to(runs)))
            entry.size = path.stat().st_size
            tar.addfile(entry, io.BytesIO(path.read_bytes()))
    records.write_bytes(archive, content.getvalue())
    return len(places)


def unpack(archive: Path, folder: Path) -> None:
    """Writes the records that an archive keeps, as trials left them.

    Raises:
      UserError: there is no archive.
    """
    if not archive.exists():
        raise UserError(f"{archive} is not there yet; make it with --pack RUNS")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")


def unhealthy(
    runs: scoring.Runs, rules: scoring.Rules, timing: scoring.Timing
) -> list[str]:
    """Returns a line for each trial that failed or diverged, and what it counts as.

    A trial that no target ends may have reached that of the rules before.
    """
    lines = []
    for trial in runs.trials:
        is_unwell = trial.status in (records.Status.FAILED, records.Status.DIVERGED)
        if not is_unwell or trial.workload not in rules.workloads:
            continue
        goal = rules.goals[trial.workload]
        time = time_to_target.trial_time(trial, goal, timing)
        known = ", a miss" if math.isinf(time) else " after its target, which counts"
        lines.append(f"{trial.submission}/{trial.place} {trial.status}{known}")
    return lines


def machines(runs: scoring.Runs) -> str:
    """Returns what the trials ran on, in words."""
    hosts = [trial.record["host"] for trial in runs.trials if trial.record]
    return " and ".join(sorted({hardware.host_words(host) for host in hosts}))
