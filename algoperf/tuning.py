"""Search spaces and the hyperparameters of each trial.

A search space is a JSON file in the official format: either a list of points, each a
full set of hyperparameters, or an object that gives each hyperparameter a range
`{"min": ..., "max": ..., "scaling": "linear" | "log"}` or a choice
`{"feasible_points": [...]}`. Trial k (from 1) takes the k-th point of the list, or the
k-th point of a scrambled Halton sequence (Owen 2017, arXiv:1706.02808): it depends on
the study's seed and on k only, so trials may be spread over machines.
"""

import collections
import json
import keyword
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from scipy.stats import qmc

from algoperf.errors import UserError

_POINT = "Hyperparameters"
INSTEAD = "give one with --tuning_search_space, or use --ruleset self"
SearchSpace = list[dict[str, Any]] | dict[str, dict[str, Any]]


def load_search_space(path: Path, instead: str = INSTEAD) -> SearchSpace:
    """Reads and checks a search space.

    Args:
      path: the file.
      instead: what to do if it is not there, for the message.

    Raises:
      UserError: the file is missing or is not of the format above.
    """
    try:
        space = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"no search space at {path}; {instead}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"search space {path} is not readable JSON: {error}") from error
    if isinstance(space, list):
        parts = {f"point {i}": point for i, point in enumerate(space, start=1)}
    elif isinstance(space, dict):
        parts = {"the search space": space}
        for name, part in space.items():
            _check_range(path, name, part)
    else:
        parts = {}
    if not parts:
        raise UserError(f"search space {path} must be a non-empty list or object")
    for where, names in parts.items():
        if not isinstance(names, dict) or not names:
            raise UserError(f"search space {path}: {where} must be a non-empty object")
        for name in names:
            is_name = name.isidentifier() and not keyword.iskeyword(name)
            if not is_name or name.startswith("_"):
                raise UserError(
                    f"search space {path}: {name!r} is no name for a hyperparameter "
                    "(letters, digits and _, not first a digit or _; no Python keyword)"
                )
    return space


def _check_range(path: Path, name: str, part: Any) -> None:
    where = f"search space {path}: {name!r}"
    if not isinstance(part, dict):
        raise UserError(f"{where} must be an object with min and max, or a choice")
    if "feasible_points" in part:
        points = part["feasible_points"]
        if not isinstance(points, list) or not points:
            raise UserError(f"{where}: feasible_points must be a non-empty list")
        return
    low, high = part.get("min"), part.get("max")
    if not (_is_number(low) and _is_number(high)):
        raise UserError(f"{where} needs numbers min and max, or feasible_points")
    scaling = part.get("scaling", "linear")
    if scaling not in ("linear", "log"):
        raise UserError(f"{where}: scaling is {scaling!r}; allowed: linear, log")
    if low > high:
        raise UserError(f"{where}: min {low} is above max {high}")
    if scaling == "log" and low <= 0:
        raise UserError(f"{where}: log scaling needs min > 0, not {low}")


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)


def trial_point(space: SearchSpace, study_seed: int, trial: int) -> dict[str, Any]:
    """Returns the hyperparameters of one trial (counted from 1) of a study."""
    if trial < 1:
        raise UserError(f"trials count from 1, got {trial}")
    if isinstance(space, list):
        if trial > len(space):
            raise UserError(
                f"trial {trial} asked for, but the search space lists {len(space)} "
                "points; ask for fewer trials or add points"
            )
        return dict(space[trial - 1])
    sequence = qmc.Halton(d=len(space), scramble=True, rng=study_seed)
    sequence.fast_forward(trial - 1)
    coordinates = sequence.random(1)[0]
    names = sorted(space)
    return {
        name: _value(space[name], float(u))
        for name, u in zip(names, coordinates, strict=True)
    }


def _value(part: Mapping[str, Any], u: float) -> Any:
    """Maps u in [0, 1) onto a range or a choice."""
    if "feasible_points" in part:
        points = part["feasible_points"]
        return points[min(int(u * len(points)), len(points) - 1)]
    low, high = part["min"], part["max"]
    if part.get("scaling", "linear") == "log":
        value = math.exp(math.log(low) + u * (math.log(high) - math.log(low)))
    else:
        value = low + u * (high - low)
    return min(max(value, low), high)  # rounding may leave the range


def as_namedtuple(point: Mapping[str, Any] | None) -> Any:
    """Returns the point as submissions read it: `hyperparameters.learning_rate`."""
    if point is None:
        return None
    return collections.namedtuple(_POINT, point)(**point)


def watched(point: Any, read: set[str]) -> Any:
    """Returns an equal point that adds to `read` each of its names that is looked at.

    One that is iterated over, or indexed, counts as read as a whole.
    """
    kind: Any = type(point)

    def get(self: Any, name: str) -> Any:
        if name in kind._fields:
            read.add(name)
        return kind.__getattribute__(self, name)

    def iterate(self: Any) -> Iterator[Any]:
        read.update(kind._fields)
        return kind.__iter__(self)

    def look_up(self: Any, index: Any) -> Any:
        read.update(kind._fields)
        return kind.__getitem__(self, index)

    members = {"__slots__": (), "__getattribute__": get, "__iter__": iterate}
    members["__getitem__"] = look_up
    return type(_POINT, (kind,), members)(*point)


def is_point(value: Any) -> bool:
    """Whether `value` was made by `as_namedtuple`."""
    return type(value).__name__ == _POINT and hasattr(value, "_fields")
