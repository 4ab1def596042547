"""`algoperf infer strategies`: what ways to an answer cost, from profiles."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from algoperf.cli import common, printing
from algoperf.cli.infer import machine
from algoperf.errors import UserError

if TYPE_CHECKING:
    from algoperf.inference.decoding.strategies import Cost, Plan
    from algoperf.inference.timing.profiles import Profile

COLUMNS = ("strategy", "seconds", "times_plain", "device_seconds",
           "device_times_plain", "tokens_in_a_row", "tokens_in_all")  # fmt: skip


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of `algoperf infer strategies`."""
    flags.DEFINE_string(
        "draft", None, "strategies: the profile of a smaller model, for ways that take "
        "two.", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_float(
        "acceptance", 0.8, "strategies: share of guesses, and of steps, that the large "
        "model keeps.", lower_bound=0.0, upper_bound=1.0, flag_values=values,
    )  # fmt: skip
    for name, default, least, text in (
        ("step_tokens", 16, 1, "tokens of a step of SpecReason."),
        ("judge_tokens", 8, 0, "tokens of the question that a judge is asked."),
        ("samples", 4, 1, "answers side by side."),
        ("revisions", 3, 0, "answers in a row after the first."),
        ("summary_tokens", 16, 1, "tokens that drafts are distilled to."),
    ):
        flags.DEFINE_integer(
            name, default, f"strategies: {text}", lower_bound=least, flag_values=values
        )


def run(values: flags.FlagValues, positional: Sequence[str]) -> None:
    """Prints a table of strategies; runs no model.

    Args:
      values: of the flags.
      positional: the profile of the large model.
    """
    from algoperf.inference.decoding import strategies
    from algoperf.inference.timing import profiler
    from algoperf.inference.tradeoffs.costs import SECONDS_PER_HOUR

    path = common.one_argument(positional, "PROFILE of the large model", "infer")
    if values.prompt is None or values.output is None:
        raise UserError("give --prompt TOKENS and --output TOKENS of one answer")
    base = _profile(values, path)
    used = {path: base}
    draft = None
    if values.draft is not None:
        draft = _profile(values, values.draft)
        _check_pair(values.draft, draft, path, base)
        used[values.draft] = draft
    reasons = {name: profiler.refusal(profile.result) for name, profile in used.items()}
    untrusted = {name: reason for name, reason in reasons.items() if reason is not None}
    plan = strategies.Plan(
        prompt=values.prompt,
        output=values.output,
        acceptance=values.acceptance,
        step_tokens=values.step_tokens,
        judge_tokens=values.judge_tokens,
        samples=values.samples,
        revisions=values.revisions,
        summary=values.summary_tokens,
    )
    costs, left_out = strategies.table(
        base.runtime, plan, None if draft is None else draft.runtime
    )
    extrapolated = _extrapolated(base, plan, draft, costs)
    plain, devices = costs["plain"], base.setting.parallel
    columns = list(COLUMNS)
    if values.dollars_per_hour is not None:
        columns.append("dollars")
    rows = []
    for name, cost in costs.items():
        row = {
            "strategy": name,
            "seconds": cost.seconds,
            "times_plain": cost.seconds / plain.seconds,
            "device_seconds": devices * cost.device_seconds,
            "device_times_plain": cost.device_seconds / plain.device_seconds,
            "tokens_in_a_row": cost.budget.sequential,
            "tokens_in_all": cost.budget.total,
        }
        if values.dollars_per_hour is not None:
            hours = devices * cost.device_seconds / SECONDS_PER_HOUR
            row["dollars"] = hours * values.dollars_per_hour
        rows.append(row)

    def print_text() -> None:
        shown = [[printing.shown(row[column]) for column in columns] for row in rows]
        printing.print_table([c.replace("_", " ") for c in columns], shown)
        for name, reason in left_out.items():
            print(f"Left out: {name}: {reason}.")
        for name, reason in extrapolated.items():
            print(f"Note: {name}: {reason}.")
        for name, reason in untrusted.items():
            print(f"Not to be trusted: {name}: {reason}.")

    found = {"strategies": rows, "left_out": left_out, "extrapolated": extrapolated}
    found["not_to_be_trusted"] = untrusted
    printing.show(values.json, found, print_text)


def _profile(values: flags.FlagValues, path: str) -> "Profile":
    from algoperf.inference.timing import profiles

    profile = profiles.load_profile(Path(path))
    if not values.any_hardware:
        profiles.check_hardware(profile, machine.describe(), os.cpu_count())
    if profile.setting.batch_size != 1:
        raise UserError(
            f"{path} has times of batches of {profile.setting.batch_size}, and an "
            "answer is one request: profile with --batch_size 1"
        )
    return profile


def _extrapolated(
    base: "Profile", plan: "Plan", draft: "Profile | None", costs: "Mapping[str, Cost]"
) -> dict[str, str]:
    """Returns which strategies ask for more than was measured, and what of it."""
    from algoperf.inference.decoding import strategies

    if reason := base.extrapolation(plan.prompt, plan.output):
        return dict.fromkeys(costs, reason)
    within = None if draft is None else draft.within_measured
    _, refused = strategies.table(base.within_measured, plan, within)
    return {name: reason for name, reason in refused.items() if name in costs}


def _check_pair(draft_path: str, draft: "Profile", path: str, base: "Profile") -> None:
    """Raises UserError where the times of two models do not add up."""
    from algoperf.inference.timing import profiles

    if profiles.other_hardware(draft, base.hardware, None):
        raise UserError(
            f"{draft_path} was measured on other hardware than {path}; their seconds "
            "cannot be added: profile both on one machine"
        )
    ours, theirs = vars(draft.setting), vars(base.setting)
    differ = [
        f"{name} {ours[name]}, not {theirs[name]}"
        for name in ("parallel", "cores", "clock", "dtype")
        if ours[name] != theirs[name]
    ]
    if differ:
        raise UserError(
            f"{draft_path} was measured in another way than {path} "
            f"({'; '.join(differ)}); their seconds cannot be added: profile both alike"
        )
