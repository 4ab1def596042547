"""What a probe step takes here: the figure behind `speed.REFERENCE_STEP_SEC`.

    python tests/benchmarks/speed_probe.py [--probes N] [--json FILE]

Run it with nothing else on the machine.
"""

import argparse
import json
import statistics
from pathlib import Path

from algoperf import hardware, speed


def main() -> None:
    """Probes, prints median and range."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--probes", type=int, default=10)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    steps = sorted(speed.probe_step_sec() for _ in range(arguments.probes))
    print(
        f"{1e3 * statistics.median(steps):.3f} ms a probe step, "
        f"{1e3 * steps[0]:.3f} to {1e3 * steps[-1]:.3f} in {len(steps)} probes; "
        f"reference {1e3 * speed.REFERENCE_STEP_SEC:.3f} ms"
    )
    if arguments.json:
        facts = {"host": hardware.describe_host(), "seconds": steps}
        arguments.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
