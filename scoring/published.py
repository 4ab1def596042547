"""The published field: times to target of submissions that others ran and judged.

A file in `scoring/published/` holds, for every submission of a published board and
every workload, the time to target in seconds, once by the documented rule and once by
the official code (see `time_to_target`). `python -m scoring.make_published` makes it
from the logs. The times enter a score as rows of their own; they have no trials.

Dimension key: S submissions, B base workloads, V held-out variants.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from algoperf import records
from algoperf.errors import UserError, unknown_name
from scoring.guards import rulesets
from scoring.parse import one_line
from scoring.read import FloatArray, Runs, Trial
from scoring.rules import Rules, load_rules
from scoring.time_to_target import MISS, SUBMISSION_TIME, Mode, Timing

FOLDER = Path(__file__).resolve().parent / "published"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hardware:
    """What times were measured on."""

    device: str  # 'NVIDIA V100'
    device_count: int

    def __str__(self) -> str:
        return f"{self.device_count} x {self.device}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """Times to target of the submissions of one published board."""

    name: str  # 'v0.5'
    benchmark: str  # name of the rules whose targets the times are to
    ruleset: str
    hardware: Hardware
    # [mode][submission][workload] in seconds, inf for a miss
    times: Mapping[Mode, Mapping[str, Mapping[str, float]]]

    @property
    def submissions(self) -> tuple[str, ...]:
        """Names of the submissions, sorted."""
        return tuple(sorted(self.times[Mode.DOCUMENTED]))

    def table(self, workloads: Sequence[str], mode: Mode) -> FloatArray:
        """Returns the times in seconds, [S, len(workloads)], inf for a miss."""
        rows = [self.times[mode][name] for name in self.submissions]
        table = [[row[workload] for workload in workloads] for row in rows]
        return np.array(table).reshape(len(rows), len(workloads))


def known_published() -> list[str]:
    """Returns the names of the published fields that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load_published(name: str) -> Published:
    """Loads a published field by name ('v0.5').

    Raises:
      UserError: unknown name.
    """
    if name not in known_published():
        raise unknown_name("published field", name, known_published())
    value = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    times = {
        mode: {
            submission: {w: MISS if s is None else s for w, s in row.items()}
            for submission, row in value["seconds"][mode].items()
        }
        for mode in Mode
    }
    return Published(
        name=value["name"],
        benchmark=value["benchmark"],
        ruleset=value["ruleset"],
        hardware=Hardware(**value["hardware"]),
        times=times,
    )


def check_comparable(
    runs: Runs, rules: Rules, ruleset: str, timing: Timing, published: Published
) -> None:
    """Checks that published times answer the question that is asked of the runs.

    Raises:
      UserError: the rules have a workload or a target that the published times are
        not of, the ruleset or the kind of time is another one, a trial ran under
        another ruleset, or there are runs, but none of a workload of the rules.
    """
    if timing != SUBMISSION_TIME:
        raise UserError(
            f"the published field {published.name} has {SUBMISSION_TIME} only; leave "
            "out --time and --interpolate"
        )
    goals = load_rules(published.benchmark).goals
    for workload in rules.workloads:
        if rules.goals[workload] != goals.get(workload):
            raise UserError(
                f"the published field {published.name} has no times for {workload} "
                f"({rules.goals[workload]}), which the rules {rules.name} ask for; "
                f"leave out --benchmark to judge by {published.benchmark}"
            )
    if ruleset != published.ruleset:
        raise UserError(
            f"the published field {published.name} is of {published.ruleset} tuning; "
            f"it cannot be compared with {ruleset} tuning"
        )
    for other, submissions in sorted(rulesets(runs, rules).items()):
        if other != published.ruleset:
            raise UserError(
                f"the published field {published.name} is of {published.ruleset} "
                f"tuning; records of {one_line(other, 80)} tuning cannot be compared "
                f"with it: {', '.join(sorted(submissions))}; leave them out, or score "
                "them without --against"
            )
    mine = {trial.workload for trial in runs.trials}
    if not mine or mine & set(rules.workloads):
        return
    if any(workload.endswith("_mini") for workload in mine):
        raise UserError(
            "mini runs cannot be compared with the full-scale field "
            f"{published.name}: run its workloads with --scale full "
            f"({', '.join(rules.base_workloads)})"
        )
    raise UserError(
        f"no run is of a workload of {rules.name} ({', '.join(rules.base_workloads)}); "
        f"there is nothing to compare with the published field {published.name}"
    )


def join(
    published: Published,
    mine: Sequence[str],
    times_SB: FloatArray,
    times_SV: FloatArray,
    rules: Rules,
    mode: Mode,
) -> tuple[tuple[str, ...], FloatArray, FloatArray, tuple[str, ...]]:
    """Adds the rows of the published submissions to mine.

    A published name that one of mine has as well gets the field's name beside it:
    'baseline (v0.5)'.

    Returns:
      All names, sorted; their times on base workloads, [S, B], and on held-out
      variants, [S, V], in that order; and the names of the published ones.
    """
    theirs = tuple(
        f"{name} ({published.name})" if name in mine else name
        for name in published.submissions
    )
    names = (*mine, *theirs)
    order = sorted(range(len(names)), key=names.__getitem__)
    held_out = tuple(rules.held_out)
    base_SB = np.vstack([times_SB, published.table(rules.base_workloads, mode)])
    held_out_SV = np.vstack([times_SV, published.table(held_out, mode)])
    submissions = tuple(names[s] for s in order)
    return submissions, base_SB[order], held_out_SV[order], theirs


def differences(runs: Runs, rules: Rules, published: Published) -> Iterator[str]:
    """Yields a warning for each thing in which my runs differ from the published ones.

    Hardware is the same if as many devices were used, and the kind that JAX reports
    has the last word of the published device in it ('V100').
    """
    trials = [trial for trial in runs.trials if trial.workload in rules.workloads]
    yield from _other_hardware(trials, published)
    if free := sorted({trial.submission for trial in trials if trial.has_no_budget}):
        yield (
            f"the times of {published.name} are within its time budgets, those of "
            f"{', '.join(free)} without any: a target that was reached later counts"
        )


def _other_hardware(trials: Sequence[Trial], published: Published) -> Iterator[str]:
    # Of a trial that went on elsewhere, every part counts.
    ran_on = [part for trial in trials for part in records.parts(trial.record or {})]
    found = sorted(set(map(_hardware, ran_on)))
    count, device = published.hardware.device_count, published.hardware.device
    model = device.split()[-1].lower()
    if all(x.startswith(f"{count} x ") and model in x.lower() for x in found):
        return
    yield (
        f"the times of {published.name} were measured on {published.hardware}, yours "
        f"on {' and on '.join(found)}: seconds can only be compared on equal hardware"
    )


def _hardware(record: Mapping[str, Any]) -> str:
    devices: Mapping[str, Any] = record.get("devices") or {}
    kind = devices.get("device_kind")
    if not kind:
        return "hardware that the records do not name"
    return f"{devices.get('device_count', 1)} x {one_line(str(kind))}"
