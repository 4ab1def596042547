"""What a failed trial says of its error."""

import traceback
from pathlib import Path

from algoperf import sharding, tuning
from algoperf.trials import TrialConfig


def missing_hyperparameter(config: TrialConfig, error: BaseException) -> str | None:
    """Says what is wrong if a submission read a hyperparameter that it lacks."""
    owner = getattr(error, "obj", None)
    if not isinstance(error, AttributeError) or not tuning.is_point(owner):
        return None
    return (
        f"submission {config.submission.name} reads the hyperparameter "
        f"{error.name!r}, which its search space lacks; it has: "
        f"{', '.join(config.hyperparameters or {})}"
    )


def describe(config: TrialConfig, error: BaseException) -> str:
    """One line for a failed trial: what, and where in the submission."""
    known = missing_hyperparameter(config, error)
    if known := known or sharding.explain(error, config.workload.placement):
        return known
    text = f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:
        return f"out of memory, try a smaller batch ({text})"
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if Path(f.filename) == config.submission.path]
    return f"{text} ({own[-1].filename}:{own[-1].lineno})" if own else text
