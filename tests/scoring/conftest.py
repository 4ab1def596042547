"""Trials in memory and on disk, and the archive of the 2024 competition."""

import os
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest

from algoperf import records
from scoring.read import Runs, Trial
from scoring.rules import load_rules

# A busy machine is no failure.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

REPOSITORY = Path(__file__).resolve().parents[2]
STUDY_TIMES = ((10.0, 14.0), (11.0, 12.0), (13.0, 12.5))  # seconds, of 3 studies
ARCHIVE = REPOSITORY.parent / "shared/data/algoperf_v05_external_logs.tar.xz"


@pytest.fixture
def make_trial() -> Callable[..., Trial]:
    """Makes a trial in memory from times and metric values."""

    def make(
        submission: str = "adamw",
        workload: str = "imagenet_resnet_mini",
        *,
        study: int = 0,
        trial: int = 1,
        framework: str = "jax",
        times: Sequence[float] = (),
        metric: str = "accuracy",
        values: Sequence[float] = (),
        record: Mapping[str, Any] | None = None,
        path: Path = Path("nowhere"),
    ) -> Trial:
        columns = {}
        if times:
            columns = {
                records.GLOBAL_STEP: np.arange(len(times), dtype=float),
                records.SUBMISSION_TIME: np.array(times, float),
                f"validation/{metric}": np.array(values, float),
            }
        return Trial(
            submission=submission,
            study=study,
            workload=workload,
            framework=framework,
            trial=trial,
            columns=columns,
            record=record,
            path=path,
        )

    return make


@pytest.fixture
def mini_runs(make_trial) -> Callable[..., Runs]:
    """Makes mini runs from {submission: (resnet s, lm s)}; None is a miss."""

    def make(times: Mapping[str, tuple[float | None, float | None]]) -> Runs:
        trials = []
        for submission, (resnet, lm) in times.items():
            accuracy = 0.1 if resnet is None else 0.9
            ppl = 99.0 if lm is None else 12.0
            trials += [
                make_trial(submission, times=[resnet or 1.0], values=[accuracy]),
                make_trial(
                    submission,
                    "finewebedu_lm_mini",
                    times=[lm or 1.0],
                    metric="ppl",
                    values=[ppl],
                ),
            ]
        return Runs(trials=tuple(trials), skipped=())

    return make


@pytest.fixture
def study_runs(make_trial) -> Callable[..., Runs]:
    """Makes three studies of two trials from {submission: factor on their times}."""

    def make(factors: Mapping[str, float]) -> Runs:
        rules = load_rules("mini_fast")
        trials = [
            make_trial(
                name,
                workload,
                study=k,
                trial=t,
                times=[factor * time],
                metric=rules.goals[workload].metric,
                values=[rules.goals[workload].target],
            )
            for name, factor in factors.items()
            for workload in rules.base_workloads
            for k, study in enumerate(STUDY_TIMES)
            for t, time in enumerate(study, start=1)
        ]
        return Runs(trials=tuple(trials), skipped=())

    return make


@pytest.fixture
def write_trial() -> Callable[..., Path]:
    """Writes a trial folder as the official benchmark or as our harness does."""

    def write(
        root: Path,
        submission: str = "adamw",
        workload: str = "imagenet_resnet_mini_jax",
        *,
        study: int = 0,
        trial: int = 1,
        times: Sequence[float] = (1.0, 2.0),
        metric: str = "accuracy",
        values: Sequence[float] = (0.1, 0.9),
        status: str | None = None,
        **record: Any,
    ) -> Path:
        folder = root / submission / f"study_{study}" / workload / f"trial_{trial}"
        folder.mkdir(parents=True)
        rows = [
            {
                records.SUBMISSION_TIME: time,
                records.GLOBAL_STEP: step,
                f"validation/{metric}": value,
                "train/loss": 1.0,
            }
            for step, (time, value) in enumerate(zip(times, values, strict=True))
        ]
        if rows:
            records.write_measurements(folder / records.EVAL_FILE, rows)
        if status is not None:
            facts = {"schema_version": records.SCHEMA_VERSION, "status": status}
            records.write_json(folder / records.RECORD_FILE, {**facts, **record})
        return folder

    return write


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the eleven external-tuning submissions of 2024."""
    folder = os.environ.get("ALGOPERF_V05_LOGS")
    if folder:
        return Path(folder)
    if not ARCHIVE.exists():
        pytest.skip("no archive: set ALGOPERF_V05_LOGS to a folder of submissions")
    target = tmp_path_factory.mktemp("archive")
    with tarfile.open(ARCHIVE) as file:
        file.extractall(target, filter="data")
    return target / "algoperf_v05/logs/external_tuning"
