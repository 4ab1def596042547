"""Show versions, devices, memory and which workloads find their data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from algoperf.cli import common, printing

USAGE = "algoperf doctor [--data_dir DIR] [--json FILE]"


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of `algoperf doctor`."""
    common.define_data_dir_flag(values)
    printing.define_json_flag(values)


def main(values: flags.FlagValues, positional: Sequence[str]) -> int:
    """Looks at this installation; returns 1 if data that is there is broken."""
    common.no_arguments(positional)
    from algoperf import hardware, registry
    from algoperf.data.source import data_folder

    data_dir = data_folder(Path(values.data_dir) if values.data_dir else None)
    bases = [w for w in registry.all_workloads() if w.variant == w.base_workload]
    embedded = {w.name: _embedded(w) for w in bases if w.data_source is None}
    sources = {
        w.data_source.name: w.data_source for w in bases if w.data_source is not None
    }
    prepared = {name: _prepared(sources[name], data_dir) for name in sorted(sources)}
    found = {
        "versions": hardware.describe_versions(),
        "host": hardware.describe_host(),
        "devices": hardware.describe_devices(),
        "git_revision": hardware.git_revision(),
        "data": embedded,
        f"data in {data_dir}": prepared,
    }
    printing.show(values.json, found, lambda: _print(found))
    states = {*embedded.values(), *prepared.values()}
    return 0 if states <= {"found", _MISSING} else 1


_MISSING = "not prepared (algoperf data prepare NAME)"


def _embedded(workload: Any) -> str:
    """Says whether the data that ship with the package can be read."""
    from algoperf.errors import UserError
    from algoperf.workload import EVAL_SPLITS

    try:
        for split in ("train", *EVAL_SPLITS):
            workload.dataset(split, workload.default_batch_size, seed=0)[0]
    except UserError as error:
        return str(error)
    return "found"


def _prepared(source: Any, data_dir: Path) -> str:
    """Says whether a data set is there, and its files have their sizes."""
    from algoperf.data.source import problems

    if not (data_dir / source.name).is_dir():
        return _MISSING
    from algoperf.errors import UserError

    try:
        folder = source.folder(data_dir)
    except UserError as error:
        return str(error)
    return next(problems(folder, checksums=False), "found")


def _print(found: dict[str, Any]) -> None:
    rows = []
    for topic, facts in found.items():
        pairs = facts.items() if isinstance(facts, dict) else [("", facts)]
        rows += [[topic, key, str(value)] for key, value in pairs]
    printing.print_table(("topic", "what", "is"), rows)
