"""What a user sees while trials run: a line per evaluation, a bar on a terminal."""

import math
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from algoperf.runner import Progress as TrialProgress
from algoperf.trials import TrialConfig

REFRESH_SEC = 0.5


class _Console(Console):
    """Falls silent where its reader, `head` say, has left: the trial goes on."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class ProgressReport:
    """Shows trials as they go; a context manager."""

    def __init__(self) -> None:
        self._console = _Console(highlight=False, soft_wrap=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps, {task.fields[seconds]:.0f} s"),
            console=self._console,
            auto_refresh=False,  # no thread of its own beside the training
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task: Any = None
        self._shown = 0.0
        self._config: TrialConfig | None = None

    def __enter__(self) -> "ProgressReport":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def watch(self, config: TrialConfig, progress: TrialProgress) -> None:
        """Called by the runner after every step and every evaluation."""
        if config is not self._config:
            self._begin(config, progress.budget_sec)
        now = time.monotonic()
        if not progress.is_new_evaluation and now - self._shown < REFRESH_SEC:
            return
        self._shown = now
        if progress.is_new_evaluation:
            self._console.print(_evaluation_line(config, progress))
        if not self._bar.disable:
            self._bar.update(
                self._task, completed=progress.step, seconds=progress.submission_sec
            )
            self._bar.refresh()

    def finished(self, config: TrialConfig, record: dict[str, Any]) -> None:
        """Called by the runner at the end of each trial."""
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
        self._console.print(_final_line(config, record))

    def _begin(self, config: TrialConfig, budget_sec: float) -> None:
        self._config = config
        budget = f"budget {budget_sec:.4g} s"
        if math.isinf(budget_sec):
            budget = "no time budget"
        elif budget_sec != config.budget_sec:  # it was measured as the trial began
            budget += ", as when it began"
        elif config.budget_ratio != 1:
            budget += f" ({config.budget_ratio:.3g} times the reference machine's)"
        self._console.print(
            f"{_name(config)}: target {config.workload.target_metric_name} "
            f"{config.workload.validation_target_value:g}, {budget}{_layout(config)}"
        )
        if config.hyperparameters:
            self._console.print(f"  {_point(config.hyperparameters)}")
        total = config.max_steps or config.workload.step_hint
        self._task = self._bar.add_task(_name(config), total=total, seconds=0.0)


def _name(config: TrialConfig) -> str:
    return (
        f"{config.submission.name} on {config.workload.name}, study {config.study}, "
        f"trial {config.trial}"
    )


def _point(hyperparameters: Mapping[str, Any]) -> str:
    """Hyperparameters in four digits; their files have all."""
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in hyperparameters.items()
    )


def _layout(config: TrialConfig) -> str:
    """How the run lies on its devices; nothing for one."""
    import jax

    count, placement = jax.device_count(), config.workload.placement
    pieces = placement.microbatches
    devices = f", {count} devices, {placement.kind}" if count > 1 else ""
    return devices + (f", {pieces} microbatches" if pieces > 1 else "")


def _evaluation_line(config: TrialConfig, progress: TrialProgress) -> str:
    row = progress.evaluation or {}
    metric = config.workload.target_metric_name
    values = "  ".join(
        f"{split} {row.get(f'{split}/{metric}', float('nan')):.4f}"
        for split in ("train", "validation", "test")
    )
    return (
        f"  step {progress.step:>6}  {progress.submission_sec:8.1f} s  "
        f"{metric}: {values}"
    )


def _final_line(config: TrialConfig, record: dict[str, Any]) -> str:
    seconds = record.get("clock", {}).get("submission", 0.0)
    why = f" ({record['message']})" if record["message"] else ""
    return (
        f"  {record['status']}{why}: {record.get('global_step', 0)} steps, "
        f"{seconds:.1f} s of training; record in {config.folder}"
    )
