"""What several commands share: flags, arguments, JSON output."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from algoperf import records
from algoperf.errors import UserError


def define_run_flags(values: flags.FlagValues) -> None:
    """Defines what `run` and `sweep` share."""
    flags.DEFINE_enum(
        "scale",
        "mini",
        records.SCALES,
        "mini: embedded data, for a laptop; full: the published problem.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "out",
        "runs",
        "Where records go, as <out>/<submission>/study_<i>/<workload>_jax/trial_<k>.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "ruleset",
        "external",
        records.RULESETS,
        "external: hyperparameters from the search space; self: none given, 1.5 times "
        "the budget.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "trials",
        1,
        "How many trials of each study.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_string(
        "tuning_search_space",
        None,
        "The search space, instead of tuning_search_space.json beside the submission.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "seed",
        0,
        "All randomness follows from it.",
        lower_bound=0,
        upper_bound=2**31 - 1,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "max_steps",
        None,
        "End each trial after so many steps.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "eval_period_steps",
        None,
        "Evaluate every so many steps, instead of the workload's own period.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_float(
        "checkpoint_period_sec",
        60.0,
        "Save a checkpoint at the first evaluation after so many seconds.",
        lower_bound=0.0,
        flag_values=values,
    )


def define_json_flag(values: flags.FlagValues) -> None:
    """Defines `--json FILE`."""
    flags.DEFINE_string(
        "json", None, "Write JSON to this file; - is standard output.", flag_values=values
    )


def write_json(path: str, value: Any) -> None:
    """Writes what `--json` asks for."""
    if path == "-":
        json.dump(records.finite(value), sys.stdout, indent=1)
        print()
    else:
        records.write_json(Path(path), value)


def show(json_path: str | None, value: Any, print_text: Callable[[], None]) -> None:
    """Prints text, unless JSON takes its place on standard output."""
    if json_path is not None:
        write_json(json_path, value)
    if json_path != "-":
        print_text()


def no_arguments(positional: Sequence[str]) -> None:
    """Raises UserError for arguments that are not flags."""
    if positional:
        raise UserError(f"unexpected argument {positional[0]!r}; flags start with --")


def one_argument(positional: Sequence[str], what: str, usage: str) -> str:
    """Returns the one argument that is not a flag."""
    if len(positional) != 1:
        raise UserError(f"give one {what}: {usage}")
    return positional[0]
