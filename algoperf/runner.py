"""The story of a trial, from the seed to the record; then of a study.

`run_trial` opens the record, `_Trial.run` trains. The clock runs while the submission
selects data, updates and prepares for evaluation; it stands still while the harness
evaluates, records and checkpoints. Rules: MLCommons AlgoPerf (Dahl et al. 2023,
arXiv:2306.07179, section 4); where ours differ, docs/rules.md says why.
"""

import contextlib
import dataclasses
import functools
import math
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
from absl import logging

from algoperf import failures, outputs, reparam, spec, tuning
from algoperf.checkpoint import Checkpoints
from algoperf.clock import (
    Clock,
    CompileTime,
    Phase,
    StepsInFlight,
    StepTimes,
    Window,
    compile_time,
    wait_for_devices,
)
from algoperf.data.pipeline import InputQueue
from algoperf.errors import UserError
from algoperf.hosts import Hosts
from algoperf.recorder import Recorder
from algoperf.records import GLOBAL_STEP, Row, Status
from algoperf.training_step import recipe_facts
from algoperf.trials import (
    Seeds,
    TrialConfig,
    global_batch_size,
    step_keys,
    train_state,
)
from algoperf.workload import Evaluator


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a run tells its watcher."""

    step: int
    submission_sec: float
    budget_sec: float  # the one in force
    evaluation: Row | None  # the newest one
    is_new_evaluation: bool  # it has just been made


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "model_state", "optimizer_state"],
    meta_fields=["step"],
)
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What one step maps to the next; clock and data position are saved beside it."""

    params: spec.ParameterContainer
    model_state: spec.ModelAuxiliaryState
    optimizer_state: spec.OptimizerState
    step: int


def run_study(
    configs: Iterable[TrialConfig],
    *,
    resume: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    watch: Callable[[TrialConfig, Progress], None] = lambda *_: None,
    finished: Callable[[TrialConfig, dict[str, Any]], None] = lambda *_: None,
    flags: Mapping[str, Any] | None = None,
    hosts: Hosts | None = None,
) -> list[dict[str, Any]]:
    """Runs trials one after another; a bad trial is a result, the others go on.

    Unless another host of the run is lost. Returns the records, as they stand in
    `record.json`.
    """
    records = []
    hosts = hosts or Hosts()
    for config in configs:
        if hosts.is_broken or hosts.any_says(should_stop()):
            break
        jax.clear_caches()  # no trial gets its compilation from the one before
        record = run_trial(
            config,
            resume=resume,
            should_stop=should_stop,
            watch=functools.partial(watch, config),
            flags=flags,
            hosts=hosts,
        )
        finished(config, record)
        records.append(record)
    return records


def run_trial(
    config: TrialConfig,
    *,
    resume: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    watch: Callable[[Progress], None] = lambda _: None,
    now: Callable[[], float] = time.perf_counter,
    flags: Mapping[str, Any] | None = None,
    hosts: Hosts | None = None,
) -> dict[str, Any]:
    """Runs one trial and returns its record; whatever happens is in its status.

    Args:
      config: what to run.
      resume: go on from the newest checkpoint; a finished trial is left as it is.
      should_stop: asked before every step; when true, the trial is saved and left.
      watch: called after every evaluation and every step.
      now: the clock, in seconds.
      flags: kept in `flags_<n>.json`.
      hosts: that run this trial together; this one alone by default.

    Raises:
      UserError: something that no trial can have a result with: a folder that holds
        another run or has a writer, a batch size that does not fit.
    """
    seeds = Seeds.derive(config.seed, config.study, config.trial)
    batch_size = global_batch_size(config.submission, config.workload)
    hosts = hosts or Hosts()
    with Recorder.open(
        config=config, seeds=seeds, batch_size=batch_size, resume=resume, hosts=hosts
    ) as recorder:
        if recorder.status.is_final:
            logging.info("%s is finished: %s", recorder.folder, recorder.status)
            return recorder.record
        trial: _Trial | None = None
        try:
            try:
                trial = _Trial(
                    config, seeds, batch_size, recorder, should_stop, watch, now, hosts
                )
                recorder.start(flags or {})
                status, message = trial.run()
                facts = trial.facts()
            except UserError:
                raise
            except (Exception, SystemExit) as error:  # sys.exit ends no study
                if not recorder.is_started:
                    recorder.start(flags or {})
                facts = trial.facts() if trial is not None else {}
                facts["traceback"] = traceback.format_exc()
                status, message = failures.outcome(config, error, hosts, should_stop())
            return recorder.finish(status, message, facts)
        except UserError as error:
            if recorder.is_started:
                with contextlib.suppress(UserError):  # the disk may be full
                    recorder.finish(Status.PREEMPTED, str(error), {})
            raise
        finally:
            if trial is not None:
                trial.close()


