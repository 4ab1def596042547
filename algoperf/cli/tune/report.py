"""What `algoperf tune` tells of a tuning: a page of Markdown and a figure."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

from algoperf import tuned
from algoperf.cli import printing
from algoperf.coordinate_search import Proposal
from algoperf.run_store import Run
from algoperf.tuned import Goal, Tuning

PROTOCOL = """\
{first} come first. Then, from the best of them, each
hyperparameter in turn tries its neighbours on a grid and moves on while that betters
the score by more than {least_gain:g}; the search ends with the budget, or when no
hyperparameter has a better neighbour (the protocol of Wen et al. 2025,
arXiv:2509.02046, under a budget).

A trial is one point on all workloads, with a seed of its own. Its score is the mean
over workloads of log(s / h), with s the step at which the target is reached,
interpolated between evaluations, and h the step hint. A run that misses counts as
log({miss:g} S / h) + gap, with S the steps allowed and the gap, from 0 to 1, the part
of the way from the untrained model to the target that is missing at its best. Smaller
is better; exp(score) is the geometric mean of the shares of the step hints.

By seeds alone the score of a point has a standard deviation of 0.04 over two of the
mini workloads and of 0.09 over all nine, where it was measured. The best of many trials
looks better than it is."""
HALTON = "Points of a scrambled Halton sequence"
STARTED = "The start of the ranges and points of a scrambled Halton sequence"
CHOICE = """\
The fastest trial of a study counts, on each workload. So after the best point come
those that lower the mean over workloads of the least loss the most."""


def markdown(tuning: Tuning, figure: str | None) -> str:
    """Returns the report; `figure` is the file to show."""
    plan = tuning.plan
    sections = [
        f"# Tuning of {tuning.submission}",
        PROTOCOL.format(
            first=HALTON if plan.start is None else STARTED,
            least_gain=plan.least_gain,
            miss=tuned.MISS,
        ),
        "## Budget\n\n" + _budget(tuning),
        "## Workloads\n\n" + _workloads(tuning),
        "## Ranges\n\n" + _ranges(tuning),
        "## Result\n\n" + CHOICE + "\n\n" + _chosen(tuning),
    ]
    if figure:
        sections.append(f"![Score of each trial]({figure})")
    sections += [
        "## Descent\n\n" + _descent(tuning),
        "## Trials\n\n" + _trials(tuning),
        "## Machines and versions\n\n" + _environments(tuning),
    ]
    return "\n\n".join(sections) + "\n"


def _budget(tuning: Tuning) -> str:
    plan, trials = tuning.plan, tuning.tried()
    allowed = sum(goal.steps for goal in tuning.goals.values())
    runs = [_run(tuning, p.trial, name) for p in trials for name in tuning.goals]
    taken = sum(run.evaluations[-1]["step"] for run in runs)
    stopped = [run for run in runs if run.status == tuned.STOPPED]
    bases = ", ".join(f"{name} {base}" for name, base in plan.bases.items())
    over = "" if len(trials) == plan.budget else ": no neighbour was better"
    lines = [
        f"- {len(trials)} of {plan.budget} trials{over}; {plan.search} of the search",
        f"- {len(runs)} runs; {taken:,.0f} steps taken of {plan.budget * allowed:,} "
        f"that {plan.budget} trials may take",
        f"- seed {plan.seed}, of the runs {tuned.run_seed(plan.seed)}; bases of the "
        f"Halton sequence: {bases}",
        f"- runs stopped early, as hopeless: {len(stopped)}",
    ]
    lines += [
        f"  - trial {run.trial} on {run.space}, at step "
        f"{run.evaluations[-1]['step']:.0f} of {tuning.goals[run.space].steps}"
        for run in stopped
    ]
    return "\n".join(lines)


def _workloads(tuning: Tuning) -> str:
    rows = []
    for name, goal in tuning.goals.items():
        runs = [_run(tuning, p.trial, name) for p in tuning.tried()]
        hits = sum(tuned.steps_to_target(run, goal) is not None for run in runs)
        times = [run.step_sec for run in runs if run.step_sec is not None]
        milliseconds = f"{1000 * statistics.median(times):.4g}" if times else "-"
        rows.append(
            [
                name,
                goal.metric,
                f"{goal.target:g}",
                goal.step_hint,
                goal.steps,
                f"{hits} of {len(runs)}",
                milliseconds,
            ]
        )
    columns = ("workload", "metric", "target", "step hint", "steps allowed")
    return printing.markdown((*columns, "trials that reach it", "step, ms"), rows)


def _ranges(tuning: Tuning) -> str:
    plan = tuning.plan
    rows = []
    for name, part in plan.ranges.items():
        if "feasible_points" in part:
            span = ", ".join(json.dumps(value) for value in part["feasible_points"])
        else:
            scaling = part.get("scaling", "linear")
            span = f"{part['min']:g} to {part['max']:g}, {scaling}"
        start = plan.start[name] if plan.start is not None else None
        neighbours = plan.spacing(name) if name in plan.free else "-"
        rows.append(
            [name, span, *([] if start is None else [json.dumps(start)]), neighbours]
        )
    starts = () if plan.start is None else ("start",)
    return printing.markdown(("hyperparameter", "range", *starts, "neighbours"), rows)


def _chosen(tuning: Tuning) -> str:
    scores = tuning.scores()
    return printing.markdown(
        ("trial", "score", *tuning.plan.ranges),
        [
            [p.trial, f"{scores[p.trial]:.4f}", *_values(p, tuning.plan.ranges)]
            for p in tuning.chosen()
        ],
    )


def _descent(tuning: Tuning) -> str:
    """Returns which neighbours were tried, and the moves."""
    scores, trials = tuning.scores(), tuning.tried()
    found = {p.trial: p for p in trials}
    starts = {p.start for p in trials if p.start}
    rows = []
    for proposal in trials:
        if not proposal.changed:
            continue
        before = found[proposal.start].point[proposal.changed]
        after = proposal.point[proposal.changed]
        rows.append(
            [
                proposal.trial,
                proposal.start,
                f"{proposal.changed} {json.dumps(before)} to {json.dumps(after)}",
                f"{scores[proposal.trial]:.4f}",
                f"{scores[proposal.trial] - scores[proposal.start]:+.4f}",
                "moved there" if proposal.trial in starts else "",
            ]
        )
    if not rows:
        return "None: the budget ended with the search."
    columns = ("trial", "from trial", "change", "score", "difference", "")
    return printing.markdown(columns, rows)


def _trials(tuning: Tuning) -> str:
    scores = tuning.scores()
    best, rows = math.inf, []
    for proposal in tuning.tried():
        score = scores[proposal.trial]
        best = min(best, score)
        results = [
            result(_run(tuning, proposal.trial, name), goal)
            for name, goal in tuning.goals.items()
        ]
        values = _values(proposal, tuning.plan.free)
        rows.append([proposal.trial, f"{score:.4f}", f"{best:.4f}", *results, *values])
    columns = ("trial", "score", "best so far", *tuning.goals, *tuning.plan.free)
    return (
        "Of each workload: the step at which the target is reached; else how the run "
        "ended, and its best metric.\n\n" + printing.markdown(columns, rows)
    )


def result(run: Run, goal: Goal) -> str:
    """Returns how a run went, in a few words."""
    steps = tuned.steps_to_target(run, goal)
    if steps is not None:
        return f"{steps:.0f}"
    best = run.best(goal.way)
    value = f"{best['validation']:.4g}" if best else "nothing finite"
    how = "missed" if run.status == "completed" else run.status
    return f"{how}, {value}"


def _environments(tuning: Tuning) -> str:
    lines = [
        f"- `{json.dumps(environment, sort_keys=True)}`"
        for environment in tuning.store.environments
    ]
    return "\n".join(lines)


def _values(proposal: Proposal, names: Any) -> list[str]:
    return [json.dumps(proposal.point[name]) for name in names]


def _run(tuning: Tuning, trial: int, workload: str) -> Run:
    run = tuning.run(trial, workload)
    assert run is not None  # of a trial that is done
    return run


def draw(tuning: Tuning, path: Path) -> bool:
    """Draws scores by trial and by learning rate; False without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "algoperf"  # the same runs, the same file
    from matplotlib import pyplot

    trials, scores = tuning.tried(), tuning.scores()
    name = next(iter(tuning.plan.free))
    if "learning_rate" in tuning.plan.free:
        name = "learning_rate"
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(8, 3.2), layout="constrained", sharey=True
    )
    for label, colour in (("search", "C0"), ("descent", "C1")):
        mine = [p for p in trials if bool(p.changed) == (label == "descent")]
        values = [scores[p.trial] for p in mine]
        left.plot([p.trial for p in mine], values, "o", color=colour, label=label)
        x = [p.point[name] for p in mine]
        right.plot(
            [v if _is_number(v) else str(v) for v in x], values, "o", color=colour
        )
    numbers = [p.trial for p in trials]
    best = [min(scores[n] for n in numbers[: i + 1]) for i in range(len(numbers))]
    left.step(numbers, best, where="post", color="black", linewidth=0.8, label="best")
    left.set(xlabel="trial", ylabel="score", title=tuning.submission)
    right.set(xlabel=name.replace("_", " "))
    if tuning.plan.ranges[name].get("scaling") == "log":
        right.set_xscale("log")
    left.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return True


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
