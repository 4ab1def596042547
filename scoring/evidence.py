"""Words, terminal tables and JSON for how sure a result is and how it compares."""

import math
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from algoperf.records import finite
from scoring.compare import AtBudget, Comparison
from scoring.read import FloatArray
from scoring.score import Result
from scoring.uncertainty import Uncertainty

UNKNOWN = "unknown"


def not_different(result: Result, uncertainty: Uncertainty, s: int) -> list[str]:
    """Returns the others, by rank, whose score may be the same as that of s."""
    return [
        result.submissions[other]
        for other in result.ranking
        if other != s
        and not uncertainty.is_different_SS[s, other]
        and math.isfinite(uncertainty.difference_low_SS[s, other])
    ]


def is_known(uncertainty: Uncertainty, s: int) -> bool:
    """Whether the interval of the score of submission s is known."""
    return math.isfinite(uncertainty.score_low_S[s])


def some_names(names: Sequence[str], at_most: int = 3) -> str:
    """Returns 'a', 'a and b', 'a, b and c', or 'a, b, c and 2 more'."""
    shown, rest = list(names[:at_most]), len(names) - at_most
    if rest > 0:
        shown.append(f"{rest} more")
    if len(shown) == 1:
        return shown[0]
    return f"{', '.join(shown[:-1])} and {shown[-1]}"


def format_interval(low: float, high: float, digits: int = 3) -> str:
    """Returns '0.567 to 0.844', or 'unknown'."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return UNKNOWN
    return f"{low:.{digits}f} to {high:.{digits}f}"


def format_ranks(low: float, high: float) -> str:
    """Returns '2 to 8', '1' for one rank alone, or 'unknown'."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return UNKNOWN
    return f"{low:.0f}" if low == high else f"{low:.0f} to {high:.0f}"


def sensitivity_lines(result: Result, uncertainty: Uncertainty) -> list[str]:
    """Returns what the first place owes to a single workload, and to r_max."""
    if len(result.submissions) < 2 or not result.scores.any():
        return []
    first = result.ranking[0]
    name = result.submissions[first]
    is_lost_B = uncertainty.leave_one_out_ranks_BS[:, first] > 1
    lost = [
        w for w, is_lost in zip(result.workloads, is_lost_B, strict=True) if is_lost
    ]
    lines = []
    if lost:
        lines.append(f"{name} is not first without {some_names(lost)}")
    elif len(result.workloads) > 1:
        lines.append(f"{name} stays first whichever workload is left out")
    r_max_R = uncertainty.r_max_R
    lost_R = r_max_R[uncertainty.r_max_ranks_RS[:, first] > 1]
    if lost_R.size:
        values = some_names([f"{r:g}" for r in lost_R], len(lost_R))
        lines.append(f"{name} is not first with an r_max of {values}")
    else:
        ends = f"{r_max_R[0]:g} to {r_max_R[-1]:g}"
        lines.append(f"{name} stays first with every r_max from {ends}")
    return lines