class _Trial:
    """One trial while it runs."""

    def __init__(
        self,
        config: TrialConfig,
        seeds: Seeds,
        batch_size: int,
        recorder: Recorder,
        should_stop: Callable[[], bool],
        watch: Callable[[Progress], None],
        now: Callable[[], float],
        hosts: Hosts,
    ):
        self.config = config
        self.hosts = hosts
        self.recorder = recorder
        self.should_stop = should_stop
        self.watch = watch
        self.functions = config.submission.functions
        self.hyperparameters = tuning.as_namedtuple(config.hyperparameters)
        self.workload = dataclasses.replace(
            config.workload, metrics_logger=recorder.metrics_logger
        )
        self.in_flight = StepsInFlight()
        self.evaluator = Evaluator(config.workload)
        self._step_key = seeds.key(3)
        data = self.workload.dataset("train", batch_size, seed=seeds.data_seed)
        fresh = self._fresh_state(seeds)
        self._param_types = outputs.leaf_types(fresh.params)
        self._known: set[str] = set()  # functions whose params have kept them
        self.checkpoints = Checkpoints(recorder.folder, hosts)
        restored = self.checkpoints.restore(fresh) if recorder.is_resumed else None
        state, facts = restored or (fresh, {})
        self.state = dataclasses.replace(state, step=facts.get("step", 0))
        self.saved_step: int | None = facts.get("step")  # of the newest checkpoint
        self.clock = Clock(now, facts.get("clock"))
        self._compiled_before = facts.get("compile"), facts.get("compile_saved")
        self.step_times = StepTimes([Window(*w) for w in facts.get("windows", [])])
        recorder.restore(facts)
        self.queue = InputQueue(
            data,
            self.workload.placement.batch_sharding(),
            position=facts.get("data_position", 0),
            workers=self.workload.data.workers,
            threads=self.workload.data.threads,
            skipped=facts.get("skipped_examples", 0),
        )
        self.last_eval_sec = facts.get("last_eval_sec", 0.0)
        self.last_checkpoint = now()
        self.compiled = CompileTime()
        self.outcome: tuple[Status, str] | None = None
        if facts.get("outcome"):  # killed between the last checkpoint and the end
            status, message = facts["outcome"]
            self.outcome = Status(status), message

    def _fresh_state(self, seeds: Seeds) -> TrainState:
        params, model_state = self.workload.init_model_fn(seeds.key(0))
        try:
            optimizer_state = self.functions.init_optimizer_state(
                self.workload, params, model_state, self.hyperparameters, seeds.key(1)
            )
        except AttributeError as error:
            message = failures.missing_hyperparameter(self.config, error)
            if message is None:
                raise
            raise UserError(message) from error
        record = self.recorder.record
        record["sizes"] = reparam.sizes(params, optimizer_state)
        point = self.config.submission.point(self.config.hyperparameters)
        record["numerics"] = recipe_facts(self.workload, point, params, model_state)
        return TrainState(params, model_state, optimizer_state, 0)

    def run(self) -> tuple[Status, str]:
        """Trains until something ends the trial; returns its status and why."""
        with compile_time(self.clock, *self._compiled_before) as self.compiled:
            self.clock.switch(Phase.EVALUATION)
            outcome = self.outcome
            if not self.recorder.rows:
                outcome = self._evaluate()  # of the initial model, free
            self.clock.switch(Phase.SUBMISSION)
            while outcome is None:
                if self.hosts.any_says(self.should_stop()):
                    outcome = self._preempt()
                    break
                complete = self._train_step()
                at_end = complete or self.state.step == self.config.max_steps
                outcome = self._budget_spent()
                if outcome is None and (at_end or self._evaluation_is_due()):
                    if not (complete and self._is_evaluated()):
                        self._prepare_for_eval()
                        outcome = self._budget_spent()
                        if outcome is not None:
                            break
                        self.clock.switch(Phase.EVALUATION)
                        outcome = self._evaluate()
                    if outcome is None and at_end:
                        why = "the submission is done" if complete else "max_steps"
                        outcome = Status.COMPLETED, f"target not reached: {why}"
                    self.clock.switch(Phase.LOGGING)
                    self._checkpoint_if_due(outcome)
                    self.clock.switch(Phase.SUBMISSION)
            self._finish_steps()
            self.clock.switch(None)
        return outcome

    def _train_step(self) -> bool:
        """Selects data and updates; returns whether the submission is done."""
        state, workload = self.state, self.workload
        data_key, update_key, self._eval_key = step_keys(self._step_key, state.step)
        batch = self.functions.data_selection(
            workload,
            self.queue,
            state.optimizer_state,
            state.params,
            state.model_state,
            self.hyperparameters,
            state.step,
            data_key,
        )
        extra = {}
        if self.config.submission.wants_train_state:
            extra["train_state"] = self._train_state()
        try:
            found = self.functions.update_params(
                **self._common_arguments(), batch=batch, rng=update_key, **extra
            )
        except spec.TrainingCompleteError:
            return True
        self.state = self._next_state("update_params", found, step=state.step + 1)
        if self.in_flight.add(self.state.params):
            self.step_times.open_window(*self._moment())
        self.watch(self._progress(is_new_evaluation=False))
        return False

    def _common_arguments(self) -> dict[str, Any]:
        return {
            "workload": self.workload,
            "current_param_container": self.state.params,
            "current_params_types": self.workload.model_params_types,
            "model_state": self.state.model_state,
            "hyperparameters": self.hyperparameters,
            "loss_type": self.workload.loss_type,
            "optimizer_state": self.state.optimizer_state,
            "eval_results": self.recorder.eval_results(),
            "global_step": self.state.step,
        }

    def _next_state(self, function: str, found: Any, step: int) -> TrainState:
        optimizer_state, params, model_state = outputs.returned(function, found)
        if function not in self._known:  # once: no time between steps
            self._known.add(function)
            if change := outputs.change(function, "params", self._param_types, params):
                raise TypeError(change)
        return TrainState(params, model_state, optimizer_state, step)

    def _prepare_for_eval(self) -> None:
        """Calls the submission's function and waits for all that it dispatched."""
        self._finish_steps()
        found = self.functions.prepare_for_eval(
            **self._common_arguments(), rng=self._eval_key
        )
        self.state = self._next_state("prepare_for_eval", found, self.state.step)
        wait_for_devices()

    def _finish_steps(self) -> None:
        """Waits until the device has done everything; ends the window of steps."""
        self.in_flight.drain()
        wait_for_devices()
        self.step_times.close_window(*self._moment())

    def _moment(self) -> tuple[float, int, int]:
        return self.clock.now(), self.state.step, self.compiled.events

    def _budget_spent(self) -> tuple[Status, str] | None:
        budget = self.recorder.budget_sec
        if not self.hosts.share(self.clock.seconds(Phase.SUBMISSION) > budget):
            return None
        return Status.BUDGET, f"{budget:.4g} s are spent"

    def _evaluation_is_due(self) -> bool:
        workload = self.workload
        period = self.config.eval_period_steps or workload.eval_period_steps
        if period is not None:
            return self.state.step % period == 0
        elapsed = self.clock.seconds(Phase.SUBMISSION)
        is_due = elapsed - self.last_eval_sec >= workload.eval_period_time_sec
        return self.hosts.share(is_due)

    def _is_evaluated(self) -> bool:
        return self.recorder.rows[-1][GLOBAL_STEP] == self.state.step

    def _evaluate(self) -> tuple[Status, str] | None:
        """Evaluates and records; returns an outcome if the trial is decided."""
        self.last_eval_sec = self.clock.seconds(Phase.SUBMISSION)
        metrics = self.evaluator(self.state.params, self.state.model_state)
        self.clock.switch(Phase.LOGGING)
        self.recorder.add_evaluation(self.state.step, self.clock.totals(), metrics)
        self.recorder.update(self.facts())
        self.watch(self._progress(is_new_evaluation=True))
        if self.workload.has_reached_validation_target(metrics):
            return Status.REACHED, ""
        broken = [
            name
            for name, value in metrics.items()
            if name.endswith("/loss") and not math.isfinite(value)
        ]
        if broken:
            loss = f"{broken[0]} is {metrics[broken[0]]} at step {self.state.step}"
            return Status.DIVERGED, f"{loss}; try a lower learning rate"
        return None

    def _preempt(self) -> tuple[Status, str]:
        self._finish_steps()
        self.clock.switch(Phase.LOGGING)
        if self.saved_step != self.state.step:  # saving anew would first delete it
            self._checkpoint()
        return Status.PREEMPTED, "asked to stop; go on with --resume"

    def _checkpoint_if_due(self, outcome: tuple[Status, str] | None) -> None:
        waited = self.clock.now() - self.last_checkpoint
        is_due = self.hosts.share(waited >= self.config.checkpoint_period_sec)
        if outcome is not None or is_due:
            self._checkpoint(outcome)

    def _checkpoint(self, outcome: tuple[Status, str] | None = None) -> None:
        facts = {
            "outcome": outcome,
            "step": self.state.step,
            "data_position": self.queue.position,
            "skipped_examples": self.queue.skipped,
            "clock": self.clock.totals(),
            "compile": self.compiled.seconds,
            "compile_saved": self.compiled.saved,
            "windows": [dataclasses.astuple(w) for w in self.step_times.windows],
            "last_eval_sec": self.last_eval_sec,
            **self.recorder.history(),
        }
        self.recorder.check_lock()  # a save deletes older checkpoints
        self.checkpoints.save(self.state.step, self.state, facts)
        self.saved_step = self.state.step
        self.last_checkpoint = self.clock.now()

    def _train_state(self) -> Mapping[str, Any]:
        elapsed = self.clock.seconds(Phase.SUBMISSION)
        return train_state(
            is_time_remaining=elapsed <= self.recorder.budget_sec,
            last_eval_sec=self.last_eval_sec,
            submission_sec=elapsed,
            evaluation_sec=self.clock.seconds(Phase.EVALUATION),
            logging_sec=self.clock.seconds(Phase.LOGGING),
        )

    def _progress(self, is_new_evaluation: bool) -> Progress:
        elapsed, budget = self.clock.seconds(Phase.SUBMISSION), self.recorder.budget_sec
        newest = self.recorder.rows[-1] if self.recorder.rows else None
        return Progress(self.state.step, elapsed, budget, newest, is_new_evaluation)

    def facts(self) -> dict[str, Any]:
        """Returns what the record says of the run so far."""
        return {
            "global_step": self.state.step,
            "clock": self.clock.totals(),
            "compile": dict(self.compiled.seconds),
            "compile_saved": dict(self.compiled.saved),
            "step_time": self.step_times.summary(),
            "data_position": self.queue.position,
            "skipped_examples": {
                "preparation": self.workload.skipped_in_preparation,
                "train": self.queue.skipped,
                "evaluation": self.evaluator.skipped,
            },
        }

    def close(self) -> None:
        """Stops threads."""
        self.queue.close()
        self.checkpoints.close()
