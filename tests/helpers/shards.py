"""Trains on all devices, replicated and sharded; prints JSON of the losses.

    shards.py WORKLOAD [--steps=N] [--submission=PATH] [--out=FOLDER]
    shards.py memory

A process of its own, for XLA_FLAGS says how many (virtual) devices there are.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SUBMISSION = ROOT / "submissions" / "adamw"
KINDS = ("replicated", "fsdp")


def on_devices(count: int, *arguments: Any) -> dict[str, Any]:
    """Runs this file on so many virtual devices; returns what it printed."""
    flag = f"--xla_force_host_platform_device_count={count}"
    done = subprocess.run(
        [sys.executable, __file__, *map(str, arguments)],
        env={**os.environ, "XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["devices"] == count
    return seen


def largest_difference(losses: list[list[float]]) -> float:
    """Returns the largest |a - b| / max(1, |b|) from the first of several runs."""
    first, *others = losses
    assert first
    assert all(len(other) == len(first) for other in others)
    return max(
        abs(a - b) / max(1.0, abs(b))
        for other in others
        for a, b in zip(other, first, strict=True)
    )


def as_float64(tree: Any) -> Any:
    """Returns floating-point arrays in float64 if JAX has it enabled; others as is."""
    import jax
    import jax.numpy as jnp

    if not jax.config.jax_enable_x64:
        return tree

    def widen(array: Any) -> Any:
        is_float = jnp.issubdtype(array.dtype, jnp.floating)
        return array.astype(jnp.float64) if is_float else array

    return jax.tree.map(widen, tree)


def losses(workload: Any, submission: Any, point: Any, steps: int) -> list[float]:
    """Returns the training loss before each step, with the submission's own step."""
    import jax

    from algoperf.data.pipeline import InputQueue
    from algoperf.trials import Seeds, global_batch_size
    from algoperf.tuning import as_namedtuple

    seeds = Seeds.derive(0, 0, 1)
    params, model_state = as_float64(workload.init_model_fn(seeds.key(0)))
    state, step = submission.functions.init_optimizer_state(
        workload, params, model_state, as_namedtuple(point), seeds.key(1)
    )
    size = global_batch_size(submission, workload)
    data = workload.dataset("train", size, seed=seeds.data_seed)
    queue = InputQueue(data, workload.placement.batch_sharding())
    found = []
    for number in range(steps):
        key = jax.random.fold_in(seeds.key(3), number)
        batch = as_float64(next(queue))
        state, params, model_state, scalars = step(
            state, params, model_state, batch, key
        )
        found.append(float(scalars["loss"]))
    queue.close()
    wanted = workload.placement.shardings((state, params))
    for array, place in zip(
        jax.tree.leaves((state, params)), jax.tree.leaves(wanted), strict=True
    ):
        assert array.sharding.is_equivalent_to(place, array.ndim)
    assert step._cache_size() == 1
    return found


def trial_rows(workload: Any, submission: Any, out: Path, **facts: Any) -> Any:
    """Runs a trial; returns status, message and the losses of its evaluations."""
    from synthetic import rows_of

    from algoperf.runner import run_trial
    from algoperf.trials import TrialConfig
    from algoperf.tuning import load_search_space, trial_point

    point = {"learning_rate": 0.01}
    if submission.default_search_space.exists():
        space = load_search_space(submission.default_search_space)
        point = trial_point(space, study_seed=0, trial=1)
    config = TrialConfig(
        submission=submission,
        workload=workload,
        out=out,
        hyperparameters=point,
        max_steps=8,
        **facts,
    )
    record = run_trial(config)
    rows = rows_of(config)
    names = ("train/loss", "validation/loss", "test/loss")
    return {
        "status": record["status"],
        "message": record["message"],
        "losses": [row[name] for row in rows for name in names],
    }


WIDTH, DEPTH = 256, 3


def wide_step(placement: Any) -> tuple[Any, Any, Any, Any]:
    """Returns Adam's compiled step of a wide network, its state, batch and shapes."""
    import flax.linen as nn
    import jax
    import numpy as np
    import optax
    from synthetic import NUM_CLASSES, SYNTHETIC

    from algoperf.submission import from_optax

    class Wide(nn.Module):
        @nn.compact
        def __call__(self, inputs, train, dropout_rate=0.0):
            x = nn.Dense(WIDTH, name="first")(inputs)
            for _ in range(DEPTH):
                x = nn.relu(nn.Dense(WIDTH)(x))
            return nn.Dense(NUM_CLASSES, name="head")(x)

    workload = dataclasses.replace(SYNTHETIC, model=Wide(), placement=placement)
    params, model_state = workload.init_model_fn(jax.random.PRNGKey(0))
    functions = from_optax(lambda *_: optax.adam(1e-3))
    state, step = functions.init_optimizer_state(
        workload, params, model_state, (), jax.random.PRNGKey(1)
    )
    batch = {"inputs": np.zeros((32, 4), "f4"), "targets": np.zeros(32, "i4")}
    batch = jax.device_put(batch, placement.batch_sharding())
    key = jax.random.PRNGKey(0)
    compiled = step.lower(state, params, model_state, batch, key).compile()
    return compiled, (params, state), batch, params


