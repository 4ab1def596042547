"""From names to workloads and submissions.

Every package that a distribution names under the entry points `algoperf.workloads` or
`algoperf.submissions` is searched: a workload family is a folder with `workload.py`,
a submission a folder with `submission.py`. Listing names imports none of them.
"""

import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from algoperf.errors import UserError, unknown_name

if TYPE_CHECKING:
    from algoperf.workload import Workload


def _folders(group: str, file_name: str) -> dict[str, tuple[str, Path]]:
    """Returns name -> (package, file) of the folders that hold `file_name`."""
    found: dict[str, tuple[str, Path]] = {}
    for entry in importlib.metadata.entry_points(group=group):
        spec = importlib.util.find_spec(entry.value)
        for root in (spec.submodule_search_locations or []) if spec else []:
            for file in sorted(Path(root).glob(f"*/{file_name}")):
                found.setdefault(file.parent.name, (entry.value, file))
    return found


def submission_paths() -> dict[str, Path]:
    """Returns the files of the installed submissions by name."""
    folders = _folders("algoperf.submissions", "submission.py")
    return {name: file for name, (_, file) in folders.items()}


def find_submission(name_or_path: str) -> Path:
    """Returns the file of a submission, given its name or a path to it.

    Raises:
      UserError: neither; with the nearest names.
    """
    paths = submission_paths()
    path = Path(name_or_path)
    if name_or_path in paths:
        file = path / "submission.py"
        if file.is_file() and not file.samefile(paths[name_or_path]):
            raise UserError(
                f"{name_or_path} is a folder here, and a submission that comes with "
                f"AlgoPerf: give ./{name_or_path} for the folder, or the path that "
                "`algoperf submissions --json -` names"
            )
        return paths[name_or_path]
    if path.is_dir() and (path / "submission.py").is_file():
        return path / "submission.py"
    if path.is_file():
        return path
    if path.suffix == ".py" or path.exists() or "/" in name_or_path:
        raise UserError(
            f"no submission at {name_or_path}: give a .py file, a folder that holds "
            "submission.py, or a name that `algoperf submissions` lists"
        )
    here = {
        file.parent.name
        for file in Path().glob("*/submission.py")
        if not (file.parent / "__init__.py").exists()  # a module of ours by that name
    }
    raise unknown_name(
        "submission", name_or_path, paths.keys() | here, "algoperf submissions"
    )


def family_names() -> list[str]:
    """Returns the names of the workload families; imports none of them."""
    return sorted(_folders("algoperf.workloads", "workload.py"))


@functools.cache
def _family_workloads(family: str) -> tuple["Workload", ...]:
    package, _ = _folders("algoperf.workloads", "workload.py")[family]
    return tuple(importlib.import_module(f"{package}.{family}.workload").WORKLOADS)


def all_workloads() -> list["Workload"]:
    """Returns every workload: bases and variants at each of their scales."""
    return [workload for name in family_names() for workload in _family_workloads(name)]


def find_workload(name: str, scale: str) -> "Workload":
    """Returns the workload of this name ('imagenet_resnet_silu') and scale.

    The name as it stands in records ('imagenet_resnet_silu_mini') is taken too.

    Raises:
      UserError: no such name, with the nearest ones; or not at this scale.
    """
    families = [family for family in family_names() if name.startswith(family)]
    near = [w for family in families for w in _family_workloads(family)]
    for workload in near:
        # A full-size workload's name is its variant's, so there the scale decides.
        if name == workload.name != workload.variant:
            return workload
        if (name, scale) == (workload.variant, workload.scale):
            return workload
    scales = sorted({w.scale for w in near if w.variant == name})
    if scales:
        raise UserError(
            f"workload {name} has no scale {scale!r}; it has: {', '.join(scales)}"
        )
    known = {w.variant for w in all_workloads()}
    raise unknown_name("workload", name, known, "algoperf workloads")


def suites() -> dict[str, dict[str, Any]]:
    """Returns the named suites: 'scale' and 'workloads' of each."""
    found: dict[str, dict[str, Any]] = {}
    for entry in importlib.metadata.entry_points(group="algoperf.workloads"):
        spec = importlib.util.find_spec(entry.value)
        for root in (spec.submodule_search_locations or []) if spec else []:
            file = Path(root) / "suites.json"
            if file.exists():
                found |= json.loads(file.read_text())
    return found


def find_suite(name: str) -> tuple[list[str], str]:
    """Returns the workloads of a suite and their scale.

    Raises:
      UserError: no such name, with the nearest ones.
    """
    known = suites()
    if name not in known:
        raise unknown_name("suite", name, known)
    return known[name]["workloads"], known[name]["scale"]


def held_out(seed: int, scale: str) -> list[str]:
    """Draws one variant of every family that has any at this scale.

    Each family's draw follows from the seed and the names of its variants alone, so a
    new family changes no other family's.
    """
    variants: dict[str, list[str]] = {}
    for workload in all_workloads():
        is_candidate = workload.variant != workload.base_workload
        if workload.scale == scale and is_candidate and not workload.for_development:
            variants.setdefault(workload.base_workload, []).append(workload.variant)
    return [
        min(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())
        for _, names in sorted(variants.items())
    ]


def select_workloads(names: Iterable[str], scale: str) -> list["Workload"]:
    """Returns the named workloads; for 'all', every base workload at this scale.

    Raises:
      UserError: an unknown name, one that is there twice, or none at all.
    """
    wanted = list(names)
    if wanted == ["all"]:
        found = [
            workload
            for workload in all_workloads()
            if workload.scale == scale and workload.variant == workload.base_workload
        ]
    else:
        found = [find_workload(name, scale) for name in wanted]
    if not found:
        raise UserError(f"no workload at scale {scale}")
    chosen = [workload.name for workload in found]
    if len(set(chosen)) < len(chosen):
        twice = next(name for name in chosen if chosen.count(name) > 1)
        raise UserError(f"workload {twice} is named twice")
    return found
