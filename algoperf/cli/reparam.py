"""Study what low rank, sharing, pruning and narrow MLPs cost in quality."""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from algoperf import records
from algoperf.cli import common
from algoperf.errors import UserError
from algoperf.records import Status

if TYPE_CHECKING:
    from algoperf.reparam.studies import Series, Setting
    from algoperf.workload import Workload

USAGE = (
    "algoperf reparam --study rank|compression|expansion --workload NAME [--out DIR]\n"
    "         [--values X,Y] [--series A,B] [--studies K] [--max_steps N] [--noplot]"
)
STUDIES = ("rank", "compression", "expansion")
# What is varied, and the values that the study takes unless told otherwise.
AXES = {
    "rank": ("rank, share of full", (0.0625, 0.125, 0.25, 0.5, 1.0)),
    "compression": ("compression", (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)),
    "expansion": ("expansion ratio", (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)),
}
DENSE = "adamw"
PASSED_ON = ("scale", "out", "seed", "max_steps", "data_dir")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of `algoperf reparam`."""
    flags.DEFINE_enum(
        "study",
        None,
        STUDIES,
        "rank: low-rank methods at several ranks. compression: one shared memory "
        "against pruning, at several compressions. expansion: AdamW's trained model "
        "with a share of its MLPs' neurons removed, without further training.",
        required=True,
        flag_values=values,
    )
    flags.DEFINE_string(
        "workload",
        None,
        "A name that `algoperf workloads` lists.",
        required=True,
        flag_values=values,
    )
    flags.DEFINE_list(
        "values",
        None,
        "Ranks (shares), compressions, or shares of neurons to remove.",
        flag_values=values,
    )
    flags.DEFINE_list("series", None, "Only these methods.", flag_values=values)
    flags.DEFINE_integer(
        "studies",
        3,
        "How many repetitions, each with seeds of its own.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_boolean("plot", True, "Draw the plot.", flag_values=values)
    flags.DEFINE_enum(
        "scale", "mini", records.SCALES, "Of the workload.", flag_values=values
    )
    flags.DEFINE_string(
        "out",
        "runs/reparam",
        "Where records, table and plot go; the same command goes on there.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "seed", 0, "All randomness follows from it.", lower_bound=0, flag_values=values
    )
    flags.DEFINE_integer(
        "max_steps",
        None,
        "End each trial after so many steps.",
        lower_bound=1,
        flag_values=values,
    )
    common.define_data_dir_flag(values)


def main(values: flags.FlagValues, positional: Sequence[str]) -> int:
    """Runs what is missing, writes table and plot; returns 1 if a trial failed."""
    common.no_arguments(positional)
    from algoperf import registry
    from algoperf.reparam import studies

    workload = registry.find_workload(values.workload, values.scale)
    x_name, usual = AXES[values.study]
    axis = _axis(values, usual)
    chosen = studies.settings(_series(values, workload), axis)
    codes = _run(values, workload, chosen)
    if codes is None:
        print("stopped; the same command goes on with what is missing")
        return 1
    rows = []
    for study in range(values.studies):
        for setting in chosen:
            folder = _folder(values, workload, setting, study)
            if values.study == "expansion":
                rows += _pruned_rows(values, workload, setting, study, axis)
                continue
            rows.append(
                studies.result_row(
                    setting,
                    study,
                    folder,
                    workload.target_metric_name,
                    workload.target_direction,
                )
            )
    out = Path(values.out)
    records.write_measurements(out / f"{values.study}.csv", rows)
    lines = studies.summary(rows)
    text = studies.table(lines, x_name, workload.target_metric_name)
    records.write_text(out / f"{values.study}.md", text)
    print(text, end="")
    if values.plot and any("best" in line for line in lines):
        path = out / f"{values.study}.svg"
        studies.plot(lines, x_name, workload.target_metric_name, path)
    return 1 if any(codes) else 0


def _axis(values: flags.FlagValues, usual: Sequence[float]) -> list[float]:
    try:
        axis = [float(value) for value in values["values"].value or usual]
    except ValueError as error:
        raise UserError(f"--values must be numbers: {error}") from error
    if values.study == "rank" and not all(0 < x <= 1 for x in axis):
        raise UserError("a rank is a share of the full one: more than 0, at most 1")
    if values.study == "compression" and min(axis) < 1:
        raise UserError("a compression is 1 at least; 4 keeps a quarter of the weights")
    if values.study == "expansion" and not all(0 <= x < 1 for x in axis):
        raise UserError("a share of neurons to remove is at least 0 and less than 1")
    return axis


def _series(values: flags.FlagValues, workload: "Workload") -> "list[Series]":
    """Returns the methods of the study, those asked for."""
    import numpy as np

    from algoperf.reparam.studies import Series

    found = [Series(DENSE, DENSE, None)]
    if values.study == "rank":
        names = ("lora", "relora", "factorised", "galore", "fira", "apollo")
        found += [Series(name, name, "rank") for name in names]
    elif values.study == "compression":
        found.append(Series("stable_rps", "stable_rps", "share", inverse=True))
        scores = ["magnitude", "snip", "grasp"]
        if np.issubdtype(np.dtype(workload.input_dtype), np.floating):
            scores.append("synflow")  # needs inputs of ones
        found += [
            Series(score, "pruned", "density", {"score": score}, inverse=True)
            for score in scores
        ]
    if values.series is None:
        return found
    known = {series.name: series for series in found}
    unknown = [name for name in values.series if name not in known]
    if unknown:
        raise UserError(f"no series {unknown[0]!r}; there are: {', '.join(known)}")
    return [known[name] for name in values.series]


def _run(
    values: flags.FlagValues, workload: "Workload", chosen: "Sequence[Setting]"
) -> list[int] | None:
    """Runs what is not finished; returns exit statuses, None if asked to stop."""
    from algoperf.launch import local

    spaces = _write_spaces(values, workload, chosen)
    passed_on = [
        f"--{name}={values[name].value}"
        for name in PASSED_ON
        if values[name].value is not None
    ]
    jobs = [
        local.Job(
            arguments=(
                f"--submission={setting.submission}",
                f"--workload={workload.name}",
                f"--study={study}",
                f"--trial_index={setting.trial}",
                f"--tuning_search_space={spaces[setting.submission]}",
                *passed_on,
            ),
            folder=_folder(values, workload, setting, study),
        )
        for study in range(values.studies)
        for setting in chosen
    ]
    print(f"{len(jobs)} trials, records under {values.out}", flush=True)
    codes = []
    with common.StopRequest() as stop:
        for job, code in local.run_jobs(jobs, lambda: stop.is_asked):
            _check_not_refused(job.folder, code)
            codes.append(code)
            print(f"[{len(codes)}/{len(jobs)} done]", flush=True)
        return None if stop.is_asked else codes


def _check_not_refused(folder: Path, code: int) -> None:
    """Raises UserError if a trial did not run because its folder has another's result.

    Its record would stand in the table for what was asked now.
    """
    if code == 0 or not (folder / records.RECORD_FILE).exists():
        return
    status = records.read_record(folder)["status"]
    if status.is_final and status not in (Status.FAILED, Status.DIVERGED):
        raise UserError(f"{folder} holds a run of another study; give another --out")


def _check_points(
    values: flags.FlagValues,
    workload: "Workload",
    chosen: "Sequence[Setting]",
    points: dict[str, list[dict[str, Any]]],
) -> None:
    """Raises UserError if a record is of another point; changes nothing."""
    for study in range(values.studies):
        for setting in chosen:
            folder = _folder(values, workload, setting, study)
            if not (folder / records.RECORD_FILE).exists():
                continue
            before = records.read_record(folder)["hyperparameters"]
            if before != points[setting.submission][setting.trial - 1]:
                raise UserError(
                    f"{folder} holds a run of other --values or --series; give "
                    "another --out"
                )


def _write_spaces(
    values: flags.FlagValues, workload: "Workload", chosen: "Sequence[Setting]"
) -> dict[str, Path]:
    """Writes a list of points for each submission; returns the files."""
    from algoperf import registry, tuning

    out = common.out_folder(values)
    records.make_folder(out)
    points: dict[str, list[dict[str, Any]]] = {}
    for setting in chosen:
        file = registry.find_submission(setting.submission)
        space = tuning.load_search_space(file.with_name("tuning_search_space.json"))
        point = {**tuning.trial_point(space, 0, 1), **setting.changes}
        points.setdefault(setting.submission, []).append(point)
    _check_points(values, workload, chosen, points)
    files = {name: out / f"{values.study}_{name}.json" for name in points}
    for name, file in files.items():
        records.write_text(file, json.dumps(points[name], indent=1) + "\n")
    return files


def _folder(
    values: flags.FlagValues, workload: "Workload", setting: "Setting", study: int
) -> Path:
    return records.trial_folder(
        Path(values.out), setting.submission, study, workload.name, setting.trial
    )


def _pruned_rows(
    values: flags.FlagValues,
    workload: "Workload",
    setting: "Setting",
    study: int,
    fractions: Sequence[float],
) -> list[dict[str, Any]]:
    """Evaluates the trained model at each share of neurons removed."""
    from algoperf.reparam import width
    from algoperf.workload import Evaluator

    folder = _folder(values, workload, setting, study)
    if not (folder / records.RECORD_FILE).exists():
        return [{"series": setting.series, "study": study, "status": "missing"}]
    params, model_state = _restored(values, workload, setting, study)
    names = width.gated_mlps(params)
    first = params[names[0]]
    neurons, size = first[width.SECOND]["kernel"].shape
    total = workload.num_parameters
    evaluate, rows = Evaluator(workload), []
    for fraction in fractions:
        prune = functools.partial(width.zeroed, fraction=fraction)
        zeroed = width.map_mlps(prune, params)
        metrics = evaluate(zeroed, model_state)
        removed = width.removed_parameters(len(names), size, neurons, fraction)
        rows.append(
            {
                "series": "maximum absolute weight",
                "study": study,
                "status": "evaluated",
                "removed": fraction,
                "x": width.kept_number(neurons, fraction) / size,
                "best": metrics[f"validation/{workload.target_metric_name}"],
                "trainable_parameters": total - removed,
            }
        )
    return rows


def _restored(
    values: flags.FlagValues, workload: "Workload", setting: "Setting", study: int
) -> tuple[Any, Any]:
    """Returns the params and model state of a finished trial's last checkpoint."""
    import jax

    from algoperf import registry, tuning
    from algoperf.checkpoint import Checkpoints
    from algoperf.runner import TrainState
    from algoperf.submission import load_submission

    folder = _folder(values, workload, setting, study)
    point = tuning.as_namedtuple(records.read_record(folder)["hyperparameters"])
    functions = load_submission(registry.find_submission(setting.submission)).functions
    key = jax.random.PRNGKey(0)  # of a state that the checkpoint replaces
    params, model_state = workload.init_model_fn(key)
    state = functions.init_optimizer_state(workload, params, model_state, point, key)
    checkpoints = Checkpoints(folder)
    found = checkpoints.restore(TrainState(params, model_state, state, 0))
    checkpoints.close()
    if found is None:
        raise UserError(f"{folder} has no checkpoint; remove it and run again")
    return found[0].params, found[0].model_state
