"""Writes docs/reparam_suite.md from the records in docs/reparam/suite.tar.xz.

    python docs/make_methods.py --pack RUNS

RUNS is what `algoperf sweep --target_setting 1.0` leaves of the submissions of
docs/reparam.md and of `adamw`, on any workloads of the mini suite. Without `--pack` the
page is written from what is kept. What a step takes is in docs/step_times.json.
"""

import argparse
import dataclasses
import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import make_recipes
import numpy as np
import packed

import scoring
from algoperf.cli import printing
from algoperf.errors import UserError
from scoring import recipes as compared
from scoring import time_to_target
from scoring.rules import Goal
from scoring.step_times import StepTimes

DOCS = Path(__file__).resolve().parent
STEP_TIMES = DOCS / "step_times.json"
ARCHIVE = DOCS / "reparam" / "suite.tar.xz"
PAGE = DOCS / "reparam_suite.md"
DENSE = "adamw"
STEPS = packed.STEPS
HEAD = """# Small and low-rank training on the mini suite

Written by `python docs/make_methods.py` from the records in
`docs/reparam/suite.tar.xz`; none of these numbers was typed in. What the methods are is
in [reparam.md](reparam.md).

    algoperf sweep --submissions {submissions} \\
      --suite mini --studies {studies} --seed {seed} --target_setting 1.0 \\
      --out runs/methods

{trials} trials on {machine}: the first point that each search space had, the same on
all workloads, {seeds}. AdamW was [tuned](tuned.md) later.
They train for the workload's step hint, whatever they reach and however long it takes:
a budget of seconds would also judge what else the machine did.
{failed}
- **Steps** are to the target, interpolated between evaluations. Those of a method over
  those of `adamw` are a ratio of medians, with the 95 % interval over seeds (Student's
  t on logarithms) where a workload has several.
- **To its level**: the same to a goal that more of them reach, the median metric that
  `adamw` had after half of its steps.
- **A step** is its time over that of `adamw`, with which it took turns
  ([algorithms.md](algorithms.md) says how): what comes seldom, like a merge or a new
  projection, is not in it. **Time** is both together, to the target, without what is
  compiled and evaluated.
- **Trained** and **stored** are parameters, and bytes, over those of `adamw`, and
  **state** the bytes of the optimizer's state over its.
"""
COMBINED = """## All workloads

Geometric means over workloads. Those of steps and time are over the workloads where
half of a method's runs get there, and half of those of `adamw`; in brackets the 95 %
interval over these workloads, and of how many.
"""


@dataclasses.dataclass(frozen=True)
class Method:
    """A submission on a workload beside the dense one, as shares of the dense one's."""

    in_steps: compared.Row
    time: float  # to the target
    step: float
    sizes: dict[str, float]


def page(runs: scoring.Runs, step_times: Mapping[str, StepTimes]) -> str:
    """Returns the text of the page; step times are by workload."""
    rules = scoring.load_rules("mini")
    found = {
        workload: methods(own, rules.goals[workload], step_times.get(workload))
        for workload in rules.workloads
        if (own := [t for t in runs.trials if t.workload == workload])
    }
    sections = [_head(runs, rules), COMBINED, combined(list(found.values()))]
    for workload, own in found.items():
        sections += [f"### {workload}\n\nTarget: {rules.goals[workload]}.\n", each(own)]
    return "\n".join(sections)


def methods(
    trials: Sequence[scoring.Trial], goal: Goal, step_times: StepTimes | None
) -> list[Method]:
    """Compares the trials of a workload with the dense ones, which come first.

    Raises:
      UserError: there are no dense ones.
    """
    names = sorted(
        {trial.submission for trial in trials}, key=lambda n: (n != DENSE, n)
    )
    if DENSE not in names:
        raise UserError(f"no trial of {DENSE} on {trials[0].workload} to compare with")
    by_name = {name: [t for t in trials if t.submission == name] for name in names}
    easier = dataclasses.replace(goal, target=level(by_name[DENSE], goal))
    rows = compared.summarise(
        (
            compared.RecipeRun(
                workload=trial.workload,
                recipe=name,
                seed=trial.study,
                steps=time_to_target.trial_time(trial, goal, STEPS),
                level_steps=time_to_target.trial_time(trial, easier, STEPS),
                final=last(trial, goal),
            )
            for name in names
            for trial in by_name[name]
        ),
        DENSE,
    )
    steps = step_ratios(step_times) if step_times else {}
    sizes = {name: _sizes(name, own) for name, own in by_name.items()}
    return [
        Method(
            in_steps=row,
            time=row.to_target.value * steps.get(row.recipe, math.nan),
            step=steps.get(row.recipe, math.nan),
            sizes={
                key: value / sizes[DENSE][key]
                for key, value in sizes[row.recipe].items()
            },
        )
        for row in rows
    ]


def level(trials: Iterable[scoring.Trial], goal: Goal) -> float:
    """Returns the median metric after half of the trials' steps; NaN without any."""
    found = []
    for trial in trials:
        if goal.column not in trial.columns:  # it failed before its first evaluation
            continue
        steps_E = time_to_target.evaluation_times(trial, STEPS.kind)
        half = np.searchsorted(steps_E, steps_E[-1] / 2)
        found.append(trial.columns[goal.column][half])
    return float(np.median(found)) if found else math.nan


