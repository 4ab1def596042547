"""Times a step of a workload in float32 and by recipes, in units and emulated.

    python tests/benchmarks/numerics_native.py --workload imagenet_vit --batch_size 128
    python tests/benchmarks/numerics_native.py --workload finewebedu_lm --batch_size 16

needs a GPU of compute capability 8.9 or more for FP8 units, and no data: batches are
random. The first line is the model in float32, whose products run as TF32 on such a
GPU. Steps are timed in turn, a round each, so that what else the machine does falls on
all; the ratio is of the fastest. Utilisation is the share of the peak rate, of the
units named, that the products alone account for: forward and both gradients.
"""

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from algoperf import numerics, registry, spec, workload
from algoperf.numerics import cost, units

# Dense peak rates (operations per second), NVIDIA's data sheets of H100 and H200 SXM.
HOPPER = {
    "float32": 494.7e12,  # as TF32
    "bfloat16": 989.4e12,
    "float16": 989.4e12,
    "float8": 1978.9e12,
    "int8": 1978.9e12,
}
PEAKS = {"H100": HOPPER, "H200": HOPPER}


def arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", default=["bf16", "fp8", "mxfp8", "int8"])
    parser.add_argument("--workload", default="imagenet_vit")
    parser.add_argument("--scale", default="full")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--emulated", action="store_true", help="recipes emulated too")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    return parser.parse_args()


def random_batch(problem, batch_size, params, state):
    """Returns a batch of random inputs and classes; no data are read."""
    key = jax.random.PRNGKey(0)
    batch = {}
    for name, one in problem.example_batch().items():
        shape = (batch_size, *one.shape[1:])
        if jnp.issubdtype(one.dtype, jnp.integer):
            batch[name] = jax.random.randint(key, shape, 0, 100, one.dtype)
        else:
            batch[name] = jax.random.normal(key, shape, one.dtype)
    mode = spec.ForwardPassMode.EVAL
    logits, _ = jax.eval_shape(
        lambda: problem.model_fn(params, batch, state, mode, None, False)
    )
    classes = min(100, logits.shape[-1])
    batch["targets"] = jax.random.randint(key, logits.shape[:-1], 0, classes)
    batch["weights"] = jnp.ones(logits.shape[:-1])
    return batch


def compiled_steps(options, problem):
    """Returns name -> (compiled step, kinds of units, multiply-adds), and arguments."""
    params, state = problem.init_model_fn(jax.random.PRNGKey(0))
    batch = random_batch(problem, options.batch_size, params, state)
    types = problem.model_params_types

    def mean_loss(params, batch, rng):
        mode = spec.ForwardPassMode.TRAIN
        logits, _ = problem.model_fn(params, batch, state, mode, rng, True)
        loss = problem.loss_fn(batch["targets"], logits, batch["weights"])
        return loss["summed"] / loss["n_valid_examples"]

    given = (params, batch, jax.random.PRNGKey(1))
    found = numerics.products("identity", mean_loss, *given)
    multiply_adds = cost.modelled_cost("identity", found).multiply_adds
    steps = {}
    plain = jax.jit(jax.value_and_grad(mean_loss)).lower(*given).compile()
    steps["float32"] = plain, ["float32"], multiply_adds
    devices = {"": units.this_device()}
    if options.emulated:
        devices[" emulated"] = units.EMULATOR
    for recipe in options.recipes:
        for suffix, device in devices.items():
            loss = numerics.apply(
                recipe,
                mean_loss,
                key=jax.random.PRNGKey(2),
                parameter_types=types,
                device=device,
            )
            found = numerics.products(
                recipe, mean_loss, *given, parameter_types=types, device=device
            )
            kinds = sorted({kind for item in found for kind in item.units})
            step = jax.jit(jax.value_and_grad(loss)).lower(*given).compile()
            steps[recipe + suffix] = step, kinds, multiply_adds
    return steps, given


def main() -> None:
    """Prints a line per recipe."""
    options = arguments()
    problem = registry.find_workload(options.workload, options.scale)
    if getattr(problem.model, "dtype", jnp.float32) != jnp.float32:
        problem = workload.derive(problem, model={"dtype": jnp.float32})
    steps, given = compiled_steps(options, problem)
    times = {name: [] for name in steps}
    for step, *_ in steps.values():
        jax.block_until_ready(step(*given))
    for _ in range(options.rounds):
        for name, (step, *_) in steps.items():
            start = time.perf_counter()
            jax.block_until_ready(step(*given))
            times[name].append(time.perf_counter() - start)
    device_kind = jax.devices()[0].device_kind
    peaks = next((p for name, p in PEAKS.items() if name in device_kind), {})
    print(f"{problem.name}, batch {options.batch_size}, on {device_kind}")
    rows = []
    for name, (_, kinds, multiply_adds) in steps.items():
        fastest = float(np.min(times[name]))
        ratio = float(np.min(times["float32"])) / fastest
        peak = max((peaks.get(kind, 0.0) for kind in kinds), default=0.0)
        share = 2 * multiply_adds / fastest / peak if peak else None
        rows.append(
            {"name": name, "units": kinds, "seconds": times[name], "ratio": ratio}
            | {"utilisation": share}
        )
        used = f"{share:.1%} of peak" if share is not None else "peak rate not known"
        print(
            f"{name:<20} {fastest * 1e3:9.2f} ms (median "
            f"{np.median(times[name]) * 1e3:.2f})  {ratio:5.2f} times as fast  {used}  "
            f"[{', '.join(kinds)}]",
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
