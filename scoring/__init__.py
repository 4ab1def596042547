"""Scoring: read records, find times to target, judge them by rules, show the result.

    runs = read_runs(["runs"])
    result = score_runs(runs, load_rules("mini"))
    assessment = assess(runs, result)
    print_report(assessment)
    write_page(Path("page.html"), assessment)

Reading is apart from judging, judging from drawing; nothing here needs JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

from scoring.assessment import Assessment, assess
from scoring.cache import default_folder as default_cache_folder
from scoring.compare import (
    AtBudget,
    Comparison,
    compare_to,
    default_reference,
    field_at_budget,
)
from scoring.export import to_json, write_csv_files
from scoring.guards import check_mixed, check_workloads, contention, is_contended
from scoring.learning_curve import Prediction
from scoring.predict import Forecast, predict_runs, score_predicted
from scoring.published import Published, known_published, load_published
from scoring.read import Runs, Skipped, Trial, read_runs
from scoring.rules import Goal, Protocol, Rules, known_rules, load_rules
from scoring.score import Result, score_runs
from scoring.step_times import load as load_step_times
from scoring.step_times import with_step_times
from scoring.tables import print_report
from scoring.time_to_target import Mode, TimeKind, Timing
from scoring.uncertainty import Uncertainty, estimate_uncertainty
from scoring.words import headline

if TYPE_CHECKING:
    from scoring.page import write_page
    from scoring.paper import write_figures, write_tables

__all__ = [
    "Assessment",
    "AtBudget",
    "Comparison",
    "Forecast",
    "Goal",
    "Mode",
    "Prediction",
    "Protocol",
    "Published",
    "Result",
    "Rules",
    "Runs",
    "Skipped",
    "TimeKind",
    "Timing",
    "Trial",
    "Uncertainty",
    "assess",
    "check_mixed",
    "check_workloads",
    "compare_to",
    "contention",
    "default_cache_folder",
    "default_reference",
    "estimate_uncertainty",
    "field_at_budget",
    "headline",
    "is_contended",
    "known_published",
    "known_rules",
    "load_published",
    "load_rules",
    "load_step_times",
    "predict_runs",
    "print_report",
    "read_runs",
    "score_predicted",
    "score_runs",
    "to_json",
    "with_step_times",
    "write_csv_files",
    "write_figures",
    "write_page",
    "write_tables",
]

# Most calls draw nothing, and need not wait for what draws.
_DRAWING = {
    "write_figures": "scoring.paper",
    "write_page": "scoring.page",
    "write_tables": "scoring.paper",
}


def __getattr__(name: str) -> Any:
    """Imports a function that draws when it is first asked for."""
    if name not in _DRAWING:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_DRAWING[name]), name)
