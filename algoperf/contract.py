"""Tries a submission and names what it does against the contract in `algoperf.spec`.

The submission runs as in any trial, once straight through and once stopped half-way
and resumed, while an observer looks at what goes in and out of its functions.
"""

import contextlib
import dataclasses
import functools
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from algoperf import outputs, runner, tuning
from algoperf.errors import UserError
from algoperf.loading import Submission
from algoperf.records import Status
from algoperf.submission import SubmissionFunctions
from algoperf.trials import TrialConfig
from algoperf.workload import Workload

# A step may compile until the second: the first one's outputs may be placed otherwise
# than what came in.
STEPS_THAT_MAY_COMPILE = 2


@dataclasses.dataclass(frozen=True)
class Findings:
    """What trying a submission brought to light."""

    violations: list[str]  # one line each; none of a good submission
    unread: list[str]  # hyperparameters that nothing looked at; none if it did not end


def try_out(
    submission: Submission,
    workload: Workload,
    hyperparameters: Mapping[str, Any] | None,
    steps: int = 3,
) -> Findings:
    """Runs a submission for a few steps.

    Args:
      submission: what to try.
      workload: on what.
      hyperparameters: a point of the search space; None tries the self-tuning ruleset.
      steps: how many; at least 2.
    """
    observer = _Observer(submission.functions)
    unread: list[str] = []
    observer.try_get_batch_size()
    with tempfile.TemporaryDirectory() as folder:
        config = TrialConfig(
            submission=dataclasses.replace(submission, functions=observer.functions()),
            workload=workload,
            out=Path(folder, "whole"),
            ruleset="self" if hyperparameters is None else "external",
            hyperparameters=hyperparameters,
            max_steps=steps,
            eval_period_steps=steps,
            # No time ends a run: one that is resumed compiles twice on its clock, and
            # its budget could be over some steps before that of a whole one.
            budget_ratio=math.inf,
        )
        if _run(config, observer, stop_at=None):
            whole = observer.params
            observer.check_training()
            unread = [
                name for name in hyperparameters or () if name not in observer.read
            ]
            config = dataclasses.replace(config, out=Path(folder, "parts"))
            if _run(config, observer, stop_at=steps // 2):
                observer.check_same(whole)
    return Findings(list(observer.found), unread)


def _run(config: TrialConfig, observer: "_Observer", stop_at: int | None) -> bool:
    """Runs a trial, stopped once and resumed if asked for; returns whether it ended."""
    observer.step = 0
    try:
        with observer.listening():
            if stop_at is not None:
                runner.run_trial(config, should_stop=lambda: observer.step == stop_at)
            record = runner.run_trial(config, resume=True)
    except UserError as error:
        observer.add(str(error))
        return False
    status, message = record["status"], record["message"].removeprefix("TypeError: ")
    ended_badly = status in (Status.FAILED, Status.DIVERGED)
    if ended_badly and message not in observer.found:
        observer.add(record["message"])
    return status is not Status.FAILED


class _Observer:
    """Stands between the runner and the functions of a submission."""

    def __init__(self, functions: SubmissionFunctions):
        self._functions = functions
        self.found: dict[str, None] = {}  # in order, each once
        self.read: set[str] = set()  # names of hyperparameters
        self._points: dict[type, Any] = {}  # watched, by the runner's own class
        self.step = 0  # how many were made
        self.params: Any = None  # the newest, on the host
        self.compilations: dict[int, int] = {}  # by step
        self._initial: Any = None
        self._is_updating = False

    def add(self, violation: str) -> None:
        """Adds a violation."""
        self.found[violation] = None

    def functions(self) -> SubmissionFunctions:
        """Returns the submission's functions, looked at.

        They keep what is known of the originals, such as who made them.
        """

        def looked_at(name: str) -> Any:
            look = getattr(self, f"_{name}")
            return functools.wraps(getattr(self._functions, name))(
                lambda *positional, **named: look(*positional, **named)
            )

        return self._functions._replace(
            init_optimizer_state=looked_at("init_optimizer_state"),
            update_params=looked_at("update_params"),
            prepare_for_eval=looked_at("prepare_for_eval"),
            data_selection=looked_at("data_selection"),
        )

    def try_get_batch_size(self) -> None:
        """Asks for the batch size of a workload that nobody knows."""
        try:
            size = self._functions.get_batch_size("a_workload_that_nobody_knows")
        except ValueError:
            return
        except Exception as error:
            self.add(
                "get_batch_size must raise ValueError for a name that it does not "
                f"know, it raised {type(error).__name__}: {error}"
            )
        else:
            if size is None:
                self.add(
                    "get_batch_size must raise ValueError for a name that it does not "
                    "know, it returned None"
                )

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Counts what JAX compiles within update_params."""

        def listen(event: str, duration_secs: float, **_: str | int) -> None:
            del duration_secs
            if self._is_updating and event.endswith("backend_compile_duration"):
                self.compilations[self.step] = self.compilations.get(self.step, 0) + 1

        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            yield
        finally:
            jax.monitoring.unregister_event_duration_listener(listen)

    def check_training(self) -> None:
        """Looks at the whole of a run."""
        leaves = jax.tree.leaves(self.params)
        if not all(np.isfinite(leaf).all() for leaf in leaves):
            self.add(f"the parameters are not finite after {self.step} steps")
        elif _equal(self.params, self._initial):
            self.add(
                f"the parameters did not change in {self.step} steps (if that is "
                "meant, try more --steps)"
            )
        late = sum(
            count
            for step, count in self.compilations.items()
            if step >= STEPS_THAT_MAY_COMPILE
        )
        if late:
            self.add(
                f"update_params compiled {late} programs after step "
                f"{STEPS_THAT_MAY_COMPILE}: jit a function once, not one per call, and "
                "keep shapes and dtypes as they are"
            )

    def check_same(self, whole: Any) -> None:
        """Compares the newest params with those of another run."""
        if not _equal(self.params, whole):
            self.add(
                "a run that was stopped and resumed ends with other parameters: keep "
                "all state in optimizer_state, and take randomness from rng alone"
            )

    def _init_optimizer_state(self, *arguments: Any) -> Any:
        workload, params, model_state, point, rng = arguments
        arguments = workload, params, model_state, self._watched_point(point), rng
        self._initial = jax.device_get(params)
        if self.params is None:
            self.params = self._initial
        state = self._functions.init_optimizer_state(*arguments)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state):
            is_number = isinstance(leaf, bool | int | float | np.generic | np.ndarray)
            if not (is_number or isinstance(leaf, jax.Array) or callable(leaf)):
                self.add(
                    f"optimizer_state{jax.tree_util.keystr(path)} is a "
                    f"{type(leaf).__name__}, which no checkpoint can hold: use arrays, "
                    "numbers and functions"
                )
        return state

    def _data_selection(self, *arguments: Any) -> Any:
        *before, point, step, rng = arguments
        batch = self._functions.data_selection(
            *before, self._watched_point(point), step, rng
        )
        if not isinstance(batch, dict) or not {"inputs", "targets"} <= set(batch):
            self.add("data_selection must return a dict with 'inputs' and 'targets'")
        return batch

    def _update_params(self, **arguments: Any) -> Any:
        self._is_updating = True
        try:
            outputs = self._watched("update_params", arguments)
        finally:
            self._is_updating = False
        self.step += 1
        return outputs

    def _prepare_for_eval(self, **arguments: Any) -> Any:
        return self._watched("prepare_for_eval", arguments)

    def _watched_point(self, point: Any) -> Any:
        if point is None:
            return None
        kind = type(point)
        if kind not in self._points:  # one, so that functions of it compile once
            self._points[kind] = tuning.watched(point, self.read)
        return self._points[kind]

    def _watched(self, function: str, arguments: dict[str, Any]) -> Any:
        names = {
            "optimizer_state": "optimizer_state",
            "current_param_container": "params",
            "model_state": "model_state",
        }
        before = {name: outputs.leaf_types(arguments[name]) for name in names}
        arguments["hyperparameters"] = self._watched_point(arguments["hyperparameters"])
        found = getattr(self._functions, function)(**arguments)
        if not isinstance(found, tuple | list) or len(found) != len(names):
            return found  # the runner says what is wrong
        for (name, what), output in zip(names.items(), found, strict=True):
            change = outputs.change(function, what, before[name], output)
            if change:
                self.add(change)
        self.params = jax.device_get(found[1])
        return found


def _equal(one: Any, other: Any) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)