def memory() -> dict[str, Any]:
    """Returns what a step takes on a device, by XLA's count and by the formula."""
    import jax

    from algoperf.sharding import Placement

    seen: dict[str, Any] = {"devices": jax.device_count()}
    for kind, placement in {
        "replicated": Placement(),
        "fsdp": Placement("fsdp"),
        "hybrid": Placement("fsdp", model_devices=2),
    }.items():
        compiled, state, batch, params = wide_step(placement)
        used = compiled.memory_analysis()
        held = placement.bytes_per_device(state)
        inputs = sum(array.nbytes for array in batch.values()) // seen["devices"]
        seen[kind] = {
            "state": held,
            "formula": held + inputs + 8,  # the key
            "arguments": used.argument_size_in_bytes,
            "temporary": used.temp_size_in_bytes,
            "peak": used.argument_size_in_bytes + used.temp_size_in_bytes,
        }
    seen["params"] = sum(array.nbytes for array in jax.tree.leaves(params))
    # Written out: the square kernels are split; biases, first and last layer are not.
    square, small = DEPTH * WIDTH**2, DEPTH * WIDTH + 5 * WIDTH + 3 * WIDTH + 3
    seen["by_hand"] = {
        kind: 4 * 3 * (square // shards + small) + 4  # params, two moments; the count
        for kind, shards in (("fsdp", 8), ("hybrid", 2))
    }
    return seen


def compute_in_float64() -> None:
    """Has all that models, losses and optimizers call float32 mean float64.

    Rounding is then too small to grow to 1e-5 in some tens of steps, while a mistake in
    a sum over devices is as large as ever. Call before they are imported.
    """
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)
    jnp.float32 = jnp.float64  # type: ignore[misc]

    def attention(query, key, value, scale=None, is_causal=False):
        """(B, T, N, K) to (B, T, N, K); JAX's own has a softmax in float32."""
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        scores = jnp.einsum("btnk,bsnk->bnts", query, key) * scale
        if is_causal:
            scores = jnp.where(
                jnp.tri(*scores.shape[-2:], dtype=bool), scores, -jnp.inf
            )
        return jnp.einsum("bnts,bsnk->btnk", jax.nn.softmax(scores), value)

    jax.nn.dot_product_attention = attention  # type: ignore[assignment]


def main() -> None:
    if "--float64" in sys.argv:
        compute_in_float64()
    import jax
    from synthetic import WORKLOADS

    from algoperf import sharding
    from algoperf.loading import load_submission
    from algoperf.registry import find_workload
    from algoperf.tuning import load_search_space, trial_point

    parser = argparse.ArgumentParser()
    parser.add_argument("workload")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--submission", type=Path, default=SUBMISSION)
    parser.add_argument("--learning_rate", type=float, help="instead of the space's")
    parser.add_argument("--float64", action="store_true", help="in place of float32")
    parser.add_argument("--out", type=Path, help="run trials, with records there")
    flags = parser.parse_args()
    if flags.workload == "memory":
        print(json.dumps(memory()))
        return
    submission = load_submission(flags.submission)
    base = WORKLOADS.get(flags.workload) or find_workload(flags.workload, "mini")
    seen: dict[str, Any] = {"devices": jax.device_count()}
    for kind in KINDS:
        # Small enough that much of a tiny workload is split as well.
        placement = sharding.Placement(kind, min_size=16)
        workload = dataclasses.replace(base, placement=placement)
        shapes = jax.eval_shape(workload.init_model_fn, jax.random.PRNGKey(0))[0]
        split = [placement.sharded_axis(x.shape) for x in jax.tree.leaves(shapes)]
        seen[f"{kind}_arrays_split"] = len(split) - split.count(None)
        if flags.out:
            seen[kind] = trial_rows(workload, submission, flags.out / kind)
            continue
        space = load_search_space(submission.default_search_space)
        point = trial_point(space, study_seed=0, trial=1)
        if flags.learning_rate is not None:
            point = {**point, "learning_rate": flags.learning_rate}
        seen[kind] = losses(workload, submission, point, flags.steps)
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
