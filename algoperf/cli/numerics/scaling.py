"""Train the small language model over sizes and budgets; fit the scaling law.

The action `scaling` of `algoperf numerics`.
"""

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from algoperf import records
from algoperf.cli import common, printing
from algoperf.cli.numerics import shared
from algoperf.errors import UserError

if TYPE_CHECKING:
    from algoperf.data.examples import DataOptions
    from algoperf.numerics.scaling_law import Observation
    from algoperf.run_store import Run, Store
    from algoperf.trials import TrialConfig
    from algoperf.workload import Workload

RECIPES = ("bf16", "mxfp8", "mxfp4", "quartet")
HEAD_WIDTH = 32
LEAST = 3  # sizes, and budgets, that a law can be fitted to


@dataclasses.dataclass(frozen=True)
class Cell:
    """One place of the grid: a model, its training steps, a recipe."""

    width: int
    steps: int
    recipe: str

    @property
    def key(self) -> tuple[str, str, int]:
        """Which run of the store it is."""
        return f"width_{self.width}_steps_{self.steps}", self.recipe, 1


def run(values: flags.FlagValues) -> int:
    """Makes the runs that are missing, one after another; fits and prints."""
    from algoperf import calibration, registry, run_store

    base = registry.find_workload("finewebedu_lm", values.scale)
    recipes = shared.recipe_names(values, RECIPES)
    widths, budgets = (_numbers(values, name) for name in ("widths", "budgets"))
    sizes = [sized(base, width, steps) for width in widths for steps in budgets]
    out = common.out_folder(values)
    records.make_folder(out)
    facts = {name: values[name].value for name in ("submission", "max_steps")}
    facts = calibration.facts_of(base) | facts
    store = run_store.Store.open(out / "scaling.json.xz", facts)
    cells = {
        Cell(workload.model.width, workload.step_hint, recipe): workload
        for workload in sizes
        for recipe in recipes
    }
    _warn_of_repeats(sizes)
    with store.held():
        files = {recipe: shared.points_file(values, recipe) for recipe in recipes}
        shared.check_points(store, files)
        if not _make_missing(values, cells, store):
            print("stopped; the same command goes on with what is missing")
            return 1
    _write(values, cells, store)
    return 0


def _numbers(values: flags.FlagValues, name: str) -> list[int]:
    found = sorted(set(common.numbers(values, name)))
    if len(found) < LEAST or found[0] < 1:
        raise UserError(f"--{name}: give at least {LEAST} numbers, all positive")
    return found


