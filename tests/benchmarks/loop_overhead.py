"""What our loop costs: time per step against a bare jitted optax loop.

    python tests/benchmarks/loop_overhead.py [--json FILE]

Both loops train one model from the same parameters on the same stream of batches, on
this machine, in one process, in turn: ours through `runner.run_trial`, with its clock,
queue, records and limit on steps in flight; the bare one with nothing but a donated
jitted step over batches that are on the device already. Our time includes the input
pipeline: batches are gathered, prepared and sent to the device while the steps run,
on a CPU by the very cores that train. The ratio of medians for the step of 5 ms is
what we promise to keep at or below 1.03.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import optax

from algoperf import hardware, registry, runner, sharding, spec
from algoperf.loading import Submission
from algoperf.records import Direction
from algoperf.submission import from_optax
from algoperf.trials import TrialConfig
from algoperf.workload import Workload, derive

STEPS = 600
PERIOD = 200  # steps between evaluations: a window of our step times
BATCHES = 50  # that the bare loop goes round


def cases() -> dict[str, Workload]:
    """Returns what is measured: a step of about 5 ms on two cores, and real ones."""
    language = registry.find_workload("finewebedu_lm", "mini")
    images = registry.find_workload("imagenet_resnet", "mini")
    small = derive(language, model={"num_layers": 1}, default_batch_size=5)
    found = {"5 ms": small, "finewebedu_lm": language, "imagenet_resnet": images}
    return {name: _endless(workload) for name, workload in found.items()}


def _endless(workload: Workload) -> Workload:
    is_minimised = workload.target_direction is Direction.MINIMIZE
    return derive(
        workload,
        max_allowed_runtime_sec=1e6,
        validation_target_value=-1.0 if is_minimised else 2.0,  # out of reach
    )


def build(workload, hyperparameters) -> optax.GradientTransformation:
    """Returns what both loops train with."""
    del workload, hyperparameters
    return optax.adam(1e-4)


def our_loop(workload: Workload) -> float:
    """Returns our seconds per step."""
    submission = Submission("adam", Path(__file__), "", from_optax(build), False)
    with tempfile.TemporaryDirectory() as folder:
        record = runner.run_trial(
            TrialConfig(
                submission=submission,
                workload=workload,
                out=Path(folder),
                hyperparameters={"unused": 0},
                max_steps=STEPS,
                eval_period_steps=PERIOD,
            )
        )
    return record["step_time"]["seconds"]


def bare_loop(workload: Workload) -> float:
    """Returns the seconds per step of the least that any loop must do."""
    transformation = build(workload, None)
    key = jax.random.PRNGKey(0)

    def mean_loss(params, model_state, batch):
        logits, new_model_state = workload.model_fn(
            params,
            batch,
            model_state,
            spec.ForwardPassMode.TRAIN,
            key,
            update_batch_norm=True,
        )
        loss = workload.loss_fn(batch["targets"], logits, batch.get("weights"))
        return loss["summed"] / loss["n_valid_examples"], new_model_state

    def step(state, params, model_state, batch):
        value, gradient = jax.value_and_grad(mean_loss, has_aux=True)(
            params, model_state, batch
        )
        updates, state = transformation.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (state, params, value[1]), (value[0], optax.tree.norm(gradient))

    step = jax.jit(step, donate_argnums=(0, 1, 2))
    data = workload.dataset("train", workload.default_batch_size, seed=0)
    batches = [sharding.shard_along_batch_dim(data[i]) for i in range(BATCHES)]
    params, model_state = workload.init_model_fn(key)
    carry = (sharding.replicate(transformation.init(params)), params, model_state)
    for batch in batches[:4]:  # compile, warm up
        carry, _ = step(*carry, batch)
    jax.block_until_ready(carry)
    start = time.perf_counter()
    for i in range(PERIOD):
        carry, _ = step(*carry, batches[i % BATCHES])
    jax.block_until_ready(carry)
    return (time.perf_counter() - start) / PERIOD


def measure(workload: Workload, rounds: int) -> dict[str, Any]:
    """Returns both times per step in ms, round by round, and their ratio."""
    ours, bare = [], []
    for number in range(rounds):
        pair = [(ours, our_loop), (bare, bare_loop)]
        for times, loop in pair if number % 2 else reversed(pair):
            times.append(1e3 * loop(workload))
    return {
        "ours_ms": ours,
        "bare_ms": bare,
        "ratio_of_medians": statistics.median(ours) / statistics.median(bare),
        "ratio_by_round": sorted(a / b for a, b in zip(ours, bare, strict=True)),
    }


def main() -> None:
    """Prints the ratio of each case and its spread over rounds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--case", choices=list(cases()), help="one alone")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = {}
    for name, workload in cases().items():
        if arguments.case in (None, name):
            result = results[name] = measure(workload, arguments.rounds)
            low, high = result["ratio_by_round"][0], result["ratio_by_round"][-1]
            print(
                f"{name}: ours {statistics.median(result['ours_ms']):.3f} ms, bare "
                f"{statistics.median(result['bare_ms']):.3f} ms per step, ratio "
                f"{result['ratio_of_medians']:.4f} (medians of {arguments.rounds} "
                f"rounds; by round {low:.4f} to {high:.4f})",
                flush=True,
            )
    if arguments.json:
        machine = {
            "host": hardware.describe_host(),
            "devices": hardware.describe_devices(),
            "versions": hardware.describe_versions(),
        }
        arguments.json.write_text(json.dumps({**results, **machine}, indent=1) + "\n")


if __name__ == "__main__":
    main()
