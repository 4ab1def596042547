"""Time training steps of submissions that take turns, so that they can be compared."""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from algoperf import hardware, records
from algoperf.cli import common, printing
from algoperf.errors import UserError

if TYPE_CHECKING:
    from algoperf.submission import Submission
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
        ("rounds", 10, "In each, every submission has its turn."),
        ("steps", 10, "Of a turn; what comes seldom, every tenth step, should be in."),
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
        names = sorted(registry.submission_paths())
    loaded = common.load_submissions(names)
    for workload in registry.select_workloads(values.workloads, values.scale):
        configured = common.configured(workload, values)
        asked = _asked(values, loaded)
        if not _has(known.get(workload.name), asked):
            known[workload.name] = _measure(values, loaded, configured) | asked
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


def _asked(values: flags.FlagValues, loaded: "Sequence[Submission]") -> dict[str, Any]:
    """Returns what a measurement is of."""
    return {
        "rounds": values.rounds,
        "steps_per_round": values.steps,
        "sha256": {submission.name: submission.sha256 for submission in loaded},
        "host": hardware.describe_host(),
        "devices": hardware.describe_devices(),
        "versions": hardware.describe_versions(),
    }


def _has(found: Mapping[str, Any] | None, asked: Mapping[str, Any]) -> bool:
    return found is not None and all(found.get(k) == v for k, v in asked.items())


def _measure(
    values: flags.FlagValues, loaded: "Sequence[Submission]", workload: "Workload"
) -> dict[str, Any]:
    from algoperf import step_times, tuning

    entries = {}
    for submission in loaded:
        space = common.search_space(values, submission)
        point = None if space is None else tuning.trial_point(space, 0, 1)
        entries[submission.name] = submission, point
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

    found = step_times.of_workload(facts)
    print(f"{name}, a step:")
    rows = [
        (submission, f"{1e3 * x.seconds:.2f} ms", f"{100 * x.error:.1f} %")
        for submission, x in sorted(found.items(), key=lambda item: item[1].seconds)
    ]
    printing.print_table(("submission", "time", "standard error"), rows)
    for submission, reason in facts["left_out"].items():
        print(f"Left out: {submission}: {reason}")
