"""Records of trials on the mini suite, as long as a test wants them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import scoring
from algoperf import records

RULES = scoring.load_rules("mini")


def write_runs(
    root: Path,
    factors: Mapping[str, float],
    missed=(),
    study: int = 0,
    sizes: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """Writes a trial of each submission on each workload.

    Args:
      root: the folder.
      factors: of each submission, on the steps that it takes; a step takes 0.1 s.
      missed: pairs of submission and workload that end without the target.
      study: of all these trials.
      sizes: what the records of a submission say of sizes.
    """
    for name, factor in factors.items():
        for w, workload in enumerate(RULES.base_workloads):
            goal = RULES.goals[workload]
            worse = goal.target * (2 if goal.direction == "minimize" else 0.5)
            is_missed = (name, workload) in missed
            folder = root / name / f"study_{study}" / f"{workload}_jax" / "trial_1"
            folder.mkdir(parents=True)
            step = round(100 * (w + 1) * factor)
            columns = ",".join(
                (
                    records.SUBMISSION_TIME,
                    records.GLOBAL_STEP,
                    f"validation/{goal.metric}",
                    "train/loss",
                )
            )
            value = worse if is_missed else goal.target
            text = f"{columns}\n0,0,{worse},1\n{step / 100},{step},{value},1\n"
            (folder / records.EVAL_FILE).write_text(text)
            (folder / records.HPARAMS_FILE).write_text("{}")
            record = {
                "schema_version": records.SCHEMA_VERSION,
                "status": "budget" if is_missed else "reached",
                "workload": workload,
                "step_time": {"seconds": 0.1},
                "sizes": (sizes or {}).get(name, {}),
                "host": {"cpu": "Abacus", "cores": 2},
                "seeds": {"seed": 5},
            }
            (folder / records.RECORD_FILE).write_text(json.dumps(record))
            (folder / "checkpoint").write_text("large")
    return root
