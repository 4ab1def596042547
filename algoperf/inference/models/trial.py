"""What a trial has trained, read from its folder to be served.

A trial saves a checkpoint right after an evaluation, so what lies there are the
parameters that were evaluated: those of `prepare_for_eval`, averaged where the
submission averages. A trial that was asked to stop saves them as they stood.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from algoperf import records
from algoperf.checkpoint import read_part
from algoperf.errors import UserError

_KEY = re.compile(r"\['([^']*)'\]")


@dataclasses.dataclass(frozen=True)
class TrainedTrial:
    """Parameters that a trial has left, and where they come from.

    Attributes:
      folder: of the trial.
      record: its `record.json`.
      step: at which the parameters were saved.
      params: the workload's tree, NumPy arrays.
      evaluation: the row of the evaluation that these very parameters had; None where
        they had none.
    """

    folder: Path
    record: Mapping[str, Any]
    step: int
    params: dict[str, Any]
    evaluation: records.Row | None

    @property
    def identity(self) -> dict[str, Any]:
        """What tells the trial from others, with the quality it was saved at."""
        return {**identity(self.record), "step": self.step}


def identity(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what tells a trial from others: names, numbers, seed, beginning."""
    return {
        "submission": record["submission"]["name"],
        "workload": record["workload"],
        "ruleset": record["ruleset"],
        "study": record["study"],
        "trial": record["trial"],
        "trial_seed": record["seeds"]["trial_seed"],
        "start_time": record["start_time"],
    }


def find_trials(folder: Path) -> list[Path]:
    """Returns the folders of trials at or under a folder, sorted.

    Raises:
      UserError: there are none.
    """
    found = sorted(path.parent for path in folder.rglob(records.RECORD_FILE))
    if not found:
        raise UserError(
            f"{folder} holds no {records.RECORD_FILE}; give the folder of a trial that "
            "`algoperf run` has written, or one above it"
        )
    return found


def read_trial(folder: Path) -> TrainedTrial:
    """Reads what a trial has trained, from its newest checkpoint.

    Raises:
      UserError: there is no record or no checkpoint; what to do.
    """
    record = records.read_record(folder)
    leaves, facts = read_part(folder, "params")
    if not leaves:
        raise UserError(f"the checkpoint in {folder} holds no parameters; train again")
    step = int(facts["step"])
    rows = [row for row in facts["eval_rows"] if row[records.GLOBAL_STEP] == step]
    return TrainedTrial(
        folder=folder,
        record=record,
        step=step,
        params=_nested(leaves),
        evaluation=rows[-1] if rows else None,
    )


def _nested(leaves: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns the tree of dicts of leaves named "['embed']['embedding']"."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *above, last = _KEY.findall(path)
        node = tree
        for key in above:
            node = node.setdefault(key, {})
        node[last] = leaf
    return tree
