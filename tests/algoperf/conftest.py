"""Trials of a tiny workload, ready to run."""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from synthetic import SYNTHETIC, FakeTime

from algoperf.loading import Submission, load_submission
from algoperf.trials import TrialConfig

HERE = Path(__file__).resolve().parent
HELPERS = HERE.parent / "helpers"
SUBMISSIONS = HERE / "submissions"

# A busy machine is no failure.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")


@pytest.fixture
def no_cache() -> Iterator[None]:
    """No compiled program is read from a cache: the seconds that saves are counted."""
    is_enabled = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", is_enabled)
    compilation_cache.reset_cache()


@pytest.fixture
def clock(no_cache: None) -> FakeTime:
    """A clock that stands still, also where a cache would save real seconds."""
    return FakeTime()


@pytest.fixture
def write_submission(tmp_path: Path) -> Callable[..., Submission]:
    """Loads Adam with text added to its file; by default none."""

    def write(text: str = "", name: str = "adam") -> Submission:
        path = tmp_path / f"{name}.py"
        path.write_text((SUBMISSIONS / "adam.py").read_text() + text)
        return load_submission(path)

    return write


@pytest.fixture
def make_config(tmp_path: Path, write_submission) -> Callable[..., TrialConfig]:
    """Makes a trial of twelve steps, evaluated and checkpointed every four.

    `text` is added to the file of the submission; the rest are fields of TrialConfig.
    """

    def make(text: str = "", name: str = "adam", **facts: Any) -> TrialConfig:
        usual = {
            "submission": facts.get("submission") or write_submission(text, name),
            "workload": SYNTHETIC,
            "out": tmp_path / "runs",
            "hyperparameters": {"learning_rate": 0.01},
            "max_steps": 12,
            "checkpoint_period_sec": 0.0,
        }
        return TrialConfig(**{**usual, **facts})

    return make


@pytest.fixture
def _collected() -> Iterator[None]:
    """Collects what Orbax leaves of a failed read, which complains when it goes."""
    yield
    gc.collect()


@pytest.fixture
def drive() -> Callable[..., dict[str, Any]]:
    """Runs `drive.py` on so many devices; returns what it saw."""

    def run(*arguments: Any, devices: int = 1) -> dict[str, Any]:
        flag = f"--xla_force_host_platform_device_count={devices}"
        done = subprocess.run(
            [sys.executable, HELPERS / "drive.py", *map(str, arguments)],
            env={**os.environ, "XLA_FLAGS": flag, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run
