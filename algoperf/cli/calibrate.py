"""Find a workload's targets: search, repeat the best point, take the median."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from algoperf import records
from algoperf.cli import common
from algoperf.errors import UserError, unknown_name

if TYPE_CHECKING:
    from algoperf.calibration import Phase, Store
    from algoperf.launch.local import Job
    from algoperf.run_store import Run
    from algoperf.workload import Workload

USAGE = (
    "algoperf calibrate --workload NAME [--scale mini|full] [--out DIR] [--store DIR]\n"
    "         [--phases search,repeats,fresh,weak,timed] [--points N] [--repeats N]\n"
    "         [--finalists N] [--weak NAMES] [--side_by_side N]"
)
PHASES = ("search", "repeats", "fresh", "weak", "timed")
SEARCH_SPACES = "target_setting*.json"  # beside the submissions that set targets
# The search space whose best point is also tried with a rate ten times off.
OFF_SPACE = "adamw"
OFF_FACTORS = (0.1, 10.0)
VARIANT_POINTS = 3
POINTS = 10


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of `algoperf calibrate`."""
    flags.DEFINE_string(
        "workload",
        None,
        "A name that `algoperf workloads` lists.",
        required=True,
        flag_values=values,
    )
    flags.DEFINE_enum(
        "scale", "mini", records.SCALES, "Of the workload.", flag_values=values
    )
    flags.DEFINE_string(
        "out",
        "runs/calibration",
        "Where the runs leave their records.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "store",
        None,
        "Where <workload>.json.xz keeps what finished runs gave; the same command goes "
        "on with what is missing there. By default as --out.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "phases",
        list(PHASES),
        "search: points of target_setting*.json beside the submissions; repeats: of "
        "the best point, they set the targets; fresh: that point, other seeds, "
        "the whole step hint, to the target; weak: what must miss the target, that is "
        "--weak, and AdamW with a rate ten times off; timed: the best point alone on "
        "the machine, for the budget.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "weak",
        ["sgd"],
        "Submissions whose search spaces must miss the target.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "points",
        None,
        f"Points of each search space, {POINTS} by default. A variant tries the best "
        f"points of its base's search instead, {VARIANT_POINTS} in all by default; one "
        "that was not searched repeats the point that set its base's target.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "repeats",
        10,
        "Runs of the best point, each with a seed of its own.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "finalists",
        1,
        "So many of the search's best points are repeated, and the one with the best "
        "median counts: a single run may have been lucky.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "side_by_side",
        1,
        "Trials at a time, each on its share of the cores; timed ones run alone.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "max_steps",
        None,
        "End each run after so many steps, to try things out.",
        lower_bound=1,
        flag_values=values,
    )
    common.define_data_dir_flag(values)


@dataclasses.dataclass(frozen=True)
class Space:
    """Points of a submission's hyperparameters, and how many of them to try."""

    name: str
    submission: Path
    path: Path
    trials: int


@dataclasses.dataclass(frozen=True)
class Calibration:
    """One call of the command: the workload, its runs so far, where things go."""

    values: flags.FlagValues
    workload: "Workload"
    store: "Store"
    out: Path

    def points_file(
        self, phase: str, space: Space, points: Sequence[dict[str, Any]]
    ) -> Space:
        """Returns the space as a list of these points, written for its runs."""
        path = self.out / phase / f"{space.name}.json"
        records.make_folder(path.parent)
        records.write_json(path, points)
        return dataclasses.replace(space, path=path, trials=len(points))


def main(values: flags.FlagValues, positional: Sequence[str]) -> int:
    """Runs what is missing, prints the targets."""
    common.no_arguments(positional)
    from algoperf import calibration, registry

    if unknown := [name for name in values.phases if name not in PHASES]:
        raise unknown_name("phase", unknown[0], PHASES)
    import jax

    # This process only looks at shapes: the accelerator is for the runs.
    jax.config.update("jax_platforms", "cpu")
    workload = registry.find_workload(values.workload, values.scale)
    out = common.out_folder(values)
    folder = common.folder_of(values.store, "store") if values.store else out
    records.make_folder(folder)
    facts = calibration.facts_of(workload) | {"max_steps": values.max_steps}
    store = calibration.Store.open(folder / f"{workload.name}.json.xz", facts)
    task = Calibration(values, workload, store, out / workload.name)
    with store.held(), common.StopRequest() as stop:
        for phase in calibration.Phase:
            if phase not in values.phases:
                continue
            spaces = planned_spaces(phase, task)
            if not _run(task, phase, spaces, lambda: stop.is_asked):
                print("stopped; the same command goes on with what is missing")
                return 1
    print(_summary(store))
    return 0


