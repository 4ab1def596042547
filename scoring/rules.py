"""What a benchmark asks for, as data: workloads, targets, studies, trials, r_max.

Rules are JSON files in `scoring/rules/`; a file of the user's own has the same form, in
JSON or TOML. A subset is named 'mini_fast' if it comes with the package, and
'mine.json:small' in a file. Judging reads everything from here and knows no workload by
name.
"""

import dataclasses
import json
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from algoperf.errors import UserError, unknown_name
from algoperf.records import RULESETS, Direction

FOLDER = Path(__file__).resolve().parent / "rules"
MAX_BYTES = 2**20  # of a rules file; more than that is something else
KEYS = (  # of a rules file
    "name",
    "source",
    "r_max",
    "base_workloads",
    "workloads",
    "rulesets",
    "held_out",
    "subsets",
)
GOAL_KEYS = ("metric", "direction", "validation_target", "budget_sec")
PROTOCOL_KEYS = ("studies", "trials", "budget_factor")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Goal:
    """When a workload counts as solved: its metric on the validation split."""

    metric: str  # without the split: 'accuracy'
    direction: Direction
    target: float
    budget_sec: float | None = None  # of submission time, external tuning
    # A target that is reached later is missed, see `time_to_target.budget_of`; set by
    # `Rules.within_budgets`.
    limit_sec: float = math.inf

    @property
    def column(self) -> str:
        """The column of `eval_measurements.csv` that holds the metric."""
        return f"validation/{self.metric}"

    def __str__(self) -> str:
        sign = "<=" if self.direction is Direction.MINIMIZE else ">="
        return f"{self.metric} {sign} {self.target:g}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Protocol:
    """How often a submission runs each workload under one ruleset."""

    studies: int
    trials: int  # per study
    budget_factor: float = 1.0  # what multiplies the budgets of the goals


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rules:
    """One benchmark, as published."""

    name: str
    r_max: float  # a ratio to the best time above this counts as a miss
    base_workloads: tuple[str, ...]  # these are scored
    held_out: Mapping[str, str]  # variant -> the base workload that it vouches for
    goals: Mapping[str, Goal]  # of every base workload and every variant
    protocols: Mapping[str, Protocol]  # by ruleset: 'external', perhaps 'self'
    # Parts of the base workloads that are benchmarks of their own, by name.
    subsets: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    # Where they were read from; the same rules in another file are equal.
    file: Path | None = dataclasses.field(default=None, compare=False)

    @property
    def workloads(self) -> tuple[str, ...]:
        """Base workloads, then held-out variants."""
        return (*self.base_workloads, *self.held_out)

    @property
    def base_of_held_out(self) -> list[int]:
        """Index of the base workload of each held-out variant."""
        return [self.base_workloads.index(base) for base in self.held_out.values()]

    def protocol(self, ruleset: str) -> Protocol:
        """Returns how many studies and trials a ruleset asks for."""
        if ruleset not in self.protocols:
            raise unknown_name("ruleset", ruleset, self.protocols)
        return self.protocols[ruleset]

    def within_budgets(self, ruleset: str) -> "Rules":
        """Returns rules whose goals end at the budgets of a ruleset."""
        factor = self.protocol(ruleset).budget_factor
        goals = {
            name: goal
            if goal.budget_sec is None
            else dataclasses.replace(goal, limit_sec=factor * goal.budget_sec)
            for name, goal in self.goals.items()
        }
        return dataclasses.replace(self, goals=MappingProxyType(goals))

    def subset_of_exactly(self, workloads: Iterable[str]) -> str | None:
        """Returns what `load_rules` takes for just these base workloads, or None."""
        wanted = set(workloads)
        for subset, names in self.subsets.items():
            if set(names) == wanted:
                is_ours = self.file is None or self.file.parent == FOLDER
                return f"{self.name}_{subset}" if is_ours else f"{self.file}:{subset}"
        return None


