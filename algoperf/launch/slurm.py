"""Submits the trials of a sweep to Slurm: one array job per type of hardware.

submitit writes the batch files. A job is put back in the queue when its time is up
(Slurm sends a signal ahead, the trial saves a checkpoint, the job asks to be requeued)
and when Slurm preempts it (Slurm requeues it by itself, after SIGTERM). Scoring is a
job that waits for all others.
"""

import getpass
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from algoperf import locks, records
from algoperf.errors import UserError
from algoperf.launch import jobs, local
from algoperf.launch.cluster import Hardware
from algoperf.launch.jobs import Job

STATE = "slurm.json"  # which job has which trial
SCORE = "score"  # the key of the scoring job in it
MAX_TIMEOUTS = 1000  # how often a job may run out of time and be queued again
SCORE_TIME_MIN = 60


class Trial:
    """What runs on a node: one trial, in a process of its own; submitit calls it."""

    def __init__(self, job: Job):
        self.job = job

    def __call__(self) -> int:
        """Runs the trial; returns the exit status of its process, 0 if it needs none.

        Raises:
          RuntimeError: it was stopped, and Slurm alone knows whether it will go on.
        """
        ahead = _signal_ahead()
        requeue = signal.getsignal(ahead)  # submitit's
        asked: list[int] = []

        def ask(number: int, frame: FrameType | None) -> None:
            del frame
            asked.append(number)

        for number in (ahead, signal.SIGTERM):
            signal.signal(number, ask)
        done = local.run_jobs([self.job], lambda: bool(asked), notice=print)
        codes = [code for _, code in done]
        if jobs.is_finished(self.job.folder):
            if codes:
                return codes[-1]
            # Asked to stop before it began, while another process had the trial.
            print(f"{self.job.folder} has its result already")
            return 0
        if ahead in asked and callable(requeue):
            requeue(ahead, None)  # calls `checkpoint`, asks Slurm, does not return
        raise RuntimeError(f"{self.job.folder} has no result; see the lines above")

    def checkpoint(self) -> Any:
        """Returns what the requeued job runs: the trial is saved by now."""
        submitit = _submitit()
        return submitit.helpers.DelayedSubmission(Trial(self.job))


class Score:
    """The job that waits for all others."""

    def __init__(self, arguments: Sequence[str]):
        self.arguments = tuple(arguments)

    def __call__(self) -> None:
        """Scores; raises CalledProcessError, so that Slurm too says that it failed."""
        command = [sys.executable, "-m", "algoperf", "score", *self.arguments]
        subprocess.run(command, check=True)


def submit(
    trials: Mapping[Hardware, Sequence[Job]], out: Path, score: Sequence[str]
) -> dict[str, str]:
    """Submits the trials that are neither finished nor in the queue, then scoring.

    Args:
      trials: what runs where.
      out: where the records go; job ids and logs lie beside the plan of the sweep.
      score: the arguments of `algoperf score`.

    Returns:
      The jobs that were submitted: folders of trials, within `out`, or `SCORE`, to job
      ids; empty if nothing is missing.

    Raises:
      UserError: submitit or Slurm is not there, or Slurm refuses a job.
    """
    _submitit()
    folder = out / jobs.FOLDER
    records.make_folder(folder)
    with locks.hold(folder / "slurm"):  # of two calls, one submits
        known = _read_state(folder / STATE)
        queued = _queued()
        submitted: dict[str, str] = {}
        for hardware, wanted in trials.items():
            missing = [
                job
                for job in wanted
                if known.get(_name(job, out)) not in queued
                and not jobs.is_finished(job.folder)
            ]
            ids = _submit(hardware, [Trial(job) for job in missing], folder)
            submitted |= zip((_name(job, out) for job in missing), ids, strict=True)
            if missing and (scoring := known.pop(SCORE, None)) in queued:
                _call("scancel", scoring)  # it would not wait for the new ones
            # At once: what Slurm refuses next must not make this forgotten, nor that
            # a scoring job is due.
            records.write_json(folder / STATE, known | submitted)
        if not submitted and (SCORE in known or not known):
            return {}
        names = {_name(job, out) for wanted in trials.values() for job in wanted}
        ids = [i for name, i in (known | submitted).items() if name in names]
        waits_for = sorted({i for i in ids if i in queued or i in submitted.values()})
        first = next(iter(trials))
        (submitted[SCORE],) = _submit(first, [Score(score)], folder, waits_for)
        records.write_json(folder / STATE, known | submitted)
    return submitted


