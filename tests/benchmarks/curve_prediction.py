"""How far predicted times to target are off: on real curves, and on planted ones.

    python tests/benchmarks/curve_prediction.py ARCHIVE [--fraction 0.5] [--json FILE]

ARCHIVE holds the logs of the AlgoPerf competition of 2024, a folder per submission.
Every curve that reached its target is cut to the first part of its time to target, and
the time is predicted from that part. The error is |log(predicted / true)|: 0.1 is 10 %,
0.69 a factor of 2.

Then power laws with Gaussian noise are planted and watched evaluation by evaluation
until the proximity condition stops them: how often is the trend, where it reaches the
target, within tau of the truth?
"""

import argparse
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from algoperf.records import Direction
from scoring.learning_curve import MIN_EVALUATIONS, Prediction, predict_time
from scoring.read import Runs, read_runs
from scoring.rules import Goal, Rules, load_rules
from scoring.time_to_target import first_reached

Outcome = tuple[Prediction, float]  # and the true time in seconds


def outcomes(
    runs: Runs, rules: Rules, fraction: float
) -> Iterator[tuple[str, Outcome]]:
    """Yields workload, prediction and true time of each curve that has its target."""
    for trial in runs.trials:
        goal = rules.goals.get(trial.workload)
        hit = None if goal is None else first_reached(trial, goal)
        if goal is None or hit is None:
            continue
        true = float(trial.times[hit])
        is_seen_E = trial.times <= fraction * true
        times_E = trial.times[is_seen_E]
        values_E = trial.columns[goal.column][is_seen_E]
        yield trial.workload, (predict_time(times_E, values_E, goal), true)


def summary(found: Sequence[Outcome]) -> dict[str, Any]:
    """Returns counts, quartiles of the error, bias and coverage of the interval."""
    made = [(p, true) for p, true in found if not p.reason]
    logs = np.array([math.log(p.seconds / true) for p, true in made])
    quartiles = np.quantile(np.abs(logs), [0.25, 0.5, 0.75]) if made else [np.nan] * 3
    covered = [p.low <= true <= p.high for p, true in made]
    return {
        "curves": len(found),
        "predicted": len(made),
        "error_quartiles": [float(x) for x in quartiles],
        "signed_median": float(np.median(logs)) if made else math.nan,
        "within_factor_2": float((np.abs(logs) < math.log(2)).mean()) if made else 0.0,
        "coverage": float(np.mean(covered)) if made else math.nan,
        "open_above": float(np.mean([math.isinf(p.high) for p, _ in made] or [0])),
        "reasons": dict(Counter(p.reason for p, _ in found if p.reason)),
    }


def print_summary(name: str, value: dict[str, Any]) -> None:
    """Prints one row of the table."""
    low, middle, high = value["error_quartiles"]
    print(
        f"| {name} | {value['curves']} | {value['predicted']} | {middle:.2f} "
        f"({low:.2f} to {high:.2f}) | {value['signed_median']:+.2f} "
        f"| {value['within_factor_2']:.0%} | {value['coverage']:.0%} "
        f"| {value['open_above']:.0%} |"
    )


def planted(
    noise: float, curves: int, generator: np.random.Generator, tau: float = 0.1
) -> dict[str, Any]:
    """Plants curves and stops each at the first prediction that is settled.

    Args:
      noise: standard deviation of the noise, as a share of tau.
      curves: how many.
      generator: of parameters and noise.
      tau: share of what is missing to the target, of the noiseless curve, after a
        third of the evaluations.
    """
    stops, errors = [], []
    for _ in range(curves):
        evaluations = int(generator.integers(30, 120))
        exponent = generator.uniform(-1.0, 2.0)
        times_E = np.linspace(1.0, 100.0, evaluations)
        curve = _curve(exponent)
        target = float(curve(np.array(100.0)))
        bound = tau * (target - float(curve(np.array(33.0))))
        noisy_E = curve(times_E) + generator.normal(0, noise * bound, evaluations)
        goal = Goal(metric="gain", direction=Direction.MAXIMIZE, target=target)
        for seen in range(MIN_EVALUATIONS, evaluations):
            prediction = predict_time(times_E[:seen], noisy_E[:seen], goal, tau=bound)
            if prediction.is_settled:
                expected = float(curve(np.array(prediction.seconds)))
                errors.append(abs(expected - target) / bound)
                stops.append(times_E[seen - 1] / 100.0)
                break
    return {
        "noise": noise,
        "curves": curves,
        "stopped": len(stops),
        "median_stop": float(np.median(stops)) if stops else math.nan,
        "within_tau": float((np.array(errors) <= 1).mean()) if stops else math.nan,
        "error_quantiles": np.quantile(errors or [math.nan], [0.5, 0.9]).tolist(),
    }


def _curve(exponent: float) -> Callable[[np.ndarray], np.ndarray]:
    """Returns an increasing power law; b < 0 is a power of time, b > 0 levels off."""
    sign = 1.0 if exponent > 0 else -1.0
    return lambda seconds: -sign * seconds**-exponent


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("archive", type=Path, nargs="?", help="one folder a submission")
    parser.add_argument("--benchmark", default="v0.5")
    parser.add_argument("--fraction", type=float, default=0.5, help="of the time seen")
    parser.add_argument("--curves", type=int, default=100, help="planted, per noise")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    result: dict[str, Any] = {"fraction": options.fraction}
    if options.archive is not None:
        rules = load_rules(options.benchmark)
        runs = read_runs([options.archive])
        found = list(outcomes(runs, rules, options.fraction))
        every = [outcome for _, outcome in found]
        groups = {
            w: [outcome for name, outcome in found if name == w]
            for w in rules.workloads
        }
        groups["all"] = every
        groups["all, settled"] = [o for o in every if o[0].is_settled]
        groups["all, not settled"] = [o for o in every if not o[0].is_settled]
        print(f"from the first {options.fraction:.0%} of the time to target:")
        print(
            "| workload | curves | predicted | error: median (quartiles) | bias "
            "| within 2x | interval holds it | open above |"
        )
        print("|---|---|---|---|---|---|---|---|")
        result["archive"] = {name: summary(group) for name, group in groups.items()}
        for name, value in result["archive"].items():
            print_summary(name, value)
        print("no prediction:", result["archive"]["all"]["reasons"])
    print("planted power laws, stopped at the first settled prediction:")
    print("| noise / tau | curves | stopped | at | within tau | error: median, 90 % |")
    print("|---|---|---|---|---|---|")
    generator = np.random.default_rng(0)
    noises = (0.0, 0.1, 0.25, 0.5, 1.0)
    result["planted"] = [planted(x, options.curves, generator) for x in noises]
    for row in result["planted"]:
        middle, most = row["error_quantiles"]
        print(
            f"| {row['noise']:g} | {row['curves']} | {row['stopped']} "
            f"| {row['median_stop']:.0%} | {row['within_tau']:.0%} "
            f"| {middle:.2f}, {most:.2f} tau |"
        )
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
