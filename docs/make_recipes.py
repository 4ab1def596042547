"""Writes docs/recipes.md and its figure from the stores in docs/recipes/.

    python docs/make_recipes.py

Stores are what `algoperf numerics sweep --out DIR` leaves in DIR: copy its
`<workload>.json.xz` there, and `scaling.json.xz` of `algoperf numerics scaling`.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from algoperf import registry
from algoperf.cli import printing
from algoperf.cli.numerics import scaling, sweep
from algoperf.numerics import scaling_law
from algoperf.run_store import Store
from algoperf.workload import Workload
from scoring import recipes as compared

DOCS = Path(__file__).resolve().parent
STORES = DOCS / "recipes"
PAGE = DOCS / "recipes.md"
FIGURE = STORES / "front.svg"
SCALING = STORES / "scaling.json.xz"
BASELINE = "bf16"
NOTHING = "-"
HEAD = """# Low-precision recipes on the mini suite

Written by `python docs/make_recipes.py` from the runs in `docs/recipes/`; none of these
numbers was typed in. What recipes are, and what the figures mean, is in
[numerics.md](numerics.md).

    algoperf numerics sweep --out runs/recipes --side_by_side 2

AdamW at the first point of `submissions/quantized_adamw`, the same for all recipes and
tuned for none, over the whole step hint of each workload. Emulated in float32, so steps
and metrics are those of the formats, and no time is told.

