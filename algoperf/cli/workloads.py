"""List the workloads: scale, metric, target, budget, sizes."""

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from algoperf.cli import common, printing
from algoperf.records import SCALES, Direction

USAGE = "algoperf workloads [--scale mini|full|all] [--json FILE]"
# Heading -> what it shows.
_COLUMNS = {
    "name": "name",
    "scale": "scale",
    "target": "target",
    "budget (s)": "max_allowed_runtime_sec",
    "step hint": "step_hint",
    "batch": "default_batch_size",
    "parameters": "num_parameters",
}
# Fields of a workload that are no facts.
_NO_FACTS = ("variant", "model", "pipeline", "data", "data_source", "metrics_logger")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of `algoperf workloads`."""
    flags.DEFINE_enum(
        "scale", "all", ("all", *SCALES), "Which scale to list.", flag_values=values
    )
    printing.define_json_flag(values)


def main(values: flags.FlagValues, positional: Sequence[str]) -> int:
    """Lists bases and variants."""
    common.no_arguments(positional)
    from algoperf import registry

    rows = [
        _about(workload)
        for workload in registry.all_workloads()
        if values.scale in ("all", workload.scale)
    ]
    printing.show(
        values.json,
        rows,
        lambda: printing.print_table(
            list(_COLUMNS), [[row[key] for key in _COLUMNS.values()] for row in rows]
        ),
    )
    return 0


def _about(workload: Any) -> dict[str, Any]:
    """Returns all facts of a workload, as JSON can hold them."""
    sign = ">=" if workload.target_direction is Direction.MAXIMIZE else "<="
    target = workload.validation_target_value
    facts = {
        field.name: _plain(getattr(workload, field.name))
        for field in dataclasses.fields(workload)
        if field.name not in _NO_FACTS
    }
    source = workload.data_source
    return {
        "name": workload.variant,
        "target": f"{workload.target_metric_name} {sign} {target:g}",
        "num_parameters": workload.num_parameters,
        "data_source": None if source is None else source.name,
        **facts,
        "model": {
            field.name: _plain(getattr(workload.model, field.name))
            for field in dataclasses.fields(workload.model)
            if field.name not in ("parent", "name")
        },
    }


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.name.lower()
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return getattr(value, "__name__", str(value))
