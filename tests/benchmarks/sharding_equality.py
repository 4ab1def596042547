"""Whether losses depend on how many devices a run has, and on how it is sharded.

    sharding_equality.py [--steps=50] [--devices=1,2,8] [--submissions=adamw,momentum]
                         [--workloads=...] [--float32] [--learning_rate=X]
                         [--json=FILE]

Trains each mini workload with the same global batch on virtual CPU devices, replicated
and sharded, and prints the largest difference of a training loss from one device,
relative to max(1, loss). Sums over a batch are taken in another order on more devices,
so that losses differ by rounding, and training makes differences grow: in float32, at
the learning rates of the search spaces, two runs on one device part after some twenty
steps too. So all is computed in float64, where only mistakes can show. `--float32` is
what a run does, and needs a small learning rate.
"""

import argparse
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "helpers"))

from shards import KINDS, ROOT, largest_difference, on_devices  # noqa: E402

WORKLOADS = (
    "criteo1tb,fastmri,finewebedu_lm,imagenet_resnet,imagenet_vit,"
    "librispeech_conformer,librispeech_deepspeech,ogbg,wmt"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--devices", default="1,2,8")
    parser.add_argument("--submissions", default="adamw,momentum")
    parser.add_argument("--workloads", default=WORKLOADS)
    parser.add_argument("--float32", action="store_true")
    parser.add_argument("--learning_rate", type=float)
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args()
    rate = flags.learning_rate
    options = [f"--steps={flags.steps}"]
    options += [] if rate is None else [f"--learning_rate={rate}"]
    options += [] if flags.float32 else ["--float64"]
    counts = [int(count) for count in flags.devices.split(",")]
    results = []
    for name in flags.workloads.split(","):
        for submission in flags.submissions.split(","):
            path = ROOT / "submissions" / submission
            runs = {
                count: on_devices(count, name, *options, f"--submission={path}")
                for count in counts
            }
            first = runs[counts[0]]["replicated"]
            differences = {
                f"{count} {kind}": largest_difference([first, seen[kind]])
                for count, seen in runs.items()
                for kind in KINDS
            }
            results.append(
                {
                    "workload": name,
                    "submission": submission,
                    "steps": flags.steps,
                    "losses": [first[0], first[-1]],
                    "arrays_split": runs[counts[-1]]["fsdp_arrays_split"],
                    "differences": differences,
                }
            )
            worst = max(differences.values())
            print(
                f"{name:24} {submission:10} loss {first[0]:.4f} to {first[-1]:.4f}"
                f"  worst {worst:.1e}  "
                + "  ".join(f"{k}: {v:.1e}" for k, v in differences.items()),
                flush=True,
            )
            if flags.json:
                flags.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
