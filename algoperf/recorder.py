"""Keeps the record of a trial while it runs; `algoperf.records` says what it is."""

import contextlib
import dataclasses
import datetime
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from algoperf import hardware, locks, records
from algoperf.errors import OtherRunError, UserError
from algoperf.hosts import Hosts
from algoperf.records import Row, Status
from algoperf.trials import Seeds, TrialConfig

# What must be equal for a run to go on in the folder of an earlier one; `microbatches`
# is part of `placement`.
IDENTITY = (
    "submission",
    "workload",
    "ruleset",
    "study",
    "trial",
    "hyperparameters",
    "seeds",
    "batch_size",
    "max_steps",
    "eval_period_steps",
    "target",
    "step_hint",
    "microbatches",
)
# What tells the parts of a trial that went on elsewhere from each other.
ENVIRONMENT = ("host", "devices", "versions", "git_revision", "placement")


class ScalarLog:
    """The `metrics_logger` of a workload.

    Values may still be on their way from the device: they are kept as they are, and
    made numbers when the record is written, off the submission's clock.
    """

    def __init__(self) -> None:
        self._pending: list[tuple[int, dict[str, Any]]] = []
        self._rows: list[Row] = []

    def append_scalar_metrics(
        self, metrics: Mapping[str, Any], global_step: int
    ) -> None:
        """Keeps scalars for `measurements.csv`.

        Raises:
          TypeError: one is no scalar.
        """
        for name, value in metrics.items():
            if np.ndim(value):  # asks for the shape alone, and does not wait
                raise TypeError(
                    f"append_scalar_metrics: {name} has shape {np.shape(value)}; "
                    "log a mean, a norm, or one element of it"
                )
        self._pending.append((int(global_step), dict(metrics)))

    def rows(self) -> list[Row]:
        """Returns one row per call so far."""
        for step, metrics in self._pending:
            values = {name: float(value) for name, value in metrics.items()}
            self._rows.append({records.GLOBAL_STEP: step, **values})
        self._pending.clear()
        return self._rows

    def restore(self, rows: list[Row]) -> None:
        """Goes back to the rows of a checkpoint."""
        self._pending.clear()
        self._rows = list(rows)


