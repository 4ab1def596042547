"""What our loop costs: time per step against a bare jitted optax loop.

    python tests/benchmarks/loop_overhead.py [--json FILE]

Both loops train one model from the same parameters on the same stream of batches, on
this machine, in one process, in turn: ours through `runner.run_trial`, with its clock,
queue, records and limit on steps in flight; the bare one with nothing but a donated
jitted step over batches that are on the device already. Input pipeline included: our
batches are gathered from the embedded images, normalised and sent to the device while
the steps run. The ratio of medians is what we promise to keep below 1.03.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import optax

from algoperf import hardware, registry, runner, sharding, spec
from algoperf.submission import Submission, from_optax
from algoperf.trials import TrialConfig
from algoperf.workload import Workload

STEPS = 600
PERIOD = 200  # steps between evaluations: a window of our step times
BATCHES = 50  # that the bare loop goes round


class Mlp(nn.Module):
    """A plain network on flattened images."""

    width: int

    @nn.compact
    def __call__(self, inputs, train, dropout_rate=0.0):
        """Maps (B, 28, 28, 1) to logits (B, 10)."""
        del train, dropout_rate
        hidden = inputs.reshape(inputs.shape[0], -1)
        for _ in range(3):
            hidden = nn.relu(nn.Dense(self.width)(hidden))
        return nn.Dense(10, name="head")(hidden)


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

    def mean_loss(params, batch):
        logits, _ = workload.model_fn(
            params, batch, {}, spec.ForwardPassMode.TRAIN, key, update_batch_norm=True
        )
        loss = workload.loss_fn(batch["targets"], logits)
        return loss["summed"] / loss["n_valid_examples"]

    def step(params, state, batch):
        loss, gradient = jax.value_and_grad(mean_loss)(params, batch)
        updates, state = transformation.update(gradient, state, params)
        norm = optax.tree.norm(gradient)
        return optax.apply_updates(params, updates), state, loss, norm

    step = jax.jit(step, donate_argnums=(0, 1))
    data = workload.dataset("train", workload.default_batch_size, seed=0)
    batches = [sharding.shard_along_batch_dim(data[i]) for i in range(BATCHES)]
    params, _ = workload.init_model_fn(key)
    state = transformation.init(params)
    for batch in batches[:4]:  # compile, warm up
        params, state, _, _ = step(params, state, batch)
    jax.block_until_ready(params)
    start = time.perf_counter()
    for i in range(PERIOD):
        params, state, _, _ = step(params, state, batches[i % BATCHES])
    jax.block_until_ready(params)
    return (time.perf_counter() - start) / PERIOD


def measure(rounds: int, width: int) -> dict[str, Any]:
    """Returns both times per step in ms, round by round, and their ratio."""
    image = registry.find_workload("imagenet_resnet", "mini")
    workload = dataclasses.replace(
        image,
        model=Mlp(width),
        max_allowed_runtime_sec=1e6,
        validation_target_value=2.0,
    )
    ours, bare = [], []
    for number in range(rounds):
        pair = [(ours, our_loop), (bare, bare_loop)]
        for times, loop in pair if number % 2 else reversed(pair):
            times.append(1e3 * loop(workload))
        print(f"{number + 1}: ours {ours[-1]:.3f} ms, bare {bare[-1]:.3f} ms per step")
    ratios = sorted(a / b for a, b in zip(ours, bare, strict=True))
    return {
        "ours_ms": ours,
        "bare_ms": bare,
        "ratio_of_medians": statistics.median(ours) / statistics.median(bare),
        "ratio_by_round": ratios,
        "host": hardware.describe_host(),
        "devices": hardware.describe_devices(),
        "versions": hardware.describe_versions(),
    }


def main() -> None:
    """Prints the ratio and its spread over rounds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--width", type=int, default=512, help="512: 5 ms on 2 cores")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    result = measure(arguments.rounds, arguments.width)
    low, *_, high = result["ratio_by_round"]
    print(
        f"ours / bare: {result['ratio_of_medians']:.4f} (medians of "
        f"{arguments.rounds} rounds; by round {low:.4f} to {high:.4f})"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
