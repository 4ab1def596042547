"""Time training steps of submissions that take turns, so that they can be compared."""

import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from algoperf import hardware, records
from algoperf.cli import common, printing
from algoperf.errors import UserError

if TYPE_CHECKING:
    from algoperf.loading import Submission
    from algoperf.step_times import Entry
    from algoperf.workload import Workload

USAGE = (
    "algoperf step_times --submissions A,B|all [--suite mini|mini_fast|...]\n"
    "         [--workloads X,Y|all] [--scale mini|full] [--rounds N] [--steps N]\n"
    "         [--out FILE]\n"
    "       algoperf score DIR --time idealized --step_times FILE"
)


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of `algoperf step_times`."""
    flags.DEFINE_list(
        "submissions",
        None,
        "Names that `algoperf submissions` lists, or paths; all: every one of those. "
        "They are in memory together.",
        required=True,
        flag_values=values,
    )
    common.define_workloads_flag(values)
    common.define_suite_flag(values)
    common.define_choice_flags(values)
    common.define_data_flags(values)
    for name, default, text in (
        ("rounds", 8, "In each, every submission has its turn."),
        ("steps", 20, "Of a turn: what comes less often may not be in the times."),
    ):
        flags.DEFINE_integer(name, default, text, lower_bound=1, flag_values=values)
    flags.DEFINE_string(
        "out",
        "step_times.json",
        "Where the times go. Workloads that it has of just these submissions are not "
        "measured again.",
        flag_values=values,
    )


def main(values: flags.FlagValues, positional: Sequence[str]) -> int:
    """Measures workload by workload; keeps the file complete after each."""
    common.no_arguments(positional)
    from algoperf import registry
    from scoring import step_times

    common.choose_suite(values)
    out = Path(values.out)
    records.make_folder(out.parent)
    known = _known(out) if out.exists() else {}
    names = values.submissions
    if names == ["all"]:
        names = [str(path) for path in sorted(registry.submission_paths().values())]
    entries = _entries(values, common.load_submissions(names))
    asked = _asked(values, entries)
    workloads = registry.select_workloads(values.workloads, values.scale)
    for workload in workloads:
        _check_kept(out, known.get(workload.name, {}), asked)
    for workload in workloads:
        if not asked.items() <= known.get(workload.name, {}).items():
            workload = common.configured(workload, values)
            known[workload.name] = _measure(values, entries, workload) | asked
            found = {"schema_version": step_times.SCHEMA_VERSION, "workloads": known}
            records.write_json(out, found)
        _print(workload.name, known[workload.name])
    print(f"written: {out.resolve()}")
    return 0


def _known(path: Path) -> dict[str, Any]:
    """Returns what a file of step times has of each workload."""
    from scoring import step_times

    step_times.load(path)  # says what is wrong with it
    return dict(json.loads(path.read_text(encoding="utf-8"))["workloads"])


def _entries(
    values: flags.FlagValues, loaded: "Sequence[Submission]"
) -> "dict[str, Entry]":
    """Returns each submission with the first point of its search space."""
    from algoperf import tuning

    entries: dict[str, Entry] = {}
    for submission in loaded:
        space = common.search_space(values, submission)
        point = None if space is None else tuning.trial_point(space, 0, 1)
        entries[submission.name] = submission, point
    return entries


def _asked(values: flags.FlagValues, entries: "Mapping[str, Entry]") -> dict[str, Any]:
    """Returns what a measurement is of; where any of it is another, it is made anew."""
    host, versions = hardware.describe_host(), hardware.describe_versions()
    packages = ("algoperf", "jax", "jaxlib", "flax", "optax")
    asked = {
        "rounds": values.rounds,
        "steps_per_round": values.steps,
        "ruleset": values.ruleset,
        "sha256": {name: entry[0].sha256 for name, entry in entries.items()},
        "points": {name: entry[1] for name, entry in entries.items()},
        "host": {name: host[name] for name in ("cpu", "cores")},
        "devices": hardware.describe_devices(),
        "versions": {name: versions.get(name) for name in packages},
        "git_revision": hardware.git_revision(),
    }
    return dict(json.loads(json.dumps(records.finite(asked))))


def _check_kept(out: Path, found: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Raises UserError where times of submissions would be lost that are not asked for.

    Times of two runs are not of turns.
    """
    lost = sorted(set(found.get("sha256", {})) - set(asked["sha256"]))
    if lost:
        raise UserError(
            f"{out} has times of {', '.join(lost)} too, which would be lost; name them "
            "with the others, or give another --out"
        )


def _measure(
    values: flags.FlagValues, entries: "Mapping[str, Entry]", workload: "Workload"
) -> dict[str, Any]:
    from algoperf import step_times

    found, left_out = step_times.measure(
        entries,
        workload,
        values.rounds,
        values.steps,
        say=functools.partial(print, flush=True),
    )
    if not found:
        name, reason = next(iter(left_out.items()))
        raise UserError(f"nothing to time on {workload.name}: {name}: {reason}")
    return {
        "parameter_bytes": 4 * workload.num_parameters,
        "left_out": left_out,
        "submissions": {
            name: {"seconds": times.seconds, "state_bytes": times.state_bytes}
            for name, times in found.items()
        },
    }


def _print(name: str, facts: Mapping[str, Any]) -> None:
    """Prints the table of a workload, the fastest first."""
    from scoring import step_times

    found = step_times.parsed(facts)
    print(f"{name}, a step:")
    rows = [
        (
            submission,
            f"{1e3 * x.seconds:.2f} ms",
            "-" if math.isnan(x.error) else f"{100 * x.error:.1f} %",
        )
        for submission, x in sorted(found.of.items(), key=lambda item: item[1].seconds)
    ]
    printing.print_table(("submission", "time", "standard error"), rows)
    for submission, reason in found.left_out.items():
        print(f"Left out: {submission}: {reason}")
