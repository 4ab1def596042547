"""Draw held-out workloads: one variant of every family that has any."""

from collections.abc import Sequence

from absl import flags

from algoperf import records
from algoperf.cli import common, printing

USAGE = (
    "algoperf heldout --seed N [--scale mini|full] [--json FILE]\n"
    "       algoperf sweep --workloads $(algoperf heldout --seed N) ..."
)


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of `algoperf heldout`."""
    flags.DEFINE_integer(
        "seed",
        None,
        "The draw follows from it, family by family.",
        required=True,
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_enum(
        "scale", "mini", records.SCALES, "Of the workloads.", flag_values=values
    )
    printing.define_json_flag(values)


def main(values: flags.FlagValues, positional: Sequence[str]) -> int:
    """Prints the names, with commas between."""
    common.no_arguments(positional)
    from algoperf import registry

    names = registry.held_out(values.seed, values.scale)
    printing.show(values.json, names, lambda: print(",".join(names)))
    return 0
