"""AdaPT chooses its words while it trains, and resumes in between."""

import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from algoperf import contract, registry
from algoperf.loading import load_submission
from algoperf.numerics import adapt
from algoperf.tuning import as_namedtuple
from submissions.adapt_sgd.submission import Device, layers_of, make_step

POINT = {
    "learning_rate": 0.1,
    "momentum": 0.9,
    "weight_decay": 1e-5,
    "warmup_factor": 0.05,
}


def test_a_bias_belongs_to_its_own_modules_weight():
    """JAX sorts it before the kernel, and so after the layer before."""
    dense = {"bias": np.zeros(3), "kernel": np.zeros((2, 3))}
    norm = {"bias": np.zeros(3), "scale": np.zeros(3)}
    params = {"0": norm, "1": dense, "2": dense, "3": norm, "4": dense}
    layers, weights = layers_of(params)
    assert layers == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert weights == [3, 5, 9]
    assert layers_of({"bias": np.zeros(3)}) == ([0], [0])


LINEAR = types.SimpleNamespace(  # so that the gradient is the batch
    model_fn=lambda params, batch, state, *_: (
        sum(jnp.sum(params[name] * batch["inputs"][name]) for name in params),
        state,
    ),
    loss_fn=lambda _, logits, __: {"summed": logits, "n_valid_examples": 1.0},
)
TRANSFORMATION = optax.sgd(0.25)


def _stepped(device, params, gradient, number, keep):
    """Returns the device's state and the params after a step along a gradient."""
    words, fractions = np.array([8, 8], np.int32), np.array([4, 4], np.int32)
    batch = {"inputs": gradient, "targets": 0}
    device, params, _, _ = make_step(LINEAR, TRANSFORMATION)(
        *(device, jax.tree.map(jnp.copy, params), {}, batch),
        *(jax.random.PRNGKey(number), number, words, fractions),
        np.full(2, keep, np.float32),
    )
    return device, params


def _device(params, sums):
    return Device(
        masters=jax.tree.map(jnp.copy, params),
        optimizer=TRANSFORMATION.init(params),
        sums=[jnp.full_like(leaf, sums) for leaf in params.values()],
        losses=jnp.zeros(10),
    )


@pytest.mark.parametrize("are_equal", [True, False])
def test_diversity_is_of_the_gradients_since_the_last_choice(are_equal):
    """1 if all were equal, sqrt(k) if k were orthogonal; of each layer by itself."""
    params = {"a": jnp.zeros((4, 4)), "b": jnp.zeros((2, 8))}
    device, number = _device(params, 9.0), 5  # sums of before
    for k in range(number):
        gradient = {
            "a": np.zeros((4, 4), np.float32),
            "b": np.full((2, 8), 0.5, np.float32),
        }
        gradient["a"].flat[0 if are_equal else k] = 2.0 + k
        device, params = _stepped(device, params, gradient, k, float(k > 0))
    found = [adapt.diversity(number, float(jnp.linalg.norm(s))) for s in device.sums]
    np.testing.assert_allclose(found[0], 1.0 if are_equal else math.sqrt(number))
    np.testing.assert_allclose(found[1], 1.0, rtol=1e-6)


def test_masters_move_by_gradients_of_norm_one():
    """Of each parameter by itself; one that is rounded to 0 stays."""
    params = {"a": jnp.ones((4, 4)), "b": jnp.ones((2, 8))}
    gradient = {
        "a": np.full((4, 4), 3.0, np.float32),  # of norm 12, and on the words' grid
        "b": np.zeros((2, 8), np.float32),
    }
    device, _ = _stepped(_device(params, 0.0), params, gradient, 0, 0.0)
    np.testing.assert_allclose(device.masters["a"], 1 - 0.25 * 3.0 / 12.0, rtol=1e-6)
    np.testing.assert_array_equal(device.masters["b"], params["b"])


@pytest.mark.slow
def test_words_are_chosen_and_the_contract_holds():
    submission = load_submission(registry.find_submission("adapt_sgd"))
    workload = registry.find_workload("finewebedu_lm", "mini")
    seen = []

    def watched(**arguments):
        result = update(**arguments)
        (_, host), _ = result[0]
        params = jax.tree.leaves(result[1])
        seen.append((host, [np.asarray(leaf) for leaf in params]))
        return result

    update = submission.functions.update_params
    # The first choice is due after ten steps.
    assert contract.try_out(submission, workload, POINT, steps=13).violations == []
    params, model_state = workload.init_model_fn(jax.random.PRNGKey(0))
    point = as_namedtuple(POINT)
    key = jax.random.PRNGKey(1)
    state = submission.functions.init_optimizer_state(
        workload, params, model_state, point, key
    )
    queue = iter(workload.dataset("train", 4, seed=0))
    for number in range(12):
        state, params, model_state = watched(
            workload=workload,
            current_param_container=params,
            current_params_types=workload.model_params_types,
            model_state=model_state,
            hyperparameters=point,
            batch=next(queue),
            loss_type=workload.loss_type,
            optimizer_state=state,
            eval_results=[],
            global_step=number,
            rng=jax.random.fold_in(key, number),
        )
    words = np.array([host.words for host, _ in seen])
    assert (words[:10] == 8).all()
    assert (words[10:] > 8).all()
    # The weights that are trained on lie on the grid of their words.
    host, params = seen[5]
    scaled = params[0] * 2.0 ** host.fractions[0]
    np.testing.assert_array_equal(scaled, np.rint(scaled))
