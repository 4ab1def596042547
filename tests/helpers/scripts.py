"""Loads files that are no modules of a package: scripts, submissions, helpers."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]


def load(path: str | Path, name: str | None = None) -> ModuleType:
    """Returns a file's module; a relative path starts at the repository's root.

    It is found in `sys.modules`, under `name` or the file's own, as dataclasses ask.
    """
    path = ROOT / path
    name = name or path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
