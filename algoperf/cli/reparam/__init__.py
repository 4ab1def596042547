"""Study what low rank, sharing, pruning and narrow MLPs cost in quality."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from algoperf import records
from algoperf.cli import common
from algoperf.cli.reparam import training
from algoperf.errors import UserError

if TYPE_CHECKING:
    from algoperf.reparam.studies import Series, Setting
    from algoperf.trials import TrialConfig
    from algoperf.workload import Workload

USAGE = (
    "algoperf reparam --study rank|compression|expansion|federated --workload NAME\n"
    "         [--out DIR] [--values X,Y] [--series A,B] [--studies K] [--steps N]\n"
    "         [--max_steps N] [--noplot] [--noruntime]"
)
STUDIES = ("rank", "compression", "expansion", "federated")
# What is varied, and the values that the study takes unless told otherwise.
AXES = {
    "rank": ("rank, share of full", (0.0625, 0.125, 0.25, 0.5, 1.0)),
    "compression": ("compression", (1.0, 4.0, 16.0, 64.0)),
    "expansion": ("expansion ratio", (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)),
    "federated": ("rank", (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 96.0)),
}
DENSE = "adamw"
DENSE_SGD = "momentum"
# Of sharing's authors, who train by SGD with momentum.
SHARED_SGD = {"layout": "fold", "rule": "sgd", "weight_decay": 5e-4}
SHARED_SGD |= {"learning_rate": 0.1}
PRUNED = "pruned"
NARROW = "narrow"  # AdamW on a network with fewer channels


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of `algoperf reparam`."""
    flags.DEFINE_enum(
        "study",
        None,
        STUDIES,
        "rank: low-rank methods at several ranks. compression: shared memories, masks "
        "and narrow networks at several compressions. expansion: AdamW's trained model "
        "with a share of its MLPs' neurons removed, without further training. "
        "federated: experts trained apart on domains, merged at several ranks.",
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
        "Ranks (shares; of federated, numbers), compressions, or shares of neurons to "
        "remove.",
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
    flags.DEFINE_boolean(
        "runtime",
        True,
        "In the expansion study, measure the idealized runtime of each narrow model.",
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
        "steps",
        None,
        "Steps that each run plans for; by default this share of the workload's: "
        + ", ".join(f"{name} {x}" for name, x in training.SHARES.items())
        + ". In the federated study they are the public model's, and experts take half "
        "of them.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "max_steps",
        None,
        "End each run after so many of its steps: to try a study out.",
        lower_bound=1,
        flag_values=values,
    )
    common.define_data_dir_flag(values)


def main(values: flags.FlagValues, positional: Sequence[str]) -> int:
    """Runs what is missing, writes table and plot; returns 1 if a run failed."""
    common.no_arguments(positional)
    from algoperf import registry

    base = registry.find_workload(values.workload, values.scale)
    axis = _axis(values, AXES[values.study][1])
    records.make_folder(common.out_folder(values))
    if values.study == "federated":
        from algoperf.cli.reparam import federated

        return federated.study(values, base, axis)
    if values.study == "expansion":
        from algoperf.cli.reparam import expansion

        return expansion.study(values, base, axis)
    return _study(values, base, axis)


def runs_of(
    values: flags.FlagValues, base: "Workload", axis: Sequence[float]
) -> "list[tuple[Setting, int, TrialConfig]]":
    """Returns all runs of the rank or compression study: setting, study, run."""
    from algoperf.reparam import studies

    workload = training.planned(base, values)
    chosen = studies.settings(_series(values, workload), axis)
    return [
        (setting, study, _run(values, workload, setting, study))
        for study in range(values.studies)
        for setting in chosen
    ]


def _study(values: flags.FlagValues, base: "Workload", axis: Sequence[float]) -> int:
    """Trains at each value of the axis, and compares."""
    from algoperf.reparam import studies

    runs = runs_of(values, base, axis)
    training.announce([run for _, _, run in runs])
    if not training.make([run for _, _, run in runs]):
        return 1
    rows = [
        studies.result_row(
            setting,
            study,
            training.folder_of(run),
            base.target_metric_name,
            base.target_direction,
            base.validation_target_value,
            _sizes_of(setting, run.workload),
        )
        for setting, study, run in runs
    ]
    whole = runs[0][-1].workload.step_hint >= base.step_hint
    _write(values, rows, base.target_metric_name, whole)
    return 1 if any(row["status"] in studies.BAD for row in rows) else 0


def _sizes_of(setting: "Setting", workload: Any) -> dict[str, float] | None:
    """Returns the sizes where no record tells them: `pruned` masks all kernels."""
    from algoperf import reparam
    from algoperf.reparam import pruning

    if setting.submission != PRUNED:
        return None
    chosen = reparam.select(workload)
    return pruning.sizes(workload, chosen, setting.changes["density"])


def _write(
    values: flags.FlagValues, rows: Sequence[dict[str, Any]], metric: str, whole: bool
) -> None:
    """Writes the rows, their table and plot; prints the table.

    Who reached the target is told of whole runs only: it was set for so many steps.
    """
    from algoperf.reparam import studies

    out, (x_name, _) = Path(values.out), AXES[values.study]
    records.write_measurements(out / f"{values.study}.csv", rows)
    lines = studies.summary(rows)
    text = studies.table(lines, x_name, metric, has_target=whole)
    records.write_text(out / f"{values.study}.md", text)
    print(text, end="")
    if values.plot:
        path = out / f"{values.study}.svg"
        studies.plot(lines, x_name, f"best validation {metric}", path)


def _axis(values: flags.FlagValues, usual: Sequence[float]) -> list[float]:
    try:
        axis = [float(value) for value in values["values"].value or usual]
    except ValueError as error:
        raise UserError(f"--values must be numbers: {error}") from error
    if values.study == "rank" and not all(0 < x <= 1 for x in axis):
        raise UserError("a rank is a share of the full one: more than 0, at most 1")
    if values.study == "compression" and not all(x >= 1 for x in axis):
        raise UserError("a compression is 1 at least; 4 keeps a quarter of the weights")
    if values.study == "expansion" and not all(0 <= x < 1 for x in axis):
        raise UserError("a share of neurons to remove is at least 0 and less than 1")
    return axis


def _series(values: flags.FlagValues, workload: "Workload") -> "list[Series]":
    """Returns the methods of the study, those asked for."""
    from algoperf.reparam.studies import Series

    found = [Series(DENSE, DENSE, None)]
    if values.study == "rank":
        names = ("lora", "relora", "factorised", "galore", "fira", "apollo")
        found += [Series(name, name, "rank") for name in names]
    elif values.study == "compression":
        found += _compressions(workload)
    if values.series is None:
        return found
    known = {series.name: series for series in found}
    unknown = [name for name in values.series if name not in known]
    if unknown:
        raise UserError(f"no series {unknown[0]!r}; there are: {', '.join(known)}")
    return [known[name] for name in values.series]


def _compressions(workload: "Workload") -> "list[Series]":
    """Returns what makes a model smaller; at 1, all but sharing are the baseline."""
    import numpy as np

    from algoperf.reparam.studies import Series

    layouts = {"stable_rps": "fold", "roast": "tiles", "hashed": "elements"}
    found = [Series(DENSE_SGD, DENSE_SGD, None)]
    found.append(Series(NARROW, NARROW, "compression", above=1.0))
    found += [
        Series(name, "stable_rps", "share", {"layout": layout}, inverse=True)
        for name, layout in layouts.items()
    ]
    found.append(
        Series("stable_rps_sgd", "stable_rps", "share", SHARED_SGD, inverse=True)
    )
    scores = ["magnitude", "snip", "grasp", "lottery_ticket"]
    if np.issubdtype(np.dtype(workload.input_dtype), np.floating):
        scores.append("synflow")  # needs inputs of ones
    return found + [
        Series(score, PRUNED, "density", {"score": score}, inverse=True, above=1.0)
        for score in scores
    ]


def _run(
    values: flags.FlagValues, workload: "Workload", setting: "Setting", study: int
) -> "TrialConfig":
    from algoperf.reparam import trainers

    if setting.submission == NARROW:
        chosen, point = trainers.narrow_network(), training.point(DENSE)
    else:
        chosen = training.load(setting.submission)
        point = training.point(setting.submission)
    point |= setting.changes
    return training.config(values, workload, chosen, point, study, setting.trial)
