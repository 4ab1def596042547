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
    "         [--rules documented|official] [--report FILE.html] [--csv DIR]\n"
    "         [--figures DIR] [--tables DIR] [--json FILE]\n"
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
    flags.DEFINE_string(
        "report", None, "Write a self-contained HTML page here.", flag_values=values
    )
    flags.DEFINE_string(
        "csv",
        None,
        "Write scores.csv and performance_profile.csv into this folder.",
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
        "Write scores.tex and scores.md into this folder.",
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
    result = scoring.score_runs(runs, rules, ruleset=values.ruleset, mode=values.rules)
    written = []
    if values.csv is not None:
        folder = _made(values.csv)
        scoring.write_scores_csv(folder / "scores.csv", result)
        scoring.write_profile_csv(folder / "performance_profile.csv", result)
        written += [folder / "scores.csv", folder / "performance_profile.csv"]
    if values.report is not None:
        scoring.write_page(Path(values.report), runs, rules, result)
        written.append(Path(values.report))

    if values.figures is not None:
        folder = _made(values.figures)
        written += scoring.write_figures(folder, runs, rules, result)
    if values.tables is not None:
        written += scoring.write_tables(_made(values.tables), result)

    def print_text() -> None:
        scoring.print_report(runs, result)
        for path in written:
            print(f"written: {path.resolve()}")

    common.show(values.json, scoring.to_json(result), print_text)
    broken = [item for item in runs.skipped if item.is_broken]
    for item in broken:
        print(f"algoperf: left out of the score: {item.reason}", file=sys.stderr)
    return 1 if broken else 0


def _made(folder: str) -> Path:
    """Makes a folder unless it is there."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {folder}: {error.strerror}") from error
    return Path(folder)
