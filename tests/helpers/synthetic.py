"""A workload that trains in milliseconds, and what the tests do with its trials."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import numpy as np

from algoperf import records, runner, spec
from algoperf.checkpoint import Checkpoints
from algoperf.data.examples import DataOptions
from algoperf.data.pipeline import eval_batches, train_batches
from algoperf.losses import softmax_cross_entropy
from algoperf.records import Direction
from algoperf.trials import Seeds, TrialConfig
from algoperf.tuning import as_namedtuple
from algoperf.workload import Workload, derive

NUM_CLASSES = 3
SPLITS = {"train": 320, "eval_train": 48, "validation": 50, "test": 40}


class MLP(nn.Module):
    """Classifies points; with batch normalisation if asked for."""

    batch_norm: bool = False

    @nn.compact
    def __call__(self, inputs, train, dropout_rate=0.0, use_running_average=None):
        x = nn.Dense(8, name="hidden")(inputs)
        if self.batch_norm:
            running = not train if use_running_average is None else use_running_average
            x = nn.BatchNorm(momentum=0.9)(x, use_running_average=running)
        x = nn.Dropout(dropout_rate)(nn.relu(x), deterministic=not train)
        return nn.Dense(NUM_CLASSES, name="head")(x)


@functools.cache
def examples(split: str) -> Mapping[str, np.ndarray]:
    """Returns points of three overlapping clouds; 'inputs' (N, 4), 'targets' (N,)."""
    generator = np.random.default_rng(list(SPLITS).index(split))
    targets = generator.integers(NUM_CLASSES, size=SPLITS[split])
    centers = np.eye(NUM_CLASSES, 4)[targets]
    inputs = centers + generator.normal(scale=0.7, size=centers.shape)
    return {"inputs": inputs.astype(np.float32), "targets": targets.astype(np.int32)}


def pipeline(
    split: str, batch_size: int, seed: int, options: DataOptions
) -> grain.MapDataset:
    """Returns batches of points in memory."""
    if split == "train":
        return train_batches(examples(split), batch_size, seed, options=options)
    return eval_batches(examples(split), batch_size, options=options)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Synthetic(Workload):
    """Classify points in memory."""

    after_evaluation: Callable[[], None] = lambda: None

    def loss_fn(
        self, label_batch, logits_batch, mask_batch=None, label_smoothing=0.0
    ) -> dict[str, spec.Tensor]:
        return softmax_cross_entropy(
            label_batch, logits_batch, mask_batch, label_smoothing
        )

    def measure(self, logits, batch) -> dict[str, jax.Array]:
        loss = self.loss_fn(batch["targets"], logits, batch["weights"])
        correct = (jnp.argmax(logits, axis=-1) == batch["targets"]) * batch["weights"]
        return {
            "loss": loss["summed"],
            "correct": correct.sum(),
            "examples": loss["n_valid_examples"],
        }

    def metrics(self, measured: Mapping[str, Any]) -> dict[str, float]:
        self.after_evaluation()
        return {
            "loss": measured["loss"] / measured["examples"],
            "accuracy": measured["correct"] / measured["examples"],
        }


SYNTHETIC = Synthetic(
    base_workload="synthetic",
    variant="synthetic",
    scale="mini",
    model=MLP(),
    pipeline=pipeline,
    input_shape=(4,),
    input_dtype=jnp.float32,
    loss_type=spec.LossType.SOFTMAX_CROSS_ENTROPY,
    target_metric_name="accuracy",
    target_direction=Direction.MAXIMIZE,
    validation_target_value=2.0,  # never
    test_target_value=2.0,
    num_train_examples=SPLITS["train"],
    num_eval_train_examples=SPLITS["eval_train"],
    num_validation_examples=SPLITS["validation"],
    num_test_examples=SPLITS["test"],
    default_batch_size=32,
    eval_batch_size=32,
    step_hint=50,
    eval_period_steps=4,
    max_allowed_runtime_sec=30.0,
    output_params=("head",),
)
BATCH_NORM = derive(SYNTHETIC, variant="synthetic_bn", model={"batch_norm": True})
WORKLOADS = {w.name: w for w in (SYNTHETIC, BATCH_NORM)}


class FakeTime:
    """A clock that stands still unless `sleep` moves it."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.seconds += seconds


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the harness catches it."""


def replaced(config: TrialConfig, **functions: Callable[..., Any]) -> TrialConfig:
    """Returns the config with other functions in its submission."""
    submission = dataclasses.replace(
        config.submission, functions=config.submission.functions._replace(**functions)
    )
    return dataclasses.replace(config, submission=submission)


def run_until(config: TrialConfig, step: int, **options: Any) -> dict[str, Any]:
    """Runs a trial and stops it, as SIGTERM does, before the step after `step`."""
    seen = [0]

    def watch(progress):
        seen[0] = progress.step

    return runner.run_trial(
        config, should_stop=lambda: seen[0] >= step, watch=watch, **options
    )


def kill_at(config: TrialConfig, step: int, after_evaluation: bool = False) -> None:
    """Runs a trial and kills it after a step, or between evaluation and checkpoint."""

    def watch(progress):
        if progress.step == step and progress.is_new_evaluation == after_evaluation:
            raise Killed

    try:
        runner.run_trial(config, watch=watch)
    except Killed:
        return
    raise AssertionError("was not killed")


def saved(config: TrialConfig) -> tuple[runner.TrainState, dict[str, Any]]:
    """Returns the state and the facts of the newest checkpoint."""
    params, model_state = config.workload.init_model_fn(jax.random.PRNGKey(0))
    optimizer_state = config.submission.functions.init_optimizer_state(
        config.workload,
        params,
        model_state,
        as_namedtuple(config.hyperparameters),
        Seeds.derive(0, 0, 1).key(1),
    )
    checkpoints = Checkpoints(config.folder)
    found = checkpoints.restore(
        runner.TrainState(params, model_state, optimizer_state, 0)
    )
    checkpoints.close()
    assert found is not None
    return found


def rows_of(config: TrialConfig, file: str = records.EVAL_FILE) -> list[records.Row]:
    """Returns the rows of a CSV of the record."""
    return records.read_measurements(config.folder / file, required=())


def assert_same_results(one: TrialConfig, other: TrialConfig) -> None:
    """Compares two records bit for bit, apart from times and preemptions."""
    for file in (records.EVAL_FILE, records.MEASUREMENTS_FILE):
        assert without_times(rows_of(one, file)) == without_times(rows_of(other, file))
    (state, facts), (other_state, other_facts) = saved(one), saved(other)
    leaves, other_leaves = jax.tree.leaves(state), jax.tree.leaves(other_state)
    arrays = [leaf for leaf in leaves if isinstance(leaf, jax.Array)]
    others = [leaf for leaf in other_leaves if isinstance(leaf, jax.Array)]
    assert len(arrays) > 4
    for array, other_array in zip(arrays, others, strict=True):
        np.testing.assert_array_equal(array, other_array)
    for name in ("step", "data_position"):
        assert facts[name] == other_facts[name]


def without_times(rows: list[records.Row]) -> list[records.Row]:
    """Returns rows without what differs between equal runs."""
    timed = (
        records.SUBMISSION_TIME,
        records.EVAL_TIME,
        records.LOGGING_TIME,
        records.TOTAL_TIME,
        records.SCORE,
        records.PREEMPTION_COUNT,
    )
    return [{k: v for k, v in row.items() if k not in timed} for row in rows]
