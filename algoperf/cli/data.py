"""Prepare and check the data of the full-size workloads."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from algoperf import locks
from algoperf.cli import common
from algoperf.errors import UserError, unknown_name

if TYPE_CHECKING:
    from algoperf.data.source import DataSource

USAGE = (
    "algoperf data prepare NAME --raw DIR [--data_dir DIR]\n"
    "         algoperf data check NAME [--data_dir DIR] [--nochecksums]\n"
    "NAME is a workload or its data set. Without --raw, prepare says what to download."
)


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of `algoperf data`."""
    common.define_data_dir_flag(values)
    flags.DEFINE_string(
        "raw", None, "The folder of what was downloaded by hand.", flag_values=values
    )
    flags.DEFINE_boolean(
        "checksums",
        True,
        "Whether check reads every file whole, or looks at sizes alone.",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "any_size",
        False,
        "Take a data set with other numbers of examples than the published ones, a "
        "part of it say: good for trying out, not for results.",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "skip_corrupt",
        False,
        "Whether prepare passes over records that cannot be used, and counts them, "
        "instead of ending with an error.",
        flag_values=values,
    )


def main(values: flags.FlagValues, positional: Sequence[str]) -> int:
    """Prepares or checks one data set."""
    actions = {"prepare": _prepare, "check": _check}
    if len(positional) != 2 or positional[0] not in actions:
        raise UserError("give prepare or check and one name, see algoperf data --help")
    from algoperf.data.source import data_folder

    source = _find(positional[1])
    data_dir = data_folder(Path(values.data_dir) if values.data_dir else None)
    return actions[positional[0]](source, data_dir, values)


def _find(name: str) -> "DataSource":
    """Returns the data set of this name, or that of the workload of this name."""
    from algoperf import registry

    found = {}
    for workload in registry.all_workloads():
        if workload.data_source is not None:
            found[workload.variant] = workload.data_source
            found[workload.data_source.name] = workload.data_source
    if name not in found:
        raise unknown_name("data set", name, found)
    return found[name]


def _prepare(source: "DataSource", data_dir: Path, values: flags.FlagValues) -> int:
    from algoperf.data.source import partial_folder

    folder = data_dir / source.name
    if _is_prepared(source, folder):
        return 0
    if values.raw is None:
        print(source.instructions.strip())
        print(
            f"\nThen: algoperf data prepare {source.name} --raw FOLDER "
            f"--data_dir {data_dir}"
        )
        return 1
    raw = Path(values.raw)
    if not raw.is_dir():
        raise UserError(f"there is no folder {raw}")
    _refuse_to_delete(raw, folder, partial_folder(folder))
    # Data may lie where records do not: a disk of exFAT, a mounted bucket.
    with locks.hold(folder, flag="--data_dir", needs_links=False) as lock:
        # Another process may have prepared it since.
        if not _is_prepared(source, folder):
            _convert(source, raw, folder, values, lock)
    return 0


def _is_prepared(source: "DataSource", folder: Path) -> bool:
    """Whether the set is there already; says so."""
    from algoperf.data.source import MANIFEST

    found = (folder / MANIFEST).exists()
    if found:
        print(f"{folder} is prepared; algoperf data check {source.name} looks at it")
    return found


def _convert(
    source: "DataSource",
    raw: Path,
    folder: Path,
    values: flags.FlagValues,
    lock: locks.Lock,
) -> None:
    """Makes the set in a folder beside, while this process holds its lock."""
    from algoperf.data.source import partial_folder, write_manifest

    partial = partial_folder(folder)
    if partial.exists():  # what an earlier, broken attempt has left
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    skipped = _Skipped()
    passed_over = {"on_corrupt": skipped} if values.skip_corrupt else {}
    source.prepare(raw, partial, lambda line: print(line, flush=True), **passed_over)
    counts = source.count(partial)
    if not values.any_size:
        _compare(source, counts, len(skipped.seen))
    print("computing checksums ...", flush=True)
    write_manifest(partial, counts, len(skipped.seen))
    lock.check()  # else another process takes this one for dead, and writes here too
    partial.rename(folder)
    listed = _listed(counts, len(skipped.seen))
    print(f"{source.name} is ready in {folder}: {listed}")


def _refuse_to_delete(raw: Path, folder: Path, partial: Path) -> None:
    """Raises UserError where preparing would remove or replace what others have put."""
    for ours in (folder, partial):
        if raw.resolve().is_relative_to(ours.resolve()):
            raise UserError(
                f"--raw {raw} lies in {ours}, where the prepared set is to go; move "
                "the downloads, or give another --data_dir"
            )
    if folder.exists() or folder.is_symlink():
        raise UserError(
            f"{folder} has no manifest, so it is no prepared data set; move or delete "
            "it, or give another --data_dir"
        )


class _Skipped:
    """Counts the records that are passed over; one may be met twice."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def __call__(self, error: UserError) -> None:
        if str(error) not in self.seen:
            self.seen.add(str(error))
            print(f"skipped: {error}", flush=True)


def _check(source: "DataSource", data_dir: Path, values: flags.FlagValues) -> int:
    from algoperf.data.source import problems

    folder = source.folder(data_dir)
    found = 0
    for problem in problems(folder, values.checksums):
        print(problem, flush=True)
        found += 1
    if found:
        raise UserError(
            f"{folder} is damaged in {found} places; delete it and run algoperf data "
            f"prepare {source.name} again"
        )
    counts = source.count(folder)
    skipped = source.num_skipped(data_dir)
    if not values.any_size:
        _compare(source, counts, skipped)
    print(f"{source.name} is whole: {_listed(counts, skipped)}")
    return 0


def _compare(source: "DataSource", counts: Mapping[str, int], skipped: int) -> None:
    for split, expected in source.num_examples.items():
        fewest = source.fewest_examples(split, skipped)
        if not fewest <= counts.get(split, 0) <= expected:
            raise UserError(
                f"{source.name} has {counts.get(split, 0):,} examples in {split}, "
                f"expected {expected:,}; something was not downloaded whole, or give "
                "--any_size to go on"
            )


def _listed(counts: Mapping[str, int], skipped: int) -> str:
    parts = [f"{count:,} {split}" for split, count in counts.items()]
    return ", ".join([*parts, *([f"{skipped:,} skipped"] if skipped else [])])
