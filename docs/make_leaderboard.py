"""Writes docs/leaderboard.md from the records in docs/leaderboard.tar.xz.

    python docs/make_leaderboard.py --pack RUNS
    python docs/make_leaderboard.py --unpack DIR

RUNS is what `algoperf sweep --suite mini` leaves: `--pack` keeps the records of its
trials. `--unpack` gives them back, for `algoperf score DIR`. Without either, the page
and its figure, docs/leaderboard.svg, are made from what is kept.
"""

import argparse
import io
import math
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gains
import numpy as np

import scoring
from algoperf import hardware, records
from algoperf.errors import UserError
from scoring import time_to_target

DOCS = Path(__file__).resolve().parent
ARCHIVE = DOCS / "leaderboard.tar.xz"
PAGE = DOCS / "leaderboard.md"
FIGURE = DOCS / "leaderboard.svg"
KEPT = (records.RECORD_FILE, records.EVAL_FILE, records.HPARAMS_FILE)
REFERENCE = "adamw"
# Steps times the undisturbed time of a step: what ran beside a trial does not count.
# Between evaluations, whose period would be a tenth of such a time, it interpolates.
TIMING = scoring.Timing(kind=scoring.TimeKind.IDEALIZED, interpolate=True)
STEPS = scoring.Timing(kind=scoring.TimeKind.STEPS, interpolate=True)

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


def pack(runs: Path, archive: Path) -> int:
    """Keeps the records of all trials under a folder; returns how many there are.

    The same records give the same bytes. The archive is replaced as a whole.

    Raises:
      UserError: there are none that can be read, one is not at its end, or they are of
        several versions.
    """
    found = scoring.read_runs([runs])
    scoring.check_mixed(found, scoring.load_rules("mini"))
    unfinished = [
        f"{trial.submission}/{trial.place}"
        for trial in found.trials
        if trial.status is None or not trial.status.is_final
    ]
    if unfinished:
        raise UserError(
            f"{len(unfinished)} trials are not at their end, such as {unfinished[0]}; "
            "the same `algoperf sweep` goes on with them"
        )
    places = sorted(trial.path for trial in found.trials)
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:xz") as tar:
        for path in [folder / name for folder in places for name in KEPT]:
            if not path.exists():  # a trial that failed before its first evaluation
                continue
            entry = tarfile.TarInfo(str(path.relative_to(runs)))
            entry.size = path.stat().st_size
            tar.addfile(entry, io.BytesIO(path.read_bytes()))
    records.write_bytes(archive, content.getvalue())
    return len(places)


def unpack(archive: Path, folder: Path) -> None:
    """Writes the records that an archive keeps, as trials left them.

    Raises:
      UserError: there is no archive.
    """
    if not archive.exists():
        raise UserError(f"{archive} is not there yet; make it with --pack RUNS")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")


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
`docs/leaderboard.tar.xz`; none of these numbers was typed in. `make leaderboard` scores
the same records and draws their page, `runs/leaderboard.html`.

{trials} trials: {studies} of {points} of the search space on each of the workloads of
the mini suite, on {machine}.{fastest}{budget}
Times are steps to the target, interpolated between evaluations, times the undisturbed
time of a step. The score is that of [scoring.md](scoring.md).
"""
GAIN_WORDS = """
## What they gain over AdamW

Geometric means of the speed-up over AdamW. In brackets the 95 % interval, Student's t
of the logarithms over workloads, which speaks of new ones like them; then how many
workloads. Each interval is for itself; a star marks what is beyond chance with all of
its column looked at (Holm 1979, at 5 %).

- **In time** and **in steps** are over the workloads on which both reach the target.
  That spares those that miss much: **won** and **lost** are the targets that they reach
  and AdamW misses, and the other way round.
- **Elsewhere** is in steps on the workloads that [tuning](tuned.md) did not see; it ran
  on {tuned_on}.
- **With misses** is in time over all workloads. A target that one of the two misses
  counts as {r_max:g} times as long, and no ratio as more; one that both miss as equal.
- There is no interval of fewer than three workloads, nor where all are alike.
- Times take the undisturbed time of a usual step. `kron` and `infinite_compute` have
  some that cost more and are not counted: they look faster in time than they are.

{rows}
![Speed-ups over AdamW]({figure})
"""
WARNING_WORDS = """
## What the scorer warns of

