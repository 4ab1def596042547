"""Tune a submission with a budget of trials: search, then coordinate descent."""

import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from algoperf import records
from algoperf.cli import common
from algoperf.errors import UserError

if TYPE_CHECKING:
    from algoperf.coordinate_search import Proposal
    from algoperf.launch.local import Job
    from algoperf.loading import Submission
    from algoperf.run_store import Run
    from algoperf.tuned import Goal, Tuning
    from algoperf.tuning import SearchSpace

USAGE = (
    "algoperf tune SUBMISSION --workloads X,Y --budget N [--search N1] [--seed S]\n"
    "         [--ranges FILE] [--scale mini|full] [--out DIR] [--side_by_side K]\n"
    "         [--early_stop] [--write]"
)
RANGES_FILE = "tuning_ranges.json"
SPACE_FILE = "tuning_search_space.json"
STORE_FILE = "tuning.json.xz"
REPORT_FILE = "report.md"
FIGURE_FILE = "report.svg"
COPIED = (SPACE_FILE, STORE_FILE)  # beside the submission, with --write


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of `algoperf tune`."""
    flags.DEFINE_list(
        "workloads",
        None,
        "Names that `algoperf workloads` lists; all: every base workload of the scale.",
        required=True,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "budget",
        None,
        "Trials in all. A trial is one point on each of the workloads, for as many "
        "steps as the target takes, at most the step hint.",
        required=True,
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "search",
        None,
        "Trials of the quasi-random search, by default a third of the budget; the rest "
        "is for coordinate descent.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "seed",
        0,
        "Of the Halton sequence; the seeds of the runs follow from it too.",
        lower_bound=0,
        upper_bound=2**31 - 1,
        flag_values=values,
    )
    flags.DEFINE_string(
        "ranges",
        None,
        f"What may be tried: a search space with ranges; by default {RANGES_FILE} "
        f"beside the submission, else its {SPACE_FILE} if that has ranges.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "scale", "mini", records.SCALES, "Of the workloads.", flag_values=values
    )
    flags.DEFINE_string(
        "out",
        None,
        "Where records, report and search space go; by default "
        "runs/tuning/SUBMISSION. The same command goes on with what is missing there.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "side_by_side",
        1,
        "Runs at a time, each on its share of the cores, whose number changes how a "
        "CPU rounds: give the same to tunings that are compared.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_float(
        "step_factor",
        1.0,
        "Steps that a run may take and plan its schedule for, as a multiple of the "
        "step hint.",
        lower_bound=0.0,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "max_steps",
        None,
        "End each run after so many steps, to try things out.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "early_stop",
        False,
        "Stop runs whose curves say that they will miss their target.",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "write",
        False,
        f"When done, put {' and '.join(COPIED)} into the submission's folder.",
        flag_values=values,
    )
    common.define_data_dir_flag(values)


@dataclasses.dataclass(frozen=True)
class Task:
    """One call of the command: what is tuned so far, and where things are."""

    values: flags.FlagValues
    tuning: "Tuning"
    submission: "Submission"
    out: Path

    def folder(self, trial: int, workload: str) -> Path:
        """The record of a run."""
        name = self.tuning.submission
        return records.trial_folder(self.out / "runs", name, 0, workload, trial)


def main(values: flags.FlagValues, positional: Sequence[str]) -> int:
    """Runs what is missing; writes report and search space."""
    task = _task(values, common.one_argument(positional, "submission", "tune"))
    from algoperf.cli.tune import trial_runs
    from algoperf.launch import local

    with task.tuning.store.held(), common.StopRequest() as stop:
        cores = local.cores_of_each(values.side_by_side)
        trial_runs.check_origin(task.tuning.store, task.submission, cores)
        print(_announcement(task), flush=True)
        while batch := task.tuning.waiting():
            if not _run(task, batch, lambda: stop.is_asked):
                print("stopped; the same command goes on with what is missing")
                return 1
    _write(task)
    return 0


def find_ranges(submission: Path, given: str | None) -> "SearchSpace":
    """Returns the ranges to tune in.

    Args:
      submission: its file.
      given: what `--ranges` says.

    Raises:
      UserError: there are none, or they are malformed.
    """
    from algoperf import tuning

    if given:
        space = tuning.load_search_space(Path(given), "give a file with --ranges")
        if isinstance(space, list):
            raise UserError(f"{given} lists points; a tuning needs ranges")
        return space
    own, default = (submission.with_name(name) for name in (RANGES_FILE, SPACE_FILE))
    if own.is_file():
        return find_ranges(submission, str(own))
    if not default.is_file():
        raise UserError(
            f"{submission.parent} has neither {RANGES_FILE} nor {SPACE_FILE}: a "
            "submission without hyperparameters is not tuned; else give --ranges FILE"
        )
    space = tuning.load_search_space(default)
    if isinstance(space, list):
        raise UserError(
            f"{default} lists points, no ranges: write {RANGES_FILE} beside it, or "
            "give --ranges FILE"
        )
    return space


def _task(values: flags.FlagValues, name: str) -> Task:
    """Reads and checks everything before the first run."""
    from algoperf import coordinate_search, loading, registry, tuned
    from algoperf.run_store import Store

    path = registry.find_submission(name).resolve()
    ranges = find_ranges(path, values.ranges)
    assert isinstance(ranges, dict)
    plan = coordinate_search.Plan(
        ranges=ranges,
        budget=values.budget,
        search=values.search or math.ceil(values.budget / 3),
        seed=values.seed,
    )
    coordinate_search.check(plan)
    import jax

    # This process only looks at shapes: the accelerator is for the runs.
    jax.config.update("jax_platforms", "cpu")
    loaded = loading.load_submission(path)
    goals = _goals(values)
    out = common.folder_of(values.out or f"runs/tuning/{loaded.name}")
    found = tuned.Tuning(loaded.name, plan, goals, Store(out / STORE_FILE, {}))
    more = {name: values[name].value for name in ("early_stop", "step_factor")}
    facts = tuned.facts(found, **more)
    store = Store.open(found.store.path, json.loads(json.dumps(facts)))
    return Task(values, dataclasses.replace(found, store=store), loaded, out)


def _goals(values: flags.FlagValues) -> "dict[str, Goal]":
    """Returns what each workload asks for."""
    from algoperf import registry
    from algoperf.tuned import Goal

    goals = {}
    for workload in registry.select_workloads(values.workloads, values.scale):
        steps = _planned(values, workload.step_hint)
        if steps < 1:
            raise UserError("--step_factor leaves no step; give more than 0")
        goals[workload.name] = Goal(
            metric=workload.target_metric_name,
            direction=str(workload.target_direction),
            target=workload.validation_target_value,
            step_hint=workload.step_hint,
            steps=min(steps, values.max_steps or steps),
        )
    return goals


def _planned(values: flags.FlagValues, step_hint: int) -> int:
    """Returns what the schedules of the runs are made for."""
    return math.ceil(values.step_factor * step_hint)


def _announcement(task: Task) -> str:
    """Says what the budget means."""
    tuning = task.tuning
    plan, steps = tuning.plan, sum(goal.steps for goal in tuning.goals.values())
    return (
        f"tuning {tuning.submission}: {plan.budget} trials, {plan.search} of them "
        f"search, on {', '.join(tuning.goals)}; at most {steps:,} steps each, "
        f"{plan.budget * steps:,} in all; {len(tuning.scores())} trials are done"
    )


def _run(
    task: Task, batch: "Sequence[Proposal]", should_stop: Callable[[], bool]
) -> bool:
    """Makes the runs of some trials; returns whether all are done."""
    from algoperf import tuned
    from algoperf.cli import missing_runs
    from algoperf.cli.tune import trial_runs

    tuning = task.tuning
    points = {p.trial: p.point for p in (*tuning.tried(), *batch)}
    records.make_folder(task.out)
    ordered = [points[trial] for trial in sorted(points)]
    records.write_text(task.out / "points.json", listed(ordered))
    wanted = {
        _job(task, proposal, name): (tuning.store, tuning.key(proposal.trial, name))
        for proposal in batch
        for name in tuning.goals
    }
    stopping = tuning.goals if task.values.early_stop else {}
    reader = trial_runs.Reader(
        points,
        stopping,
        task.submission.sha256,
        tuned.run_seed(tuning.plan.seed),
        {n: _planned(task.values, goal.step_hint) for n, goal in tuning.goals.items()},
    )
    return missing_runs.make(
        wanted,
        should_stop,
        lambda _, job, run: _say(task, job.folder, run),
        task.values.side_by_side,
        reader.read,
        trial_runs.watcher(stopping),
    )


def _job(task: Task, proposal: "Proposal", workload: str) -> "Job":
    from algoperf import tuned
    from algoperf.launch.local import Job

    values, goal = task.values, task.tuning.goals[workload]
    data = [f"--data_dir={values.data_dir}"] if values.data_dir else []
    return Job(
        arguments=(
            f"--submission={task.submission.path}",
            f"--workload={workload}",
            f"--scale={values.scale}",
            f"--tuning_search_space={task.out / 'points.json'}",
            f"--trial_index={proposal.trial}",
            f"--trials={proposal.trial}",
            f"--seed={tuned.run_seed(values.seed)}",
            f"--out={task.out / 'runs'}",
            f"--step_hint={_planned(values, goal.step_hint)}",
            f"--max_steps={goal.steps}",
            "--checkpoint_period_sec=300",
            "--ignore_budget",
            *data,
        ),
        folder=task.folder(proposal.trial, workload),
    )


def _say(task: Task, folder: Path, run: "Run") -> None:
    """Removes the checkpoints of a run that was added; says how it went."""
    for path in folder.glob(f"{records.CHECKPOINT_PREFIX}_*"):
        shutil.rmtree(path)  # nothing goes on from here, and there are many
    where = f"trial {run.trial}/{task.tuning.plan.budget}"
    print(f"[{where} {run.space}: {_outcome(task, run)}]")
    scores = task.tuning.scores()
    if run.trial in scores:
        best = min(scores.values())
        print(f"[{where}: score {scores[run.trial]:.4f}, best {best:.4f}]", flush=True)


def _outcome(task: Task, run: "Run") -> str:
    from algoperf import tuned

    goal = task.tuning.goals[run.space]
    steps = tuned.steps_to_target(run, goal)
    if steps is not None:
        return f"reached at step {steps:.0f} of {goal.step_hint}"
    last = run.evaluations[-1]["step"]
    status = "missed" if run.status == records.Status.COMPLETED else run.status
    return f"{status} at step {last:.0f}, {tuned.gap(run, goal):.1%} short"


def listed(points: Sequence[dict[str, Any]]) -> str:
    """Returns a search space with one line for each point."""
    return "[\n" + ",\n".join(f"  {json.dumps(point)}" for point in points) + "\n]\n"


def _keep_ranges(folder: Path) -> None:
    """Moves ranges that stand where the points go."""
    from algoperf import tuning

    points, kept = folder / SPACE_FILE, folder / RANGES_FILE
    if kept.exists() or not points.is_file():
        return
    if not isinstance(tuning.load_search_space(points), list):
        records.write_bytes(kept, points.read_bytes())


def _write(task: Task) -> None:
    """Writes what came out, and says where."""
    from algoperf.cli.tune import report

    tuning, out = task.tuning, task.out
    chosen = tuning.chosen()
    records.write_text(out / SPACE_FILE, listed([p.point for p in chosen]))
    figure = report.draw(tuning, out / FIGURE_FILE)
    text = report.markdown(tuning, FIGURE_FILE if figure else None)
    records.write_text(out / REPORT_FILE, text)
    best = chosen[0]
    score = tuning.scores()[best.trial]
    print(f"best: trial {best.trial}, score {score:.4f}, {json.dumps(best.point)}")
    print(f"wrote {out / SPACE_FILE} and {out / REPORT_FILE}")
    if task.values.write:
        folder = task.submission.path.parent
        _keep_ranges(folder)
        for name in COPIED:
            content = (out / name).read_bytes()
            records.write_bytes(folder / name, content)
        print(f"wrote {' and '.join(COPIED)} into {folder}")