def last(trial: scoring.Trial, goal: Goal) -> float:
    """Returns the metric of the last evaluation; NaN of a trial that had none."""
    values_E = trial.columns.get(goal.column, [math.nan])
    return float(values_E[-1])


def step_ratios(step_times: StepTimes) -> dict[str, float]:
    """Returns the time of each submission's step over the dense one's."""
    of = step_times.of
    return {name: time.seconds / of[DENSE].seconds for name, time in of.items()}


SIZES = ("trainable_parameters", "stored_bytes", "optimizer_state_bytes")


def _sizes(name: str, trials: Iterable[scoring.Trial]) -> dict[str, float]:
    """Returns what the first record that has sizes says; they all say the same."""
    recorded = ((trial.record or {}).get("sizes") for trial in trials)
    # Masks are kept dense: of `pruned` they say nothing.
    found = next(filter(None, recorded), {}) if name != "pruned" else {}
    return {key: float(found.get(key, math.nan)) for key in SIZES}


def combined(by_workload: Sequence[Sequence[Method]]) -> str:
    """Returns the table over all workloads."""
    rows = []
    for name in dict.fromkeys(m.in_steps.recipe for own in by_workload for m in own):
        own = [m for ms in by_workload for m in ms if m.in_steps.recipe == name]
        runs = sum(m.in_steps.runs for m in own)
        rows.append(
            [
                f"`{name}`",
                f"{sum(m.in_steps.reached for m in own)} of {runs}",
                _mean(name, [m.in_steps.to_target.value for m in own]),
                _mean(name, [m.time for m in own]),
                _mean(name, [m.in_steps.to_level.value for m in own]),
                *(
                    _number(compared.mean_ratio(values).value)
                    for values in (
                        [m.step for m in own],
                        *([m.sizes[key] for m in own] for key in SIZES),
                    )
                ),
            ]
        )
    columns = ("method", "reached", "steps", "time", "steps to its level")
    sizes = ("a step", "trained", "stored", "state")
    return printing.markdown((*columns, *sizes), rows) + "\n"


def _mean(name: str, ratios: Sequence[float]) -> str:
    """Returns the geometric mean of the finite ratios, in words."""
    there = sum(map(math.isfinite, ratios))
    words = make_recipes.shown(compared.mean_ratio(ratios))
    return "-" if name == DENSE or not there else f"{words}, {there}"


def _number(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "-"


def each(own: Sequence[Method]) -> str:
    """Returns the table of a workload's methods."""
    rows = [
        [
            f"`{row.recipe}`",
            f"{row.reached} of {row.runs}",
            f"{row.steps:.0f}" if math.isfinite(row.steps) else "-",
            *(
                ("-", "-", "-")
                if row.recipe == DENSE
                else (
                    make_recipes.shown(row.to_target),
                    _number(m.time),
                    make_recipes.shown(row.to_level),
                )
            ),
            f"{row.final:.4g}" if math.isfinite(row.final) else "-",
            *map(_number, (m.step, *m.sizes.values())),
        ]
        for m in own
        for row in [m.in_steps]
    ]
    columns = ("method", "reached", "steps", "times dense", "time")
    more = ("to its level", "metric at the end", "a step", "trained", "stored", "state")
    return printing.markdown((*columns, *more), rows) + "\n"


def _head(runs: scoring.Runs, rules: scoring.Rules) -> str:
    """Returns what the page says of the runs."""
    seeds: dict[int, list[str]] = {}
    workloads = sorted({trial.workload for trial in runs.trials})
    for workload in workloads:
        count = len({t.study for t in runs.trials if t.workload == workload})
        seeds.setdefault(count, []).append(workload.removesuffix("_mini"))
    words = [
        f"{count} {'seed' if count == 1 else 'seeds'} of {', '.join(names)}"
        for count, names in sorted(seeds.items())
    ]
    unwell = packed.unhealthy(runs, rules, STEPS)
    failed = f"\nThese ended early: {'; '.join(unwell)}.\n" if unwell else ""
    return HEAD.format(
        submissions=",".join(sorted(runs.submissions)),
        trials=len(runs.trials),
        machine=packed.machines(runs),
        studies=max(seeds),
        seed=_seed(runs),
        seeds="; ".join(words),
        failed=failed,
    )


def _seed(runs: scoring.Runs) -> int:
    """Returns the `--seed` of all runs."""
    records = [trial.record or {} for trial in runs.trials]
    found = {record.get("seeds", {}).get("seed") for record in records}
    if len(found) != 1 or None in found:
        raise UserError(f"the records are of more than one seed: {found}")
    return int(found.pop())


def main(arguments: Sequence[str] | None = None) -> None:
    """Packs, and writes the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pack", type=Path, metavar="RUNS", help="keep these records")
    options = parser.parse_args(arguments)
    if options.pack:
        count = packed.pack(options.pack, ARCHIVE)
        print(f"packed {count} trials into {ARCHIVE}")
    with tempfile.TemporaryDirectory() as folder:
        packed.unpack(ARCHIVE, Path(folder))
        runs = scoring.read_runs([folder])
        step_times = scoring.load_step_times(STEP_TIMES)
        PAGE.write_text(page(runs, step_times), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"ERROR: {error}") from error
