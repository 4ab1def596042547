"""What the actions of `algoperf numerics` share."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from algoperf import records
from algoperf.cli import common
from algoperf.errors import UserError

if TYPE_CHECKING:
    from algoperf.numerics.cost import Cost
    from algoperf.numerics.find import Found
    from algoperf.run_store import Store
    from algoperf.workload import Workload


def recipe_names(values: flags.FlagValues, default: Sequence[str]) -> list[str]:
    """Returns the recipes to run, the baseline first.

    Raises:
      UserError: there is none of a name.
    """
    from algoperf import numerics

    names = list(values.recipes or default)
    for name in (values.baseline, *names):
        numerics.find_recipe(name)
    return list(dict.fromkeys([values.baseline, *names]))


def traced_products(workload: "Workload", recipe: str) -> "tuple[Found, ...]":
    """Returns the products of the model's forward pass under a recipe.

    Of a batch of the embedded data at scale mini, of one example where data are not
    there. Runs nothing.
    """
    import jax

    from algoperf import numerics, spec

    params, state = jax.eval_shape(workload.init_model_fn, jax.random.PRNGKey(0))
    batch = workload.example_batch()
    if workload.scale == "mini":
        batch = dict(workload.dataset("train", workload.default_batch_size, seed=0)[0])

    def forward(params: Any, batch: Any, state: Any, rng: Any) -> Any:
        mode = spec.ForwardPassMode.TRAIN
        return workload.model_fn(params, batch, state, mode, rng, True)[0]

    return numerics.products(
        recipe,
        forward,
        params,
        batch,
        state,
        jax.random.PRNGKey(0),
        parameter_types=workload.model_params_types,
    )


def statistics_cost(
    workload: "Workload", found: "Sequence[Found]", kept_bits: int
) -> "Cost":
    """Returns what `Objective.statistics_of` adds to a step's modelled cost.

    Nothing where a model has no running statistics. To be added: float32 has none of
    it, so what a cost is compared with is 0 here.
    """
    import jax

    from algoperf.numerics import cost
    from algoperf.training_step import STATISTICS_PART

    _, state = jax.eval_shape(workload.init_model_fn, jax.random.PRNGKey(0))
    if not jax.tree.leaves(state):
        return cost.Cost()
    kept = [dataclasses.replace(item, reason="statistics") for item in found]
    whole = cost.modelled_cost("identity", kept, training=False, kept_bits=kept_bits)
    part = whole.times(1 / STATISTICS_PART)
    return dataclasses.replace(part, full_bit_operations=0.0, full_bytes=0.0)


def check_points(store: "Store", files: Mapping[str, Path]) -> None:
    """Checks that stored runs took the points of these files, by recipe.

    Raises:
      UserError: one took another, of a search space as it was before.
    """
    points = {
        recipe: json.loads(file.read_text(encoding="utf-8"))[0]
        for recipe, file in files.items()
    }
    for run in store.runs.values():
        if run.space in points and dict(run.hyperparameters) != points[run.space]:
            raise UserError(
                f"{store.path} has a run of {run.space} at another point than the "
                "first of the search space as it is now; give another --out"
            )


def points_file(values: flags.FlagValues, recipe: str) -> Path:
    """Writes the one point of a recipe's runs, and returns where.

    The first point of the submission's search space, with this recipe.
    """
    from algoperf import registry, trials, tuning

    path = registry.find_submission(values.submission)
    space = tuning.load_search_space(
        path.with_name("tuning_search_space.json"),
        instead="these studies take submissions that have one",
    )
    point = tuning.trial_point(space, trials.study_seed(0, 0), 1)
    file = common.out_folder(values) / "points" / f"{recipe}.json"
    records.make_folder(file.parent)
    records.write_json(file, [{**point, "recipe": recipe}])
    return file
