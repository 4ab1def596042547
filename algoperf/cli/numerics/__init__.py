"""List, explain and compare recipes of low-precision products."""

from collections.abc import Sequence
from typing import Any

from absl import flags

from algoperf import records
from algoperf.cli import common, printing
from algoperf.errors import UserError, unknown_name

USAGE = (
    "algoperf numerics list\n"
    "         algoperf numerics explain RECIPE --workload NAME [--scale mini|full]\n"
    "         algoperf numerics sweep [--recipes A,B] [--workloads X,Y] [--seeds K]\n"
    "         algoperf numerics scaling [--recipes A,B] [--widths ...] [--budgets ...]"
)
ACTIONS = ("list", "explain", "sweep", "scaling")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of `algoperf numerics`."""
    flags.DEFINE_string(
        "workload",
        None,
        "Of explain: a name that `algoperf workloads` lists.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "scale", "mini", records.SCALES, "Of the workloads.", flag_values=values
    )
    flags.DEFINE_list(
        "recipes",
        None,
        "Names that `algoperf numerics list` prints; by default those that the papers "
        "compare.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "workloads",
        ["finewebedu_lm", "imagenet_vit", "imagenet_resnet"],
        "Of sweep: names that `algoperf workloads` lists, or all.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "submission",
        "quantized_adamw",
        "What trains: any that is made by from_optax takes a recipe.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "baseline", "bf16", "The recipe that others are compared with.", values
    )
    flags.DEFINE_integer(
        "seeds", 3, "Runs of each recipe on each workload.", 1, flag_values=values
    )
    flags.DEFINE_float(
        "share",
        1.0,
        "Of the workload's step hint that each run takes.",
        lower_bound=0.0,
        flag_values=values,
    )
    flags.DEFINE_list(
        "widths",
        ["32", "64", "96", "128"],
        "Of scaling: widths of the language model.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "budgets",
        ["160", "320", "640", "1280"],
        "Of scaling: training steps of each width.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "side_by_side",
        1,
        "Runs at a time, each on its share of the cores.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "max_steps",
        None,
        "End each run after so many steps, to try things out.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_string(
        "out",
        "runs/numerics",
        "Where runs leave their records, and tables and figures go.",
        flag_values=values,
    )
    common.define_data_dir_flag(values)


def main(values: flags.FlagValues, positional: Sequence[str]) -> int:
    """Runs one action."""
    if not positional:
        raise UserError(f"give an action: {', '.join(ACTIONS)}")
    action, *rest = positional
    if action not in ACTIONS:
        raise unknown_name("action", action, ACTIONS)
    if action == "explain":
        return _explain(values, common.one_argument(rest, "recipe", "numerics"))
    common.no_arguments(rest)
    if action == "list":
        return _list()
    if action == "sweep":
        import jax

        from algoperf.cli.numerics import sweep

        # This process only looks at shapes: the accelerator is for the runs.
        jax.config.update("jax_platforms", "cpu")
        return sweep.run(values)
    from algoperf.cli.numerics import scaling

    return scaling.run(values)


def _list() -> int:
    """Prints recipes and formats."""
    from algoperf import numerics
    from algoperf.numerics.recipes import ROTATIONS

    rows = []
    for name, recipe in numerics.RECIPES.items():
        rotations = sum(getattr(recipe, rotation) is not None for rotation in ROTATIONS)
        notes = [
            f"{rotations} of 3 products rotated" if rotations else "",
            "random" if recipe.needs_key else "",
            "has state" if recipe.has_state else "",
            "products with a parameter" if recipe.weights_only else "",
        ]
        kinds = dict.fromkeys(_short(fmt) for fmt in recipe.formats.values())
        rows.append([name, ", ".join(kinds) or "-", "; ".join(filter(None, notes))])
    printing.print_table(["recipe", "formats", "notes"], rows)
    printing.print_table(
        ["format", "element", "group", "scale", "rounding", "bits"],
        [
            [
                name,
                fmt.element,
                str(fmt.group) if fmt.scale else "-",
                (fmt.scale or "-") + (" x tensor's" if fmt.tensor_scale else ""),
                fmt.rounding,
                fmt.bits_per_element(),
            ]
            for name, fmt in numerics.FORMATS.items()
        ],
    )
    return 0


def _short(fmt: Any) -> str:
    """Names a format by element, group and scale."""
    stochastic = ", stochastic" if fmt.is_stochastic else ""
    scale = f"/{fmt.group}/{fmt.scale}" if fmt.scale else ""
    return f"{fmt.element}{scale}{stochastic}"


def _explain(values: flags.FlagValues, recipe: str) -> int:
    """Prints what a recipe quantises of a workload, where it runs, and its cost."""
    from algoperf import numerics, registry
    from algoperf.cli.numerics import shared
    from algoperf.numerics import cost, units

    numerics.find_recipe(recipe)
    if values.workload is None:
        raise UserError("explain needs --workload NAME")
    workload = registry.find_workload(values.workload, values.scale)
    found = shared.traced_products(workload, recipe)
    device = units.this_device()
    capability = f" {device.capability}" if device.capability else ""
    print(
        f"recipe {recipe} on {workload.name}, as {device.platform}{capability} runs it"
    )
    print(numerics.table(found))
    print(
        cost.modelled_cost(recipe, found)
        + shared.statistics_cost(workload, found, cost.FULL_BITS)
    )
    return 0
