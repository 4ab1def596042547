"""Measure what a language model costs to run, and predict requests from it."""

from collections.abc import Sequence

from absl import flags

from algoperf.cli import printing
from algoperf.cli.infer import (
    compare,
    first_token,
    pareto,
    predict,
    profile,
    roofline,
    shapes,
    speculate,
    strategies,
)
from algoperf.errors import unknown_name

USAGE = """algoperf infer [profile [NAME | RUNS ...]] [--out DIR] [--flag value ...]
       algoperf infer predict PROFILE --prompt TOKENS --output TOKENS
       algoperf infer pareto RUNS ... [--profiles FILE_OR_DIR,...] [--out DIR]
       algoperf infer shapes
       algoperf infer roofline [WORKLOAD ...] [--program forward|step] [--batch N]
       algoperf infer compare WORKLOAD [--batch N]
       algoperf infer speculate [WORKLOAD] [--train_steps N] [--guesses 1,2,4]
       algoperf infer first_token [WORKLOAD] [--train_steps N] [--prompt TOKENS]
       algoperf infer strategies PROFILE [--draft PROFILE] --prompt TOKENS --output N

NAME is a shape that `algoperf infer shapes` lists, or a language-model workload, by
default finewebedu_lm; RUNS are folders of trials, whose trained models are served.
Writes NAME.json and a page with a plot, NAME.html. Of other workloads, NAME.json has
the times of a translation, or of a forward pass. roofline compares ideal with measured
time, of all workloads where none is named; compare the variants and sizes of one:
multiply-adds, throughput and latency."""
_ACTIONS = {
    "profile": profile,
    "predict": predict,
    "pareto": pareto,
    "shapes": shapes,
    "roofline": roofline,
    "compare": compare,
    "speculate": speculate,
    "first_token": first_token,
    "strategies": strategies,
}


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of `algoperf infer`."""
    profile.define_flags(values)
    pareto.define_flags(values)
    for name, least in (("prompt", 1), ("output", 0)):
        text = f"Tokens of the {name}."
        flags.DEFINE_integer(name, None, text, lower_bound=least, flag_values=values)
    for name, text in (
        ("dollars_per_hour", "predict, strategies, pareto: the price of one device for "
         "an hour."),
        ("watts", "predict: what one device draws. Joules are of 1.1 times that: a "
         "data centre draws more than its devices (power usage effectiveness)."),
    ):  # fmt: skip
        flags.DEFINE_float(name, None, text, lower_bound=0.0, flag_values=values)
    flags.DEFINE_boolean(
        "any_hardware",
        False,
        "predict, strategies, pareto: take profiles of other hardware, whose times are "
        "of that.",
        flag_values=values,
    )
    roofline.define_flags(values)
    speculate.define_flags(values)
    strategies.define_flags(values)
    printing.define_json_flag(values)


def main(values: flags.FlagValues, positional: Sequence[str]) -> int:
    """Profiles, predicts or lists; returns 0."""
    action, *rest = positional or ["profile"]
    if action not in _ACTIONS:
        raise unknown_name("action", action, _ACTIONS)
    _ACTIONS[action].run(values, rest)
    return 0
