"""How a trial ends in which an error was raised, and what it says of it."""

import contextlib
import traceback
from pathlib import Path
from typing import Any, cast

from algoperf import sharding, tuning
from algoperf.errors import UserError
from algoperf.hosts import Hosts
from algoperf.records import Status
from algoperf.trials import TrialConfig


def outcome(
    config: TrialConfig, error: BaseException, hosts: Hosts, is_asked_to_stop: bool
) -> tuple[Status, str]:
    """Returns how a trial ends on all hosts that an error has ended on this one.

    A signal that asks a run to stop may reach all of its processes, and ends those that
    make batches if they have only just begun. So a trial that was asked to stop can go
    on; if the error is the submission's own, it comes again.
    """
    text = describe(config, error)
    if not is_asked_to_stop:
        return hosts.failure(error, text)
    message = f"asked to stop; go on with --resume ({text})"
    with contextlib.suppress(UserError):  # another host says the same
        hosts.failure(UserError(message), message)
    return Status.PREEMPTED, message


def missing_hyperparameter(config: TrialConfig, error: BaseException) -> str | None:
    """Says what is wrong if a submission read a hyperparameter that it lacks."""
    if not isinstance(error, AttributeError):
        return None
    name, owner = config.submission.name, cast(Any, error.obj)
    if tuning.is_point(owner):
        where = "its search space" if config.hyperparameters else "its self_tuned"
        return (
            f"submission {name} reads the hyperparameter {error.name!r}, which {where} "
            f"lacks; add it there, beside {', '.join(owner._fields)}"
        )
    if owner is None and f"hyperparameters.{error.name}" in _own_line(config, error):
        return (
            f"submission {name} reads {error.name!r} of hyperparameters, and "
            "--ruleset self gives none; run it with --ruleset external"
        )
    return None


def _own_line(config: TrialConfig, error: BaseException) -> str:
    """Returns the line of the submission's file that raised an error, '' for others."""
    frame = traceback.extract_tb(error.__traceback__)[-1:]
    is_own = frame and Path(frame[0].filename) == config.submission.path
    return (frame[0].line or "") if is_own else ""


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