{rows}
"""
COLUMNS = ("rank", "submission", "score", "targets reached")
GAIN_COLUMNS = ("submission", "in time", "in steps", "elsewhere", "with misses")
GAIN_COLUMNS += ("won", "lost")
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


def page(runs: scoring.Runs, result: scoring.Result, in_steps: scoring.Result) -> str:
    """Returns the text of the page.

    Args:
      runs: the records.
      result: their score.
      in_steps: their score by steps.
    """
    rows = []
    for rank, s in enumerate(result.ranking, start=1):
        reached = int(np.isfinite(result.times[s]).sum())
        targets = f"{reached} of {len(result.workloads)}"
        score = f"{result.scores[s]:.3f}"
        rows.append((str(rank), result.submissions[s], score, targets))
    gained = ""
    if REFERENCE in result.submissions:
        gained = gain_words(runs, result, in_steps)
    warned = ""
    mixed = scoring.check_mixed(runs, result.rules, allow=True)
    unwell = unhealthy(runs, result.rules, result.timing)
    if warnings := [*unwell, *mixed, *result.warnings]:
        warned = WARNING_WORDS.format(rows="\n".join(f"- {text}" for text in warnings))
    head = HEAD.format(**_protocol(runs))
    return f"{head}\n{table(COLUMNS, rows)}{gained}{warned}{_field_words(result)}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def gain_words(
    runs: scoring.Runs, result: scoring.Result, in_steps: scoring.Result
) -> str:
    """Returns what the page says of gains over the reference."""
    names = list(result.submissions)
    elsewhere = [name for name in result.workloads if name not in TUNED_ON]
    columns = [
        gains.over(result, REFERENCE, result.workloads),
        gains.over(in_steps, REFERENCE, result.workloads),
        gains.over(in_steps, REFERENCE, elsewhere),
        gains.over(result, REFERENCE, result.workloads, with_misses=True),
    ]
    ran = {(trial.submission, trial.workload) for trial in runs.trials}
    ran_SB = np.array([[(s, w) in ran for w in result.workloads] for s in names])
    reached_SB = np.isfinite(result.times)
    r = names.index(REFERENCE)
    # What was not run was not missed.
    won_S = (reached_SB & ~reached_SB[r] & ran_SB[r]).sum(axis=1)
    lost_S = (reached_SB[r] & ~reached_SB & ran_SB).sum(axis=1)
    whole = {name for name, row_B in zip(names, ran_SB, strict=True) if row_B.all()}
    if REFERENCE not in whole:
        whole = set()
    columns[-1] = {name: gain for name, gain in columns[-1].items() if name in whole}
    stars = [gains.sure(column) for column in columns]
    rows = []
    for s in result.ranking:
        if s == r:
            continue
        cells = [
            f"{column[names[s]]}{'*' * (names[s] in star)}"
            if names[s] in column
            else "-"
            for column, star in zip(columns, stars, strict=True)
        ]
        rows.append((names[s], *cells, str(won_S[s]), str(lost_S[s])))
    return GAIN_WORDS.format(
        rows=table(GAIN_COLUMNS, rows),
        figure=FIGURE.name,
        r_max=result.rules.r_max,
        tuned_on=" and ".join(f"`{name.removesuffix('_mini')}`" for name in TUNED_ON),
    )


def unhealthy(
    runs: scoring.Runs, rules: scoring.Rules, timing: scoring.Timing
) -> list[str]:
    """Returns a line for each trial that failed or diverged, and what it counts as.

    A trial that no target ends may have reached that of the rules before.
    """
    lines = []
    for trial in runs.trials:
        is_unwell = trial.status in (records.Status.FAILED, records.Status.DIVERGED)
        if not is_unwell or trial.workload not in rules.workloads:
            continue
        goal = rules.goals[trial.workload]
        time = time_to_target.trial_time(trial, goal, timing)
        known = ", a miss" if math.isinf(time) else " after its target, which counts"
        lines.append(f"{trial.submission}/{trial.place} {trial.status}{known}")
    return lines


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
        "machine": machines(runs),
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


def machines(runs: scoring.Runs) -> str:
    """Returns what the trials ran on, in words."""
    hosts = [trial.record["host"] for trial in runs.trials if trial.record]
    return " and ".join(sorted({hardware.host_words(host) for host in hosts}))


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
        unpack(ARCHIVE, options.unpack)
        return
    if options.pack:
        print(f"packed {pack(options.pack, ARCHIVE)} trials into {ARCHIVE}")
    with tempfile.TemporaryDirectory() as folder:
        unpack(ARCHIVE, Path(folder))
        runs, rules = scoring.read_runs([folder]), scoring.load_rules("mini")
        result, in_steps = (
            scoring.score_runs(runs, rules, timing=timing) for timing in (TIMING, STEPS)
        )
        PAGE.write_text(page(runs, result, in_steps), encoding="utf-8")
        if REFERENCE in result.submissions:
            kinds = {"in time": result, "in steps": in_steps}
            by_kind = {
                kind: gains.over(x, REFERENCE, x.workloads) for kind, x in kinds.items()
            }
            draw(by_kind, FIGURE)
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"ERROR: {error}") from error
