"""How far predicted times to target are off: on real curves, and on planted ones.

    python tests/benchmarks/curve_prediction.py ARCHIVE [--fraction 0.5] [--json FILE]

ARCHIVE holds the logs of the AlgoPerf competition of 2024, a folder per submission.
Every curve that reached its target is cut to the first part of its time to target, and
the time is predicted from that part. The error is |log(predicted / true)|: 0.1 is 10 %,
0.69 a factor of 2. As no prediction is before the end of the part, the first half
cannot be wrong by more than a factor of 2 on the early side. A straight line through
the second half of the part is what a prediction has to beat.

Then power laws with Gaussian noise are planted and watched evaluation by evaluation
until the proximity condition stops them: how often is the trend, where it reaches the
target, within tau of the truth?
"""

import argparse
import dataclasses
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


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of one curve; times in seconds."""

    workload: str
    prediction: Prediction
    true: float
    line: float  # what a straight line predicts


def outcomes(
    runs: Runs, rules: Rules, fraction: float, anchor: float
) -> Iterator[Outcome]:
    """Yields what is predicted for each curve that has its target."""
    for trial in runs.trials:
        goal = rules.goals.get(trial.workload)
        hit = None if goal is None else first_reached(trial, goal)
        if goal is None or hit is None:
            continue
        true = float(trial.times[hit])
        is_seen_E = trial.times <= fraction * true
        times_E = trial.times[is_seen_E]
        values_E = trial.columns[goal.column][is_seen_E]
        yield Outcome(
            trial.workload,
            predict_time(times_E, values_E, goal, anchor=anchor),
            true,
            straight_line(times_E, values_E, goal),
        )


def false_alarms(runs: Runs, rules: Rules, fraction: float) -> dict[str, int]:
    """Counts curves that missed, and those predicted to have their target in the run.

    The prediction is from the first part of the run.
    """
    counts = {"missed": 0, "predicted": 0, "predicted_and_settled": 0}
    for trial in runs.trials:
        goal = rules.goals.get(trial.workload)
        if goal is None or goal.column not in trial.columns or not trial.times.size:
            continue
        if first_reached(trial, goal) is not None:
            continue
        end = float(trial.times[-1])
        is_seen_E = trial.times <= fraction * end
        values_E = trial.columns[goal.column][is_seen_E]
        found = predict_time(trial.times[is_seen_E], values_E, goal)
        counts["missed"] += 1
        counts["predicted"] += found.seconds <= end
        counts["predicted_and_settled"] += found.seconds <= end and found.is_settled
    return counts


def straight_line(times_E: np.ndarray, values_E: np.ndarray, goal: Goal) -> float:
    """Returns when a least-squares line through the last half of a part is there."""
    is_used_E = np.isfinite(values_E) & (times_E >= times_E[-1:] / 2)
    if is_used_E.sum() < 2:
        return math.inf
    slope, offset = np.polyfit(times_E[is_used_E], values_E[is_used_E], 1)
    is_right_way = slope > 0 if goal.direction is Direction.MAXIMIZE else slope < 0
    if not is_right_way:
        return math.inf
    return max(float((goal.target - offset) / slope), float(times_E[-1]))


def summary(found: Sequence[Outcome]) -> dict[str, Any]:
    """Returns counts, quartiles of the error, bias and coverage of the interval."""
    made = [item for item in found if not item.prediction.reason]
    value: dict[str, Any] = {
        "curves": len(found),
        "predicted": len(made),
        "reasons": dict(
            Counter(x.prediction.reason for x in found if x.prediction.reason)
        ),
    }
    if not made:
        return value
    logs = np.array([math.log(x.prediction.seconds / x.true) for x in made])
    lines = np.array([math.log(x.line / x.true) for x in made])
    is_in = [x.prediction.low <= x.true <= x.prediction.high for x in made]
    is_open = [math.isinf(x.prediction.high) for x in made]
    return value | {
        "error_quartiles": np.quantile(np.abs(logs), [0.25, 0.5, 0.75]).tolist(),
        "signed_median": float(np.median(logs)),
        "straight_line_error": float(np.median(np.abs(lines))),
        "coverage": float(np.mean(is_in)),
        "open_above": float(np.mean(is_open)),
    }


def print_summary(name: str, value: dict[str, Any]) -> None:
    """Prints one row of the table."""
    cells = [name, str(value["curves"]), str(value["predicted"])]
    if value["predicted"]:
        low, middle, high = value["error_quartiles"]
        cells += [
            f"{middle:.2f} ({low:.2f} to {high:.2f})",
            f"{value['signed_median']:+.2f}",
            f"{value['straight_line_error']:.2f}",
            f"{value['coverage']:.0%}",
            f"{value['open_above']:.0%}",
        ]
    print(f"| {' | '.join(cells)} |")


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
    errors: dict[str, list[float]] = {"settled": [], "trends_agree": []}
    stops = []
    for _ in range(curves):
        evaluations = int(generator.integers(30, 120))
        times_E = np.linspace(1.0, 100.0, evaluations)
        curve = _curve(generator.uniform(-1.0, 2.0))
        target = float(curve(np.array(100.0)))
        bound = tau * (target - float(curve(np.array(33.0))))
        noisy_E = curve(times_E) + generator.normal(0, noise * bound, evaluations)
        goal = Goal(metric="gain", direction=Direction.MAXIMIZE, target=target)
        is_open = dict.fromkeys(errors, True)
        for seen in range(MIN_EVALUATIONS, evaluations):
            found = predict_time(times_E[:seen], noisy_E[:seen], goal, tau=bound)
            holds = {
                "settled": found.is_settled,
                "trends_agree": found.trend_distance <= bound,
            }
            for name in holds:
                if is_open[name] and holds[name]:
                    expected = float(curve(np.array(found.seconds)))
                    errors[name].append(abs(expected - target) / bound)
                    is_open[name] = False
            if found.is_settled:
                stops.append(times_E[seen - 1] / 100.0)
                break
    within = {name: np.mean(np.array(found) <= 1) for name, found in errors.items()}
    return {
        "noise": noise,
        "curves": curves,
        "stopped": len(stops),
        "median_stop": float(np.median(stops or [math.nan])),
        "within_tau": float(within["settled"]),
        "within_tau_by_trends_alone": float(within["trends_agree"]),
        "error_quantiles": np.quantile(
            errors["settled"] or [math.nan], [0.5, 0.9]
        ).tolist(),
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
    parser.add_argument(
        "--anchor", type=float, default=0.0, help="weight of the anchor"
    )
    parser.add_argument("--curves", type=int, default=100, help="planted, per noise")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    result: dict[str, Any] = {"fraction": options.fraction}
    if options.archive is not None:
        rules = load_rules(options.benchmark)
        runs = read_runs([options.archive])
        every = list(outcomes(runs, rules, options.fraction, options.anchor))
        groups = {w: [x for x in every if x.workload == w] for w in rules.workloads}
        groups["all"] = every
        groups["all, settled"] = [x for x in every if x.prediction.is_settled]
        print(f"from the first {options.fraction:.0%} of the time to target:")
        print(
            "| workload | curves | predicted | error: median (quartiles) | bias "
            "| straight line | in interval | open above |"
        )
        print("|---|---|---|---|---|---|---|---|")
        result["archive"] = {name: summary(group) for name, group in groups.items()}
        for name, value in result["archive"].items():
            print_summary(name, value)
        print("no prediction:", result["archive"]["all"]["reasons"])
        alarms = false_alarms(runs, rules, options.fraction)
        result["false_alarms"] = alarms
        print(
            f"of {alarms['missed']} runs that missed, from the first "
            f"{options.fraction:.0%} of the run: predicted to reach the target in it "
            f"{alarms['predicted']}, settled {alarms['predicted_and_settled']}"
        )
    print("planted power laws, stopped at the first settled prediction:")
    print(
        "| noise / tau | curves | stopped | at | within tau | error: median, 90 % "
        "| by trends alone |"
    )
    print("|---|---|---|---|---|---|---|")
    generator = np.random.default_rng(0)
    noises = (0.0, 0.1, 0.25, 0.5, 1.0)
    result["planted"] = [planted(x, options.curves, generator) for x in noises]
    for row in result["planted"]:
        middle, most = row["error_quantiles"]
        alone = row["within_tau_by_trends_alone"]
        print(
            f"| {row['noise']:g} | {row['curves']} | {row['stopped']} "
            f"| {row['median_stop']:.0%} | {row['within_tau']:.0%} "
            f"| {middle:.2f}, {most:.2f} tau | {alone:.0%} |"
        )
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
