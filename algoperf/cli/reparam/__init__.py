"""Study what low rank, sharing, pruning and narrow MLPs cost in quality."""

from collections.abc import Sequence

from absl import flags

from algoperf import records
from algoperf.cli import common
from algoperf.cli.reparam import comparison, training
from algoperf.errors import UserError

USAGE = (
    "algoperf reparam --study rank|compression|expansion|federated --workload NAME\n"
    "         [--out DIR] [--values X,Y] [--series A,B] [--rates X,Y] [--studies K]\n"
    "         [--steps N] [--max_steps N] [--noplot] [--noruntime]"
)
STUDIES = ("rank", "compression", "expansion", "federated")
# What is varied, and the values that the study takes unless told otherwise.
AXES = {
    "rank": ("rank, share of full", (0.0625, 0.125, 0.25, 0.5, 1.0)),
    "compression": ("compression", (1.0, 4.0, 8.0, 16.0, 32.0, 64.0)),
    "expansion": ("expansion ratio", (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)),
    "federated": ("rank", (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 96.0)),
}


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
    flags.DEFINE_list(
        "rates",
        None,
        "Factors of its learning rate that each method of the rank or compression "
        "study tries before, at the middle value with a seed apart; of several the "
        "best is taken. By default "
        + "; ".join(
            f"{name} {', '.join(f'{x:.3g}' for x in factors)}"
            for name, factors in comparison.RATES.items()
        )
        + ".",
        flag_values=values,
    )
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
    from algoperf.reparam import studies

    base = registry.find_workload(values.workload, values.scale)
    axis = _axis(values, AXES[values.study][1])
    if values.rates and values.study not in comparison.RATES:
        raise UserError(f"the {values.study} study tries no rates; leave --rates out")
    if values.plot:
        studies.find_matplotlib()
    records.make_folder(common.out_folder(values))
    if values.study == "federated":
        from algoperf.cli.reparam import federated

        return federated.study(values, base, axis)
    if values.study == "expansion":
        from algoperf.cli.reparam import expansion

        return expansion.study(values, base, axis)
    return comparison.study(values, base, axis, AXES[values.study][0])


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
