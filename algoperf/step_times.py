"""Times training steps of several submissions side by side.

All are set up first and take turns: in each round every one makes some steps on the
same batches, in an order that is drawn anew, so that whatever else the machine does
falls on all alike. What comes in every turn, such as a preconditioner's root at each
tenth step, is in its mean; what is rarer may be left out. The steps are the first of a
trial. The batches lie on the devices already: what reading data takes is not in.

`scoring.step_times` makes one number per submission of what is found here.
"""

import dataclasses
import itertools
import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from algoperf import sharding, spec, tuning
from algoperf.errors import UserError
from algoperf.loading import Submission
from algoperf.recorder import ScalarLog
from algoperf.trials import global_batch_size, train_state
from algoperf.workload import Workload

NUM_BATCHES = 8
Entry = tuple[Submission, Mapping[str, Any] | None]  # and its hyperparameters, if any


@dataclasses.dataclass(frozen=True)
class Turns:
    """What steps of a submission take on a workload.

    Attributes:
      seconds: of a step, the mean of each round.
      state_bytes: of the optimizer state, without what are parameters themselves.
    """

    seconds: tuple[float, ...]
    state_bytes: int


@dataclasses.dataclass
class Training:
    """A submission at work, and its newest state."""

    submission: Submission
    workload: Workload
    hyperparameters: Any
    batches: Iterator[Any]
    state: tuple[Any, Any, Any]  # optimizer state, params, model state
    step: int = 0
    is_over: bool = False

    def make_steps(self, count: int) -> float:
        """Makes steps; returns the seconds until the device has finished them."""
        start = time.perf_counter()
        for _ in range(count):
            try:
                self._make_step()
            except spec.TrainingCompleteError:
                self.is_over = True  # its last step, again and again, costs the same
                self.step -= 1
                self._make_step()
            self.step += not self.is_over
        jax.block_until_ready(self.state)
        return time.perf_counter() - start

    def _make_step(self) -> None:
        optimizer_state, params, model_state = self.state
        rng = jax.random.PRNGKey(self.step)
        functions = self.submission.functions
        batch = functions.data_selection(
            self.workload,
            self.batches,
            optimizer_state,
            params,
            model_state,
            self.hyperparameters,
            self.step,
            rng,
        )
        extra = {}
        if self.submission.wants_train_state:
            extra["train_state"] = train_state()
        self.state = functions.update_params(
            workload=self.workload,
            current_param_container=params,
            current_params_types=self.workload.model_params_types,
            model_state=model_state,
            hyperparameters=self.hyperparameters,
            batch=batch,
            loss_type=self.workload.loss_type,
            optimizer_state=optimizer_state,
            eval_results=[],
            global_step=self.step,
            rng=rng,
            **extra,
        )


def set_up(
    submission: Submission, workload: Workload, point: Mapping[str, Any] | None
) -> tuple[Training, int]:
    """Returns a submission ready to train, and the bytes that it keeps for itself.

    Args:
      submission: with a batch size of its own, if it has one.
      workload: its data must be there.
      point: hyperparameters; None where the submission tunes itself.
    """
    hyperparameters = tuning.as_namedtuple(point)
    workload = dataclasses.replace(workload, metrics_logger=ScalarLog())
    params, model_state = workload.init_model_fn(jax.random.PRNGKey(0))
    optimizer_state = submission.functions.init_optimizer_state(
        workload, params, model_state, hyperparameters, jax.random.PRNGKey(1)
    )
    others = {id(x) for x in jax.tree.leaves((params, model_state))}
    leaves = {id(x): x for x in jax.tree.leaves(optimizer_state)}
    kept = sum(getattr(x, "nbytes", 0) for i, x in leaves.items() if i not in others)
    size = global_batch_size(submission, workload)
    data = workload.dataset("train", size, seed=0)
    devices = sharding.get_batch_dim_sharding()
    batches = [jax.device_put(dict(data[i]), devices) for i in range(NUM_BATCHES)]
    training = Training(
        submission,
        workload,
        hyperparameters,
        itertools.cycle(batches),
        (optimizer_state, params, model_state),
    )
    return training, kept


def measure(
    entries: Mapping[str, Entry],
    workload: Workload,
    rounds: int,
    steps: int,
    say: Callable[[str], None],
) -> tuple[dict[str, Turns], dict[str, str]]:
    """Returns what steps of each submission take, and why others are left out.

    All are in memory at once. Left out is what fails in its first steps.

    Args:
      entries: submissions and their hyperparameters, by name.
      workload: what they train.
      rounds: in each of which every submission has its turn.
      steps: of a turn.
      say: told of progress.
    """
    trainings: dict[str, Training] = {}
    kept, left_out = {}, {}
    for number, (name, (submission, point)) in enumerate(entries.items(), start=1):
        try:
            training, kept[name] = set_up(submission, workload, point)
            training.make_steps(2 * steps)  # compiles, rare branches too
        except Exception as error:
            left_out[name] = _words(error)
        else:
            trainings[name] = training
        how = "left out" if name in left_out else "set up"
        say(f"{workload.name}: {name} is {how} ({number} of {len(entries)})")
    seconds: dict[str, list[float]] = {name: [] for name in trainings}
    order = random.Random(0)
    for index in range(rounds):
        for name in order.sample(list(trainings), len(trainings)):
            try:
                seconds[name].append(trainings[name].make_steps(steps) / steps)
            except Exception as error:
                raise UserError(
                    f"{name} failed on {workload.name}: {_words(error)}; name the "
                    "others without it"
                ) from error
        say(f"{workload.name}: round {index + 1} of {rounds}")
    found = {n: Turns(tuple(seconds[n]), kept[n]) for n in trainings}
    return found, left_out


def _words(error: Exception) -> str:
    """Returns the first line of an error."""
    text = str(error).strip().partition("\n")[0][:300]
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
