"""Examples per second of our input pipelines beside tf.data, in one run.

Both pipelines stay open and are drawn from in turn, a round each, so that what else
the machine does falls on both. A round ends after so many seconds; what was prefetched
meanwhile is dropped before the next one begins.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

WARM_UP_BATCHES = 3


def arguments(description: str) -> argparse.Namespace:
    """Parses what all throughput benchmarks take."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="of a round")
    parser.add_argument("--workers", type=int, default=0, help="our processes")
    parser.add_argument("--threads", type=int, default=2, help="or our threads")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    return parser.parse_args()


def import_tensorflow() -> Any:
    """Returns TensorFlow, or ends with what to install."""
    try:
        import tensorflow as tf
    except ImportError:
        raise SystemExit("needs TensorFlow: pip install 'algoperf[prepare]'") from None
    return tf


def rate(batches: Iterator[Any], batch_size: int, seconds: float) -> float:
    """Returns examples per second, after a few batches that are not counted."""
    for _ in range(WARM_UP_BATCHES):
        next(batches)
    taken, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        next(batches)
        taken += 1
    return taken * batch_size / (time.perf_counter() - start)


def compare(
    options: argparse.Namespace,
    name: str,
    batch_size: int,
    ours: Callable[[], Iterator[Any]],
    theirs: Callable[[], Iterator[Any]],
) -> dict[str, Any]:
    """Measures both in turn, prints and returns rates and ratio.

    Args:
      options: from `arguments`.
      name: what is measured.
      batch_size: examples in a batch of either.
      ours: opens our pipeline; called once a round, so that only one of the two runs.
      theirs: opens tf.data.
    """
    rates: dict[str, list[float]] = {"ours": [], "tf.data": []}
    for _ in range(options.rounds):
        for side, start in (("ours", ours), ("tf.data", theirs)):
            batches = start()
            rates[side].append(rate(batches, batch_size, options.seconds))
            if hasattr(batches, "close"):
                batches.close()
            del batches
    medians = {side: statistics.median(found) for side, found in rates.items()}
    ratios = [a / b for a, b in zip(rates["ours"], rates["tf.data"], strict=True)]
    for side, found in rates.items():
        print(
            f"{name:<24} {side:<8} {medians[side]:>12,.1f} examples/s "
            f"({min(found):,.1f} to {max(found):,.1f})"
        )
    ratio = medians["ours"] / medians["tf.data"]
    print(
        f"{name:<24} ratio    {ratio:>12.2f} "
        f"(by round {min(ratios):.2f} to {max(ratios):.2f})",
        flush=True,
    )
    return {"name": name, "rates": rates, "ratio": ratio}


def alone(
    options: argparse.Namespace,
    name: str,
    batch_size: int,
    ours: Callable[[], Iterator[Any]],
) -> dict[str, Any]:
    """Measures one pipeline that has no counterpart here; prints and returns rates."""
    rates = [rate(ours(), batch_size, options.seconds) for _ in range(options.rounds)]
    print(
        f"{name:<24} {'ours':<8} {statistics.median(rates):>12,.1f} examples/s "
        f"({min(rates):,.1f} to {max(rates):,.1f})",
        flush=True,
    )
    return {"name": name, "rates": {"ours": rates}}


def write(options: argparse.Namespace, results: list[dict[str, Any]]) -> None:
    """Writes what `--json` asks for."""
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
