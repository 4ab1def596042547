"""Loads the file of a submission; official ones load without a change to them.

Submissions of the MLCommons benchmark are written for its own package and for older
versions of JAX. Their import statements are answered here: by our modules for the
official ones, by files that lie beside the submission, and by a `jax` that still has
the functions which JAX has taken away. Only the files of the submission see this; JAX
and all other packages stay as they are. `algoperf.pmap_layout` does the rest.
"""

import ast
import builtins
import dataclasses
import functools
import importlib.util
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from algoperf.errors import UserError

PACKAGE = "algoperf"
PACKAGE_BEFORE = "algorithmic_efficiency"  # its name until version 0.5
RENAMED = {f"{PACKAGE}.sharding_utils": f"{PACKAGE}.jax_sharding_utils"}


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A submission's module, whether its code names `pmap`, and the files that ran."""

    module: types.ModuleType
    uses_pmap: bool
    files: Sequence[Path]


def load(path: Path, name: str) -> Loaded:
    """Runs a submission's file as a module of this name.

    A module that it imports is looked for in the folder of the file, then among what is
    installed, then in the folders above (a checkout of the official repository).

    Raises:
      UserError: it is written for PyTorch, or imports what is not there.
      Exception: whatever else its code raises.
    """
    _, packages = _mentioned(path)
    if "torch" in packages and "jax" not in packages:
        raise UserError(
            f"submission {path} is written for PyTorch; AlgoPerf runs JAX submissions"
        )
    imports = _Imports(path.parent, name)
    try:
        module = imports.run(path, name)
    except ModuleNotFoundError as error:
        raise UserError(_what_is_missing(path, error.name or "")) from error
    return Loaded(module, "pmap" in imports.names, tuple(imports.files))


def _what_is_missing(path: Path, missing: str) -> str:
    """Says what a submission imports that is not there, and what to do."""
    package, _, inner = missing.partition(".")
    if package in (PACKAGE, PACKAGE_BEFORE):
        return (
            f"submission {path} imports {inner or missing} of the official package, "
            "which AlgoPerf does not have; it has spec and jax_sharding_utils"
        )
    return (
        f"submission {path} imports {missing}, which is neither installed nor beside "
        f"it: put its file there, or install it (often: pip install {package})"
    )


class _Imports:
    """Runs the files of one submission and answers their import statements."""

    def __init__(self, folder: Path, name: str):
        self.names: set[str] = set()  # all that the code of the files mentions
        self.files: list[Path] = []  # that ran, in the order in which they began
        self._folder = folder
        self._name = name
        self._modules: dict[Path, types.ModuleType] = {}  # by file or folder

    def run(self, file: Path, name: str) -> types.ModuleType:
        """Runs a file, once, as a module of this name."""
        if file in self._modules:
            return self._modules[file]
        names, _ = _mentioned(file)
        self.names |= names
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise UserError(f"submission {file} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        answer = functools.partial(self._import, _older_jax(names))
        # A module's own builtins: Python asks them for every import in its code.
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": answer}
        self._modules[file] = module
        self.files.append(file)
        sys.modules[name] = module  # dataclasses in it look themselves up here
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name], self._modules[file]
            raise
        return module

    def _import(
        self,
        older: Mapping[types.ModuleType, types.ModuleType],
        name: str,
        globals_: Any = None,
        locals_: Any = None,
        wanted: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        """Does what `builtins.__import__` does, for the files of the submission."""
        parts = name.split(".") if name else []
        if level:
            folder = Path(globals_["__file__"]).parents[level - 1]
            chain = self._chain(folder, parts) if parts else [self._bare(folder)]
            if chain is None:
                raise ModuleNotFoundError(f"no module {name} in {folder}", name=name)
            return self._from(chain[-1], wanted or ())
        chain = self._chain(self._folder, parts, bare=False)
        if chain is None:
            name = _official(name)
            try:
                module = builtins.__import__(name, globals_, locals_, wanted or ())
            except ModuleNotFoundError as error:
                chain = self._above(parts) if _is_about(error, name) else None
                if chain is None and parts[0] == "torch" and error.name == "torch":
                    return _Absent(name if wanted else parts[0])
                if chain is None:
                    raise
            else:
                if module.__name__ == PACKAGE and wanted and "*" not in wanted:
                    return _picked(module, wanted)
                return older.get(module, module)
        return self._from(chain[-1], wanted) if wanted else chain[0]

    def _above(self, parts: list[str]) -> list[types.ModuleType] | None:
        """Looks for a dotted name in the submission's folder and those above it."""
        folders = (self._folder, *self._folder.parents)
        chains = (self._chain(folder, parts) for folder in folders)
        return next((chain for chain in chains if chain is not None), None)

    def _chain(
        self, root: Path, parts: Sequence[str], bare: bool = True
    ) -> list[types.ModuleType] | None:
        """Returns the modules of a dotted name below a folder, or None.

        The first may be a folder without `__init__.py` only where `bare` is true.
        """
        place = root
        chain: list[types.ModuleType] = []
        for part in parts:
            place = place / part
            module = self._at(place, bare or bool(chain))
            if module is None:
                return None
            if chain:
                setattr(chain[-1], part, module)
            chain.append(module)
        return chain

    def _at(self, place: Path, bare: bool) -> types.ModuleType | None:
        """Returns the module of the folder `place`, or of the file `place`.py."""
        for file in (place / "__init__.py", place.with_name(f"{place.name}.py")):
            if file.is_file():
                return self.run(file, self._full_name(place))
        return self._bare(place) if bare and place.is_dir() else None

    def _bare(self, folder: Path) -> types.ModuleType:
        """Returns a module without code for a folder."""
        if folder not in self._modules:
            module = types.ModuleType(self._full_name(folder))
            module.__path__ = [str(folder)]
            self._modules[folder] = module
        return self._modules[folder]

    def _full_name(self, place: Path) -> str:
        """Names a module after its submission, so that no two submissions share it."""
        inside = place.is_relative_to(self._folder)
        parts = place.relative_to(self._folder if inside else place.anchor).parts
        return ".".join([self._name, *parts])

    def _from(
        self, module: types.ModuleType, wanted: Sequence[str]
    ) -> types.ModuleType:
        """Sees to it that `from module import wanted` finds modules in a folder."""
        for folder in getattr(module, "__path__", ()):
            for name in wanted:
                inner = None
                if not hasattr(module, name):
                    inner = self._at(Path(folder, name), bare=True)
                if inner is not None:
                    setattr(module, name, inner)
        return module


def _mentioned(file: Path) -> tuple[set[str], set[str]]:
    """Returns all names in the code of a file, and the packages that it imports."""
    names: set[str] = set()
    packages: set[str] = set()
    for node in ast.walk(ast.parse(file.read_bytes(), str(file))):
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.keyword):
            names.add(node.arg or "")
        elif isinstance(node, ast.Import):
            packages |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.name for alias in node.names}
            if node.level == 0 and node.module:
                packages.add(node.module.partition(".")[0])
    return names, packages


