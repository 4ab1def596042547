"""What makes times incomparable: other machines, code, targets, tuning, contention.

Times are compared within a workload, so four things must be the same in all records of
a workload; where they differ from one workload to another, a warning says so:

- hardware: kind and number of devices, number of processes, model and cores of the
  host's processor. How busy the machine was is not part of it.
- code: the revision of this repository, and the versions of algoperf, jax, jaxlib and
  flax, which compile and define what is timed. Other packages are not: optax belongs to
  a submission as its own code does, the rest never runs on the submission's clock. A
  trial that went on on other hardware or with other code is a group of its own.
- benchmark: the schema of the record, and the target of each workload.
- budget: whether there was one. What the record leaves open, the rules say, so that is
  a budget too. How long it was is a warning of its own (`budget_warnings`).

Official logs say nothing of the first three, nor do records that lack the fields: they
are one group, 'unknown', which is another group than any that is known.

A record's ruleset, if it has one, must be the one it is judged by: a trial that tuned
itself had a longer budget, and so had time for targets that others miss.
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from algoperf import records
from algoperf.errors import UserError
from scoring.parse import one_line
from scoring.read import Runs, Trial
from scoring.rules import Rules, known_rules, load_rules

UNKNOWN = "unknown"
PACKAGES = ("algoperf", "jax", "jaxlib", "flax")
# A trial is contended if what else ran on the machine may have added more than this to
# its time, as a share.
CONTENTION_BOUND = 0.1
Groups = Mapping[str, Sequence[Trial]]  # by workload


def check_workloads(runs: Runs, rules: Rules) -> None:
    """Checks that a run is of a workload of the rules, if there are any runs.

    Raises:
      UserError: none is; it names the benchmarks whose workloads they are, and the one
        that has most of them.
    """
    found = {trial.workload for trial in runs.trials}
    if not found or found & set(rules.workloads):
        return
    shipped = {name: load_rules(name).workloads for name in known_rules()}
    whole = [name for name in shipped if name.rpartition("_")[0] not in shipped]
    counts = {name: len(found & set(shipped[name])) for name in whole}
    names = [name for name in whole if counts[name]]
    if not names:
        shown = ", ".join(sorted(found)[:3]) + (", ..." if len(found) > 3 else "")
        raise UserError(
            f"no run is of a workload of {rules.name}, nor of any benchmark that comes "
            f"with the package: {shown}; give --benchmark FILE"
        )
    best = max(names, key=lambda name: counts[name])
    raise UserError(
        f"no run is of a workload of {rules.name}; these are workloads of "
        f"{', '.join(names)}: give --benchmark {best}"
    )


def check_mixed(
    runs: Runs, rules: Rules, ruleset: str = "external", *, allow: bool = False
) -> tuple[str, ...]:
    """Checks that the trials of each workload of the rules may be compared.

    Returns a warning for each thing that differs, also if only between workloads, and
    for each other ruleset that trials ran under.

    Raises:
      UserError: something differs within a workload, or trials ran under another
        ruleset, and `allow` is false.
    """
    by_workload: dict[str, list[Trial]] = defaultdict(list)
    for trial in runs.trials:
        if trial.workload in rules.workloads:
            by_workload[trial.workload].append(trial)
    found = rulesets(runs, rules)
    others = [
        f"records of {one_line(other, 80)} tuning judged as {ruleset} tuning: "
        f"{', '.join(sorted(submissions))}"
        for other, submissions in sorted(found.items())
        if other != ruleset
    ]
    if others and not allow:
        is_choice = len(found) == 1 and found.keys() <= rules.protocols.keys()
        remedy = f"give --ruleset {min(found)}" if is_choice else "score them apart"
        raise UserError(f"{others[0]}; {remedy}, or give --allow_mixed")
    within = list(_mixtures_within(by_workload))
    if within and not allow:
        raise UserError(f"{within[0]}; score them apart, or give --allow_mixed")
    return (*others, *within, *_mixtures_between(by_workload))


def rulesets(runs: Runs, rules: Rules) -> dict[str, set[str]]:
    """Returns the submissions by the ruleset that their records name.

    Trials of other workloads than those of the rules are left out, and so are official
    logs and records without the field.
    """
    return _members(
        (name, trial.submission)
        for trial in runs.trials
        if trial.workload in rules.workloads
        and (name := (trial.record or {}).get("ruleset"))
    )


def _mixtures_within(by_workload: Groups) -> Iterator[str]:
    """Yields a line for each thing that differs in a workload: what, and in whose."""
    for what, describe in DESCRIPTIONS.items():
        differing = [g for g in by_workload.values() if len(set(map(describe, g))) > 1]
        trials = itertools.chain(*differing)
        if found := _members((describe(t), t.submission) for t in trials):
            yield f"records of different {what}: {_listed(found)}"
    for workload, group in by_workload.items():
        targets = _members(
            (goal, t.submission) for t in group if (goal := target(t)) is not None
        )
        if len(targets) > 1:
            yield f"records of different target of {workload}: {_listed(targets)}"


def _mixtures_between(by_workload: Groups) -> Iterator[str]:
    """Yields a line for each thing that each workload has one of, but not the same."""
    for what, describe in DESCRIPTIONS.items():
        found = _members(
            (describe(t), w) for w, group in by_workload.items() for t in group
        )
        is_within = sum(map(len, found.values())) > len(by_workload)
        if len(found) > 1 and not is_within:
            yield f"workloads ran with different {what}: {_listed(found)}"


def _members(pairs: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    """Returns the second ones by the first."""
    groups: dict[str, set[str]] = defaultdict(set)
    for name, member in pairs:
        groups[name].add(member)
    return groups


def _listed(groups: Mapping[str, Iterable[str]]) -> str:
    return "; ".join(
        f"{one_line(name)} ({', '.join(sorted(members))})"
        for name, members in sorted(groups.items())
    )


def hardware(trial: Trial) -> str:
    """Returns the hardware of a trial, or 'unknown'; all, if it went on elsewhere."""
    return _of_all_parts(hardware_words, trial)


def code(trial: Trial) -> str:
    """Returns revision and versions of a trial, or 'unknown'; all, if they changed."""
    return _of_all_parts(_code, trial)


def _of_all_parts(describe: Callable[[Mapping[str, Any]], str], trial: Trial) -> str:
    """Describes what a trial ran on from its start, as far as it differs."""
    parts = records.parts(trial.record or {})
    return ", then ".join(dict.fromkeys(map(describe, parts)))


def hardware_words(record: Mapping[str, Any]) -> str:
    """Returns the hardware that `devices` and `host` of a record name, or 'unknown'."""
    devices, host = record.get("devices") or {}, record.get("host") or {}
    parts = []
    if devices:
        kind = devices.get("device_kind") or devices.get("platform") or "unnamed"
        parts.append(f"{devices.get('device_count') or 1} x {kind}")
        if (processes := devices.get("process_count") or 1) != 1:
            parts.append(f"{processes} processes")
    if host:
        parts.append(f"{host.get('cpu') or 'unnamed processor'}")
        parts.append(f"{host.get('cores') or 'unknown number of'} cores")
    return ", ".join(parts) or UNKNOWN


def _code(record: Mapping[str, Any]) -> str:
    versions = record.get("versions") or {}
    revision = record.get("git_revision")
    parts = [f"{name} {versions[name]}" for name in PACKAGES if versions.get(name)]
    if revision:
        parts.append(f"revision {_short(revision)}")
    return ", ".join(parts) or UNKNOWN


def _short(revision: str) -> str:
    """Returns twelve digits of a commit, and whether files were changed since."""
    commit, _, rest = revision.partition("-")
    return commit[:12] + (f"-{rest}" if rest else "")


def target(trial: Trial) -> str | None:
    """Returns the target that ended a trial; None if it had none, or no record."""
    facts = _object(trial, "target")
    if facts.get("validation") is None:
        return None
    return f"{facts.get('metric')} {facts['validation']:g}"


def _schema(trial: Trial) -> str:
    if trial.record is None or "schema_version" not in trial.record:
        return UNKNOWN
    return f"version {trial.record['schema_version']}"


def _budget(trial: Trial) -> str:
    return "no time budget" if trial.has_no_budget else "a time budget"


DESCRIPTIONS = {
    "hardware": hardware,
    "code": code,
    "schema": _schema,
    "budget": _budget,
}


def _object(trial: Trial, name: str) -> dict[str, Any]:
    value = (trial.record or {}).get(name)
    return value if isinstance(value, dict) else {}


def contention(trial: Trial) -> float:
    """Returns how much contention may have added to a trial's time, as a share of it.

    An upper bound from the step times of the record: the share of windows that were
    contended, times how much slower than the uncontended step time the slowest window
    was. 0 if the record says nothing.
    """
    facts = _object(trial, "step_time")
    windows, contended = facts.get("windows") or 0, facts.get("contended_windows") or 0
    seconds, slowest = facts.get("seconds") or 0, facts.get("slowest_window") or 0
    if not windows or not seconds:
        return 0.0
    return min(contended / windows, 1.0) * max(slowest / seconds - 1, 0.0)


def is_contended(trial: Trial) -> bool:
    """Whether contention may have added more than `CONTENTION_BOUND` to a trial."""
    return contention(trial) > CONTENTION_BOUND


def contention_warnings(trials: Iterable[Trial]) -> Iterator[str]:
    """Yields a line per submission that has contended trials, naming them."""
    groups: dict[str, list[Trial]] = defaultdict(list)
    for trial in trials:
        if is_contended(trial):
            groups[trial.submission].append(trial)
    for submission, group in groups.items():
        places = ", ".join(
            f"{trial.place} (up to {100 * contention(trial):.0f} %)" for trial in group
        )
        yield f"other load may have slowed {submission}: {places}"


def budget_warnings(trials: Iterable[Trial]) -> Iterator[str]:
    """Yields a line if one workload's trials had budgets that differ by the bound.

    At mini scale a budget follows from how fast the machine was as the trial began.
    """
    budgets: dict[str, list[float]] = defaultdict(list)
    for trial in trials:
        if budget := (trial.record or {}).get("budget_sec"):
            budgets[trial.workload].append(budget)
    differing = [
        f"{workload} {min(found):.4g} to {max(found):.4g} s"
        for workload, found in budgets.items()
        if max(found) > (1 + CONTENTION_BOUND) * min(found)
    ]
    if differing:
        yield (
            f"trials had different budgets: {', '.join(differing)}; the machine was "
            "another or busier as some began: who got less may miss a target for that"
        )
