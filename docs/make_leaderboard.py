"""Writes docs/leaderboard.md from docs/leaderboard.tar.xz and docs/step_times.json.

    python docs/make_leaderboard.py --pack RUNS
    python docs/make_leaderboard.py --unpack DIR

RUNS is what `algoperf sweep --suite mini` leaves: `--pack` keeps the records of its
trials. `--unpack` gives them back, for `algoperf score DIR`. Without either, the page
and its figure, docs/leaderboard.svg, are made from what is kept. What a step takes was
measured by

    algoperf step_times --submissions all --suite mini --out docs/step_times.json
"""

import argparse
import dataclasses
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gains
import numpy as np
import packed

import scoring
from algoperf import records
from algoperf.cli import printing
from algoperf.errors import UserError
from scoring import time_to_target, uncertainty
from scoring.rules import Rules
from scoring.step_times import StepTimes

DOCS = Path(__file__).resolve().parent
ARCHIVE = DOCS / "leaderboard.tar.xz"
PAGE = DOCS / "leaderboard.md"
FIGURE = DOCS / "leaderboard.svg"
STEP_TIMES = DOCS / "step_times.json"
REFERENCE = "adamw"
# Between evaluations, whose period would be a tenth of a time, it interpolates.
TIMING = scoring.Timing(
    kind=scoring.TimeKind.IDEALIZED, interpolate=True, in_turns=True
)


# Our submissions that have a counterpart in the field of 2024, by its name there.
FIELD = "v0.5"
FIELD_REFERENCE = "nadamw"
COUNTERPARTS = {
    "nadamw": "baseline",
    "cyclic_cosine": "cyclic_lr",
    "ema": "lawa_ema",
    "lawa": "lawa_queue",
    "schedule_free_adamw": "schedule_free_adamw",
    "shampoo": "shampoo_submission",
}


@dataclasses.dataclass(frozen=True)
class Board:
    """Records and their scores.

    Attributes:
      runs: of the submissions that ran all workloads.
      apart: of the others.
      in_time: the score of `runs`.
      in_steps: the same by steps.
      first_point: by time, of the first trial of each study alone.
      step_costs: geometric mean of the time of a step over the reference's, by name.
    """

    runs: scoring.Runs
    apart: scoring.Runs
    in_time: scoring.Result
    in_steps: scoring.Result
    first_point: scoring.Result
    step_costs: Mapping[str, float]


def board(
    runs: scoring.Runs, rules: Rules, step_times: Mapping[str, StepTimes]
) -> Board:
    """Scores runs, those of the whole suite alone.

    Raises:
      UserError: a step time is missing.
    """
    runs = scoring.with_step_times(runs, rules, step_times)
    ran = {(trial.submission, trial.workload) for trial in runs.trials}
    whole = {
        name
        for name in runs.submissions
        if all((name, workload) in ran for workload in rules.base_workloads)
    }
    costs = {}
    for name in whole if REFERENCE in whole else ():
        of_all = [step_times[workload].of for workload in rules.base_workloads]
        ratios = [of[name].seconds / of[REFERENCE].seconds for of in of_all]
        costs[name] = float(np.exp(np.mean(np.log(ratios))))
    kept = _only(runs, lambda trial: trial.submission in whole)
    first = _only(kept, lambda trial: trial.trial == 1)
    return Board(
        runs=kept,
        apart=_only(runs, lambda trial: trial.submission not in whole),
        in_time=scoring.score_runs(kept, rules, timing=TIMING),
        in_steps=scoring.score_runs(kept, rules, timing=packed.STEPS),
        first_point=scoring.score_runs(first, rules, timing=TIMING),
        step_costs=costs,
    )


def _only(runs: scoring.Runs, keep: Callable[[scoring.Trial], bool]) -> scoring.Runs:
    return dataclasses.replace(runs, trials=tuple(filter(keep, runs.trials)))


def field_correlations(result: scoring.Result) -> dict[str, gains.Correlation] | None:
    """Correlates a result with the published field; None without NadamW and others."""
    published = scoring.load_published(FIELD)
    names = [name for name in COUNTERPARTS if name in result.submissions]
    if FIELD_REFERENCE not in names or len(names) < 3:
        return None
    field_SB = published.table(_shared_workloads(), scoring.Mode.DOCUMENTED)
    columns = [result.workloads.index(f"{w}_mini") for w in _shared_workloads()]
    rows = [result.submissions.index(name) for name in names]
    field_rows = [published.submissions.index(COUNTERPARTS[name]) for name in names]
    reference = names.index(FIELD_REFERENCE)
    r_max = result.rules.r_max
    ours_SB, theirs_SB = (
        np.delete(gains.log_ratios(times_SB, reference, r_max), reference, axis=0)
        for times_SB in (result.times[np.ix_(rows, columns)], field_SB[field_rows])
    )
    return gains.correlations(ours_SB, theirs_SB)


