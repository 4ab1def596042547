"""Show versions, devices, memory and which workloads find their data."""

from collections.abc import Sequence
from typing import Any

from absl import flags

from algoperf.cli import common

USAGE = "algoperf doctor [--json FILE]"


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of `algoperf doctor`."""
    common.define_json_flag(values)


def main(values: flags.FlagValues, positional: Sequence[str]) -> int:
    """Looks at this installation; returns 1 if the data of a workload is broken."""
    common.no_arguments(positional)
    from algoperf import hardware, registry

    data = {
        workload.name: _data(workload)
        for workload in registry.all_workloads()
        if workload.variant == workload.base_workload
    }
    found = {
        "versions": hardware.describe_versions(),
        "host": hardware.describe_host(),
        "devices": hardware.describe_devices(),
        "git_revision": hardware.git_revision(),
        "data": data,
    }
    common.show(values.json, found, lambda: _print(found))
    return 0 if all(state == "found" for state in data.values()) else 1


def _data(workload: Any) -> str:
    from algoperf.errors import UserError
    from algoperf.workload import EVAL_SPLITS

    try:
        for split in ("train", *EVAL_SPLITS):
            workload.dataset(split, workload.default_batch_size, seed=0)[0]
    except UserError as error:
        return str(error)
    return "found"


def _print(found: dict[str, Any]) -> None:
    rows = []
    for topic, facts in found.items():
        pairs = facts.items() if isinstance(facts, dict) else [("", facts)]
        rows += [[topic, key, str(value)] for key, value in pairs]
    common.print_table(("topic", "what", "is"), rows)
