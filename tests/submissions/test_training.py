"""Every bundled submission trains a tiny network, and its state can be saved."""

import contextlib
import dataclasses
import functools
import itertools

import jax
import numpy as np
import pytest
from synthetic import SYNTHETIC, examples

from algoperf import registry, sharding, spec, tuning
from algoperf.checkpoint import Checkpoints
from algoperf.loading import load_submission
from algoperf.runner import TrainState

NAMES = sorted(registry.submission_paths())
KEY = jax.random.PRNGKey(0)
STEPS = 20
WORKLOAD = dataclasses.replace(SYNTHETIC, step_hint=STEPS)
BATCH = 32
# How much the loss must fall by. Prodigy starts with a rate of 1e-6 and doubles it.
LEAST = {"prodigy": 0.0}
# Where a step is several gradients, the schedule is for fewer and the trial ends there.
PLANNED = {
    "data_echoing": 10,
    "data_selection": 14,
    "fedspeed": 4,
    "ignite": 7,
    "sam": 10,
}
PLANNED |= {"infinite_compute": 3 + 3}  # of the members, then of the student


def _queue():
    data = examples("train")
    for start in itertools.cycle(range(0, len(data["targets"]), BATCH)):
        batch = {name: array[start : start + BATCH] for name, array in data.items()}
        yield sharding.shard_along_batch_dim(batch)


@functools.cache
def _initial():
    """The same params on the host for all, so that they are made once."""
    return jax.device_get(WORKLOAD.init_model_fn(KEY))


@functools.cache
def _evaluation():
    return jax.jit(WORKLOAD.evaluation_step)


def _loss(state):
    data = examples("validation")
    weights = np.ones(len(data["targets"]), np.float32)
    metrics = _evaluation()(
        state.params, state.model_state, {**data, "weights": weights}
    )
    return float(metrics["loss"] / metrics["examples"])


def _fresh(functions, point):
    params, model_state = sharding.replicate(_initial())
    optimizer_state = functions.init_optimizer_state(
        WORKLOAD, params, model_state, point, KEY
    )
    return TrainState(params, model_state, optimizer_state, 0)


def _arguments(state, point):
    return {
        "workload": WORKLOAD,
        "current_param_container": state.params,
        "current_params_types": WORKLOAD.model_params_types,
        "model_state": state.model_state,
        "hyperparameters": point,
        "loss_type": WORKLOAD.loss_type,
        "optimizer_state": state.optimizer_state,
        "eval_results": [],
        "global_step": state.step,
        "rng": jax.random.fold_in(KEY, state.step),
    }


def _step(functions, point, state, queue):
    batch = functions.data_selection(
        WORKLOAD,
        queue,
        state.optimizer_state,
        state.params,
        state.model_state,
        point,
        state.step,
        KEY,
    )
    optimizer_state, params, model_state = functions.update_params(
        **_arguments(state, point), batch=batch
    )
    return TrainState(params, model_state, optimizer_state, state.step + 1)


def _prepared(functions, point, state):
    outputs = functions.prepare_for_eval(**_arguments(state, point))
    return TrainState(outputs[1], outputs[2], outputs[0], state.step)


SLOW = ("infinite_compute", "kron", "sophia")  # much to compile


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in NAMES],
)
def test_it_learns_and_its_state_survives_a_checkpoint(name, tmp_path):
    submission = load_submission(registry.find_submission(name))
    space = tuning.load_search_space(submission.default_search_space)
    point = tuning.as_namedtuple(tuning.trial_point(space, 0, 1))
    functions, queue = submission.functions, _queue()
    state = fresh = _fresh(functions, point)
    before = _loss(fresh)
    with contextlib.suppress(spec.TrainingCompleteError):  # a plan for fewer steps
        for _ in range(STEPS):
            state = _step(functions, point, state, queue)
    assert state.step == PLANNED.get(name, STEPS)
    state = _prepared(functions, point, state)
    after = _loss(state)
    assert np.isfinite(after)
    assert after < before - LEAST.get(name, 0.01)

    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(STEPS, state, {})
    restored, _ = checkpoints.restore(fresh)
    checkpoints.close()
    one, other = map(jax.tree.leaves, (state, restored))
    for leaf, other_leaf in zip(one, other, strict=True):
        if isinstance(leaf, jax.Array | np.ndarray):
            np.testing.assert_array_equal(leaf, other_leaf)