def _shared_workloads() -> list[str]:
    """Returns the base workloads that the field has as well."""
    field = scoring.load_rules(FIELD).base_workloads
    mini = scoring.load_rules("mini").base_workloads
    return [workload for workload in field if f"{workload}_mini" in mini]


def draw(by_kind: Mapping[str, Mapping[str, gains.Gain]], path: Path) -> None:
    """Draws speed-ups with their intervals, the greatest of the first kind on top."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "algoperf"  # the same runs, the same file
    from matplotlib import pyplot, ticker

    first = next(iter(by_kind.values()))
    order = sorted(first, key=lambda name: first[name].value)
    height = 1.2 + 0.24 * len(order)
    figure, axes = pyplot.subplots(figsize=(7, height), layout="constrained")
    for offset, (kind, found) in zip((0.15, -0.15), by_kind.items(), strict=True):
        values = np.array([found[name].value for name in order])
        lows = np.array([found[name].low for name in order])
        highs = np.array([found[name].high for name in order])
        places = np.arange(len(order)) + offset
        arms = (values - lows, highs - values)
        axes.errorbar(values, places, xerr=arms, fmt="o", ms=3, lw=0.9, label=kind)
    axes.axvline(1, color="black", lw=0.8)
    axes.set(
        xscale="log",
        xlabel="speed-up over AdamW where both reach the target, 95 % interval each",
    )
    axes.set_xlim(1 / 6, 6)
    axes.set_yticks(np.arange(len(order)), order, fontsize=8)
    axes.xaxis.set_major_locator(ticker.FixedLocator([0.25, 0.5, 0.7, 1, 1.4, 2, 4]))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


HEAD = """# Leaderboard

Written by `python docs/make_leaderboard.py` from the records in
`docs/leaderboard.tar.xz` and the step times in `docs/step_times.json`; none of these
numbers was typed in. `make leaderboard` scores the same records and draws their page,
`runs/leaderboard.html`.

{trials} trials: {studies} of {points} of the search space on each of the workloads of
the mini suite, on {machine}.{fastest}{budget}
Times are steps to the target, interpolated between evaluations, times the time of a
step: that was measured by itself, all submissions taking turns
(`algoperf step_times`), since trials ran at different hours beside different work. They
are without compilation and `prepare_for_eval`, which the [clock](rules.md) of a trial
counts, and which are a good part of trials as short as these.

The score is that of [scoring.md](scoring.md); it depends on who else is in the table.
With one study, neighbours may change places under another seed.
"""
GAIN_WORDS = """
## What they gain over AdamW

Geometric means of the speed-up over AdamW. In brackets the 95 % interval, Student's t
of the logarithms over workloads, which speaks of new ones like them; then how many
workloads. Each interval is for itself; a star marks what is beyond chance with all of
its column looked at (Holm 1979, at 5 %). Seeds are the same for all, one for each
trial: what another seed would change is in the intervals only as far as it differs
between workloads.

- **In time** is over the workloads on which both reach the target. That spares those
  that miss much: **won** and **lost** are the targets that they reach and AdamW misses,
  and the other way round.
- **Elsewhere** is over those of them that [tuning](tuned.md) did not see; it ran on
  {tuned_on}.
- **First point** takes the first point of each search space alone, the best of its
  tuning. Of several, the fastest is chosen by the very runs that it is then judged by:
  who has some that are alike gains a few percent by that.
- **With misses** is over all workloads. A target that one of the two misses counts as
  {r_max:g} times as long, and no ratio as more; one that both miss as equal.
- **In steps** counts those, whatever they cost: some hold several gradients or updates,
  and their plans are shorter. **A step** is its time over AdamW's, a mean over the
  workloads, at the beginning of a trial: `kron`, whose steps are dearest there, looks
  slower in time than it is.
- There is no interval, and no star, of fewer than three workloads, nor where all are
  alike, as for one that misses all where AdamW misses none.

