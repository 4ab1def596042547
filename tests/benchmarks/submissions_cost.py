"""Measures time and memory per step of each submission beside AdamW, in one run.

    python tests/benchmarks/submissions_cost.py --json docs/algorithm_costs.json

They take turns, as in `algoperf step_times`. A submission's ratio is that of its time
in a round to AdamW's in the same round; the median over rounds is shown with the 10 %
and 90 % quantiles.
"""

import argparse
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from algoperf import hardware, registry, step_times, tuning
from algoperf.loading import load_submission

BASE = "adamw"


def measure(
    names: list[str], workload: Any, rounds: int, steps: int
) -> dict[str, dict[str, float]]:
    """Returns what each submission takes: seconds and bytes, and ratios to AdamW's."""
    entries = {}
    for name in names:
        submission = load_submission(registry.find_submission(name))
        space = tuning.load_search_space(submission.default_search_space)
        entries[name] = submission, tuning.trial_point(space, 0, 1)
    say = functools.partial(print, flush=True)
    found, _ = step_times.measure(entries, workload, rounds, steps, say)
    result = {}
    for name, times in found.items():
        ratios = np.array(times.seconds) / np.array(found[BASE].seconds)
        low, middle, high = np.quantile(ratios, [0.1, 0.5, 0.9])
        result[name] = {
            "milliseconds": float(np.median(times.seconds) * 1e3),
            "ratio": float(middle),
            "ratio_low": float(low),
            "ratio_high": float(high),
            "state_bytes": times.state_bytes,
        }
    return result


def main() -> None:
    """Measures the submissions and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--submissions", default="all", help="comma-separated names")
    parser.add_argument("--workload", default="finewebedu_lm")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=20, help="per round")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    flags = parser.parse_args()
    names = sorted(registry.submission_paths())
    if flags.submissions != "all":
        names = sorted({BASE, *flags.submissions.split(",")})
    workload = registry.find_workload(flags.workload, "mini")
    costs = measure(names, workload, flags.rounds, flags.steps)
    for name, cost in costs.items():
        print(
            f"{name:<20} {cost['milliseconds']:8.2f} ms  x{cost['ratio']:.2f} "
            f"({cost['ratio_low']:.2f} to {cost['ratio_high']:.2f})  "
            f"{cost['state_bytes'] / 2**20:.2f} MiB of state"
        )
    if flags.json:
        facts = {
            "workload": workload.name,
            "rounds": flags.rounds,
            "steps_per_round": flags.steps,
            "parameter_bytes": 4 * workload.num_parameters,
            "host": hardware.describe_host(),
            "costs": costs,
        }
        flags.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
