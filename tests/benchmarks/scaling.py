"""Time per step and communication per step on 1, 2, 4 and 8 virtual devices.

    scaling.py [--devices=1,2,4,8] [--workload=finewebedu_lm] [--steps=30] [--json=FILE]

The volume is read from the compiled step's program and compared with the formulas of
docs/sharding.md. Virtual devices share the cores of one machine, so that times show
what partitioning costs, not what more devices gain: medians, and quartiles.
"""

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2}
BYTES |= {"f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all")
# What each device sends, in units of the bytes of the result, with n devices.
SENT = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
    "all-to-all": lambda n: (n - 1) / n,
}


def result_bytes(program: str) -> dict[str, int]:
    """Returns by collective the bytes of all its results in an HLO text."""
    found = dict.fromkeys(COLLECTIVES, 0)
    for line in program.splitlines():
        match = re.search(r"= (.*?) ([a-z\-]+?)(?:-start)?\(", line)
        if match is None or match[2] not in found:
            continue
        for kind, shape in re.findall(r"([a-z]+\d*)\[([\d,]*)\]", match[1]):
            size = math.prod(int(n) for n in shape.split(",") if n)
            found[match[2]] += size * BYTES.get(kind, 4)
    return found


# Parameters that a model uses in two places: XLA sums each use's gradient by itself.
TIED = {"finewebedu_lm": "embedding"}


def expected_bytes(placement: Any, params: Any, workload_name: str) -> dict[str, int]:
    """Returns what the results should be, but for a few scalars.

    Gradients are summed, and parameters that are split are gathered once.
    """
    import jax

    leaves = jax.tree.leaves(params)
    split = [x for x in leaves if placement.sharded_axis(x.shape) is not None]
    tied = [
        leaf.nbytes
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if path[-1].key == TIED.get(workload_name)
    ]
    return {
        "all-reduce": sum(x.nbytes for x in leaves) + sum(tied),
        "all-gather": sum(x.nbytes for x in split),
    }


WARM_UP = 3  # steps


def measure(workload_name: str, steps: int) -> dict[str, Any]:
    """Measures on the devices of this process, replicated and sharded in turn."""
    import jax

    ways = {kind: Way(kind, workload_name) for kind in ("replicated", "fsdp")}
    for number in range(WARM_UP + steps):
        for way in ways.values():
            seconds = way.timed_step()
            if number >= WARM_UP:
                way.seconds.append(seconds)
    count = jax.device_count()
    return {"devices": count, **{kind: way.found() for kind, way in ways.items()}}


class Way:
    """One placement of the AdamW of a workload: compiled, a batch on the devices."""

    def __init__(self, kind: str, workload_name: str) -> None:
        import dataclasses

        import jax

        from algoperf.data.pipeline import InputQueue
        from algoperf.loading import load_submission
        from algoperf.registry import find_workload
        from algoperf.sharding import Placement
        from algoperf.trials import global_batch_size
        from algoperf.tuning import as_namedtuple, load_search_space, trial_point

        submission = load_submission(ROOT / "submissions" / "adamw")
        space = load_search_space(submission.default_search_space)
        point = as_namedtuple(trial_point(space, study_seed=0, trial=1))
        placement = Placement(kind)
        workload = dataclasses.replace(
            find_workload(workload_name, "mini"), placement=placement
        )
        self.key = jax.random.PRNGKey(0)
        params, model_state = workload.init_model_fn(self.key)
        state, step = submission.functions.init_optimizer_state(
            workload, params, model_state, point, self.key
        )
        data = workload.dataset("train", global_batch_size(submission, workload), 0)
        queue = InputQueue(data, placement.batch_sharding())
        self.batch = next(queue)
        queue.close()  # it would make further batches while steps are timed
        self.expected = {}
        if jax.device_count() > 1:
            self.expected = expected_bytes(placement, params, workload_name)
        self.state = state, params, model_state
        self.compiled = step.lower(*self.state, self.batch, self.key).compile()
        self.seconds: list[float] = []

    def timed_step(self) -> float:
        """Makes a step; returns its seconds."""
        import jax

        start = time.perf_counter()
        *state, _ = self.compiled(*self.state, self.batch, self.key)
        self.state = jax.block_until_ready(tuple(state))
        return time.perf_counter() - start

    def found(self) -> dict[str, Any]:
        """Returns times, and what the compiled program says."""
        import jax

        results = result_bytes(self.compiled.as_text())
        used = self.compiled.memory_analysis()
        count = jax.device_count()
        low, middle, high = statistics.quantiles(self.seconds, n=4)
        return {
            "seconds": middle,
            "quartiles": [low, high],
            "results": results,
            "expected": self.expected,
            "sent": sum(SENT[name](count) * size for name, size in results.items()),
            "held": used.argument_size_in_bytes,
            "temporary": used.temp_size_in_bytes,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", default="1,2,4,8")
    parser.add_argument("--workload", default="finewebedu_lm")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--here", action="store_true", help="measure in this process")
    flags = parser.parse_args()
    if flags.here:
        print(json.dumps(measure(flags.workload, flags.steps)))
        return
    found = []
    for count in flags.devices.split(","):
        flag = f"--xla_force_host_platform_device_count={count}"
        done = subprocess.run(
            [sys.executable, __file__, "--here", *sys.argv[1:]],
            env={**os.environ, "XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        seen = json.loads(done.stdout.splitlines()[-1])
        found.append(seen)
        for kind in ("replicated", "fsdp"):
            one = seen[kind]
            low, high = one["quartiles"]
            print(
                f"{count} devices, {kind:10}: {1e3 * one['seconds']:8.1f} ms a step "
                f"({1e3 * low:.1f} to {1e3 * high:.1f}), "
                f"held {one['held'] / 2**20:7.2f} MiB, "
                f"temporary {one['temporary'] / 2**20:7.2f} MiB, "
                f"sent {one['sent'] / 2**20:7.2f} MiB"
            )
            for name, size in one["expected"].items():
                print(f"    {name}: {one['results'][name]} bytes, formula {size}")
        if flags.json:
            flags.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