def comparison_table(result: Result, comparison: Comparison) -> Table:
    """Returns speed-ups over the reference, best submission first."""
    percent = f"{100 * comparison.confidence:g} %"
    table = Table(
        title=Text(f"Speed-up over {comparison.reference}"), box=box.SIMPLE_HEAD
    )
    table.add_column("submission", no_wrap=True)
    for heading in (
        "mean",
        percent,
        "work-\nloads",
        "win/tie\n/loss",
        "har-\nmonic",
        "geo-\nmetric",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for s in result.ranking:
        low, high = comparison.mean_speedup_low_S[s], comparison.mean_speedup_high_S[s]
        is_reference = result.submissions[s] == comparison.reference
        counts = (
            f"{n[s]}"
            for n in (comparison.wins_S, comparison.ties_S, comparison.losses_S)
        )
        table.add_row(
            Text(result.submissions[s]),
            _number(comparison.mean_speedup_S[s]),
            "reference" if is_reference else format_interval(low, high, 2),
            f"{comparison.shared_S[s]}",
            "" if is_reference else "/".join(counts),
            _number(comparison.gated_harmonic_S[s]),
            _number(comparison.gated_geometric_S[s]),
        )
    return table


def comparison_lines(comparison: Comparison) -> list[str]:
    """Returns what the columns of the comparison mean."""
    return [
        "mean: geometric, over the workloads where both have a time that counts; tie: "
        "the interval holds 1, or without one the times are within "
        f"{100 * comparison.tie_tolerance:g} %; harmonic, geometric: means of "
        "speed-ups where a miss is 1, each divided by the best (at most "
        f"{comparison.clamp:g})"
    ]


def budget_line(found: AtBudget) -> str:
    """Returns what `budget_table` shows."""
    return (
        f"targets reached, and best validation metric, within {found.budget:,g} "
        f"{found.unit} of each trial:"
    )


def budget_table(result: Result, found: AtBudget) -> Table:
    """Returns targets and best metrics within a budget, best submission first."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("submission", no_wrap=True)
    table.add_column("targets", justify="right", no_wrap=True)
    for workload in result.workloads:
        heading = f"{workload}\n{result.rules.goals[workload].metric}"
        table.add_column(Text(heading.replace("_", "_\n")), justify="right")
    for s in result.ranking:
        table.add_row(
            Text(result.submissions[s]),
            f"{found.share_S[s]:.0%}",
            *(f"{v:.4g}" if math.isfinite(v) else "none" for v in found.best_SB[s]),
        )
    return table


def budget_json(result: Result, found: AtBudget) -> dict[str, Any]:
    """Returns everything of an `AtBudget` by name; None where there is no value."""
    return finite(
        {
            "budget": found.budget,
            "unit": found.unit,
            "submissions": {
                result.submissions[s]: {
                    "share_of_targets": float(found.share_S[s]),
                    "best": dict(
                        zip(result.workloads, found.best_SB[s].tolist(), strict=True)
                    ),
                }
                for s in result.ranking
            },
        }
    )


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "none"


def uncertainty_json(result: Result, uncertainty: Uncertainty) -> dict[str, Any]:
    """Returns everything of an `Uncertainty` by name; what is unknown is None."""
    names, order = result.submissions, result.ranking

    def by_name(values_S: FloatArray) -> dict[str, float | None]:
        return finite({names[s]: float(values_S[s]) for s in order})

    def interval(low: FloatArray, high: FloatArray) -> dict[str, Any]:
        return finite({names[s]: [float(low[s]), float(high[s])] for s in order})

    u = uncertainty
    return {
        "resamples": u.resamples,
        "seed": u.seed,
        "with_trials": u.with_trials,
        "confidence": u.confidence,
        "score_interval": interval(u.score_low_S, u.score_high_S),
        "rank_interval": interval(u.rank_low_S, u.rank_high_S),
        "score_difference_interval": {
            names[s]: interval(u.difference_low_SS[s], u.difference_high_SS[s])
            for s in order
        },
        "is_different": {
            names[s]: {names[o]: bool(u.is_different_SS[s, o]) for o in order}
            for s in order
        },
        "without_workload": {
            workload: {
                "score": by_name(u.leave_one_out_scores_BS[b]),
                "rank": by_name(u.leave_one_out_ranks_BS[b]),
            }
            for b, workload in enumerate(result.workloads)
        },
        "r_max": [
            {
                "r_max": float(r_max),
                "score": by_name(u.r_max_scores_RS[r]),
                "rank": by_name(u.r_max_ranks_RS[r]),
            }
            for r, r_max in enumerate(u.r_max_R)
        ],
        "notes": list(u.notes),
    }


def comparison_json(result: Result, comparison: Comparison) -> dict[str, Any]:
    """Returns everything of a `Comparison` by name; what is unknown is None."""
    c = comparison

    def one(s: int) -> dict[str, Any]:
        return {
            "mean_speedup": float(c.mean_speedup_S[s]),
            "mean_speedup_interval": [
                float(c.mean_speedup_low_S[s]),
                float(c.mean_speedup_high_S[s]),
            ],
            "shared_workloads": int(c.shared_S[s]),
            "wins": int(c.wins_S[s]),
            "ties": int(c.ties_S[s]),
            "losses": int(c.losses_S[s]),
            "gated_harmonic_mean": float(c.gated_harmonic_S[s]),
            "gated_geometric_mean": float(c.gated_geometric_S[s]),
            "workloads": {
                workload: {
                    "speedup": float(c.speedup_SB[s, b]),
                    "interval": [
                        float(c.speedup_low_SB[s, b]),
                        float(c.speedup_high_SB[s, b]),
                    ],
                }
                for b, workload in enumerate(result.workloads)
            },
        }

    return finite(
        {
            "reference": c.reference,
            "confidence": c.confidence,
            "tie_tolerance": c.tie_tolerance,
            "clamp": c.clamp,
            "submissions": {result.submissions[s]: one(s) for s in result.ranking},
        }
    )