def known_rules() -> list[str]:
    """Returns the names of the rules that come with the package, and of their subsets.

    The subset 'qualification' of 'mini' is 'mini_qualification'.
    """
    names = []
    for path in sorted(FOLDER.glob("*.json")):
        subsets = json.loads(path.read_text(encoding="utf-8")).get("subsets", {})
        names += [path.stem, *(f"{path.stem}_{subset}" for subset in subsets)]
    return names


def load_rules(name_or_path: str | Path) -> Rules:
    """Loads rules by name ('v0.5', 'v0.6_2025') or from a JSON or TOML file.

    A file's subset follows its path: 'mine.json:small'.

    Raises:
      UserError: unknown name or subset, unreadable file, or a file that is not of this
        form.
    """
    name = str(name_or_path)
    if name in known_rules():
        if (path := FOLDER / f"{name}.json").exists():
            return _read_rules(path)
        stem, _, subset = name.rpartition("_")
        return _read_rules(FOLDER / f"{stem}.json", subset)
    path, part = Path(name), None
    if ":" in path.name and not path.is_file():
        stem, _, part = name.rpartition(":")
        path = Path(stem)
    if path.is_file() or path.suffix in (".json", ".toml") or len(path.parts) > 1:
        return _read_rules(path, part)
    raise unknown_name("rules", name, known_rules())


def _read_rules(path: Path, subset: str | None = None) -> Rules:
    value = _read_value(path)
    try:
        rules = dataclasses.replace(_parse_rules(value), file=path)
        return rules if subset is None else _part(rules, subset)
    except _Malformed as error:
        raise UserError(f"rules file {path}: {error}") from error