{missed}
{rows}
![Speed-ups over AdamW]({figure})
"""
WARNING_WORDS = """
## What the scorer warns of

{rows}
"""
COLUMNS = ("rank", "submission", "score", "targets reached")
GAIN_COLUMNS = ("submission", "in time", "elsewhere", "first point", "with misses")
GAIN_COLUMNS += ("in steps", "a step", "won", "lost")
# What `algoperf tune` chose the points on.
TUNED_ON = ("finewebedu_lm_mini", "librispeech_deepspeech_mini")
FIELD_WORDS = """
## Does the order mean anything at full scale?

Of each submission that took part in the competition of 2024 too (external tuning, 8
V100), its time over NadamW's on each of the {workloads} workloads that both suites
have, here and there. A missed target counts as {r_max:g} times as long. Spearman's rank
correlation, with 95 % intervals over resampled workloads, n pairs:

| of | correlation |
|---|---|
{rows}

Submissions: {names}.
The implementations differ, and so do their search spaces and what is searched: this
says how far the order carries over, all of that included. Few submissions give a wide
interval. AdamW and momentum were not in that field.
"""


def page(board: Board) -> str:
    """Returns the text of the page."""
    result = board.in_time
    places = uncertainty.ranks(result.scores[None])[0]
    rows = []
    for s in result.ranking:
        reached = int(np.isfinite(result.times[s]).sum())
        targets = f"{reached} of {len(result.workloads)}"
        score = f"{result.scores[s]:.2f}"
        rows.append((f"{places[s]:.0f}", result.submissions[s], score, targets))
    gained = gain_words(board) if REFERENCE in result.submissions else ""
    warned = ""
    mixed = scoring.check_mixed(board.runs, result.rules, allow=True)
    unwell = packed.unhealthy(board.runs, result.rules, result.timing)
    if warnings := [*unwell, *mixed, *result.warnings]:
        warned = WARNING_WORDS.format(rows="\n".join(f"- {text}" for text in warnings))
    head = HEAD.format(**_protocol(board.runs))
    scored, apart = printing.markdown(COLUMNS, rows), _apart_words(board)
    return f"{head}\n{scored}\n{apart}{gained}{warned}{_field_words(result)}"


def _apart_words(board: Board) -> str:
    """Returns what the page says of submissions that did not run all workloads."""
    runs, rules, lines = board.apart, board.in_time.rules, []
    for name in runs.submissions:
        trials = [trial for trial in runs.trials if trial.submission == name]
        ran = [w for w in rules.base_workloads if any(t.workload == w for t in trials)]
        of = {w: [t for t in trials if t.workload == w] for w in ran}
        reached = [w for w in ran if _reaches(of[w], rules, w)]
        lines.append(
            f"`{name}` ran on {', '.join(f'`{w}`' for w in ran)} alone, hence is not "
            f"ranked; it reaches {len(reached)} of {len(ran)}.\n"
        )
    return "".join(f"\n{line}" for line in lines)


def _reaches(trials: Sequence[scoring.Trial], rules: Rules, workload: str) -> bool:
    time = time_to_target.workload_time(trials, rules.goals[workload], timing=TIMING)
    return math.isfinite(time)


def gain_words(board: Board) -> str:
    """Returns what the page says of gains over the reference."""
    result, names = board.in_time, board.in_time.submissions
    elsewhere = [name for name in result.workloads if name not in TUNED_ON]
    columns = [
        gains.over(result, REFERENCE, result.workloads),
        gains.over(result, REFERENCE, elsewhere),
        gains.over(board.first_point, REFERENCE, result.workloads),
        gains.over(result, REFERENCE, result.workloads, with_misses=True),
        gains.over(board.in_steps, REFERENCE, result.workloads),
    ]
    reached_SB = np.isfinite(result.times)
    r = names.index(REFERENCE)
    won_S = (reached_SB & ~reached_SB[r]).sum(axis=1)
    lost_S = (reached_SB[r] & ~reached_SB).sum(axis=1)
    stars = [gains.sure(column) for column in columns]
    rows = []
    for s in result.ranking:
        if s == r:
            continue
        name = names[s]
        cells = [
            f"{column[name]}{'*' * (name in star)}" if name in column else "-"
            for column, star in zip(columns, stars, strict=True)
        ]
        cells.append(f"{board.step_costs[name]:.2f}")
        rows.append((name, *cells, str(won_S[s]), str(lost_S[s])))
    return GAIN_WORDS.format(
        rows=printing.markdown(GAIN_COLUMNS, rows) + "\n",
        figure=FIGURE.name,
        missed=_missed_words(board),
        r_max=result.rules.r_max,
        tuned_on=" and ".join(f"`{name.removesuffix('_mini')}`" for name in TUNED_ON),
    )


def _missed_words(board: Board) -> str:
    """Returns by how much the reference missed which targets."""
    result = board.in_time
    times_B = result.times[result.submissions.index(REFERENCE)]
    missed = []
    for workload, time in zip(result.workloads, times_B, strict=True):
        if math.isfinite(time):
            continue
        goal = result.rules.goals[workload]
        values = [
            value
            for trial in board.runs.trials
            if (trial.submission, trial.workload) == (REFERENCE, workload)
            for value in trial.columns.get(goal.column, ())
            if math.isfinite(value)
        ]
        best = min if goal.direction is records.Direction.MINIMIZE else max
        came = f"{best(values):.4g}" if values else "nothing"
        missed.append(f"`{workload}` ({came}, where {goal.target:.4g} is asked for)")
    if not missed:
        return "AdamW reaches all targets.\n"
    return (
        f"AdamW misses {', '.join(missed)}. All rows share its runs: a target that it "
        "misses by a hair lifts all that reach it in **with misses** and **won**.\n"
    )


def _protocol(runs: scoring.Runs) -> Mapping[str, str]:
    """Returns what the head says of the runs."""
    studies, points = (
        len({getattr(trial, name) for trial in runs.trials})
        for name in ("study", "trial")
    )
    return {
        "trials": str(len(runs.trials)),
        "studies": "one study" if studies == 1 else f"{studies} studies",
        "points": "one point" if points == 1 else f"{points} points",
        "fastest": "" if points == 1 else "\nOn each the fastest point counts.",
        "machine": packed.machines(runs),
        "budget": _budget_words(runs),
    }


def _budget_words(runs: scoring.Runs) -> str:
    """Returns what the head says of trials that no time could end, '' without any."""
    free = [trial for trial in runs.trials if trial.has_no_budget]
    if len(free) < len(runs.trials):
        return f"\nNo time budget applied to {len(free)} of them." if free else ""
    ends = {_end(trial.record or {}) for trial in free}
    end = ends.pop() if len(ends) == 1 else "had the steps of their run"
    return f"\nNo time budget applied: trials {end}, however long that took."


def _end(record: Mapping[str, Any]) -> str:
    """Returns what ended a trial that no time could end, in words."""
    if record.get("max_steps", 0) != record.get("step_hint"):
        return "had the steps of their run"
    has_target = (record.get("target") or {}).get("validation") is not None
    if has_target:
        return "ended at their target, their own plan's end or their step hint"
    return "went on for their step hint"


def _field_words(result: scoring.Result) -> str:
    found = field_correlations(result)
    if found is None:
        return ""
    names = [
        n for n in COUNTERPARTS if n in result.submissions and n != FIELD_REFERENCE
    ]
    rows = [f"| {name} of a submission | {value} |" for name, value in found.items()]
    return FIELD_WORDS.format(
        workloads=len(_shared_workloads()),
        r_max=result.rules.r_max,
        rows="\n".join(rows),
        names=", ".join(f"`{name}`" for name in names),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Packs, unpacks, or writes the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--pack", type=Path, metavar="RUNS", help="keep these records")
    group.add_argument("--unpack", type=Path, metavar="DIR", help="write them there")
    options = parser.parse_args(arguments)
    if options.unpack:
        packed.unpack(ARCHIVE, options.unpack)
        return
    if options.pack:
        print(f"packed {packed.pack(options.pack, ARCHIVE)} trials into {ARCHIVE}")
    with tempfile.TemporaryDirectory() as folder:
        packed.unpack(ARCHIVE, Path(folder))
        step_times = scoring.load_step_times(STEP_TIMES)
        found = board(
            scoring.read_runs([folder]), scoring.load_rules("mini"), step_times
        )
        PAGE.write_text(page(found), encoding="utf-8")
    if REFERENCE in found.in_time.submissions:
        by_kind = {
            kind: gains.over(result, REFERENCE, result.workloads)
            for kind, result in (
                ("in time", found.in_time),
                ("in steps", found.in_steps),
            )
        }
        draw(by_kind, FIGURE)
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"ERROR: {error}") from error
