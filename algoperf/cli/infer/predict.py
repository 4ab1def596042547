"""`algoperf infer predict`: seconds, dollars and energy of a request."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from algoperf.cli import common, printing
from algoperf.cli.infer import machine
from algoperf.errors import UserError

if TYPE_CHECKING:
    from algoperf.inference.models.shapes import DecoderShape


def run(values: flags.FlagValues, positional: Sequence[str]) -> None:
    """Prints what a request takes; runs no model.

    Args:
      values: of the flags.
      positional: the profile.
    """
    from algoperf.inference.timing import profiler, profiles
    from algoperf.inference.tradeoffs import costs

    path = Path(common.one_argument(positional, "PROFILE to predict from", "infer"))
    if values.prompt is None or values.output is None:
        raise UserError("give --prompt TOKENS and --output TOKENS to predict")
    profile = profiles.load_profile(path)
    if values.rule != "auto":
        profile = profiles.refitted(profile, values.rule)
    if not values.any_hardware:
        profiles.check_hardware(profile, machine.describe(), os.cpu_count())
    setting = profile.setting
    option = costs.Option(profile.runtime, setting.parallel, setting.batch_size)
    prompt, output = values.prompt, values.output
    beyond = profile.extrapolation(prompt, output)
    seconds = profile.runtime.predict(prompt, output)
    found = {
        "model": profile.shape.name,
        "prompt": prompt,
        "output": output,
        "seconds": seconds,
        "prompt_seconds": profile.runtime.prompt_seconds(prompt),
        "decode_seconds": profile.runtime.decode_seconds(prompt, output),
        "tokens_per_second": option.tokens_per_second(prompt, output),
        "is_extrapolated": beyond is not None,
    }
    if not profile.served.get("ranks"):  # a shape says nothing of factors
        found["flops"] = _flops(profile.shape, prompt, output)
    if values.dollars_per_hour is not None:
        found["dollars"] = option.dollars(prompt, output, values.dollars_per_hour)
    if values.watts is not None:
        found["joules"] = option.joules(prompt, output, values.watts)
        found["power_usage_effectiveness"] = costs.POWER_USAGE_EFFECTIVENESS
    rows = [[name, printing.shown(value)] for name, value in found.items()]
    reason = profiler.refusal(profile.result)

    def print_text() -> None:
        printing.print_table(("what", "is"), rows)
        if beyond is not None:
            print(f"Note: {beyond}.")
        if reason is not None:
            print(f"Not to be trusted: {reason}.")

    printing.show(values.json, found | {"reason_not_to_trust": reason}, print_text)


def _flops(shape: "DecoderShape", prompt: int, output: int) -> float:
    """Of one request, as dollars: the prompt, each output token after the first."""
    from algoperf.inference.tradeoffs import costs

    further = max(output - 1, 0)
    middle = prompt + output // 2  # FLOPs are linear in the context
    decoding = further * costs.token_flops(shape, middle)
    return costs.prompt_flops(shape, prompt) + decoding
