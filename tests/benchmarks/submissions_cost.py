"""Measures time and memory per step of each submission beside AdamW, in one run.

    python tests/benchmarks/submissions_cost.py --json docs/algorithm_costs.json

All submissions are set up first and take turns: in each round every one makes some
steps on the same batches, in an order that is drawn anew, so that whatever else the
machine does falls on all alike. A submission's ratio is that of its time in a round to
AdamW's in the same round; the median over rounds is shown with the 10 % and 90 %
quantiles. Steps with something rare in them (a preconditioner's root every tenth) count
as often as they come.
"""

import argparse
import dataclasses
import itertools
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from algoperf import hardware, registry, sharding, spec, tuning
from algoperf.submission import load_submission
from algoperf.trials import global_batch_size

BASE = "adamw"


@dataclasses.dataclass
class Training:
    """A submission at work: its functions and its newest state."""

    functions: Any
    workload: spec.Workload
    hyperparameters: Any
    batches: Iterator[Any]
    state: tuple[Any, Any, Any]  # optimizer state, params, model state
    step: int = 0
    is_over: bool = False

    def make_steps(self, count: int) -> float:
        """Makes steps; returns the seconds until the device has finished them."""
        start = time.perf_counter()
        for _ in range(count):
            try:
                self._make_step()
            except spec.TrainingCompleteError:
                self.is_over = True  # its last step, again and again, costs the same
                self.step -= 1
                self._make_step()
            self.step += not self.is_over
        jax.block_until_ready(self.state[1:])
        return time.perf_counter() - start

    def _make_step(self) -> None:
        optimizer_state, params, model_state = self.state
        rng = jax.random.PRNGKey(self.step)
        batch = self.functions.data_selection(
            self.workload,
            self.batches,
            optimizer_state,
            params,
            model_state,
            self.hyperparameters,
            self.step,
            rng,
        )
        self.state = self.functions.update_params(
            workload=self.workload,
            current_param_container=params,
            current_params_types=self.workload.model_params_types,
            model_state=model_state,
            hyperparameters=self.hyperparameters,
            batch=batch,
            loss_type=self.workload.loss_type,
            optimizer_state=optimizer_state,
            eval_results=[],
            global_step=self.step,
            rng=rng,
        )


def set_up(name: str, workload: Any) -> tuple[Training, int]:
    """Returns a submission ready to train, and the bytes that it keeps for itself."""
    submission = load_submission(registry.find_submission(name))
    space = tuning.load_search_space(submission.default_search_space)
    hyperparameters = tuning.as_namedtuple(tuning.trial_point(space, 0, 1))
    params, model_state = workload.init_model_fn(jax.random.PRNGKey(0))
    optimizer_state = submission.functions.init_optimizer_state(
        workload, params, model_state, hyperparameters, jax.random.PRNGKey(1)
    )
    leaves = {id(x): x for x in jax.tree.leaves(optimizer_state)}
    others = {id(x) for x in jax.tree.leaves((params, model_state))}
    kept = sum(getattr(x, "nbytes", 0) for i, x in leaves.items() if i not in others)
    size = global_batch_size(submission, workload)
    data = workload.dataset("train", size, seed=0)
    devices = sharding.get_batch_dim_sharding()
    batches = [jax.device_put(dict(data[i]), devices) for i in range(8)]
    training = Training(
        submission.functions,
        workload,
        hyperparameters,
        itertools.cycle(batches),
        (optimizer_state, params, model_state),
    )
    return training, kept


def measure(
    names: list[str], workload: Any, rounds: int, steps: int
) -> dict[str, dict[str, float]]:
    """Returns what each submission takes: seconds and bytes, and ratios to AdamW's."""
    trainings, kept = {}, {}
    for name in names:
        trainings[name], kept[name] = set_up(name, workload)
        trainings[name].make_steps(2 * steps)  # compiles, rare branches too
        print(f"{name} is set up", flush=True)
    times: dict[str, list[float]] = {name: [] for name in names}
    order = random.Random(0)
    for index in range(rounds):
        for name in order.sample(names, len(names)):
            times[name].append(trainings[name].make_steps(steps) / steps)
        print(f"round {index + 1} of {rounds}", flush=True)
    result = {}
    for name in names:
        ratios = np.array(times[name]) / np.array(times[BASE])
        low, middle, high = np.quantile(ratios, [0.1, 0.5, 0.9])
        result[name] = {
            "milliseconds": float(np.median(times[name]) * 1e3),
            "ratio": float(middle),
            "ratio_low": float(low),
            "ratio_high": float(high),
            "state_bytes": kept[name],
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
