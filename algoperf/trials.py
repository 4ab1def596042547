"""What a trial is before it runs: its configuration, its seeds, its batch size.

And what a submission may see of it: `train_state`.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from absl import logging

from algoperf import records, sharding, tuning
from algoperf.errors import UserError
from algoperf.loading import Submission
from algoperf.workload import Workload

SELF_TUNING_BUDGET_FACTOR = 1.5
WRAPPED = "one that wraps its update_params says so by functools.wraps"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """Everything that decides what a trial computes, and where it is recorded.

    Raises:
      UserError: the hyperparameters name a recipe, which the submission would ignore.
    """

    submission: Submission
    workload: Workload
    out: Path
    ruleset: str = "external"
    hyperparameters: Mapping[str, Any] | None = None
    study: int = 0
    trial: int = 1
    seed: int = 0
    max_steps: int | None = None
    eval_period_steps: int | None = None  # instead of the workload's own
    checkpoint_period_sec: float = 60.0  # of wall time; taken right after evaluations
    budget_ratio: float = 1.0  # of this machine's time to the reference machine's

    def __post_init__(self) -> None:
        recipe = (self.hyperparameters or {}).get("recipe")
        if recipe is not None and not self.submission.is_from_optax:
            raise UserError(
                f"the hyperparameters name the recipe {recipe!r}, and "
                f"{self.submission.name} computes its gradients itself, without; name "
                f"no recipe, or take a submission made by from_optax ({WRAPPED})"
            )

    @property
    def folder(self) -> Path:
        """Where the trial's record is."""
        return records.trial_folder(
            self.out, self.submission.name, self.study, self.workload.name, self.trial
        )

    @property
    def budget_sec(self) -> float:
        """Submission time after which the trial ends."""
        limit_sec = self.workload.max_allowed_runtime_sec
        return budget_factor(self.ruleset) * self.budget_ratio * limit_sec


def budget_factor(ruleset: str) -> float:
    """Returns how many budgets a trial has under a ruleset."""
    return SELF_TUNING_BUDGET_FACTOR if ruleset == "self" else 1.0


@dataclasses.dataclass(frozen=True)
class Seeds:
    """All randomness of a trial; each seed is derived from the one before."""

    seed: int  # as given
    study_seed: int
    trial_seed: int

    @classmethod
    def derive(cls, seed: int, study: int, trial: int) -> "Seeds":
        """Derives the seeds of a trial of a study."""
        study_key = jax.random.fold_in(jax.random.PRNGKey(seed), study)
        trial_key = jax.random.fold_in(study_key, trial)
        return cls(seed, _as_int(study_key), _as_int(trial_key))

    @property
    def data_seed(self) -> int:
        """What the order of the training data follows from."""
        return _as_int(self.key(2))

    def key(self, purpose: int) -> jax.Array:
        """Returns the key for one purpose: 0 init, 1 optimizer, 2 data, 3 steps."""
        return jax.random.fold_in(jax.random.PRNGKey(self.trial_seed), purpose)


def _as_int(key: jax.Array) -> int:
    return int(jax.random.bits(key, (), "uint32"))


@jax.jit
def step_keys(key: jax.Array, step: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns a step's keys from that of all steps: for data, update and evaluation."""
    data, update, evaluation = jax.random.split(jax.random.fold_in(key, step), 3)
    return data, update, evaluation


def study_seed(seed: int, study: int) -> int:
    """Returns the seed that the search space of a study is sampled with."""
    return Seeds.derive(seed, study, 1).study_seed


def trial_configs(
    base: TrialConfig, space: tuning.SearchSpace | None, trials: Iterable[int]
) -> list[TrialConfig]:
    """Returns one config per trial of a study; `space` is None when self-tuning.

    A trial's hyperparameters and seeds depend on its own number alone.
    """
    sampling_seed = study_seed(base.seed, base.study)
    return [
        dataclasses.replace(
            base,
            trial=trial,
            hyperparameters=None
            if space is None
            else tuning.trial_point(space, sampling_seed, trial),
        )
        for trial in trials
    ]


def global_batch_size(submission: Submission, workload: Workload) -> int:
    """Returns the batch size: the submission's wish, capped; else the default.

    Raises:
      UserError: it is no whole number, or does not divide over the devices; or the
        workload's packs do not.
    """
    wish: Any = workload.default_batch_size
    for name in (workload.name, workload.variant, workload.base_workload):
        try:
            wish = submission.functions.get_batch_size(name)
        except ValueError:
            continue
        except Exception as error:
            raise UserError(
                f"get_batch_size of {submission.name} raised "
                f"{type(error).__name__}: {error}; for a name that it does not know it "
                "must raise ValueError"
            ) from error
        break
    if not isinstance(wish, int | np.integer) or wish < 1:
        raise UserError(
            f"get_batch_size of {submission.name} returned {wish!r}; return a whole "
            "number of 1 or more, or raise ValueError for the workload's own"
        )
    if workload.max_batch_size is not None and wish > workload.max_batch_size:
        logging.info(
            "batch size %d is capped at %d on %s",
            wish,
            workload.max_batch_size,
            workload.name,
        )
        wish = workload.max_batch_size
    workload.placement.check()
    microbatches = workload.placement.microbatches
    if microbatches > 1 and not submission.is_from_optax:
        raise UserError(
            f"{submission.name} computes its gradients itself, and decides itself "
            f"whether in parts; run it without --microbatches ({WRAPPED})"
        )
    if workload.max_packs is not None:
        sharding.check_packs(workload.max_packs, workload.name, microbatches)
    what = f"batch size of {submission.name}"
    sharding.check_batch_size(int(wish), what, microbatches)
    evaluation = f"evaluation batch size of {workload.name}"
    sharding.check_batch_size(workload.eval_batch_size, evaluation)
    return int(wish)


def train_state(
    *,
    is_time_remaining: bool = True,
    last_eval_sec: float = 0.0,
    submission_sec: float = 0.0,
    evaluation_sec: float = 0.0,
    logging_sec: float = 0.0,
) -> Mapping[str, Any]:
    """Returns the view of a trial that `update_params` may ask for, official names.

    It cannot be changed; by default it is that of a trial that has just begun.
    """
    return MappingProxyType(
        {
            "validation_goal_reached": False,
            "test_goal_reached": False,
            "is_time_remaining": is_time_remaining,
            "training_complete": False,
            "last_eval_time": last_eval_sec,
            "accumulated_submission_time": submission_sec,
            "accumulated_eval_time": evaluation_sec,
            "accumulated_logging_time": logging_sec,
        }
    )