def find_spaces(points: int = POINTS) -> list[Space]:
    """Returns the search spaces that set targets, in order of their names."""
    from algoperf import registry

    spaces = []
    for name, file in registry.submission_paths().items():
        for path in sorted(file.parent.glob(SEARCH_SPACES)):
            suffix = path.stem.removeprefix("target_setting").strip("_")
            spaces.append(Space(suffix or name, file, path, points))
    if not spaces:
        raise UserError(f"no submission has a search space {SEARCH_SPACES}")
    return sorted(spaces, key=lambda space: space.name)


def _plan_search(task: Calibration) -> list[Space]:
    """Returns the spaces to search; for a variant, the best points of its base."""
    if not _is_variant(task):
        return find_spaces(task.values.points or POINTS)
    from algoperf import calibration

    search = _store_of_base(task).of(calibration.Phase.SEARCH)
    runs = calibration.ranked(search, task.store.direction)
    best = runs[: task.values.points or VARIANT_POINTS]
    points: dict[str, list[dict[str, Any]]] = {}
    for run in best:
        points.setdefault(run.space, []).append(dict(run.hyperparameters))
    return _points_files(task, "search", points)


def _is_variant(task: Calibration) -> bool:
    return task.workload.variant != task.workload.base_workload


def _store_of_base(task: Calibration) -> "Store":
    """Returns the calibration of a variant's base."""
    from algoperf import calibration, registry

    base = registry.find_workload(task.workload.base_workload, task.workload.scale)
    path = task.store.path.with_name(f"{base.name}.json.xz")
    if not path.exists():
        raise UserError(
            f"{path} is not there: a variant takes points of its base's search; first "
            f"calibrate {task.workload.base_workload}, with the same --store"
        )
    return calibration.Store.read(path)


def _finalists(task: Calibration) -> "list[Run]":
    """Returns the best runs of the search, whose points are repeated.

    A variant that was not searched takes the point that set its base's target.
    """
    from algoperf import calibration

    store, count = task.store, task.values.finalists
    search = store.of(calibration.Phase.SEARCH)
    if not search and _is_variant(task):
        base = _store_of_base(task)
        if repeats := base.repeats():
            return repeats[:1]
        search = base.of(calibration.Phase.SEARCH)
    if not search:
        raise UserError("there are no runs of the search yet: give --phases=search")
    calibration.best_run(search, store.direction)  # raises where all diverged
    return calibration.ranked(search, store.direction)[:count]


def _plan_repeats(task: Calibration) -> list[Space]:
    points: dict[str, list[dict[str, Any]]] = {}
    for run in _finalists(task):
        repeats = [dict(run.hyperparameters)] * task.values.repeats
        points.setdefault(run.space, []).extend(repeats)
    return _points_files(task, "repeats", points)


def _plan_best(phase: str, trials: int | None) -> Callable[[Calibration], list[Space]]:
    """Returns the plan of runs of the point that set the target."""

    def plan(task: Calibration) -> list[Space]:
        best = (task.store.repeats() or _finalists(task))[0]
        repeats = [dict(best.hyperparameters)] * (trials or task.values.repeats)
        return _points_files(task, phase, {best.space: repeats})

    return plan


def _points_files(
    task: Calibration, phase: str, points: Mapping[str, list[dict[str, Any]]]
) -> list[Space]:
    """Returns spaces of these points, by their spaces' names.

    Raises:
      UserError: the store has runs of this phase at other points.
    """
    from algoperf.calibration import Phase

    _check_points(task.store, task.store.of(Phase(phase)), points)
    return [
        task.points_file(phase, space, points[space.name])
        for space in find_spaces()
        if space.name in points
    ]


def _check_points(
    store: "Store", runs: "Iterable[Run]", points: Mapping[str, list[dict[str, Any]]]
) -> None:
    """Raises UserError if runs are of other points than these, which they follow."""
    for run in runs:
        mine = points.get(run.space, [])
        wanted = mine[run.trial - 1 : run.trial] or mine[-1:]
        if wanted != [dict(run.hyperparameters)]:
            raise UserError(
                f"{store.path} has runs of the phase {run.phase} at a point of "
                f"{run.space} that is not among the best any more; give the flags of "
                "before, or begin anew with another --store and --out"
            )


def _plan_fresh(task: Calibration) -> list[Space]:
    from algoperf.calibration import Phase

    if not task.store.of(Phase.REPEATS):
        raise UserError("there is no target to reach yet: give --phases=repeats")
    return _plan_best("fresh", None)(task)