def parameters(
    hardware: Hardware, name: str, after: Sequence[str] = ()
) -> dict[str, Any]:
    """Returns the parameters of submitit's SlurmExecutor for a type of hardware."""
    slurm = hardware.slurm
    found: dict[str, Any] = {
        "job_name": name,
        "time": hardware.time_min,
        "signal_delay_s": hardware.grace_sec,
        "array_parallelism": hardware.parallel,
        "stderr_to_stdout": True,
        # One task has the whole node; bound to one core it would crawl.
        "srun_args": ["--cpu-bind=none"],
        "additional_parameters": {"requeue": True, **slurm.options},
    }
    if hardware.gpus:
        found["gpus_per_node"] = hardware.gpus
    if hardware.cpus:
        found["cpus_per_task"] = hardware.cpus
        # Since Slurm 22.05 a step does not inherit this from its job.
        found["srun_args"].append(f"--cpus-per-task={hardware.cpus}")
    if hardware.memory_gb:
        found["mem"] = f"{hardware.memory_gb}GB"
    if slurm.exclusive:
        found["exclusive"] = True
    if slurm.setup:
        found["setup"] = list(slurm.setup)
    for key in ("partition", "account", "qos", "constraint"):
        if getattr(slurm, key):
            found[key] = getattr(slurm, key)
    if after:
        found["dependency"] = "afterany:" + ":".join(after)
        found["time"] = SCORE_TIME_MIN
        for key in ("exclusive", "gpus_per_node", "cpus_per_task", "mem"):
            found.pop(key, None)
        found["srun_args"] = ["--cpu-bind=none"]
    return found


def _submit(
    hardware: Hardware,
    tasks: Sequence[Trial | Score],
    folder: Path,
    after: Sequence[str] = (),
) -> list[str]:
    """Submits tasks as one array; returns their job ids."""
    if not tasks:
        return []
    submitit = _submitit()
    executor = submitit.SlurmExecutor(
        folder=(folder / "logs").absolute(), max_num_timeout=MAX_TIMEOUTS
    )
    what = SCORE if after else hardware.name
    executor.update_parameters(**parameters(hardware, f"algoperf-{what}", after))
    try:
        with executor.batch():
            submitted = [executor.submit(task) for task in tasks]
    except (submitit.core.utils.FailedJobError, OSError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise UserError(f"Slurm refuses {what}: {' '.join(lines)[-300:]}") from error
    return [job.job_id for job in submitted]


def _queued() -> set[str]:
    """Returns the ids of this user's jobs that wait or run, each task of an array."""
    user = getpass.getuser()
    text = _call("squeue", "--noheader", "--array", "--format=%i", f"--user={user}")
    return set(text.split())


def _call(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except FileNotFoundError as error:
        raise UserError(
            f"{command[0]} is not there: call algoperf sweep --executor slurm on a "
            "machine that submits jobs to Slurm"
        ) from error
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.split())[:300]
        raise UserError(
            f"{command[0]} fails: {said}; call this where Slurm's commands work"
        ) from error
    return done.stdout


def _read_state(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    try:
        return {str(k): str(v) for k, v in json.loads(path.read_text()).items()}
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read; cancel this sweep's jobs, and remove it"
        ) from error


def _name(job: Job, out: Path) -> str:
    return str(job.folder.relative_to(out))


def _signal_ahead() -> signal.Signals:
    """Returns the signal that submitit asks Slurm to send before the time is up."""
    name = os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2")
    return signal.Signals[f"SIG{name}"]


def _submitit() -> Any:
    try:
        import submitit
    except ImportError as error:
        raise UserError(
            "--executor slurm needs submitit: pip install 'algoperf[slurm]'"
        ) from error
    return submitit
