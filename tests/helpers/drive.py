"""Runs one trial in a process of its own; prints JSON of what it saw.

drive.py SUBMISSION WORKLOAD OUT [--max_steps=N] [--eval_period_steps=N] [--resume]
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

import jax
from synthetic import WORKLOADS

from algoperf.loading import load_submission
from algoperf.registry import find_workload
from algoperf.runner import run_trial
from algoperf.trials import TrialConfig
from algoperf.tuning import load_search_space, trial_point


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("submission", type=Path)
    parser.add_argument("workload")
    parser.add_argument("out", type=Path)
    parser.add_argument("--max_steps", type=int, default=20)
    parser.add_argument("--eval_period_steps", type=int, default=10)
    parser.add_argument("--resume", action="store_true")
    flags = parser.parse_args()
    submission = load_submission(flags.submission)
    space = submission.default_search_space
    point = {"learning_rate": 0.01}
    if space.exists():
        point = trial_point(load_search_space(space), study_seed=0, trial=1)
    config = TrialConfig(
        submission=submission,
        workload=WORKLOADS.get(flags.workload) or find_workload(flags.workload, "mini"),
        out=flags.out,
        hyperparameters=point,
        max_steps=flags.max_steps,
        eval_period_steps=flags.eval_period_steps,
        checkpoint_period_sec=0.0,
    )
    compiled: Counter[str] = Counter()

    def listen(event, duration, fun_name="", **_):
        if event.endswith("backend_compile_duration"):
            compiled[fun_name] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    record = run_trial(config, resume=flags.resume)
    seen = {key: record[key] for key in ("status", "message", "devices")}
    print(json.dumps({**seen, "compiled": compiled}))
    sys.exit(record["status"] != "completed")


if __name__ == "__main__":
    main()
