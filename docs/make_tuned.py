"""Writes docs/tuned.md from what `algoperf tune --write` left in submissions/.

python docs/make_tuned.py
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from algoperf import coordinate_search, hardware, registry, tuned
from algoperf.cli import printing, tune
from algoperf.errors import UserError
from algoperf.run_store import Store
from algoperf.tuned import Goal, Tuning

PAGE = Path(__file__).resolve().parent / "tuned.md"
BUDGET = 8  # trials of each submission
DEFAULTS = {"early_stop": False, "step_factor": 1.0}  # which the page's command leaves
HEAD = """# What tuning found

Written by `python docs/make_tuned.py` from `tuning.json.xz` beside each submission;
none of these numbers was typed in. The protocol is that of [tuning.md](tuning.md), the
same for all of them:

    algoperf tune NAME --workloads {workloads} \\
      --budget {budget} --search {search} --seed {seed}

{fewer}{runs} runs, each on {machine}.

- **Start** and **best** are exp(score) of the first trial, whose point the ranges name,
  and of the best one: the geometric mean over the workloads of the share of the step
  hint that the target took. A missed target counts as {miss:g} to {worst:.1f}.
- By **workload**, the step at which the best trial reached the target, and its share of
  the hint. Steps count, whatever a step costs.
- The **best point** is what was searched of it; the rest had one value.

The best of {budget} trials looks better than it is ([tuning.md](tuning.md) says by how
much), and these workloads do not speak for all: the [leaderboard](leaderboard.md)
judges the points on the whole mini suite, by other seeds.

"""
FEWER = "Fewer workloads, those that it is for: {names}. "


def read_tuning(folder: Path) -> Tuning:
    """Reads the tuning in a submission's folder.

    Raises:
      UserError: there is none that can be read, or it is of another kind.
    """
    store = Store.read(folder / tune.STORE_FILE)
    facts = store.facts
    if {name: facts.get(name) for name in DEFAULTS} != DEFAULTS:
        raise UserError(f"{store.path} is not of {DEFAULTS}")
    plan = coordinate_search.Plan(
        ranges=dict(facts["ranges"]),
        budget=BUDGET,
        search=facts["search"],
        seed=facts["seed"],
        intervals=facts["intervals"],
        least_gain=facts["least_gain"],
    )
    goals = {name: Goal(**goal) for name, goal in facts["workloads"].items()}
    return Tuning(facts["submission"], plan, goals, store)


def read_tunings() -> dict[str, Tuning]:
    """Reads the tunings of all submissions that have one, by name.

    Raises:
      UserError: none has, or one cannot be read.
    """
    found = {
        name: read_tuning(path.parent)
        for name, path in sorted(registry.submission_paths().items())
        if path.with_name(tune.STORE_FILE).exists()
    }
    if not found:
        raise UserError(
            f"no submission has {tune.STORE_FILE}; see algoperf tune --write"
        )
    return found


def row(tuning: Tuning, workloads: Sequence[str]) -> list[str]:
    """Returns the cells of a submission."""
    scores, best = tuning.scores(), tuning.chosen()[0]
    shares = [f"{math.exp(scores[trial]):.2f}" for trial in (1, best.trial)]
    point = ", ".join(
        f"`{name}` {json.dumps(best.point[name])}" for name in tuning.plan.free
    )
    reached = [reach(tuning, best.trial, name) for name in workloads]
    return [f"`{tuning.submission}`", str(len(scores)), *shares, *reached, point]


def reach(tuning: Tuning, trial: int, workload: str) -> str:
    """Returns the step at which a trial reached a target, and the share of the hint."""
    run = tuning.run(trial, workload)
    if run is None:
        return "-"  # not one of its workloads
    goal = tuning.goals[workload]
    steps = tuned.steps_to_target(run, goal)
    if steps is None:
        return f"{tuned.gap(run, goal):.1%} short"
    return f"{steps:.0f} ({steps / goal.step_hint:.2f})"


def page(tunings: Mapping[str, Tuning]) -> str:
    """Returns the text of the page; the tunings share seed and budget."""
    plan = next(iter(tunings.values())).plan
    goals = [list(tuning.goals) for tuning in tunings.values()]
    workloads = max(goals, key=len)
    fewer = [
        f"`{name}`"
        for name, own in zip(tunings, goals, strict=True)
        if own != workloads
    ]
    hosts = [e["host"] for t in tunings.values() for e in t.store.environments]
    head = HEAD.format(
        workloads=",".join(name.removesuffix("_mini") for name in workloads),
        fewer=FEWER.format(names=", ".join(fewer)) if fewer else "",
        budget=plan.budget,
        search=plan.search,
        seed=plan.seed,
        runs=sum(len(tuning.store.runs) for tuning in tunings.values()),
        machine=" or ".join(sorted({hardware.host_words(h) for h in hosts})),
        miss=tuned.MISS,
        worst=tuned.MISS * math.e,
    )
    columns = ("submission", "trials", "start", "best", *workloads, "best point")
    rows = [row(tuning, workloads) for tuning in tunings.values()]
    return head + printing.markdown(columns, rows) + "\n"


def main() -> None:
    """Writes the page."""
    PAGE.write_text(page(read_tunings()), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"ERROR: {error}")
