"""How often early stopping ends runs that would have reached their target.

    python tests/benchmarks/early_stopping.py ARCHIVE [--curves N]

ARCHIVE holds the logs of the AlgoPerf competition of 2024, a folder per submission.
Each curve is thinned to the 20 evaluations that a workload of the mini scale has, and
watched as `algoperf tune --early_stop` does, up to its target, or else to its end. A
run's end is its workload's budget, and that of a run that missed is where it ended.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from scoring.read import Runs, Trial, read_runs
from scoring.rules import Goal, Rules, load_rules
from scoring.stopping import first_hopeless
from scoring.time_to_target import first_reached

EVALUATIONS = 20
FEWEST = 10  # evaluations of a curve that is looked at


def stopped_at(trial: Trial, goal: Goal, hit: int | None, end: float) -> float | None:
    """Returns which share of its steps a run had when it was stopped, if it was."""
    places_E = np.searchsorted(trial.times, np.linspace(0, end, EVALUATIONS + 1))
    seen_E = np.unique(places_E.clip(0, len(trial.times) - 1))
    if hit is not None:
        seen_E = seen_E[seen_E < hit]
    times_E = trial.times[seen_E]
    found = first_hopeless(times_E, trial.columns[goal.column][seen_E], goal, end)
    return None if found is None else float(times_E[found] / end)


def outcomes(
    runs: Runs, rules: Rules, curves: int | None
) -> Iterator[tuple[str, bool, float | None]]:
    """Yields workload, whether the target was reached, and `stopped_at`."""
    trials = list(runs.trials)
    np.random.default_rng(0).shuffle(trials)
    for trial in trials[:curves]:
        goal = rules.goals.get(trial.workload)
        if goal is None or goal.column not in trial.columns:
            continue
        hit = first_reached(trial, goal)
        end = float(trial.times[-1]) if hit is None else goal.budget_sec
        if trial.times.size < FEWEST or not end:
            continue
        if hit is None or trial.times[hit] <= end:
            yield trial.workload, hit is not None, stopped_at(trial, goal, hit, end)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("archive", type=Path, help="one folder a submission")
    parser.add_argument("--benchmark", default="v0.5")
    parser.add_argument("--curves", type=int, help="look at so many, drawn at random")
    options = parser.parse_args(arguments)
    rules = load_rules(options.benchmark)
    found = list(outcomes(read_runs([options.archive]), rules, options.curves))
    print("| workload | reached | of them stopped | missed | of them stopped | saved |")
    print("|---|---|---|---|---|---|")
    for name in (*sorted({workload for workload, *_ in found}), "all"):
        mine = [item[1:] for item in found if name in (item[0], "all")]
        reached = [share for hit, share in mine if hit]
        missed = [share for hit, share in mine if not hit]
        saved = sum(1 - share for share in missed if share is not None)
        cells = [
            name,
            str(len(reached)),
            str(sum(share is not None for share in reached)),
            str(len(missed)),
            str(sum(share is not None for share in missed)),
            f"{saved / len(missed):.0%}" if missed else "-",
        ]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
