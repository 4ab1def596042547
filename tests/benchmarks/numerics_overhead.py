"""Measures what emulation costs on the mini language model: step and compile time.

Compiling is counted in CPU time of this process, which other work on the machine hardly
changes; steps in wall time, the fastest of several.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from algoperf import numerics, registry, spec


def main() -> None:
    """Prints a line per recipe, measured interleaved in one run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", nargs="*", default=["mxfp4"])
    parser.add_argument("--all", action="store_true", help="all products, all slots")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    workload = registry.find_workload("finewebedu_lm", "mini")
    params, state = workload.init_model_fn(jax.random.PRNGKey(0))
    batch = workload.dataset("train", workload.default_batch_size, seed=0)[0]
    batch = jax.tree.map(jnp.asarray, dict(batch))

    def mean_loss(params, rng):
        mode = spec.ForwardPassMode.TRAIN
        logits, _ = workload.model_fn(params, batch, state, mode, rng, True)
        loss = workload.loss_fn(batch["targets"], logits, batch.get("weights"))
        return loss["summed"] / loss["n_valid_examples"]

    steps, compiles = {}, {}
    rng = jax.random.PRNGKey(1)
    for name in ("float32", *options.recipes):
        loss = mean_loss
        if name != "float32":
            recipe = numerics.find_recipe(name)
            if options.all:
                recipe = recipe.replace(keep_last=0, keep_types=(), weights_only=False)
            types = workload.model_params_types

            def loss(params, rng, recipe=recipe, types=types):
                return numerics.apply(
                    recipe, mean_loss, key=rng, parameter_types=types
                )(params, rng)

        start = time.process_time()
        lowered = jax.jit(jax.value_and_grad(loss)).lower(params, rng)
        traced = time.process_time()
        steps[name] = lowered.compile()
        compiles[name] = traced - start, time.process_time() - traced
    times = {name: [] for name in steps}
    for _ in range(options.rounds):
        for name, step in steps.items():
            jax.block_until_ready(step(params, rng))
            start = time.perf_counter()
            jax.block_until_ready(step(params, rng))
            times[name].append(time.perf_counter() - start)
    for name in steps:
        fastest, first = np.min(times[name]), np.min(times["float32"])
        both, first_both = sum(compiles[name]), sum(compiles["float32"])
        print(
            f"{name}: step {fastest * 1e3:.1f} ms (x{fastest / first:.2f}, median "
            f"{np.median(times[name]) * 1e3:.1f}); trace {compiles[name][0]:.2f} s, "
            f"compile {compiles[name][1]:.2f} s of CPU time "
            f"(both x{both / first_both:.2f})"
        )


if __name__ == "__main__":
    main()
