"""Score records, ours or the official benchmark's: table, CSV, JSON and page."""

import contextlib
import dataclasses
import gc
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from algoperf import records
from algoperf.cli import printing
from algoperf.errors import UserError

if TYPE_CHECKING:
    from scoring import Assessment

USAGE = (
    "algoperf score DIR... [--benchmark v0.5|v0.6|mini|FILE]\n"
    "         [--ruleset external|self] [--rules documented|official]\n"
    "         [--time submission|idealized|steps] [--interpolate]\n"
    "         [--step_times FILE]\n"
    "         [--bootstrap N] [--noresample_trials]\n"
    "         [--reference NAME] [--at_budget X] [--against v0.5]\n"
    "         [--predict] [--score_predicted] [--allow_mixed] [--nocache]\n"
    "         [--report FILE.html] [--csv DIR] [--figures DIR] [--tables DIR]\n"
    "         [--json FILE]        (a DIR holds one folder per submission)"
)

MAX_BROKEN = 20  # trials that are named on standard error
FILES = ("report", "csv", "figures", "tables", "json")  # flags that name what to write


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of `algoperf score`."""
    _define_rules(values)
    _define_evidence(values)
    _define_files(values)
    printing.define_json_flag(values)


def _define_rules(values: flags.FlagValues) -> None:
    """Defines what is read and how it is judged."""
    flags.DEFINE_string(
        "benchmark",
        None,
        "Workloads, targets and protocol: a benchmark's name, or a JSON or TOML file, "
        "FILE:SUBSET for a subset of it. By default mini; with --against, the "
        "benchmark of the published field.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "against",
        None,
        "Show where the runs would stand in a published field: v0.5. Without a DIR, "
        "show the field itself.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "ruleset",
        "external",
        records.RULESETS,
        "Which protocol of the benchmark counts.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "rules",
        "documented",
        ("documented", "official"),
        "documented: as the rules say; official: with the departures of the official "
        "code, to repeat published numbers.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "time",
        "submission",
        ("submission", "idealized", "steps"),
        "submission: the clock of the trial; idealized: steps times its uncontended "
        "step time; steps: their number.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "step_times",
        None,
        "With --time idealized: the step times in this file, which `algoperf "
        "step_times` measured side by side, instead of those of the records.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "interpolate",
        False,
        "Time to target by a straight line between the evaluation that reached it and "
        "the one before.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "allow_mixed",
        False,
        "Score a workload's records of different hardware, code or targets together, "
        "and records of another ruleset.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "cache",
        True,
        "Keep what was read in the user's cache folder, for the next call.",
        flag_values=values,
    )


def _define_evidence(values: flags.FlagValues) -> None:
    """Defines what is said beside the scores."""
    flags.DEFINE_integer(
        "bootstrap",
        1000,
        "Resamples for the intervals of scores and ranks; 0: no intervals.",
        lower_bound=0,
        upper_bound=100_000,
        flag_values=values,
    )
    flags.DEFINE_bool(
        "resample_trials",
        True,
        "Resample trials within studies too. --noresample_trials gives narrower "
        "intervals: right where trial k of every study has the same hyperparameters.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "reference",
        None,
        "The submission that speed-ups are over; by default 'baseline' if there is "
        "one, else the last that scores.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "at_budget",
        None,
        "Also show the best validation metrics after so many seconds, or steps with "
        "--time steps, of each trial.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "predict",
        False,
        "Also predict, from their learning curves, when trials that were stopped would "
        "have reached their target; in a table of its own.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "score_predicted",
        False,
        "Let settled predictions count in the score, each marked with ~.",
        flag_values=values,
    )


def _define_files(values: flags.FlagValues) -> None:
    """Defines what is written."""
    flags.DEFINE_string(
        "report", None, "Write a self-contained HTML page here.", flag_values=values
    )
    flags.DEFINE_string(
        "csv",
        None,
        "Write scores.csv, performance_profile.csv and speedups.csv into this folder.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "figures",
        None,
        "Draw figures for a paper into this folder, as PNG and PDF.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "tables",
        None,
        "Write the score table into this folder, as LaTeX and Markdown.",
        flag_values=values,
    )


def main(values: flags.FlagValues, positional: Sequence[str]) -> int:
    """Reads, judges, shows, writes; returns 1 if a part of that could not be done.

    What cannot be written costs neither the result on the terminal nor other files.
    """
    if "numpy" not in sys.modules:  # its idle threads cost a fifth of a second call
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    import scoring

    _check_names(values)
    with _no_collection():
        assessment = _assess(values, positional)
    if values.json == "-":
        printing.write_json("-", scoring.to_json(assessment))
    else:
        scoring.print_report(assessment)
    is_written = True
    for write in _writers(values, assessment):
        try:
            written = write()
        except UserError as error:
            is_written = False
            print(f"algoperf: {error}", file=sys.stderr)
            continue
        if values.json != "-":
            for path in written:
                print(f"written: {path.resolve()}")
    broken = [item for item in assessment.runs.skipped if item.is_broken]
    for item in broken[:MAX_BROKEN]:
        left_out = f"{item.path}: {item.reason}"
        print(f"algoperf: left out of the score: {left_out}", file=sys.stderr)
    if len(broken) > MAX_BROKEN:
        more = f"{len(broken) - MAX_BROKEN} more trials"
        print(f"algoperf: left out of the score: {more}", file=sys.stderr)
    return 0 if is_written and not broken else 1


def _check_names(values: flags.FlagValues) -> None:
    """Raises UserError for a flag whose text is empty, say by an unset variable."""
    for name in ("benchmark", "against", "reference", "step_times", *FILES):
        if values[name].value == "":
            raise UserError(f"--{name} is empty; give a name, or leave it out")
    if values.step_times is not None and values.time != "idealized":
        raise UserError("--step_times is for --time idealized; give both")
    if values.step_times is not None and values.against is not None:
        raise UserError(
            "--step_times is not for --against: a published field has submission times"
        )


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Keeps the garbage collector from walking thousands of trials again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _assess(values: flags.FlagValues, positional: Sequence[str]) -> "Assessment":
    """Reads what the command names, judges it, and says how sure that is."""
    import scoring

    if not positional and values.against is None:
        raise UserError("no DIR to score, see algoperf score --help")
    if not positional and values.at_budget is not None:
        raise UserError(
            "--at_budget needs a DIR: a published field has times to target alone, "
            "nothing of what was reached before"
        )
    published = scoring.load_published(values.against) if values.against else None
    default = published.benchmark if published else "mini"
    rules = scoring.load_rules(values.benchmark or default)
    runs = scoring.Runs(trials=(), skipped=())
    if positional:
        runs = scoring.read_runs(
            [Path(directory) for directory in positional],
            ruleset=values.ruleset,
            cache_folder=scoring.default_cache_folder() if values.cache else None,
        )
    if published is None:
        scoring.check_workloads(runs, rules)
    if values.step_times is not None:
        runs = scoring.with_step_times(
            runs, rules, scoring.load_step_times(Path(values.step_times))
        )
    # Against a published field some mixtures are refused whatever the flags: scoring
    # comes first, lest a flag be asked for that would not help.
    result = scoring.score_runs(
        runs,
        rules,
        ruleset=values.ruleset,
        mode=values.rules,
        published=published,
        timing=scoring.Timing(
            kind=scoring.TimeKind(values.time),
            interpolate=values.interpolate,
            in_turns=values.step_times is not None,
        ),
    )
    mixed = scoring.check_mixed(runs, rules, values.ruleset, allow=values.allow_mixed)
    forecasts = None
    if values.predict or values.score_predicted:
        forecasts = scoring.predict_runs(runs, rules, ruleset=values.ruleset)
    if forecasts is not None and values.score_predicted:
        result = scoring.score_predicted(runs, rules, forecasts, result, published)
    result = dataclasses.replace(result, warnings=(*mixed, *result.warnings))
    return scoring.assess(
        runs,
        result,
        resamples=values.bootstrap,
        with_trials=values.resample_trials,
        reference=values.reference,
        budget=values.at_budget,
        forecasts=forecasts,
    )


def _writers(
    values: flags.FlagValues, assessment: "Assessment"
) -> Iterator[Callable[[], Sequence[Path]]]:
    """Yields what writes each thing that was asked for and returns its paths."""
    import scoring

    def write_json() -> Sequence[Path]:
        path = _with_folder(values.json, "--json")
        printing.write_json(values.json, scoring.to_json(assessment))
        return [path]

    def made(flag: str) -> Path:
        folder = Path(str(values[flag].value))
        records.make_folder(folder, f"--{flag}")
        return folder

    def write_report() -> Sequence[Path]:
        path = _with_folder(values.report, "--report")
        scoring.write_page(path, assessment)
        return [path]

    if values.json not in (None, "-"):
        yield write_json
    if values.csv is not None:
        yield lambda: scoring.write_csv_files(made("csv"), assessment)
    if values.report is not None:
        yield write_report
    if values.figures is not None:
        yield lambda: scoring.write_figures(made("figures"), assessment)
    if values.tables is not None:
        yield lambda: scoring.write_tables(made("tables"), assessment)


def _with_folder(name: str, flag: str) -> Path:
    """Returns the path of a file, whose folder is made if it is not there."""
    records.make_folder(Path(name).parent, flag)
    return Path(name)
