"""Scoring: read records, find times to target, judge them by rules, show the result.

    runs = read_runs(["runs"])
    rules = load_rules("mini")
    result = score_runs(runs, rules)
    print_report(runs, result, uncertainty=estimate_uncertainty(result))
    write_page(Path("page.html"), runs, rules, result)

Reading is apart from judging, judging from drawing; nothing here needs JAX.
"""

from scoring.cache import default_folder as default_cache_folder
from scoring.guards import check_mixed, contention, is_contended
from scoring.compare import (
    AtBudget,
    Comparison,
    compare_to,
    default_reference,
    field_at_budget,
)
from scoring.page import write_page
from scoring.published import Published, known_published, load_published
from scoring.paper import write_figures, write_tables
from scoring.read import Runs, Skipped, Trial, read_runs
from scoring.rules import Goal, Protocol, Rules, known_rules, load_rules
from scoring.score import Result, score_runs
from scoring.tables import (
    headline,
    print_report,
    to_json,
    write_profile_csv,
    write_scores_csv,
)
from scoring.time_to_target import Mode, TimeKind, Timing
from scoring.uncertainty import Uncertainty, estimate_uncertainty

__all__ = [
    "AtBudget",
    "Comparison",
    "Goal",
    "Mode",
    "Protocol",
    "Published",
    "Result",
    "Rules",
    "Runs",
    "Skipped",
    "TimeKind",
    "Timing",
    "Uncertainty",
    "compare_to",
    "default_reference",
    "estimate_uncertainty",
    "field_at_budget",
    "Trial",
    "check_mixed",
    "contention",
    "default_cache_folder",
    "headline",
    "is_contended",
    "known_published",
    "known_rules",
    "load_published",
    "load_rules",
    "print_report",
    "read_runs",
    "score_runs",
    "to_json",
    "write_figures",
    "write_page",
    "write_profile_csv",
    "write_scores_csv",
    "write_tables",
]
