"""Draw held-out workloads: one variant of every family that has any."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from algoperf import records
from algoperf.cli import common, printing

USAGE = (
    "algoperf heldout --seed N [--scale mini|full] [--rules FILE] [--json FILE]\n"
    "       algoperf sweep --workloads $(algoperf heldout --seed N) ...\n"
    "       algoperf score DIR --benchmark FILE"
)


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of `algoperf heldout`."""
    flags.DEFINE_integer(
        "seed",
        None,
        "The draw follows from it, family by family.",
        required=True,
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_enum(
        "scale", "mini", records.SCALES, "Of the workloads.", flag_values=values
    )
    flags.DEFINE_string(
        "rules",
        None,
        "Write rules to this file that ask for the base workloads and for these, for "
        "`algoperf score --benchmark FILE`: a target counts where its variant's is "
        "reached too.",
        flag_values=values,
    )
    printing.define_json_flag(values)


def main(values: flags.FlagValues, positional: Sequence[str]) -> int:
    """Prints the names, with commas between."""
    common.no_arguments(positional)
    from algoperf import registry

    names = registry.held_out(values.seed, values.scale)
    if values.rules:
        path = Path(values.rules)
        records.make_folder(path.parent, "--rules")
        records.write_json(path, _rules(names, values.seed, values.scale))
    printing.show(values.json, names, lambda: print(",".join(names)))
    return 0


def _rules(names: Sequence[str], seed: int, scale: str) -> dict[str, Any]:
    """Returns the rules of the scale's benchmark with these held-out workloads."""
    from algoperf import registry
    from scoring.rules import FOLDER

    benchmark = common.BENCHMARKS[scale]
    rules = json.loads((FOLDER / f"{benchmark}.json").read_text(encoding="utf-8"))
    drawn = [registry.find_workload(name, scale) for name in names]
    rules.pop("subsets", None)  # these are of the benchmark without a draw
    rules["name"] = f"{benchmark}_held_out_{seed}"
    rules["held_out"] = {
        w.name: registry.find_workload(w.base_workload, scale).name for w in drawn
    }
    rules["workloads"] |= {
        w.name: {
            "metric": w.target_metric_name,
            "direction": str(w.target_direction),
            "validation_target": w.validation_target_value,
            "budget_sec": w.max_allowed_runtime_sec,
        }
        for w in drawn
    }
    return rules
