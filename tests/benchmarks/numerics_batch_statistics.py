"""Evaluates trained networks under running statistics of two kinds.

The parameters are those that trials of a recipe have left; the statistics are gathered
anew by training passes, once without quantising and once by the recipe. Evaluation is
the workload's, unquantised.
"""

import argparse
from pathlib import Path

import jax

from algoperf import numerics, registry, spec
from algoperf.inference.models import trial
from algoperf.workload import Evaluator


def gathered(workload, recipe, params, batches):
    """Returns the model state after so many training passes by a recipe."""
    key = jax.random.PRNGKey(0)
    train = spec.ForwardPassMode.TRAIN

    def advance(params, state, batch, key):
        return workload.model_fn(params, batch, state, train, key, True)[1]

    @jax.jit
    def step(state, batch, number):
        key_of_step = jax.random.fold_in(key, number)
        quantised = numerics.apply(
            recipe,
            advance,
            key=key_of_step,
            parameter_types=workload.model_params_types,
        )
        return quantised(params, state, batch, key_of_step)

    _, state = workload.init_model_fn(key)
    dataset = workload.dataset("train", workload.default_batch_size, seed=0)
    for number in range(batches):
        state = step(state, dict(dataset[number]), number)
    return state


def main() -> None:
    """Prints a row for each trial: loss and metric under both kinds of statistics."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trials", nargs="+", type=Path, help="folders of trials")
    parser.add_argument("--batches", type=int, default=100)
    options = parser.parse_args()
    print("| recipe | study | statistics | training loss | validation |")
    print("|---|---|---|---|---|")
    for folder in options.trials:
        trained = trial.read_trial(folder)
        record = trained.record
        workload = registry.find_workload(record["workload"], record["scale"])
        evaluate = Evaluator(workload)
        recipe = record["hyperparameters"]["recipe"]
        for kind, by in (("unquantised", "identity"), (f"of {recipe}", recipe)):
            state = gathered(workload, by, trained.params, options.batches)
            found = evaluate(trained.params, state)
            metric = found[f"validation/{workload.target_metric_name}"]
            print(
                f"| {recipe} | {record['study']} | {kind} "
                f"| {found['train/loss']:.3f} | {metric:.4f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
