"""The result as plain values: JSON and CSV."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from algoperf.records import finite, write_text
from scoring import words
from scoring.assessment import Assessment
from scoring.compare import AtBudget, Comparison
from scoring.predict import Forecast
from scoring.read import FloatArray
from scoring.score import Result
from scoring.uncertainty import Uncertainty, ranks

MEAN = "geometric mean"  # instead of a workload


def to_json(assessment: Assessment) -> dict[str, Any]:
    """Returns everything as plain values; a miss, or what is unknown, is None.

    Times are under the name of their unit: 'seconds' or 'steps'. What was not assessed
    has no entry.
    """
    result, uncertainty = assessment.result, assessment.uncertainty
    headline = words.headline(result, uncertainty)
    value = {"headline": headline, **_result_json(result)}
    if uncertainty:
        value["uncertainty"] = uncertainty_json(result, uncertainty)
    if assessment.comparison:
        value["comparison"] = comparison_json(result, assessment.comparison)
    if assessment.at_budget:
        value["at_budget"] = budget_json(result, assessment.at_budget)
    if assessment.forecasts is not None:
        value["predictions"] = predictions_json(assessment.forecasts)
    return finite(value)


def _result_json(result: Result) -> dict[str, Any]:
    unit = result.timing.unit

    def workloads(s: int) -> dict[str, Any]:
        return {
            workload: {
                unit: float(result.times[s, w]),
                "ratio": float(result.ratios[s, w]),
                "counts": bool(result.counts[s, w]),
            }
            for w, workload in enumerate(result.workloads)
        }

    return {
        "rules": result.rules.name,
        "ruleset": result.ruleset,
        "mode": str(result.mode),
        "time": str(result.timing.kind),
        "unit": unit,
        "interpolate": result.timing.interpolate,
        "in_turns": result.timing.in_turns,
        "no_budget": result.no_budget,
        "submissions": [
            {
                "submission": result.submissions[s],
                "is_published": result.submissions[s] in result.published,
                "score": float(result.scores[s]),
                "workloads": workloads(s),
                f"held_out_{unit}": {
                    variant: float(result.held_out_times[s, v])
                    for v, variant in enumerate(result.held_out)
                },
            }
            for s in result.ranking
        ],
        "predicted": [list(pair) for pair in sorted(result.predicted)],
        "warnings": list(result.warnings),
    }


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


def predictions_json(forecasts: Sequence[Forecast]) -> list[dict[str, Any]]:
    """Returns predictions as plain values; what is not finite is None."""

    def finite(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return [
        {
            "submission": item.trial.submission,
            "workload": item.trial.workload,
            "study": item.trial.study,
            "trial": item.trial.trial,
            "run_seconds": item.prediction.run,
            "predicted_seconds": finite(item.prediction.seconds),
            "low_seconds": finite(item.prediction.low),
            "high_seconds": finite(item.prediction.high),
            "is_settled": item.prediction.is_settled,
            "reason": item.prediction.reason or None,
            "detail": item.prediction.detail or None,
        }
        for item in forecasts
    ]


def write_csv_files(folder: Path, assessment: Assessment) -> list[Path]:
    """Writes `scores.csv`, `performance_profile.csv` and, if compared, `speedups.csv`.

    Raises:
      UserError: a file cannot be written.
    """
    result, comparison = assessment.result, assessment.comparison
    tables = {
        "scores.csv": _scores(result, assessment.uncertainty),
        "performance_profile.csv": _profile(result),
    }
    if comparison:
        tables["speedups.csv"] = speedup_rows(result, comparison)
    written = []
    for name, rows in tables.items():
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows(rows)
        write_text(folder / name, buffer.getvalue())
        written.append(folder / name)
    return written


def _scores(result: Result, uncertainty: Uncertainty | None) -> list[list[Any]]:
    """Returns submission, rank, score and time per workload ('inf' for a miss).

    A column of times has its unit after the name: 'ogbg_seconds', 'ogbg_steps'; beside
    it, 'ogbg_counts' says 'true' or 'false'. Equal scores share the better rank. With
    `uncertainty`, the ends of the interval of the score follow it ('nan': unknown).
    """
    unit = result.timing.unit
    header = ["submission", "rank", "score"]
    for workload in result.workloads:
        header += [f"{workload}_{unit}", f"{workload}_counts"]
    rank_S = ranks(result.scores[None])[0]
    rows: list[list[Any]] = []
    for s in result.ranking:
        row = [result.submissions[s], int(rank_S[s]), float(result.scores[s])]
        for time, counts in zip(result.times[s], result.counts[s], strict=True):
            row += [float(time), str(bool(counts)).lower()]
        rows.append(row)
    if uncertainty:
        header[3:3] = ["score_low", "score_high"]
        for s, row in zip(result.ranking, rows, strict=True):
            low, high = uncertainty.score_low_S[s], uncertainty.score_high_S[s]
            row[3:3] = [float(low), float(high)]
    if result.published:
        header.append("is_published")
        for row in rows:
            row.append(str(row[0] in result.published).lower())
    if result.predicted:  # a column that names the workloads whose time is predicted
        header.append("predicted")
        for row in rows:
            row.append(" ".join(sorted(w for s, w in result.predicted if s == row[0])))
    return [header, *rows]


def _profile(result: Result) -> list[list[Any]]:
    """Returns tau and the profile of each submission, one row per step."""
    taus, rho = result.profile()
    order = result.ranking
    rows = [[tau, *rho[order, t].tolist()] for t, tau in enumerate(taus.tolist())]
    return [["tau", *(result.submissions[s] for s in order)], *rows]


def speedup_rows(result: Result, comparison: Comparison) -> list[list[Any]]:
    """Returns speed-ups over the reference and their intervals, with a header.

    A row per submission but the reference and workload, then one for the geometric
    mean, under the name MEAN; NaN for what is unknown.
    """
    c = comparison
    rows: list[list[Any]] = [["submission", "workload", "speedup", "low", "high"]]
    for s in result.ranking:
        name = result.submissions[s]
        if name == c.reference:
            continue
        columns = (
            [*result.workloads, MEAN],
            [*c.speedup_SB[s].tolist(), float(c.mean_speedup_S[s])],
            [*c.speedup_low_SB[s].tolist(), float(c.mean_speedup_low_S[s])],
            [*c.speedup_high_SB[s].tolist(), float(c.mean_speedup_high_S[s])],
        )
        rows += [[name, *row] for row in zip(*columns, strict=True)]
    return rows
