"""Score records, ours or the official benchmark's: table, CSV, JSON and page."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from algoperf import records
from algoperf.cli import common
from algoperf.errors import UserError

if TYPE_CHECKING:
    from scoring import Result, Rules, Runs

USAGE = (
    "algoperf score DIR... [--benchmark v0.5|mini|FILE] [--ruleset external|self]\n"
    "         [--rules documented|official] [--against v0.5] [--predict]\n"
    "         [--score_predicted] [--report FILE.html] [--csv DIR] [--json FILE]\n"
    "                              (a DIR holds one folder per submission)"
)


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of `algoperf score`."""
    flags.DEFINE_string(
        "benchmark",
        None,
        "Workloads, targets and protocol: a benchmark's name, or a JSON file. By "
        "default mini; with --against, the benchmark of the published field.",
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

    if not positional and values.against is None:
        raise UserError("no DIR to score, see algoperf score --help")
    against = values.against
    published = None if against is None else scoring.load_published(against)
    benchmark = "mini" if published is None else published.benchmark
    rules = scoring.load_rules(values.benchmark or benchmark)
    runs = scoring.Runs(trials=(), skipped=())
    if positional:
        runs = scoring.read_runs([Path(directory) for directory in positional])
    result = scoring.score_runs(
        runs, rules, ruleset=values.ruleset, mode=values.rules, published=published
    )
    forecasts = None
    if values.predict or values.score_predicted:
        from scoring import predict

        forecasts = predict.predict_runs(runs, rules)
        if values.score_predicted:
            result = predict.score_predicted(runs, rules, forecasts, result, published)
    written = _write_files(values, runs, rules, result)

    def print_text() -> None:
        scoring.print_report(runs, result)
        if forecasts is not None:
            predict.print_predictions(forecasts)
        for path in written:
            print(f"written: {path.resolve()}")

    value = scoring.to_json(result)
    if forecasts is not None:
        value["predictions"] = predict.predictions_json(forecasts)
    common.show(values.json, value, print_text)
    broken = [item for item in runs.skipped if item.is_broken]
    for item in broken:
        print(f"algoperf: left out of the score: {item.reason}", file=sys.stderr)
    return 1 if broken else 0


def _write_files(
    values: flags.FlagValues, runs: "Runs", rules: "Rules", result: "Result"
) -> list[Path]:
    """Writes the CSV files and the page that were asked for; returns their paths."""
    import scoring

    written = []
    if values.csv is not None:
        folder = Path(values.csv)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make {folder}: {error.strerror}") from error
        scoring.write_scores_csv(folder / "scores.csv", result)
        scoring.write_profile_csv(folder / "performance_profile.csv", result)
        written += [folder / "scores.csv", folder / "performance_profile.csv"]
    if values.report is not None:
        scoring.write_page(Path(values.report), runs, rules, result)
        written.append(Path(values.report))
    return written
