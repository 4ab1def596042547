"""Train workloads by recipes, and compare steps to target with modelled cost.

The action `sweep` of `algoperf numerics`.
"""

import contextlib
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from algoperf import records
from algoperf.cli import common, printing
from algoperf.cli.numerics import shared

if TYPE_CHECKING:
    from algoperf.cli import missing_runs
    from algoperf.launch.local import Job
    from algoperf.run_store import Run, Store
    from algoperf.workload import Workload
    from scoring.recipes import RecipeRun

RECIPES = (
    *("bf16", "fp8", "fp8_delayed", "mxfp8", "mxint8", "int8", "mxfp6"),
    *("mxfp4", "mxfp4_design_space", "ue5m3_fp4", "quartet", "nvfp4"),
    *("nvint4_hadamard", "luq"),
)
PHASE = "sweep"
# Of the baseline's steps: its metric there is a goal that it reaches on any workload.
LEVEL = 0.5
KEPT_BITS = 16  # the papers run in bfloat16 what they do not quantise


def run(values: flags.FlagValues) -> int:
    """Makes the runs that are missing, then writes tables and figures."""
    from algoperf import calibration, registry, run_store

    recipes = shared.recipe_names(values, RECIPES)
    workloads = registry.select_workloads(values.workloads, values.scale)
    for workload in workloads:
        calibration.for_target_setting(workload, values.share)  # has it a step?
    out = common.out_folder(values)
    facts = {name: values[name].value for name in ("submission", "share", "max_steps")}
    stores = {
        workload.name: run_store.Store.open(
            out / f"{workload.name}.json.xz", calibration.facts_of(workload) | facts
        )
        for workload in workloads
    }
    with contextlib.ExitStack() as held:
        for store in stores.values():
            held.enter_context(store.held())
        if not _make_missing(values, _wanted(values, stores, workloads, recipes)):
            print("stopped; the same command goes on with what is missing")
            return 1
    write_results(values, workloads, recipes, stores)
    return 0


def _wanted(
    values: flags.FlagValues,
    stores: "dict[str, Store]",
    workloads: "Sequence[Workload]",
    recipes: Sequence[str],
) -> "dict[Job, tuple[Store, missing_runs.Key]]":
    """Writes the points of the recipes; returns which runs there are to be."""
    files = {recipe: shared.points_file(values, recipe) for recipe in recipes}
    for store in stores.values():
        shared.check_points(store, files)
    return {
        _job(values, workload, recipe, file, seed): (
            stores[workload.name],
            (PHASE, recipe, seed),
        )
        for workload in workloads
        for seed in range(1, values.seeds + 1)
        for recipe, file in files.items()
    }


def _job(
    values: flags.FlagValues,
    workload: "Workload",
    recipe: str,
    file: Path,
    seed: int,
) -> "Job":
    from algoperf import registry
    from algoperf.launch.local import Job

    path = registry.find_submission(values.submission)
    out = Path(values.out) / "records" / recipe
    given = [
        f"--{name}={values[name].value}"
        for name in ("data_dir", "max_steps")
        if values[name].value is not None
    ]
    return Job(
        arguments=(
            f"--submission={path}",
            f"--workload={workload.name}",
            f"--scale={values.scale}",
            f"--tuning_search_space={file}",
            f"--study={seed - 1}",
            f"--out={out}",
            f"--target_setting={values.share}",
            "--checkpoint_period_sec=300",
            *given,
        ),
        folder=records.trial_folder(out, path.parent.name, seed - 1, workload.name, 1),
    )


def _make_missing(
    values: flags.FlagValues,
    wanted: "dict[Job, tuple[Store, missing_runs.Key]]",
) -> bool:
    """Makes the runs that the stores lack; returns whether they have all."""
    from algoperf.cli import missing_runs

    known = sum(key in store.runs for store, key in wanted.values())
    print(f"{known} of {len(wanted)} runs are done", flush=True)

    def say(count: str, job: "Job", run: "Run") -> None:
        workload = job.folder.parent.name.removesuffix("_jax")
        print(f"[{count}: {run.space} on {workload}, seed {run.trial}]", flush=True)

    with common.StopRequest() as stop:
        return missing_runs.make(
            wanted, lambda: stop.is_asked, say, values.side_by_side
        )


