"""Who may import whom (CONTRIBUTING.md), read off the source files."""

import ast
import functools
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("algoperf", "workloads", "submissions", "scoring")
HEAVY = {"jax", "jaxlib", "flax", "optax", "orbax", "grain"}
MAX_LINES = 450


def _name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    _name(path): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}


def _imports(node, module_level):
    """Yields the import statements in a node of a syntax tree."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif not module_level:
            yield from _imports(child, module_level)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from (i for n in child.orelse for i in _imports(n, module_level))
        elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _imports(child, module_level)


@functools.cache
def imported(module, module_level=False):
    """Returns the modules that a module of ours imports; at any depth, by default."""
    found = set()
    for statement in _imports(ast.parse(FILES[module].read_text()), module_level):
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names}
            continue
        assert statement.level == 0, f"{module} has a relative import"
        base = statement.module
        inner = {f"{base}.{alias.name}" for alias in statement.names}
        found |= inner & set(FILES)
        if inner - set(FILES):
            found.add(base)
    return frozenset(found - {module})


def ours(module, module_level=False):
    """Returns what a module imports of our own packages."""
    return {m for m in imported(module, module_level) if _is_in(m, *PACKAGES)}


def _is_in(module, *packages):
    return any(module == p or module.startswith(f"{p}.") for p in packages)


def _modules(*packages):
    found = [module for module in FILES if _is_in(module, *packages)]
    assert found
    return found


def _runs(module):
    """Returns all modules that importing a module runs, ours and others'."""
    waiting, seen = [module], set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in FILES:
            waiting += imported(name, module_level=True)
        if "." in name and name in FILES:
            waiting.append(name.rpartition(".")[0])
    return seen


def test_there_is_something_to_look_at():
    assert {"algoperf.runner", "workloads.imagenet_resnet.model"} <= set(FILES)
    assert "algoperf.trials" in ours("algoperf.runner")
    assert "jax" in imported("algoperf.runner", module_level=True)
    assert "algoperf.runner" in ours("algoperf.cli.run")
    assert "algoperf.runner" not in ours("algoperf.cli.run", module_level=True)


def test_records_and_hardware_stand_alone():
    assert ours("algoperf.records") <= {"algoperf.errors"}
    assert not ours("algoperf.hardware")
    assert not ours("algoperf.errors")


def test_spec_imports_only_jax_and_the_standard_library():
    tops = {module.partition(".")[0] for module in imported("algoperf.spec")}
    assert tops <= sys.stdlib_module_names | {"jax"}


@pytest.mark.parametrize(
    "module",
    [
        *(f"algoperf.{m}" for m in ("records", "hardware", "errors", "registry")),
        "algoperf.tuning",
        *(m for m in _modules("algoperf.cli", "scoring")),
    ],
)
def test_jax_is_not_imported_where_it_is_not_needed(module):
    if module == "algoperf.cli.progress":  # imported when JAX has been
        assert not HEAVY & imported(module, module_level=True)
        return
    assert not [m for m in _runs(module) if m.partition(".")[0] in HEAVY]


@pytest.mark.parametrize("module", _modules("scoring"))
def test_scoring_knows_only_records(module):
    for found in ours(module):
        assert _is_in(found, "scoring", "algoperf.records", "algoperf.errors")


@pytest.mark.parametrize("module", _modules("workloads"))
def test_workloads_know_the_contract_and_their_own_family(module):
    family = ".".join(module.split(".")[:2])
    names = ("spec", "workload", "losses", "data", "records", "errors")
    allowed = [f"algoperf.{name}" for name in names]
    for found in ours(module):
        assert _is_in(found, *allowed, "workloads.common", family), found


@pytest.mark.parametrize("module", _modules("submissions"))
def test_submissions_know_the_contract_and_themselves(module):
    own = ".".join(module.split(".")[:2])
    names = ("spec", "submission", "numerics", "reparam")
    names += ("sharding", "jax_sharding_utils", "schedules", "matrices", "errors")
    allowed = [f"algoperf.{name}" for name in names]
    for found in ours(module):
        assert _is_in(found, *allowed, own), found


@pytest.mark.parametrize(
    "module",
    [m for m in _modules("algoperf") if not _is_in(m, "algoperf.cli")],
)
def test_the_harness_knows_no_workload_and_no_submission(module):
    above = ["workloads", "submissions", "scoring"]
    if module != "algoperf.__main__":
        above.append("algoperf.cli")
    for found in ours(module):
        assert not _is_in(found, *above), found


@pytest.mark.parametrize("module", _modules("algoperf.data"))
def test_data_knows_nothing_of_what_launches_it(module):
    above = ("launch", "runner", "trials", "inference", "numerics", "reparam")
    for found in ours(module):
        assert not _is_in(found, *(f"algoperf.{name}" for name in above)), found


def test_there_are_no_circles():
    graph = {module: ours(module, module_level=True) for module in FILES}
    graphlib.TopologicalSorter(graph).prepare()


def test_no_file_is_too_long():
    lengths = {m: len(path.read_text().splitlines()) for m, path in FILES.items()}
    assert {m: n for m, n in lengths.items() if n > MAX_LINES} == {}


@pytest.mark.parametrize("module", ["scoring", "algoperf.cli", "algoperf.records"])
def test_an_import_loads_no_jax(module):
    code = (
        f"import sys, {module}; found = {HEAVY!r} & set(sys.modules); "
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_scoring_loads_what_draws_only_to_draw():
    code = (
        "import sys, scoring; names = {'plotly', 'matplotlib', 'scoring.page'}; "
        "found = names & set(sys.modules); assert not found, found; "
        "assert all(hasattr(scoring, name) for name in scoring.__all__)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


INFERENCE = ("models", "timing", "rooflines", "tradeoffs", "decoding")


@pytest.mark.parametrize("room", INFERENCE)
def test_rooms_of_inference_import_from_those_before_them(room):
    later = INFERENCE[INFERENCE.index(room) + 1 :]
    for module in _modules(f"algoperf.inference.{room}"):
        above = {f"algoperf.inference.{name}" for name in later}
        assert not [m for m in ours(module) if _is_in(m, *above)], module