def _read_value(path: Path) -> Any:
    """Reads JSON, or TOML if the file is named so."""
    form = "TOML" if path.suffix == ".toml" else "JSON"
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise UserError(f"rules file {path} has more than {MAX_BYTES:,} bytes")
        text = content.decode("utf-8")
        return tomllib.loads(text) if form == "TOML" else json.loads(text)
    except OSError as error:
        raise UserError(f"rules file {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"rules file {path} is not {form}: {error}") from error
    except RecursionError as error:
        raise UserError(f"rules file {path} is nested too deep") from error


def _part(rules: Rules, subset: str) -> Rules:
    """Returns the rules for a subset, which has no held-out variants."""
    if subset not in rules.subsets:
        raise _Malformed(str(unknown_name("subset", subset, rules.subsets)))
    return dataclasses.replace(
        rules,
        name=f"{rules.name}_{subset}",
        base_workloads=rules.subsets[subset],
        held_out=MappingProxyType({}),
        subsets=MappingProxyType({}),
    )


class _Malformed(Exception):
    """What is wrong with a rules file, without its path."""


def _parse_rules(value: Any) -> Rules:
    if isinstance(value, dict):
        _check_keys(value, KEYS, "")
    workloads = _get(value, "workloads", dict, "")
    goals = {name: _goal(workloads, name) for name in workloads}
    base = tuple(_get(value, "base_workloads", list, ""))
    held_out = _get(value, "held_out", dict, "") if "held_out" in value else {}
    if not base or not all(isinstance(workload, str) for workload in base):
        raise _Malformed("'base_workloads' must be a non-empty list of names")
    if len(set(base)) < len(base):
        raise _Malformed("'base_workloads' has a name twice")
    for workload in (*base, *held_out):
        if workload not in goals:
            raise _Malformed(f"{workload!r} has no entry in 'workloads'")
    for variant, workload in held_out.items():
        if workload not in base:
            raise _Malformed(f"held-out {variant!r}: no base workload {workload!r}")
        if variant in base:
            raise _Malformed(f"held-out {variant!r} is a base workload as well")
    r_max = _number(value, "r_max", "")
    if r_max <= 1:
        raise _Malformed(f"'r_max' must be greater than 1, not {r_max:g}")
    for name in workloads:
        if not name.isprintable():
            raise _Malformed(f"the name {name!r} has characters that cannot be shown")
    rulesets = _get(value, "rulesets", dict, "")
    _check_keys(rulesets, RULESETS, "rulesets.")
    return Rules(
        name=_get(value, "name", str, ""),
        r_max=r_max,
        base_workloads=base,
        held_out=MappingProxyType(held_out),
        goals=MappingProxyType(goals),
        protocols=MappingProxyType(
            {
                key: _protocol(rulesets, key)
                for key in RULESETS
                if key in rulesets or key == "external"
            }
        ),
        subsets=MappingProxyType(_subsets(value, base)),
    )


def _subsets(value: Mapping[str, Any], base: Sequence[str]) -> dict[str, Any]:
    if "subsets" not in value:
        return {}
    subsets = _get(value, "subsets", dict, "")
    for name in subsets:
        if not name.isprintable() or ":" in name or "/" in name:
            raise _Malformed(f"a subset cannot be named {name!r}")  # see `load_rules`
        workloads = _get(subsets, name, list, "subsets.")
        strange = [workload for workload in workloads if workload not in base]
        if strange:
            raise _Malformed(f"'subsets.{name}': no base workload {strange[0]!r}")
        if not workloads or len(set(workloads)) < len(workloads):
            raise _Malformed(f"'subsets.{name}' must be different names, at least one")
    return {name: tuple(workloads) for name, workloads in subsets.items()}


def _goal(workloads: Mapping[str, Any], name: str) -> Goal:
    entry = _get(workloads, name, dict, "workloads.")
    where = f"workloads.{name}."
    _check_keys(entry, GOAL_KEYS, where)
    direction = _get(entry, "direction", str, where)
    if direction not in tuple(Direction):
        raise _Malformed(
            f"'{where}direction' must be minimize or maximize, not {direction!r}"
        )
    return Goal(
        metric=_get(entry, "metric", str, where),
        direction=Direction(direction),
        target=_number(entry, "validation_target", where),
        budget_sec=_positive(entry, "budget_sec", where, None),
    )


def _protocol(rulesets: Mapping[str, Any], name: str) -> Protocol:
    entry = _get(rulesets, name, dict, "rulesets.")
    where = f"rulesets.{name}."
    _check_keys(entry, PROTOCOL_KEYS, where)
    counts = {key: _get(entry, key, int, where) for key in ("studies", "trials")}
    for key, count in counts.items():
        if count < 1:
            raise _Malformed(f"'{where}{key}' must be at least 1, not {count}")
    factor = _positive(entry, "budget_factor", where, 1.0)
    return Protocol(**counts, budget_factor=1.0 if factor is None else factor)


def _check_keys(mapping: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Refuses a key that would be passed over, as one that is mistyped would be."""
    for key in mapping:
        if key not in known:
            place = f"in '{where.removesuffix('.')}': " if where else ""
            raise _Malformed(f"{place}{unknown_name('key', key[:80], known)}")


def _get(mapping: Any, key: str, kind: type, where: str) -> Any:
    """Returns `mapping[key]` if it is of the kind; `where` leads to it, for errors."""
    if not isinstance(mapping, dict):
        raise _Malformed(f"must hold an object, not {type(mapping).__name__}")
    if key not in mapping:
        raise _Malformed(f"lacks the key '{where}{key}'")
    value = mapping[key]
    if isinstance(value, str) and not value.isprintable():
        raise _Malformed(f"'{where}{key}' has characters that cannot be shown")
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _Malformed(
            f"'{where}{key}' must be of type {kind.__name__}, not {value!r}"
        )
    return value


def _number(mapping: Any, key: str, where: str) -> float:
    if isinstance(mapping, dict) and type(mapping.get(key)) is int:
        value = _as_float(mapping[key])
    else:
        value = _get(mapping, key, float, where)
    if not math.isfinite(value):
        raise _Malformed(f"'{where}{key}' must be finite, not {value}")
    return float(value)


def _as_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _positive(
    mapping: Mapping[str, Any], key: str, where: str, default: float | None
) -> float | None:
    """Returns an optional number of the file, greater than zero."""
    if key not in mapping:
        return default
    value = _number(mapping, key, where)
    if value <= 0:
        raise _Malformed(f"'{where}{key}' must be greater than 0, not {value:g}")
    return value