class Recorder:
    """The record of one trial; every write leaves a readable folder.

    Of several hosts, all keep it and the leader writes it.
    """

    def __init__(
        self,
        folder: str | Path,
        record: dict[str, Any],
        is_resumed: bool,
        is_writer: bool = True,
    ):
        self.folder = Path(folder)
        self.record = record
        self.is_resumed = is_resumed  # there is an earlier part of this very run
        self.rows: list[Row] = []  # of evaluations
        self.is_writer = is_writer
        self.is_started = False
        self.metrics_logger = ScalarLog()
        self._eval_results: list[tuple[int, dict[str, float]]] = []
        self._lock: locks.Lock | None = None
        self._placement: dict[str, Any] = {}
        # What the state ran on that this part goes on with; None: not restored so far.
        self._parts: list[Mapping[str, Any]] | None = None

    @classmethod
    @contextlib.contextmanager
    def open(
        cls,
        *,
        config: TrialConfig,
        seeds: Seeds,
        batch_size: int,
        resume: bool,
        hosts: Hosts,
    ) -> Iterator["Recorder"]:
        """Looks at the trial's folder and locks it; a finished trial is only looked at.

        Of several hosts, the leading one does so for all.

        Raises:
          OtherRunError: the folder holds another run.
          OtherWriterError: another process writes there.
          UserError: it holds this one and not `resume`.
        """
        with contextlib.ExitStack() as stack:
            lock: locks.Lock | None = None

            def look() -> tuple[str, dict[str, Any], bool]:
                nonlocal lock
                found = cls._look(config, seeds, batch_size, resume)
                if not Status(found[1]["status"]).is_final:
                    lock = stack.enter_context(locks.hold(Path(found[0])))
                    # Another process may have finished it before we had the lock.
                    found = cls._look(config, seeds, batch_size, resume)
                    if not found[2]:
                        _clear(Path(found[0]))
                return found

            folder, record, is_resumed = hosts.call(look)
            recorder = cls(folder, record, is_resumed, hosts.is_leader)
            recorder._lock = lock
            recorder._placement = dataclasses.asdict(config.workload.placement)
            yield recorder

    @staticmethod
    def _look(
        config: TrialConfig, seeds: Seeds, batch_size: int, resume: bool
    ) -> tuple[str, dict[str, Any], bool]:
        folder = config.folder
        record = _new_record(config, seeds, batch_size)
        # A hidden file is what a kill has left of the first write.
        if not folder.exists() or all(f.name.startswith(".") for f in folder.iterdir()):
            return str(folder), record, False
        if not (folder / records.RECORD_FILE).exists():
            raise UserError(
                f"{folder} is not empty and holds no record of a run; "
                "choose another --out"
            )
        earlier = records.read_record(folder)
        if not resume:
            if _made_nothing(folder, earlier):
                return str(folder), record, False
            raise UserError(
                f"{folder} holds a run already ({earlier['status']}); go on with "
                "--resume, or choose another --out"
            )
        found, wanted = _identity(earlier), _identity(record)
        differing = [n for n, value in wanted.items() if found.get(n, value) != value]
        if "submission" in differing:
            raise OtherRunError(
                f"{folder} holds another run: {config.submission.path}, or a file that "
                "it imports, has changed since, or is another one; choose another --out"
            )
        for name in differing:
            raise OtherRunError(
                f"{folder} holds another run: its {name} is {found[name]}, asked for "
                f"is {wanted[name]}; choose another --out"
            )
        _check_budget(folder, earlier, record)
        earlier["preemption_count"] += not earlier["status"].is_final
        return str(folder), earlier, True

    @property
    def budget_sec(self) -> float:
        """Submission time after which the trial ends, as it was when it began."""
        budget = self.record["budget_sec"]
        return math.inf if budget is None else budget

    @property
    def status(self) -> Status:
        """How the trial stands."""
        return Status(self.record["status"])

    def start(self, flags: Mapping[str, Any]) -> None:
        """Marks the trial as running and writes what is known before training.

        Raises:
          UserError: the folder cannot be written.
        """
        self.is_started = True
        part = self.record["preemption_count"]
        environment = _environment()
        facts: dict[str, Any] = {**environment, "placement": self._placement}
        if self._parts is None and self.is_resumed:
            # An error came before the checkpoint was read: this part has added nothing,
            # and the record goes on saying what the trained ones ran on.
            facts = {}
        else:
            facts["earlier_environments"] = _before(facts, self._parts or [])
        self.record.pop("traceback", None)  # of an earlier part
        if self.is_writer:
            records.make_folder(self.folder)
            self._write_measurements()  # a restored trial's, without a lost future
        self.update({**facts, "status": Status.RUNNING, "message": ""})
        if not self.is_writer:
            return
        hyperparameters = self.record["hyperparameters"] or {}
        records.write_json(self.folder / records.HPARAMS_FILE, hyperparameters)
        records.write_json(self.folder / f"flags_{part}.json", flags)
        records.write_json(self.folder / f"meta_data_{part}.json", environment)

    def restore(self, history: Mapping[str, Any]) -> None:
        """Goes back to what a checkpoint had; {} where there is none."""
        # Not from the record: a part may have begun since, and added nothing.
        self._parts = history.get("environments", [])
        if history and not self._parts:  # of an older version, which did not save it
            self._parts = self._environments()
        for row in history.get("eval_rows", []):
            self._add_row(row)
        self.metrics_logger.restore(history.get("scalar_rows", []))

    def history(self) -> dict[str, Any]:
        """Returns the rows so far and what they were made on, for a checkpoint."""
        return {
            "eval_rows": self.rows,
            "scalar_rows": self.metrics_logger.rows(),
            "environments": self._environments(),
        }

    def _environments(self) -> list[Mapping[str, Any]]:
        """Returns what the record says that it ran on: earlier parts, then this one."""
        now = {name: self.record.get(name) for name in ENVIRONMENT}
        return [*self.record.get("earlier_environments", []), now]

    def eval_results(self) -> list[tuple[int, dict[str, float]]]:
        """Returns (step, metrics) of every evaluation, as submissions see it."""
        return list(self._eval_results)

    def add_evaluation(
        self, step: int, clock: Mapping[str, float], metrics: Mapping[str, float]
    ) -> None:
        """Adds the row of one evaluation; `clock` has the totals of the phases."""
        row = {
            records.GLOBAL_STEP: step,
            records.PREEMPTION_COUNT: self.record["preemption_count"],
            records.SUBMISSION_TIME: clock["submission"],
            records.EVAL_TIME: clock["evaluation"],
            records.LOGGING_TIME: clock["logging"],
            records.TOTAL_TIME: sum(clock.values()),
            records.SCORE: clock["submission"],
            **metrics,
        }
        self._add_row(row)
        if self.is_writer:
            self._write_measurements()

    def _write_measurements(self) -> None:
        if not self.rows:
            return
        self.check_lock()
        records.write_measurements(self.folder / records.EVAL_FILE, self.rows)
        both = [*self.rows, *self.metrics_logger.rows()]
        both.sort(key=lambda row: row[records.GLOBAL_STEP])
        records.write_measurements(self.folder / records.MEASUREMENTS_FILE, both)

    def _add_row(self, row: Row) -> None:
        self.rows.append(row)
        self._eval_results.append((int(row[records.GLOBAL_STEP]), dict(row)))

    def update(self, facts: Mapping[str, Any]) -> None:
        """Adds facts to `record.json`."""
        self.record.update(facts)
        if self.is_writer:
            self.check_lock()
            records.write_json(self.folder / records.RECORD_FILE, self.record)

    def check_lock(self) -> None:
        """Raises UserError if another process writes in the trial's folder."""
        if self._lock is not None:
            self._lock.check()

    def finish(
        self, status: Status, message: str, facts: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Writes how the trial ended; returns the record."""
        end = {"status": status, "message": message, "end_time": _utc_now()}
        self.update({**facts, **end})
        return self.record


def _new_record(config: TrialConfig, seeds: Seeds, batch_size: int) -> dict[str, Any]:
    workload, submission = config.workload, config.submission
    return {
        "schema_version": records.SCHEMA_VERSION,
        "status": Status.RUNNING,
        "message": "",
        "submission": {
            "name": submission.name,
            "file": submission.path.name,
            "sha256": submission.sha256,
        },
        "workload": workload.name,
        "base_workload": workload.base_workload,
        "scale": workload.scale,
        "framework": "jax",
        "ruleset": config.ruleset,
        "study": config.study,
        "trial": config.trial,
        "hyperparameters": None
        if config.hyperparameters is None
        else dict(config.hyperparameters),
        "seeds": dataclasses.asdict(seeds),
        "batch_size": batch_size,
        "eval_batch_size": workload.eval_batch_size,
        "max_steps": config.max_steps,
        "eval_period_steps": config.eval_period_steps,
        "target": {
            "metric": workload.target_metric_name,
            "direction": workload.target_direction,
            "validation": workload.validation_target_value,
            "test": workload.test_target_value,
        },
        "budget_sec": config.budget_sec,
        "budget_ratio": config.budget_ratio,
        "step_hint": workload.step_hint,
        "placement": dataclasses.asdict(workload.placement),
        "num_parameters": workload.num_parameters,
        "preemption_count": 0,
        "start_time": _utc_now(),
    }


def _made_nothing(folder: Path, record: Mapping[str, Any]) -> bool:
    """Whether an error ended a trial before its first step, such as a mistyped name.

    What begins in its place loses nothing. Of one that was killed, the record does not
    say how far it was.
    """
    has_step = record.get("global_step", 0) > 0 or any(folder.glob("checkpoint_*"))
    is_failed = record["status"] is Status.FAILED and "traceback" in record
    return is_failed and not has_step


def _clear(folder: Path) -> None:
    """Removes what a run left that made nothing, so that none of it is taken for ours.

    Its record goes last: without it the folder would be that of something else.
    """
    mine = (records.EVAL_FILE, records.MEASUREMENTS_FILE, records.HPARAMS_FILE)
    for pattern in (*mine, "flags_*.json", "meta_data_*.json", records.RECORD_FILE):
        for path in folder.glob(pattern):
            path.unlink()


def _identity(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a record says of IDENTITY; those of older versions lack some."""
    record = json.loads(json.dumps(records.finite(record)))
    facts = {**(record.get("placement") or {}), **record}
    return {name: facts[name] for name in IDENTITY if name in facts}


def _check_budget(
    folder: Path, earlier: Mapping[str, Any], record: Mapping[str, Any]
) -> None:
    """Raises OtherRunError where one run has a time budget and the other has none.

    Its length is that of the beginning: it was measured there.
    """
    had, wants = (
        x.get("budget_sec", 0.0) not in (None, math.inf) for x in (earlier, record)
    )
    if had != wants:
        raise OtherRunError(
            f"{folder} holds another run: it has {'a' if had else 'no'} time budget, "
            f"asked for is {'one' if wants else 'none'}; choose another --out"
        )


def _before(
    now: Mapping[str, Any], parts: list[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """Returns the earlier environments of a part: others than its own, each once."""
    *others, last = parts or [now]
    return others if last == now or last in others else [*others, last]


def _environment() -> dict[str, Any]:
    return {
        "host": hardware.describe_host(),
        "devices": hardware.describe_devices(),
        "versions": hardware.describe_versions(),
        "git_revision": hardware.git_revision(),
    }


def _utc_now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
