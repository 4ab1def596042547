"""Trains submissions on mini workloads for some steps: does the loss fall, how fast?

    python tests/benchmarks/submissions_train.py --submissions adamw,muon

Schedules are those of a run of so many steps. A line says how the trial ended, the loss
on the training set before and after, and what a step took after compilation; put adamw
first to compare. The exit status is 1 if a loss is not finite or does not fall, or if a
submission refuses all workloads.
"""

import argparse
import dataclasses
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

from algoperf import records, registry, tuning
from algoperf.errors import UserError
from algoperf.loading import load_submission
from algoperf.runner import run_trial
from algoperf.trials import TrialConfig


def train(name: str, workload_name: str, steps: int, folder: Path) -> dict[str, Any]:
    """Runs one trial; returns its facts."""
    submission = load_submission(registry.find_submission(name))
    workload = registry.find_workload(workload_name, "mini")
    space = tuning.load_search_space(submission.default_search_space)
    config = TrialConfig(
        submission=submission,
        workload=dataclasses.replace(
            workload, step_hint=steps, max_allowed_runtime_sec=math.inf
        ),
        out=folder,
        hyperparameters=tuning.trial_point(space, 0, 1),
        max_steps=steps,
        eval_period_steps=steps,
    )
    found: dict[str, Any] = {"submission": name, "workload": workload.name}
    try:
        record = run_trial(config)
    except UserError as error:
        return {**found, "status": "refused", "message": str(error)}
    file = records.trial_folder(folder, name, 0, workload.name, 1) / records.EVAL_FILE
    rows = records.read_measurements(file, required=())
    return {
        **found,
        "status": record["status"],
        "message": record["message"],
        "first_loss": float(rows[0]["train/loss"]),
        "last_loss": float(rows[-1]["train/loss"]),
        "step_sec": (record["step_time"] or {}).get("seconds"),
    }


def is_good(result: dict[str, Any]) -> bool:
    """Whether the loss is finite and fell; a workload may be refused."""
    if result["status"] == "refused":
        return True
    done = result["status"] in ("completed", "reached")
    return done and result["last_loss"] < result["first_loss"]


def refused_everywhere(results: list[dict[str, Any]]) -> list[str]:
    """Returns the submissions of which nothing is known: they refused all workloads."""
    names = {result["submission"] for result in results}
    tried = {r["submission"] for r in results if r["status"] != "refused"}
    return sorted(names - tried)


def main() -> int:
    """Trains all pairs and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--submissions", default="all", help="comma-separated names")
    parser.add_argument("--workloads", default="all", help="comma-separated names")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    flags = parser.parse_args()
    names = sorted(registry.submission_paths())
    if flags.submissions != "all":
        names = flags.submissions.split(",")
    chosen = registry.select_workloads(flags.workloads.split(","), "mini")
    results = []
    for workload in chosen:
        for name in names:
            with tempfile.TemporaryDirectory() as folder:
                result = train(name, workload.variant, flags.steps, Path(folder))
            results.append(result)
            good = "ok " if is_good(result) else "BAD"
            print(good, json.dumps(result), flush=True)
    if flags.json:
        flags.json.write_text(json.dumps(results, indent=1))
    untried = refused_everywhere(results)
    for name in untried:
        print(f"BAD {name} refused all workloads")
    return 0 if all(map(is_good, results)) and not untried else 1


if __name__ == "__main__":
    sys.exit(main())
