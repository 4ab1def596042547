"""Results in words and in numbers for a reader; terminal, page and papers share them.

Dimension key: B base workloads, R values of r_max.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from algoperf.records import Status
from scoring.compare import AtBudget, Comparison
from scoring.learning_curve import FARTHEST, Prediction
from scoring.parse import one_line
from scoring.read import Runs, Trial
from scoring.score import Result
from scoring.time_to_target import Mode
from scoring.uncertainty import Uncertainty, ranks

NOT_COUNTED = "†"
YOURS = "(yours)"
PREDICTED = "~"
UNKNOWN = "unknown"
NO_BUDGET = (
    "No time budget applied: a trial had the steps that it was given, and a target "
    "counts however long it took"
)


def headline(result: Result, uncertainty: Uncertainty | None = None) -> str:
    """Returns one sentence: who is fastest, by how much, and whether that is sure."""
    sentence = _headline(result, uncertainty)
    return f"With predicted times: {sentence}" if result.predicted else sentence


def _headline(result: Result, uncertainty: Uncertainty | None) -> str:
    first, *others = result.ranking
    name, score = result.submissions[first], result.scores[first]
    reached = int(result.counts[first].sum())
    total = len(result.workloads)
    if score == 0:
        return f"No score: no target of {result.rules.name} was reached."
    if not others:
        return (
            f"{name} reached the target on {reached} of {_workloads(total)}; its score "
            "says nothing yet, there is no other submission to compare it with."
        )
    second = others[0]
    rival, rival_score = result.submissions[second], result.scores[second]
    places_S = ranks(result.scores[None])[0]
    if places_S[second] == places_S[first]:
        return f"{name} and {rival} are equally fast: both score {score:.4f}."
    if rival_score == 0:
        return (
            f"{name} is fastest with a score of {score:.4f}: it alone has times "
            f"that count, on {reached} of {_workloads(total)}."
        )
    equals: list[str] = []
    is_unknown = False
    if uncertainty:
        equals = not_different(result, uncertainty, first)
        difference = uncertainty.difference_low_SS[first, second]
        is_unknown = not math.isfinite(difference)
    more = " How sure that is, so few trials cannot say." if is_unknown else ""
    shared = result.counts[first] & result.counts[second]
    logs = np.log(result.ratios[first, shared] / result.ratios[second, shared])
    factor = math.exp(logs.mean()) if shared.any() else 1.0
    is_fastest = factor <= 1 and not equals and not is_unknown
    return (
        f"{name} {'is fastest' if is_fastest else 'ranks first'} with a score of "
        f"{score:.4f}, {_rivals(rival, rival_score, equals)}; "
        f"{_compare(factor, int(shared.sum()), rival if len(equals) > 1 else None)}."
        f"{more}"
    )


def _rivals(rival: str, score: float, equals: Sequence[str]) -> str:
    """Words for the second of the ranking and for those that may be equally good."""
    second = f"{rival} ({score:.4f})"
    if not equals:
        return f"ahead of {second}"
    if rival not in equals:
        same = some_names(equals)
        return f"ahead of {second}, but not distinguishable from {same}"
    rest = [name for name in equals if name != rival]
    also = f" nor from {some_names(rest)}" if rest else ""
    return f"not distinguishable from {second}{also}"


def _compare(factor: float, shared: int, rival: str | None = None) -> str:
    """Words for a geometric mean of time ratios over the workloads of both.

    `rival` names the other one, where "both" would not say who that is.
    """
    both = f"it and {rival}" if rival else "both"
    if not shared:
        return f"no workload counts for {both}"
    where = f"on the {_workloads(shared)} that count for {both}"
    if shared == 1:
        where = f"on the one workload that counts for {both}"
    percent = 100 * abs(1 - factor)
    if percent < 0.05:
        return f"{where} it takes the same time"
    word = "less" if factor < 1 else "more"
    mean = "" if shared == 1 else " (geometric mean)"
    return f"{where} it takes {percent:.1f} % {word} time{mean}"


def _workloads(count: int) -> str:
    return "1 workload" if count == 1 else f"{count} workloads"


def format_number(time: float, unit: str = "seconds") -> str:
    """Returns a time for a reader: '12.3', '48,151', 'miss' for infinity."""
    if not math.isfinite(time):
        return "miss"
    is_short = time < 1000 and not (unit == "steps" and time == int(time))
    return f"{time:,.1f}" if is_short else f"{time:,.0f}"


def format_time(result: Result, submission: int, workload: int) -> str:
    """Returns a cell of the score table; a time that does not count has a dagger."""
    text = format_number(result.times[submission, workload], result.timing.unit)
    is_struck = text != "miss" and not result.counts[submission, workload]
    text = _mark(result, submission, result.workloads[workload], text)
    return f"{text} {NOT_COUNTED}" if is_struck else text


def format_held_out(result: Result, submission: int, variant: int) -> str:
    """Returns the time on a held-out variant, marked if it is predicted."""
    time = result.held_out_times[submission, variant]
    text = format_number(time, result.timing.unit)
    return _mark(result, submission, result.held_out[variant], text)


def _mark(result: Result, submission: int, workload: str, text: str) -> str:
    is_predicted = (result.submissions[submission], workload) in result.predicted
    return f"{PREDICTED}{text}" if is_predicted else text


def footnotes(result: Result) -> list[str]:
    """Returns what the marks in the score table mean, as far as they occur.

    Another line where its times had no limit.
    """
    lines = []
    struck = np.isfinite(result.times) & ~result.counts
    if struck.any():
        why = f"more than {result.rules.r_max:g} times the best counted time"
        if result.held_out:
            why += ", or so on the held-out variant, or its target was missed"
        lines.append(f"{NOT_COUNTED} reached, but does not count: {why}")
    if result.predicted:
        lines.append(f"{PREDICTED} predicted, not measured: a run in it was stopped")
    if result.no_budget:
        lines.append(NO_BUDGET)
    return lines


def label(result: Result, submission: int) -> str:
    """Returns a submission's name; beside published ones, yours are marked."""
    name = result.submissions[submission]
    is_mine = result.published and name not in result.published
    return f"{name} {YOURS}" if is_mine else name


