"""What scoring takes on an archive as large as the public one, and ten times as large.

    python tests/benchmarks/score_archive.py [--archive DIR] [--scales 1,10]
        [--submissions N] [--json FILE]

Makes archives of v0.5 from a seed (per submission 3 studies of 14 workloads, 8 trials
of 5 to 115 evaluations with 18 columns each), scores each twice, without and with a
cache, and prints process time, peak memory, and ratios to the first scale. `--archive`
does the same with a folder of official logs.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import scoring
from algoperf import hardware, records
from scoring import cache

TRIALS_PER_STUDY = 8
SUBMISSIONS = 11
COLUMNS = (
    *(records.EVAL_TIME, records.LOGGING_TIME, records.SUBMISSION_TIME),
    *(records.GLOBAL_STEP, records.PREEMPTION_COUNT, records.SCORE),
    *("test/loss", "test/num_examples", "test/x", "test/y", records.TOTAL_TIME),
    *("train/loss", "train/x", "train/y"),
    *("validation/y", "validation/num_examples", "validation/x"),
)


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one call of `algoperf score` took."""

    seconds: float  # user and system time of the process
    peak_mib: float


def make_archive(root: Path, submissions: int, seed: int) -> int:
    """Writes an archive; returns how many trials it has."""
    rules = scoring.load_rules("v0.5")
    rng = np.random.default_rng(seed)
    trials = 0
    for number in range(submissions):
        for study in range(rules.protocol("external").studies):
            for workload in rules.workloads:
                for trial in range(1, TRIALS_PER_STUDY + 1):
                    name = f"submission_{number:03}"
                    folder = records.trial_folder(root, name, study, workload, trial)
                    folder.mkdir(parents=True)
                    text = make_csv(rules.goals[workload], rng)
                    (folder / records.EVAL_FILE).write_text(text)
                    trials += 1
    return trials


def make_csv(goal: scoring.Goal, rng: np.random.Generator) -> str:
    """Returns evaluations whose metric nears the target, and may reach it."""
    rows = int(rng.integers(5, 116))
    table = rng.uniform(0, 1e4, (rows, len(COLUMNS) + 1))
    steps = np.cumsum(rng.integers(100, 400, rows)).tolist()
    table[:, COLUMNS.index(records.SUBMISSION_TIME)] = np.cumsum(
        rng.uniform(50, 500, rows)
    )
    gap = np.linspace(1, rng.uniform(-0.1, 0.5), rows)
    sign = 1 if goal.direction is records.Direction.MINIMIZE else -1
    table[:, -1] = goal.target * (1 + sign * gap)
    lines = [",".join((*COLUMNS, goal.column))]
    for step, values in zip(steps, table.tolist(), strict=True):
        values[COLUMNS.index(records.GLOBAL_STEP)] = step
        lines.append(",".join(map(repr, values)))
    return "\n".join(lines) + "\n"


def measure(folder: Path, cache_home: Path) -> Cost:
    """Scores a folder in a process of its own."""
    command = [sys.executable, "-m", "algoperf", "score", str(folder)]
    process = subprocess.Popen(
        [*command, "--benchmark=v0.5", "--rules=official"],
        env={**os.environ, "XDG_CACHE_HOME": str(cache_home)},
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"scoring {folder} ended with status {process.returncode}")
    peak = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return Cost(usage.ru_utime + usage.ru_stime, peak)


def measure_both(folder: Path) -> dict[str, Cost]:
    """Scores a folder without a cache, then with the one that was just written."""
    with tempfile.TemporaryDirectory() as home:
        return {
            "first call": measure(folder, Path(home)),
            "second call": measure(folder, Path(home)),
        }


def main() -> None:
    """Makes, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--archive", type=Path)
    parser.add_argument("--scales", default="1,10")
    parser.add_argument("--submissions", type=int, default=SUBMISSIONS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    costs: dict[str, dict[str, Cost]] = {}
    if arguments.archive:
        costs["archive"] = measure_both(arguments.archive)
    for scale in map(int, arguments.scales.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            trials = make_archive(root, scale * arguments.submissions, arguments.seed)
            time.sleep(cache.SETTLED_SEC)  # files that are newer are not kept
            costs[f"{scale} x, {trials:,} trials"] = measure_both(root)
    made = [cost for name, cost in costs.items() if name != "archive"]
    for name, both in costs.items():
        for call, cost in both.items():
            ratio = cost.seconds / made[0][call].seconds
            print(
                f"{name}, {call}: {cost.seconds:.2f} s ({ratio:.1f} x), "
                f"peak {cost.peak_mib:.0f} MiB"
            )
    if arguments.json:
        facts = {
            name: {call: dataclasses.asdict(cost) for call, cost in both.items()}
            for name, both in costs.items()
        }
        result = {"host": hardware.describe_host(), "costs": facts}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
