"""Score records, ours or the official benchmark's: table, CSV, JSON and page."""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from algoperf import records
from algoperf.cli import common
from algoperf.errors import UserError

USAGE = (
    "algoperf score DIR... [--benchmark v0.5|mini|FILE] [--ruleset external|self]\n"
    "         [--rules documented|official] [--time submission|idealized|steps]\n"
    "         [--interpolate] [--bootstrap N] [--noresample_trials]\n"
    "         [--reference NAME] [--at_budget X]\n"
    "         [--report FILE.html] [--csv DIR] [--json FILE]\n"
    "         (a DIR holds one folder per submission)"
)


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of `algoperf score`."""
    flags.DEFINE_string(
        "benchmark",
        "mini",
        "Workloads, targets and protocol: a benchmark's name, or a JSON file.",
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
    flags.DEFINE_bool(
        "interpolate",
        False,
        "Time to target by a straight line between the evaluation that reached it and "
        "the one before.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "bootstrap",
        1000,
        "Resamples for the intervals of scores and ranks; 0: no intervals.",
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
    flags.DEFINE_string(
        "report", None, "Write a self-contained HTML page here.", flag_values=values
    )
    flags.DEFINE_string(
        "csv",
        None,
        "Write scores.csv and performance_profile.csv into this folder.",
        flag_values=values,
    )
    common.define_json_flag(values)


def main(values: flags.FlagValues, positional: Sequence[str]) -> int:
    """Reads, judges, shows; returns 1 if a record could not be read."""
    import scoring

    if not positional:
        raise UserError("no DIR to score, see algoperf score --help")
    rules = scoring.load_rules(values.benchmark)
    runs = scoring.read_runs([Path(directory) for directory in positional])
    timing = scoring.Timing(
        kind=scoring.TimeKind(values.time), interpolate=values.interpolate
    )
    result = scoring.score_runs(
        runs, rules, ruleset=values.ruleset, mode=values.rules, timing=timing
    )
    uncertainty = comparison = at_budget = None
    if values.bootstrap:
        uncertainty = scoring.estimate_uncertainty(
            result, values.bootstrap, with_trials=values.resample_trials
        )
    reference = values.reference or scoring.default_reference(result)
    if reference is not None:
        comparison = scoring.compare_to(result, reference)
    if values.at_budget is not None:
        at_budget = scoring.field_at_budget(runs, result, values.at_budget)
    written = []
    if values.csv is not None:
        folder = Path(values.csv)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make {folder}: {error.strerror}") from error
        scoring.write_scores_csv(folder / "scores.csv", result, uncertainty)
        scoring.write_profile_csv(folder / "performance_profile.csv", result)
        written += [folder / "scores.csv", folder / "performance_profile.csv"]
    if values.report is not None:
        scoring.write_page(Path(values.report), runs, rules, result)
        written.append(Path(values.report))

    def print_text() -> None:
        scoring.print_report(
            runs,
            result,
            uncertainty=uncertainty,
            comparison=comparison,
            at_budget=at_budget,
        )
        for path in written:
            print(f"written: {path.resolve()}")

    value = scoring.to_json(result, uncertainty, comparison, at_budget)
    common.show(values.json, value, print_text)
    broken = [item for item in runs.skipped if item.is_broken]
    for item in broken:
        print(f"algoperf: left out of the score: {item.reason}", file=sys.stderr)
    return 1 if broken else 0