Two goals are compared: the workload's target, which AdamW at that point does not reach
everywhere, and the level of `bf16`, its median metric after half of its
steps. Steps are between two evaluations, on a straight line. Their ratio to those of
`bf16` is that of medians, with 95 % intervals over seeds (Student's t on logarithms)
where a recipe has two runs or more.
"""
COMBINED = """## All workloads

- **Bit operations** are modelled: of a training step with all overhead, as a share of
  float32's; what a recipe keeps counts as bfloat16. The mean over workloads. Recipes of
  4 bits keep the last layer, a good part of models so small; so the next column counts
  the products that are quantised alone.
- **Times bf16**: steps to the level of `bf16`, geometric mean over the workloads where
  half of a recipe's runs get there, with its interval over them; **of** how many.
- **Targets**: runs that reached their target. **Front**: no recipe is as cheap and gets
  to all levels in as few steps, and better in one.
"""


def stores() -> dict[Workload, Store]:
    """Returns the workloads that have runs, in the order of their names."""
    found = {}
    for path in sorted(STORES.glob("*.json.xz")):
        if path != SCALING:
            store = Store.read(path)
            found[registry.find_workload(store.facts["name"], "mini")] = store
    return found


def page(found: dict[Workload, Store]) -> tuple[str, str]:
    """Returns the text of the page, and the figure."""
    runs = [
        run
        for workload, store in found.items()
        for run in sweep.recipe_runs(workload, list(store.runs.values()), BASELINE)
    ]
    rows = compared.summarise(runs, BASELINE)
    names = list(dict.fromkeys(row.recipe for row in rows))
    costs = sweep.costs(list(found), names)
    of_quantised = sweep.costs(list(found), names, only_quantised=True)
    points = compared.points(rows, costs)
    front = {point.recipe for point in points if point.on_front}
    sections = [
        HEAD,
        COMBINED,
        combined(rows, costs, of_quantised, front),
        "![front](recipes/front.svg)\n",
    ]
    for workload in found:
        own = [row for row in rows if row.workload == workload.name]
        own.sort(key=lambda row: costs[row.recipe])
        sections += [of_workload(workload), each(own)]
    if SCALING.exists():
        sections += of_scaling(Store.read(SCALING))
    return "\n".join(sections), compared.svg(points, BASELINE)


def combined(
    rows: Sequence[compared.Row],
    costs: dict[str, float],
    of_quantised: dict[str, float],
    front: set[str],
) -> str:
    """Returns the table of recipes over all workloads, the cheapest first."""
    lines = []
    for recipe in sorted(costs, key=lambda name: costs[name]):
        own = [row for row in rows if row.recipe == recipe]
        ratios = [row.to_level.value for row in own]
        there = sum(map(math.isfinite, ratios))
        lines.append(
            [
                f"`{recipe}`",
                f"{costs[recipe]:.3f}",
                f"{of_quantised[recipe]:.3f}",
                shown(compared.mean_ratio(ratios), recipe),
                f"{there} of {len(ratios)}",
                f"{sum(row.reached for row in own)} of {sum(row.runs for row in own)}",
                "yes" if recipe in front else "",
            ]
        )
    columns = ("recipe", "bit operations", "of what is quantised", "times bf16", "of")
    return printing.markdown((*columns, "targets", "front"), lines) + "\n"


def of_workload(workload: Workload) -> str:
    """Returns the heading of a workload."""
    target = workload.validation_target_value
    return (
        f"### {workload.variant}\n\nTarget: {workload.target_metric_name} {target:g}; "
        f"{workload.step_hint} steps.\n"
    )


def each(rows: Iterable[compared.Row]) -> str:
    """Returns the table of a workload's recipes."""
    lines = [
        [
            f"`{row.recipe}`",
            f"{row.reached} of {row.runs}",
            f"{row.steps:.0f}" if math.isfinite(row.steps) else NOTHING,
            shown(row.to_target, row.recipe),
            shown(row.to_level, row.recipe),
            f"{row.final:.4g}",
        ]
        for row in rows
    ]
    columns = ("recipe", "reached", "steps", "times bf16", "times bf16 to its level")
    return printing.markdown((*columns, "metric at the end"), lines) + "\n"


def of_scaling(store: Store) -> list[str]:
    """Returns the sections of the scaling law."""
    base = registry.find_workload(store.facts["name"], "mini")
    observations = scaling.observations_of(base, store)
    found = scaling_law.fit(observations, BASELINE)
    widths = sorted({one.parameters for one in observations})
    budgets = sorted({one.tokens for one in observations})
    law = found.law
    of_recipe = scaling_law.intervals(observations, BASELINE, found)
    lines = []
    best_first = sorted(
        found.efficiencies.items(),
        key=lambda item: math.inf if math.isnan(item[1].data) else -item[1].data,
    )
    for name, one in best_first:
        values = [f"{one.parameters:.3f}", f"{one.data:.3f}"]
        if name in of_recipe:
            values = [
                f"{value} ({low:.2f} to {high:.2f})"
                for value, (low, high) in zip(values, of_recipe[name], strict=True)
            ]
        values.append(f"{one.error:.3f}")
        if math.isnan(one.data):
            values = [NOTHING] * 3
        lines.append([f"`{name}`", f"{one.used} of {one.made}", *values])
    return [
        "## Scaling law\n\nThe language model with "
        f"{', '.join(f'{n:,}' for n in widths)} parameters\nwithout the embedding, "
        f"trained on {', '.join(f'{d:,.0f}' for d in budgets)}\ntokens, one run each "
        "(`algoperf numerics scaling`). Of `bf16`:\n",
        f"    L(N, D) = ({law.a:.3g} / N^{law.alpha:.3g} + {law.b:.3g} / "
        f"D^{law.beta:.3g})^{law.gamma:.3g} + {law.e:.3g}\n",
        "With 95 % intervals by the jackknife over sizes and budgets, and how many of "
        "a recipe's\nruns did not diverge. Of one that did where `bf16` did not, no "
        "efficiency is told:\n",
        printing.markdown(
            ("recipe", "runs", "effN", "effD", "residual of log L"), lines
        )
        + "\n",
    ]


def shown(ratio: compared.Ratio, recipe: str = "") -> str:
    """Returns a recipe's ratio with its interval, as far as they are known."""
    if recipe == BASELINE or not math.isfinite(ratio.value):
        return NOTHING
    known = math.isfinite(ratio.low)
    return f"{ratio.value:.2f}" + (
        f" ({ratio.low:.2f} to {ratio.high:.2f})" if known else ""
    )


def main() -> None:
    """Writes the page and the figure."""
    text, figure = page(stores())
    PAGE.write_text(text, encoding="utf-8")
    FIGURE.write_text(figure, encoding="utf-8")
    print(f"wrote {PAGE} and {FIGURE}")


if __name__ == "__main__":
    main()
