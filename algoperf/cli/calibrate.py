"""Find a workload's targets: search, repeat the best point, take the median."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from algoperf import records
from algoperf.cli import common
from algoperf.errors import UserError

if TYPE_CHECKING:
    from algoperf.calibration import Run
    from algoperf.launch.local import Job
    from algoperf.workload import Workload

USAGE = (
    "algoperf calibrate --workload NAME [--scale mini|full] [--out DIR]\n"
    "         [--points N] [--repeats N] [--side_by_side N] [--save DIR]"
)
SPACES = "target_setting*.json"  # beside the submissions that set targets
REPEATS = "repeats"


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
        "Where records go; the same command goes on with what is missing there.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "points",
        10,
        "Points of each search space (target_setting*.json beside a submission).",
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
        "side_by_side",
        1,
        "Trials at a time, each on its share of the cores.",
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
    flags.DEFINE_string(
        "save",
        None,
        "Write the runs and the targets to <save>/<workload>.json.xz.",
        flag_values=values,
    )
    common.define_data_dir_flag(values)


@dataclasses.dataclass(frozen=True)
class Space:
    """A search space of a submission that sets targets."""

    name: str
    submission: Path
    path: Path


def main(values: flags.FlagValues, positional: Sequence[str]) -> int:
    """Runs what is missing, prints the targets."""
    common.no_arguments(positional)
    from algoperf import calibration, registry

    workload = registry.find_workload(values.workload, values.scale)
    direction = workload.target_direction
    out = Path(values.out) / workload.name
    spaces = find_spaces()
    with common.StopRequest() as stop:
        points = range(1, values.points + 1)
        search = [job for space in spaces for job in _jobs(values, space, out, points)]
        if not _run(search, values, stop, "search"):
            return 1
        searched = [
            calibration.read_run(job.folder, space)
            for space, job in zip(_names(spaces, values.points), search, strict=True)
        ]
        best = calibration.best_run(searched, direction)
        again = _repeats(values, spaces, best, out)
        if not _run(again, values, stop, f"repeats of {best.space} {best.trial}"):
            return 1
    repeats = [calibration.read_run(job.folder, REPEATS) for job in again]
    found = calibration.targets(repeats, direction)
    summary = _summary(workload, searched, best, repeats, found)
    if values.save:
        path = Path(values.save) / f"{workload.name}.json.xz"
        calibration.save(path, summary)
        print(f"saved {path}")
    print(
        f"{workload.name}: {workload.target_metric_name} by {best.space} "
        f"{dict(best.hyperparameters)}\n"
        f"targets: validation {found.validation:.6g}, test {found.test}; best of "
        f"{len(repeats)} repeats from {found.spread[0]:.6g} to {found.spread[1]:.6g}"
    )
    return 0


def find_spaces() -> list[Space]:
    """Returns the search spaces that set targets, in order of their names."""
    from algoperf import registry

    spaces = []
    for name, file in registry.submission_paths().items():
        for path in sorted(file.parent.glob(SPACES)):
            suffix = path.stem.removeprefix("target_setting").strip("_")
            spaces.append(Space(suffix or name, file, path))
    if not spaces:
        raise UserError(f"no submission has a search space {SPACES}")
    return sorted(spaces, key=lambda space: space.name)


def _names(spaces: Sequence[Space], points: int) -> list[str]:
    return [space.name for space in spaces for _ in range(points)]


def _jobs(
    values: flags.FlagValues, space: Space, out: Path, trials: Sequence[int]
) -> "list[Job]":
    from algoperf.launch.local import Job

    given = [
        f"--{name}={values[name].value}"
        for name in ("data_dir", "max_steps")
        if values[name].value is not None
    ]
    name = space.submission.parent.name
    return [
        Job(
            arguments=(
                f"--submission={space.submission}",
                f"--workload={values.workload}",
                f"--scale={values.scale}",
                f"--tuning_search_space={space.path}",
                f"--trial_index={trial}",
                f"--trials={trial}",
                f"--out={out / space.name}",
                "--checkpoint_period_sec=300",
                "--target_setting",
                *given,
            ),
            folder=records.trial_folder(
                out / space.name, name, 0, _record_name(values), trial
            ),
        )
        for trial in trials
    ]


def _record_name(values: flags.FlagValues) -> str:
    from algoperf import registry

    return registry.find_workload(values.workload, values.scale).name


def _repeats(
    values: flags.FlagValues, spaces: Sequence[Space], best: "Run", out: Path
) -> "list[Job]":
    """Returns the runs of the best point, whose space is a list of it alone."""
    space = next(space for space in spaces if space.name == best.space)
    folder = out / REPEATS
    points = folder / f"{best.space}_{best.trial}.json"
    folder.mkdir(parents=True, exist_ok=True)
    records.write_json(points, [dict(best.hyperparameters)] * values.repeats)
    again = dataclasses.replace(
        space, name=f"{REPEATS}/{best.space}_{best.trial}", path=points
    )
    return _jobs(values, again, out, range(1, values.repeats + 1))


def _run(jobs: "Sequence[Job]", values: flags.FlagValues, stop: Any, what: str) -> bool:
    """Runs jobs; returns whether all came to an end."""
    from algoperf.launch import local

    missing = [job for job in jobs if not _is_finished(job)]
    print(
        f"{what}: {len(jobs) - len(missing)} of {len(jobs)} runs are done", flush=True
    )
    runs = local.run_jobs(missing, lambda: stop.is_asked, values.side_by_side)
    for done, _ in enumerate(runs, start=1):
        print(f"[{what}: {done}/{len(missing)} done]", flush=True)
    if stop.is_asked:
        print("stopped; the same command goes on with what is missing")
    return not stop.is_asked


def _is_finished(job: "Job") -> bool:
    if not (job.folder / records.RECORD_FILE).exists():
        return False
    return records.read_record(job.folder)["status"].is_final


def _summary(
    workload: "Workload",
    searched: "Sequence[Run]",
    best: "Run",
    repeats: "Sequence[Run]",
    found: Any,
) -> dict[str, Any]:
    from algoperf import hardware

    return {
        "workload": workload.name,
        "metric": workload.target_metric_name,
        "direction": workload.target_direction,
        "step_hint": workload.step_hint,
        "best": {
            "space": best.space,
            "trial": best.trial,
            "hyperparameters": best.hyperparameters,
        },
        "targets": dataclasses.asdict(found),
        "search": [dataclasses.asdict(run) for run in searched],
        "repeats": [dataclasses.asdict(run) for run in repeats],
        "host": hardware.describe_host(),
        "devices": hardware.describe_devices(),
        "versions": hardware.describe_versions(),
    }
