"""List the workloads: scale, metric, target, budget, sizes."""

from collections.abc import Sequence
from typing import Any

from absl import flags

from algoperf.cli import common
from algoperf.records import Direction

USAGE = "algoperf workloads [--json FILE]"
# Heading -> what it shows.
_COLUMNS = {
    "name": "name",
    "scale": "scale",
    "target": "target",
    "budget (s)": "budget_sec",
    "step hint": "step_hint",
    "batch": "batch_size",
    "parameters": "num_parameters",
}


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of `algoperf workloads`."""
    common.define_json_flag(values)


def main(values: flags.FlagValues, positional: Sequence[str]) -> int:
    """Lists bases and variants at every scale."""
    common.no_arguments(positional)
    from algoperf import registry

    rows = [_about(workload) for workload in registry.all_workloads()]
    common.show(
        values.json,
        rows,
        lambda: common.print_table(
            list(_COLUMNS), [[row[key] for key in _COLUMNS.values()] for row in rows]
        ),
    )
    return 0


def _about(workload: Any) -> dict[str, Any]:
    sign = ">=" if workload.target_direction is Direction.MAXIMIZE else "<="
    target = workload.validation_target_value
    return {
        "name": workload.variant,
        "scale": workload.scale,
        "base_workload": workload.base_workload,
        "target": f"{workload.target_metric_name} {sign} {target:g}",
        "metric": workload.target_metric_name,
        "direction": str(workload.target_direction),
        "validation_target": target,
        "test_target": workload.test_target_value,
        "budget_sec": workload.max_allowed_runtime_sec,
        "step_hint": workload.step_hint,
        "batch_size": workload.default_batch_size,
        "num_parameters": workload.num_parameters,
        "num_train_examples": workload.num_train_examples,
        "num_validation_examples": workload.num_validation_examples,
        "num_test_examples": workload.num_test_examples,
    }