def sized(base: "Workload", width: int, steps: int) -> "Workload":
    """Returns the language model with another width, trained for so many steps.

    The layers stay as many, a head is 32 wide, the hidden layer twice as wide as the
    model. Runs neither end at a target nor at a budget.
    """
    from algoperf import calibration
    from algoperf.workload import derive

    if width % HEAD_WIDTH:
        raise UserError(f"a width of {width}: give multiples of {HEAD_WIDTH}")
    model = {"width": width, "mlp_width": 2 * width, "num_heads": width // HEAD_WIDTH}
    named = derive(
        base,
        model=model,
        variant=f"{base.variant}_width_{width}_steps_{steps}",
        step_hint=steps,
    )
    return calibration.for_target_setting(named, 1.0)


def layer_parameters(workload: "Workload") -> int:
    """Returns how many parameters a model has without its embedding."""
    import jax

    from algoperf.spec import ParameterType

    sizes = jax.tree.map(lambda s: math.prod(s.shape_tuple), workload.param_shapes)
    kinds = workload.model_params_types
    pairs = zip(jax.tree.leaves(sizes), jax.tree.leaves(kinds), strict=True)
    return sum(size for size, kind in pairs if kind is not ParameterType.EMBEDDING)


def tokens(workload: "Workload", steps: float) -> float:
    """Returns how many tokens so many steps are."""
    return steps * workload.default_batch_size * math.prod(workload.input_shape)


def _warn_of_repeats(sizes: "list[Workload]") -> None:
    epoch = sizes[0].num_train_examples / sizes[0].default_batch_size
    longest = max(workload.step_hint for workload in sizes)
    if longest > epoch:
        print(
            f"note: an epoch is {epoch:.0f} steps, and the longest runs take "
            f"{longest}; the law is for data that are not repeated"
        )


def _data(values: flags.FlagValues) -> "DataOptions":
    from algoperf.data.examples import DataOptions

    return DataOptions(folder=Path(values.data_dir) if values.data_dir else None)


def _config(values: flags.FlagValues, workload: "Workload", cell: Cell) -> Any:
    from algoperf import loading, registry, trials, tuning

    loaded = loading.load_submission(registry.find_submission(values.submission))
    space = tuning.load_search_space(shared.points_file(values, cell.recipe))
    steps = values.max_steps or workload.step_hint
    config = trials.TrialConfig(
        submission=loaded,
        workload=dataclasses.replace(workload, data=_data(values)),
        out=Path(values.out) / "records" / cell.recipe,
        max_steps=steps,
        eval_period_steps=steps,
        checkpoint_period_sec=300.0,
    )
    (only,) = trials.trial_configs(config, space, [1])
    return only


def _make_missing(
    values: flags.FlagValues, cells: "dict[Cell, Workload]", store: "Store"
) -> bool:
    """Makes the runs that the store lacks; returns whether it has all."""
    from algoperf import run_store, runner

    missing = [cell for cell in cells if cell.key not in store.runs]
    print(f"{len(cells) - len(missing)} of {len(cells)} runs are done", flush=True)
    with common.StopRequest() as stop:
        for done, cell in enumerate(missing, start=1):
            config: TrialConfig = _config(values, cells[cell], cell)
            runner.run_study([config], resume=True, should_stop=lambda: stop.is_asked)
            if stop.is_asked:
                return False
            folder = records.trial_folder(
                config.out, config.submission.name, 0, config.workload.name, 1
            )
            found = run_store.read_run(folder, *cell.key)
            store.add(found, run_store.environment(folder))
            value = found.evaluations[-1]["validation"]
            print(f"[{done}/{len(missing)}: {cell}, {value:.5g}]", flush=True)
    return True


def observation(workload: "Workload", recipe: str, run: "Run") -> "Observation":
    """Returns what the law needs of a run: the loss is the logarithm of perplexity."""
    from algoperf.numerics.scaling_law import Observation

    last = run.evaluations[-1]
    perplexity = last["validation"]
    return Observation(
        parameters=layer_parameters(workload),
        tokens=tokens(workload, last["step"]),
        loss=math.log(perplexity) if perplexity > 0 else math.nan,
        recipe=recipe,
    )


def observations_of(base: "Workload", store: "Store") -> "list[Observation]":
    """Returns the observations of all runs in a store, of this language model's."""
    found = []
    for run in store.runs.values():
        _, width, _, steps = run.phase.split("_")
        workload = sized(base, int(width), int(steps))
        found.append(observation(workload, run.space, run))
    return found


def _write(
    values: flags.FlagValues, cells: "dict[Cell, Workload]", store: "Store"
) -> None:
    """Writes the observations; prints the law and the efficiencies."""
    from algoperf.numerics.scaling_law import fit, intervals

    observations = [
        observation(workload, cell.recipe, store.runs[cell.key])
        for cell, workload in cells.items()
    ]
    heading = ["parameters", "tokens", "loss", "recipe"]
    out = Path(values.out)
    table = [list(dataclasses.astuple(one)) for one in observations]
    printing.write_csv(out / "scaling.csv", heading, table)
    print(f"{len(table)} runs are in {out / 'scaling.csv'}")
    if values.max_steps:
        print("no law is fitted to runs that --max_steps cut short")
        return
    found = fit(observations, values.baseline)
    law = ", ".join(f"{k} {v:.4g}" for k, v in dataclasses.asdict(found.law).items())
    print(f"L(N, D) = (a / (N effN)^alpha + b / (D effD)^beta)^gamma + e: {law}")
    of_recipe = intervals(observations, values.baseline, found)
    certain = (1.0, 1.0), (1.0, 1.0)
    columns = [
        *("recipe", "runs used", "made"),
        *("effN", "low", "high", "effD", "lower", "higher", "residual of log L"),
    ]
    rows: list[list[Any]] = []
    for name, one in found.efficiencies.items():
        of_model, of_data = of_recipe.get(name, certain)
        fitted = [one.parameters, *of_model, one.data, *of_data, one.error]
        rows.append([name, one.used, one.made, *fitted])
    printing.write_csv(out / "efficiencies.csv", columns, rows)
    printing.print_table(columns, [list(map(printing.shown, row)) for row in rows])
    if any(math.isnan(one.data) for one in found.efficiencies.values()):
        print(
            "nan: of a recipe that diverged where the baseline did not, no efficiency "
            "is told"
        )