def write_results(
    values: flags.FlagValues,
    workloads: "Sequence[Workload]",
    recipes: Sequence[str],
    stores: "dict[str, Store]",
) -> None:
    """Prints the tables; writes them as CSV, and the picture as SVG."""
    from scoring import recipes as compared

    keys = [
        (PHASE, recipe, seed)
        for recipe in recipes
        for seed in range(1, values.seeds + 1)
    ]
    runs = [
        run
        for workload in workloads
        for run in recipe_runs(
            workload,
            [stores[workload.name].runs[key] for key in keys],
            values.baseline,
        )
    ]
    rows = compared.summarise(runs, values.baseline)
    found = compared.points(rows, costs(workloads, recipes))
    out = Path(values.out)
    times = f"times {values.baseline}"
    heading = [
        *("workload", "recipe", "runs", "reached", "steps to target"),
        *(f"{times} to target", "low", "high"),
        *(f"{times} to its level", "lower", "higher", "final metric"),
    ]
    names = ("workload", "recipe", "runs", "reached", "steps")
    table = [
        [*(getattr(row, n) for n in names), *row.to_target, *row.to_level, row.final]
        for row in rows
    ]
    front = [[p.recipe, p.cost, p.ratio, "yes" if p.on_front else ""] for p in found]
    columns = ["recipe", "bit operations", f"{times} to its level", "on the front"]
    printing.print_table(heading, [[_shown(cell) for cell in row] for row in table])
    printing.print_table(columns, [[_shown(cell) for cell in row] for row in front])
    printing.write_csv(out / "recipes.csv", heading, table)
    printing.write_csv(out / "front.csv", columns, front)
    records.write_text(out / "front.svg", compared.svg(found, values.baseline))
    print(
        "bit operations are modelled, as a share of float32's; what a recipe keeps "
        f"counts as bfloat16. The level of {values.baseline} is its median metric "
        f"after {LEVEL:.0%} of its steps. All is under {out}"
    )


def costs(
    workloads: "Sequence[Workload]",
    recipes: Sequence[str],
    only_quantised: bool = False,
) -> dict[str, float]:
    """Returns the modelled bit operations of each recipe, as a share of float32's.

    The geometric mean over workloads; of all products, or of those that are quantised.
    """
    from algoperf.numerics import cost

    def share(recipe: str, workload: "Workload") -> float:
        found = shared.traced_products(workload, recipe)
        counted = [p for p in found if p.reason is None or not only_quantised]
        modelled = cost.modelled_cost(recipe, counted, kept_bits=KEPT_BITS)
        if not only_quantised:
            modelled += shared.statistics_cost(workload, found, KEPT_BITS)
        return modelled.relative_bit_operations

    shares = {
        recipe: [share(recipe, workload) for workload in workloads]
        for recipe in recipes
    }
    return {
        recipe: math.exp(sum(map(math.log, own)) / len(own))
        for recipe, own in shares.items()
    }


def recipe_runs(
    workload: "Workload", runs: "Sequence[Run]", baseline: str
) -> "list[RecipeRun]":
    """Returns what the comparison needs of a workload's runs."""
    from scoring.recipes import RecipeRun

    target, way = workload.validation_target_value, workload.target_direction
    level = _level([run for run in runs if run.space == baseline])

    def steps(run: "Run", value: float) -> float:
        found = run.steps_to(value, way)
        return math.inf if found is None else found

    return [
        RecipeRun(
            workload=workload.name,
            recipe=run.space,
            seed=run.trial,
            steps=steps(run, target),
            level_steps=steps(run, level),
            final=run.evaluations[-1]["validation"],
        )
        for run in runs
    ]


def _level(runs: "Sequence[Run]") -> float:
    """Returns the median metric after a share of the runs' steps; NaN without runs."""

    def metric(run: "Run") -> float:
        enough = LEVEL * run.evaluations[-1]["step"]
        row = next(row for row in run.evaluations if row["step"] >= enough)
        return row["validation"]

    return statistics.median(map(metric, runs)) if runs else math.nan


def _shown(cell: Any) -> Any:
    if not isinstance(cell, float):
        return cell
    return "-" if math.isnan(cell) else f"{cell:.4g}"
