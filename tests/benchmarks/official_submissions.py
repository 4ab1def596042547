"""Runs official submissions, unmodified, for a few steps, and says how each fared.

    python tests/benchmarks/official_submissions.py FOLDER [--steps 10]

FOLDER holds one folder for each: submission.py, what it imports, and, unless it tunes
itself, tuning_search_space.json. They come from public repositories, such as
mlcommons/algorithmic-efficiency and mlcommons/submissions_algorithms; none is part of
this one. A file SOURCE beside a submission may say where it was taken from.

Each is run by `algoperf run` on three mini workloads. A row of the table has the mean
loss on the training set before and after, or what stopped it. The exit status is 1 if
any was stopped.
"""

import argparse
import contextlib
import io
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from algoperf import cli, records

WORKLOADS = ("finewebedu_lm", "imagenet_resnet", "criteo1tb")


class Outcome(NamedTuple):
    """How one submission fared on one workload."""

    losses: tuple[float, float] | None  # on the training set, before and after
    stopped: str  # by what; '' if it was not


def official_folders(root: Path) -> list[Path]:
    """Returns the folders that hold a submission."""
    return sorted(path.parent for path in root.glob("*/submission.py"))


def run(folder: Path, workload: str, steps: int, out: Path) -> Outcome:
    """Runs one trial as the command line does."""
    space = folder / "tuning_search_space.json"
    arguments = ["run", f"--submission={folder}", f"--workload={workload}"]
    arguments += [f"--out={out}", f"--max_steps={steps}"]
    # As targets are set: whatever the budget, which compilation may spend.
    arguments += [f"--eval_period_steps={steps}", "--target_setting=1"]
    arguments += [] if space.exists() else ["--ruleset=self"]
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        status = cli.main(arguments)
    found = list(out.rglob(records.RECORD_FILE))
    if not found:
        lines = said.getvalue().splitlines()
        own = [line for line in lines if line.startswith("algoperf")]
        return Outcome(None, (own or lines or [""])[-1])
    trial = found[0].parent
    if status != 0:
        return Outcome(None, records.read_record(trial)["message"])
    rows = records.read_measurements(trial / records.EVAL_FILE, required=())
    return Outcome((float(rows[0]["train/loss"]), float(rows[-1]["train/loss"])), "")


def row(folder: Path, workloads: Sequence[str], steps: int) -> tuple[str, bool]:
    """Returns a row of the table, and whether the submission ran on all workloads."""
    cells, ran = [], True
    for workload in workloads:
        with tempfile.TemporaryDirectory() as out:
            outcome = run(folder, workload, steps, Path(out))
        ran &= outcome.losses is not None
        if outcome.losses is None:
            cells.append(outcome.stopped)
        else:
            first, last = outcome.losses
            cells.append(f"{first:.4f} to {last:.4f}")
    source = folder / "SOURCE"
    where = source.read_text().strip() if source.exists() else ""
    return f"| {' | '.join([folder.name, where, *cells])} |", ran


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--workloads", default=",".join(WORKLOADS))
    parser.add_argument("--only", default="", help="names of folders, with commas")
    flags = parser.parse_args()
    workloads = flags.workloads.split(",")
    names = flags.only.split(",") if flags.only else None
    print(f"| submission | source | {' | '.join(workloads)} |", flush=True)
    print("|---|---" + "|---" * len(workloads) + "|", flush=True)
    all_ran = True
    for folder in official_folders(flags.folder):
        if names is None or folder.name in names:
            text, ran = row(folder, workloads, flags.steps)
            all_ran &= ran
            print(text, flush=True)
    return 0 if all_ran else 1


if __name__ == "__main__":
    sys.exit(main())
