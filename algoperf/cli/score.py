"""Score records, ours or the official benchmark's: table, CSV, JSON and page."""

import dataclasses
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
    "         [--json FILE] [--allow_mixed] [--nocache]\n"
    "         (a DIR holds one folder per submission)"
)

MAX_BROKEN = 20  # trials that are named on standard error


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of `algoperf score`."""
    flags.DEFINE_string(
        "benchmark",
        "mini",
        "Workloads, targets and protocol: a benchmark's name, or a JSON or TOML file.",
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
    flags.DEFINE_boolean(
        "allow_mixed",
        False,
        "Score records of different hardware, code or targets together.",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "cache",
        True,
        "Keep what was read in the user's cache folder, for the next call.",
        flag_values=values,
    )
    common.define_json_flag(values)


def main(values: flags.FlagValues, positional: Sequence[str]) -> int:
    """Reads, judges, shows; returns 1 if a record could not be read."""
    import scoring

    if not positional:
        raise UserError("no DIR to score, see algoperf score --help")
    rules = scoring.load_rules(values.benchmark)
    runs = scoring.read_runs(
        [Path(directory) for directory in positional],
        ruleset=values.ruleset,
        cache_folder=scoring.default_cache_folder() if values.cache else None,
    )
    mixed = scoring.check_mixed(runs, rules, allow=values.allow_mixed)
    result = scoring.score_runs(runs, rules, ruleset=values.ruleset, mode=values.rules)
    result = dataclasses.replace(result, warnings=(*mixed, *result.warnings))
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

    def print_text() -> None:
        scoring.print_report(runs, result)
        for path in written:
            print(f"written: {path.resolve()}")

    common.show(values.json, scoring.to_json(result), print_text)
    broken = [item for item in runs.skipped if item.is_broken]
    for item in broken[:MAX_BROKEN]:
        print(f"algoperf: left out of the score: {item.reason}", file=sys.stderr)
    if len(broken) > MAX_BROKEN:
        more = f"{len(broken) - MAX_BROKEN} more trials"
        print(f"algoperf: left out of the score: {more}", file=sys.stderr)
    return 1 if broken else 0
