"""Time per token, and bytes, of the recipes that a decoder can be served with.

    python tests/benchmarks/inference_recipes.py [--shape tiny-4m] [--prompt 16]
        [--tokens 17] [--rounds 8] [--recipes float32,nvfp4,...] [--json FILE]

All recipes have the same random weights and take turns, one request each in a round;
process time of one core, medians, (T(p, o) - T(p, 1)) / (o - 1), beside float32.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

RECIPES = {
    "float32": {},
    "bfloat16": {},
    "int8": {"weight_format": "int8"},
    "mxfp8": {"weight_format": "mxfp8"},
    "nvfp4": {"weight_format": "nvfp4"},
    "mxfp4": {"weight_format": "mxfp4"},
    "nvfp4+embedding": {"weight_format": "nvfp4", "packs_embedding": True},
    "rank 0.25": {"rank": 0.25},
    "pruned 0.5": {"pruned": 0.5},
}


def main() -> None:
    """Measures, prints a line for each recipe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="tiny-4m")
    parser.add_argument("--prompt", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=17)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before any thread starts
    found = compared(
        arguments.shape,
        arguments.recipes.split(","),
        arguments.prompt,
        arguments.tokens,
        arguments.rounds,
    )
    base = found["float32"]["ms_per_token"]
    for name, row in found.items():
        print(
            f"{name:16} {row['ms_per_token']:.3f} ms a token "
            f"({row['ms_per_token'] / base:.2f} of float32), prompt "
            f"{row['ms_prompt']:.2f} ms, weights {row['weight_bytes']:,} bytes, moved "
            f"by a step {row['step_bytes']:,.0f}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def compared(
    name: str, recipes: list[str], prompt: int, tokens: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Returns times and bytes, by recipe."""
    import jax
    import jax.numpy as jnp

    from algoperf.inference.models import decoder, serving, weights
    from algoperf.inference.models.shapes import find_shape
    from algoperf.inference.rooflines import traffic
    from algoperf.inference.timing import measure

    shape = find_shape(name)
    dense = decoder.init_params(shape, jax.random.key(0))
    timers, found = {}, {}
    for recipe in recipes:
        dtype = jnp.bfloat16 if recipe == "bfloat16" else jnp.float32
        small, params = serving.served(
            shape, dense, serving.Recipe(**RECIPES[recipe]), dtype
        )
        capacity = decoder.capacity_for(prompt + tokens)
        timers[recipe] = measure.decoder_measure(
            small, params, clock=time.process_time, capacity=capacity
        )
        found[recipe] = {
            "weight_bytes": weights.num_bytes(params),
            "step_bytes": traffic.step_bytes(small, params, 1, capacity),
        }
    times = {(r, o): [] for r in recipes for o in (1, tokens)}
    for _ in range(rounds):
        for recipe, output in times:
            times[recipe, output].append(timers[recipe](prompt, output))
    for recipe in recipes:
        first = statistics.median(times[recipe, 1])
        whole = statistics.median(times[recipe, tokens])
        found[recipe]["ms_prompt"] = 1e3 * first
        found[recipe]["ms_per_token"] = 1e3 * (whole - first) / (tokens - 1)
    return found


if __name__ == "__main__":
    main()
