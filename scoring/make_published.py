"""Makes the table of a published field from its logs.

    python -m scoring.make_published ARCHIVE [--out FILE]

ARCHIVE holds a folder per submission, as in the logs of the AlgoPerf competition of
2024 (external tuning, MLCommons). The table goes to `scoring/published/v0.5.json`.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from algoperf import records
from scoring.published import FOLDER
from scoring.read import Runs, read_runs
from scoring.rules import load_rules
from scoring.score import score_runs
from scoring.time_to_target import Mode

BENCHMARK = "v0.5"
SOURCE = "logs of the AlgoPerf competition of 2024, external tuning, MLCommons"
HARDWARE = {"device": "NVIDIA V100", "device_count": 8}  # the rules of v0.5


def published_table(runs: Runs, benchmark: str, ruleset: str) -> dict[str, Any]:
    """Returns times to target in seconds as plain values; a miss is None."""
    rules = load_rules(benchmark)
    seconds: dict[str, Any] = {}
    for mode in Mode:
        result = score_runs(runs, rules, ruleset=ruleset, mode=mode)
        seconds[mode] = {
            name: {
                workload: float(time) if math.isfinite(time) else None
                for workload, time in [
                    *zip(result.workloads, result.times[s], strict=True),
                    *zip(result.held_out, result.held_out_times[s], strict=True),
                ]
            }
            for s, name in enumerate(result.submissions)
        }
    return {
        "name": benchmark,
        "benchmark": benchmark,
        "ruleset": ruleset,
        "source": SOURCE,
        "hardware": HARDWARE,
        "seconds": seconds,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the logs and writes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("archive", type=Path, help="one folder per submission")
    parser.add_argument("--out", type=Path, default=FOLDER / f"{BENCHMARK}.json")
    options = parser.parse_args(arguments)
    table = published_table(read_runs([options.archive]), BENCHMARK, "external")
    records.write_json(options.out, table)
    print(f"written: {options.out}")


if __name__ == "__main__":
    main()
