"""Train two submissions on two small workloads and score them, in a few minutes."""

from collections.abc import Sequence

from absl import flags

from algoperf import cli
from algoperf.cli import common

USAGE = "algoperf demo [--submissions NAME,...] [--suite NAME] [--out DIR]"


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of `algoperf demo`."""
    flags.DEFINE_list(
        "submissions", ["adamw", "momentum"], "Who is compared.", flag_values=values
    )
    flags.DEFINE_string("suite", "mini_fast", "On which workloads.", flag_values=values)
    flags.DEFINE_string(
        "out",
        "runs/demo",
        "Where records go; DIR.html is the page, DIR-csv has tables.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "max_steps",
        None,
        "End each trial after so many steps.",
        lower_bound=1,
        flag_values=values,
    )


def main(values: flags.FlagValues, positional: Sequence[str]) -> int:
    """Runs `sweep`, then `score` if all went well; returns their exit status."""
    common.no_arguments(positional)
    out = common.out_folder(values)
    sweep = [f"--submissions={','.join(values.submissions)}", f"--suite={values.suite}"]
    if values.max_steps is not None:
        sweep.append(f"--max_steps={values.max_steps}")
    code = cli.main(["sweep", *sweep, f"--out={out}"])
    if code:
        return code
    files = [f"--report={out}.html", f"--csv={out}-csv"]
    return cli.main(["score", str(out), f"--benchmark={values.suite}", *files])