def standings(result: Result) -> list[str]:
    """Returns where each of your submissions stands among the published ones."""
    lines = []
    places_S = ranks(result.scores[None])[0]
    for s in result.ranking:
        if not result.published or result.submissions[s] in result.published:
            continue
        lines.append(
            f"{result.submissions[s]} stands in place {places_S[s]:.0f} of "
            f"{len(result.submissions)}, with a score of {result.scores[s]:.4f}."
        )
    return lines


def rules_line(result: Result) -> str:
    """Returns what the runs were judged by, and which time was taken."""
    return (
        f"rules {result.rules.name}, {result.ruleset} tuning, {result.mode} mode; "
        f"time to target in {result.timing}"
    )


def percent(share: float) -> str:
    """Returns '95 %'."""
    return f"{100 * share:g} %"


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
    # At zero all are equal, and nobody is first.
    is_lost_B = (uncertainty.leave_one_out_ranks_BS[:, first] > 1) | (
        uncertainty.leave_one_out_scores_BS[:, first] == 0
    )
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


def compared_where(result: Result) -> str:
    """Returns where two submissions have a speed-up, see `scoring.compare`."""
    where = "both reached the target"
    if result.mode is Mode.OFFICIAL:
        where += f" within {result.rules.r_max:g} times the best"
    if result.held_out:
        where += " and no held-out variant strikes it out"
    return where


def comparison_line(result: Result, comparison: Comparison) -> str:
    """Returns what the columns of the comparison mean."""
    return (
        f"mean: geometric, over the workloads where {compared_where(result)}; tie: "
        "the interval holds 1, or without one the times are within "
        f"{100 * comparison.tie_tolerance:g} %; harmonic, geometric: means of "
        "speed-ups where a miss is 1, each divided by the best (at most "
        f"{comparison.clamp:g})"
    )


def budget_line(found: AtBudget) -> str:
    """Returns what `budget_table` shows."""
    return (
        f"targets reached, and best validation metric, within {found.budget:,g} "
        f"{found.unit} of each trial:"
    )


def prediction_cells(prediction: Prediction) -> tuple[str, str, str]:
    """Returns predicted time, interval, and whether it is settled or why it is none."""
    if prediction.reason:
        detail = f" ({prediction.detail})" if prediction.detail else ""
        return "-", "-", f"no prediction: {prediction.reason}{detail}"
    high = format_number(prediction.high)
    if prediction.high > FARTHEST * prediction.run:
        high = "never"
    return (
        f"{PREDICTED}{format_number(prediction.seconds)}",
        f"{format_number(prediction.low)} to {high}",
        "yes" if prediction.is_settled else "no",
    )


def prediction_lines(count: int, reasons: Mapping[str, int]) -> list[str]:
    """Returns what stands below the table of `count` predictions.

    `reasons` counts the trials that have no row there.
    """
    if not count:
        return ["no trial missed its target: nothing to predict"]
    return [
        *(f"no prediction for {n} trials: {reason}" for reason, n in reasons.items()),
        "settled: the last trends of the curve agree on the target; see "
        "docs/prediction.md for how far predictions were off",
    ]


def unfinished(runs: Runs) -> list[Trial]:
    """Returns the trials that failed, diverged, or have not finished yet."""
    good = (None, Status.REACHED, Status.BUDGET, Status.COMPLETED)
    return [trial for trial in runs.trials if trial.status not in good]


def message(trial: Trial) -> str:
    """Returns what the record of a trial says about its end, in one line, or ''."""
    return one_line(str((trial.record or {}).get("message") or ""))


def status_counts(runs: Runs) -> dict[str, int]:
    """Returns how many trials have which status; 'unknown' in official logs."""
    return dict(Counter(str(trial.status or "unknown") for trial in runs.trials))


def skipped_lines(runs: Runs, at_most: int = 3) -> list[str]:
    """Returns a line per path that was not read in full; of more alike ones, a count.

    Those that were read but for a part are notes.
    """
    paths: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for item in runs.skipped:
        paths["note" if item.is_read else "skipped", item.reason].append(item.path)
    lines = []
    for (kind, reason), places in paths.items():
        lines += [f"{kind}: {path}: {reason}" for path in places[:at_most]]
        if len(places) > at_most:
            lines.append(f"{kind}: {len(places) - at_most} more: {reason}")
    return lines
