"""Runs one trial of the synthetic workload as one host of several.

    drive_hosts.py OUT [--port=P --hosts=N --index=I] [--steps=N] [--seconds_a_step=S]
                   [--placement=fsdp] [--resume] [--fail_at=STEP] [--seed=S]
                   [--stop_on_sigterm]

Prints a line for each step, and at the end JSON of the record.
"""

import argparse
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from algoperf.cli.common import StopRequest
from algoperf.hosts import Hosts
from algoperf.launch import hosts as launch

SUBMISSIONS = Path(__file__).resolve().parents[1] / "algoperf" / "submissions"


def trial(flags: argparse.Namespace, hosts: Hosts, announce: Callable) -> int:
    from synthetic import SYNTHETIC, replaced

    from algoperf.data.examples import DataOptions
    from algoperf.loading import load_submission
    from algoperf.runner import run_trial
    from algoperf.sharding import Placement
    from algoperf.trials import TrialConfig

    hosts.must_be_alike({"--seed": flags.seed})
    config = TrialConfig(
        submission=load_submission(SUBMISSIONS / "adam.py"),
        workload=dataclasses.replace(
            SYNTHETIC,
            placement=Placement(flags.placement, min_size=8),
            data=DataOptions(host=hosts.index, num_hosts=hosts.count),
            max_allowed_runtime_sec=1000.0,
        ),
        out=flags.out,
        hyperparameters={"learning_rate": 0.01},
        max_steps=flags.steps,
        checkpoint_period_sec=0.0,
    )
    update = config.submission.functions.update_params

    def slow(**arguments):
        step = arguments["global_step"]
        print("step", step, flush=True)
        time.sleep(flags.seconds_a_step)
        if step == flags.fail_at:
            raise ValueError("a bug on one host")
        return update(**arguments)

    announce(config.folder)
    with StopRequest() if flags.stop_on_sigterm else nullcontext() as stop:
        record = run_trial(
            replaced(config, update_params=slow),
            resume=flags.resume,
            hosts=hosts,
            should_stop=lambda: stop is not None and stop.is_asked,
        )
    seen = {name: record[name] for name in ("status", "message")}
    print(json.dumps({**seen, "step": record["global_step"]}), flush=True)
    return 1 if hosts.is_broken or record["status"] == "failed" else 0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--port", type=int)
    parser.add_argument("--hosts", type=int, default=1)
    parser.add_argument("--index", type=int, default=0)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--seconds_a_step", type=float, default=0.0)
    parser.add_argument("--placement", default="replicated")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--fail_at", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stop_on_sigterm", action="store_true")
    flags = parser.parse_args()
    if flags.hosts == 1:
        return trial(flags, Hosts(), lambda _: None)
    address = f"127.0.0.1:{flags.port}"

    return launch.supervised(
        launch.from_flags(address, flags.hosts, flags.index),
        functools.partial(trial, flags),
    )


if __name__ == "__main__":
    sys.exit(main())