def _plan_weak(task: Calibration) -> list[Space]:
    from algoperf import calibration

    # A variant's own search has the best few points of its base only.
    store = _store_of_base(task) if _is_variant(task) else task.store
    runs = store.of(calibration.Phase.SEARCH)
    mine = [run for run in runs if run.space == OFF_SPACE]
    if not mine:
        raise UserError(
            f"the search of {store.path} has no runs of {OFF_SPACE}, whose rate weak "
            "runs are off: give --phases=search"
        )
    best = calibration.best_run(mine, task.store.direction)
    space = next(space for space in find_spaces() if space.name == OFF_SPACE)
    rate = best.hyperparameters["learning_rate"]
    points = [
        {**best.hyperparameters, "learning_rate": factor * rate}
        for factor in OFF_FACTORS
    ]
    off = dataclasses.replace(space, name=f"{OFF_SPACE}_off")
    known = task.store.of(calibration.Phase.WEAK)
    mine = [run for run in known if run.space == off.name]
    _check_points(task.store, mine, {off.name: points})
    return [*_weak_spaces(task), task.points_file("weak", off, points)]


def _weak_spaces(task: Calibration) -> list[Space]:
    """Returns all points of the submissions that must miss the target."""
    from algoperf import registry, tuning

    spaces = []
    for name in task.values.weak:
        file = registry.find_submission(name)
        path = file.with_name("tuning_search_space.json")
        space = tuning.load_search_space(path)
        if not isinstance(space, list):
            raise UserError(f"{path} must be a list of points")
        spaces.append(Space(file.parent.name, file, path, len(space)))
    return spaces


_PLANS: dict[str, Callable[[Calibration], list[Space]]] = {
    "search": _plan_search,
    "repeats": _plan_repeats,
    "fresh": _plan_fresh,
    "weak": _plan_weak,
    "timed": _plan_best("timed", 1),
}


def planned_spaces(phase: str, task: Calibration) -> list[Space]:
    """Returns the spaces whose points a phase runs, those that are done included."""
    return _PLANS[phase](task)


def _run(
    task: Calibration,
    phase: "Phase",
    spaces: Sequence[Space],
    should_stop: Callable[[], bool],
) -> bool:
    """Makes the runs of a phase that the store lacks; returns whether it has all."""
    from algoperf.cli import missing_runs

    store = task.store
    wanted = {
        _job(task, phase, space, trial): (store, (str(phase), space.name, trial))
        for space in spaces
        for trial in range(1, space.trials + 1)
    }
    known = sum(key in store.runs for _, key in wanted.values())
    print(f"{phase}: {known} of {len(wanted)} runs are done")

    def say(count: str, _: "Job", run: "Run") -> None:
        best = run.best(store.direction)
        value = f"{best['validation']:.5g}" if best else "nothing finite"
        print(f"[{phase} {count}: {run.space} {run.trial}, {value}]", flush=True)

    side_by_side = 1 if phase == "timed" else task.values.side_by_side
    return missing_runs.make(wanted, should_stop, say, side_by_side)


def _job(task: Calibration, phase: "Phase", space: Space, trial: int) -> "Job":
    from algoperf.calibration import Phase
    from algoperf.launch.local import Job

    values = task.values
    given = [
        f"--{name}={values[name].value}"
        for name in ("data_dir", "max_steps")
        if values[name].value is not None
    ]
    if phase is Phase.FRESH:
        given.append(f"--until={task.store.targets().validation!r}")
    out = task.out / phase / space.name
    submission = space.submission.parent.name
    return Job(
        arguments=(
            f"--submission={space.submission}",
            f"--workload={values.workload}",
            f"--scale={values.scale}",
            f"--tuning_search_space={space.path}",
            f"--trial_index={trial}",
            f"--trials={trial}",
            f"--seed={phase.seed}",
            f"--out={out}",
            "--checkpoint_period_sec=300",
            f"--target_setting={phase.share}",
            *given,
        ),
        folder=records.trial_folder(out, submission, 0, task.workload.name, trial),
    )


def _summary(store: "Store") -> str:
    """Returns what is known of targets and budget."""
    from algoperf.calibration import Phase, best_run, budget_sec

    cut = store.facts.get("max_steps")
    ended = f", ended after {cut} steps: to try things out only" if cut else ""
    lines = [f"{store.path}: {len(store.runs)} runs{ended}"]
    if search := store.of(Phase.SEARCH):
        best = best_run(search, store.direction)
        lines.append(f"best of the search: {best.space} {dict(best.hyperparameters)}")
    if repeats := store.repeats():
        found = store.targets()
        low, high = found.spread
        lines.append(
            f"targets: validation {found.validation:.6g}, test {found.test}; best of "
            f"{len(repeats)} repeats from {low:.6g} to {high:.6g}"
        )
        for run in (*store.of(Phase.FRESH), *store.of(Phase.WEAK)):
            row = run.reached(found.validation, store.direction)
            reached = f"reached at step {row['step']:.0f}" if row else "not reached"
            lines.append(f"{run.phase} {run.space} {run.trial}: {reached}")
    for run in store.of(Phase.TIMED):
        if run.step_sec is None:
            continue  # of --max_steps
        lines.append(f"budget: {budget_sec(run):.1f} s")
    return "\n".join(lines)