def _official(name: str) -> str:
    """Returns our name for a module of the official package; others unchanged."""
    first, dot, rest = name.partition(".")
    name = PACKAGE + dot + rest if first == PACKAGE_BEFORE else name
    return RENAMED.get(name, name)


def _is_about(error: ModuleNotFoundError, name: str) -> bool:
    """Whether the error is that this module is missing, not one that it imports."""
    return error.name is not None and f"{name}.".startswith(f"{error.name}.")


def _picked(package: types.ModuleType, wanted: Sequence[str]) -> types.ModuleType:
    """Returns what `from algoperf import wanted` takes its names from."""
    picked = types.ModuleType(package.__name__)
    for name in wanted:
        full = _official(f"{package.__name__}.{name}")
        if full in RENAMED.values() or not hasattr(package, name):
            setattr(picked, name, importlib.import_module(full))
        else:
            setattr(picked, name, getattr(package, name))
    return picked


class _Absent(types.ModuleType):
    """Stands for `torch`, which is not installed, until something in it is called.

    Some JAX submissions import a file that has a PyTorch version of something too.
    """

    def __getattr__(self, name: str) -> "_Absent":
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent(f"{self.__name__}.{name}")

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise UserError(f"the submission calls {self.__name__}; PyTorch is not here")


class _Older(types.ModuleType):
    """A module of JAX with names that a newer version has taken away."""

    def __init__(self, real: types.ModuleType, names: Mapping[str, Any]):
        super().__init__(real.__name__)
        self.__dict__.update(names)
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def _older_clip(
    x: Any, min: Any = None, max: Any = None, *, a_min: Any = None, a_max: Any = None
) -> jax.Array:
    """`jnp.clip` as it was before its limits lost the `a_` (JAX 0.4.27 and before)."""
    low = min if a_min is None else a_min
    high = max if a_max is None else a_max
    return jnp.clip(x, low, high)


def _older_jax(names: set[str]) -> dict[types.ModuleType, types.ModuleType]:
    """Returns what stands for the modules of JAX in code that has these names.

    `jax.tree_map` and its kin are in `jax.tree_util` since JAX 0.4.26.
    """
    trees = {
        name: getattr(jax.tree_util, name)
        for name in dir(jax.tree_util)
        if name.startswith("tree_") and not hasattr(jax, name)
    }
    if not names & {*trees, "a_min", "a_max"}:
        return {}
    numpy = _Older(jnp, {"clip": _older_clip})
    return {jax: _Older(jax, {**trees, "numpy": numpy}), jnp: numpy}
