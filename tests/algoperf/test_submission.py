"""Submissions made from optax."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from synthetic import BATCH_NORM, SYNTHETIC, examples

from algoperf import reparam, sharding, spec
from algoperf.errors import UserError
from algoperf.reparam import low_rank
from algoperf.submission import (
    BIASES_AND_NORMS,
    from_optax,
    mask_without,
    standard_chain,
)
from algoperf.tuning import as_namedtuple

KEY = jax.random.PRNGKey(0)


def _train(functions, point, steps=3, workload=SYNTHETIC):
    """Returns the params after some steps on the first batch."""
    params, model_state = workload.init_model_fn(KEY)
    state = functions.init_optimizer_state(workload, params, model_state, point, KEY)
    batch = {name: array[:32] for name, array in examples("train").items()}
    for step in range(steps):
        state, params, model_state = functions.update_params(
            workload=workload,
            current_param_container=params,
            current_params_types=workload.model_params_types,
            model_state=model_state,
            hyperparameters=point,
            batch=sharding.shard_along_batch_dim(batch),
            loss_type=workload.loss_type,
            optimizer_state=state,
            eval_results=[],
            global_step=step,
            rng=jax.random.fold_in(KEY, step),
        )
    return params


def _build(workload, hyperparameters):
    return optax.adam(hyperparameters.learning_rate)


def test_the_steps_are_those_of_optax():
    params, state = SYNTHETIC.init_model_fn(KEY)
    optimizer = optax.adam(0.1)
    optimizer_state = optimizer.init(params)
    batch = {name: array[:32] for name, array in examples("train").items()}

    def mean_loss(params):
        mode = spec.ForwardPassMode.TRAIN
        logits, _ = SYNTHETIC.model_fn(params, batch, state, mode, KEY, True)
        return optax.softmax_cross_entropy_with_integer_labels(
            logits, batch["targets"]
        ).mean()

    for _ in range(3):
        updates, optimizer_state = optimizer.update(
            jax.grad(mean_loss)(params), optimizer_state, params
        )
        params = optax.apply_updates(params, updates)
    found = _train(from_optax(_build), as_namedtuple({"learning_rate": 0.1}))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6),
        found,
        params,
    )


@pytest.mark.parametrize("name", ["dropout_rate", "label_smoothing"])
def test_hyperparameters_of_the_loss_are_honoured(name):
    functions = from_optax(_build)
    point = {"learning_rate": 0.1}
    plain = _train(functions, as_namedtuple(point))
    none = _train(functions, as_namedtuple({**point, name: 0.0}))
    some = _train(functions, as_namedtuple({**point, name: 0.3}))
    kernels = [p["head"]["kernel"] for p in (plain, none, some)]
    np.testing.assert_allclose(kernels[0], kernels[1], rtol=1e-4, atol=1e-6)
    assert not np.allclose(kernels[0], kernels[2])


def test_the_loss_may_be_rewritten():
    def without_bias(workload, hyperparameters, loss, rng):
        assert workload is SYNTHETIC
        assert hyperparameters.learning_rate == 0.1
        assert rng.shape == KEY.shape

        def rewritten(params, *rest):
            bias = jax.lax.stop_gradient(params["head"]["bias"])
            return loss({**params, "head": {**params["head"], "bias": bias}}, *rest)

        return rewritten

    functions = from_optax(_build, rewrite_loss=without_bias)
    params = _train(functions, as_namedtuple({"learning_rate": 0.1}))
    assert not params["head"]["bias"].any()
    assert params["hidden"]["bias"].any()


def test_a_build_without_a_return_is_named():
    def forgetful(workload, hyperparameters):
        optax.sgd(0.1)

    functions = from_optax(forgetful)
    with pytest.raises(UserError, match=r"forgetful returned NoneType.*return state"):
        functions.init_optimizer_state(None, {}, None, as_namedtuple({"x": 1}), None)


def test_a_build_of_other_arguments_is_named():
    functions = from_optax(lambda hyperparameters: optax.sgd(0.1))
    says = r"<lambda> must take \(workload, hyperparameters\): too many positional"
    with pytest.raises(UserError, match=says):
        functions.init_optimizer_state(None, {}, None, as_namedtuple({"x": 1}), None)


def test_self_tuning_uses_the_given_setting_or_is_refused():
    params, state = SYNTHETIC.init_model_fn(KEY)
    refusing, willing = from_optax(_build), from_optax(_build, self_tuned={"x": 1})
    with pytest.raises(UserError, match="--ruleset external, or give from_optax"):
        refusing.init_optimizer_state(SYNTHETIC, params, state, None, KEY)
    with pytest.raises(AttributeError, match="learning_rate"):
        willing.init_optimizer_state(SYNTHETIC, params, state, None, KEY)
    functions = from_optax(_build, self_tuned={"learning_rate": 0.1})
    assert np.isfinite(_train(functions, None)["head"]["kernel"]).all()


def test_batch_sizes_are_by_name():
    functions = from_optax(_build, batch_sizes={"a": 64})
    assert functions.get_batch_size("a") == 64
    with pytest.raises(ValueError, match="no batch size"):
        functions.get_batch_size("b")


def test_the_mask_leaves_biases_and_norms_out():
    mask = mask_without(BATCH_NORM)
    assert mask["hidden"] == {"kernel": True, "bias": False}
    assert mask["BatchNorm_0"] == {"scale": False, "bias": False}
    assert spec.ParameterType.WEIGHT not in BIASES_AND_NORMS
    weights = mask_without(BATCH_NORM, [spec.ParameterType.WEIGHT])
    assert weights["head"] == {"kernel": False, "bias": True}


def _from_objective(workload, hyperparameters):
    """SGD on what the objective says, not on the gradient it is given."""

    def update(updates, state, params=None, *, objective, value, **extra):
        again = objective.gradient(params)
        half = {name: array[:16] for name, array in objective.batch.items()}
        other = {name: array[16:] for name, array in objective.batch.items()}
        halves = [objective.on(part).loss(params) for part in (half, other)]
        facts = {
            "gradients": optax.tree.norm(optax.tree.sub(updates, again)),
            "losses": value - sum(halves) / 2,
            "logits": jnp.sum(jnp.square(objective.logits(params))),
            "moved": jnp.abs(objective.reseeded(1).loss(params) - value),
        }
        updates = jax.tree.map(lambda g: -hyperparameters.learning_rate * g, again)
        return updates, {name: facts[name] for name in state}

    names = ("gradients", "losses", "logits", "moved")
    return optax.GradientTransformationExtraArgs(
        lambda params: dict.fromkeys(names, jnp.float32(0)), update
    )


def test_a_transformation_may_look_at_the_objective_again():
    point = as_namedtuple({"learning_rate": 0.1})
    functions = from_optax(_from_objective)
    found = _train(functions, point)
    plain = _train(from_optax(lambda w, h: optax.sgd(0.1)), point)
    jax.tree.map(np.testing.assert_array_equal, found, plain)
    facts = _state(functions, point)
    assert facts["gradients"] == 0
    np.testing.assert_allclose(facts["losses"], 0, atol=1e-6)
    assert facts["logits"] > 0
    assert facts["moved"] == 0  # there is no dropout
    dropout = as_namedtuple({"learning_rate": 0.1, "dropout_rate": 0.5})
    facts = _state(functions, dropout)
    assert facts["gradients"] == 0  # the same masks
    assert facts["moved"] > 0.001


def _state(functions, point):
    """Returns the transformation's state after one step."""
    params, model_state = SYNTHETIC.init_model_fn(KEY)
    state = functions.init_optimizer_state(SYNTHETIC, params, model_state, point, KEY)
    (state, _), _, _ = _updated(functions, point, state, params, model_state)
    return state


def _updated(functions, point, state, params, model_state, step=0):
    batch = {name: array[:32] for name, array in examples("train").items()}
    return functions.update_params(
        **_arguments(point, state, params, model_state, step),
        batch=sharding.shard_along_batch_dim(batch),
    )


def _arguments(point, state, params, model_state, step=0):
    return {
        "workload": SYNTHETIC,
        "current_param_container": params,
        "current_params_types": SYNTHETIC.model_params_types,
        "model_state": model_state,
        "hyperparameters": point,
        "loss_type": SYNTHETIC.loss_type,
        "optimizer_state": state,
        "eval_results": [],
        "global_step": step,
        "rng": KEY,
    }


def test_other_params_are_evaluated_and_training_goes_on_from_its_own():
    point = as_namedtuple({"learning_rate": 0.1})
    plain = from_optax(_build)
    halved = from_optax(
        _build, eval_params=lambda state, params: jax.tree.map(lambda x: x / 2, params)
    )
    ends = []
    for functions, evaluates in ((plain, False), (halved, False), (halved, True)):
        params, model_state = SYNTHETIC.init_model_fn(KEY)
        state = functions.init_optimizer_state(
            SYNTHETIC, params, model_state, point, KEY
        )
        for step in range(4):
            state, params, model_state = _updated(
                functions, point, state, params, model_state, step
            )
            trained = jax.device_get(params)
            if evaluates:
                state, params, model_state = functions.prepare_for_eval(
                    **_arguments(point, state, params, model_state, step)
                )
                jax.tree.map(
                    lambda half, whole: np.testing.assert_array_equal(half, whole / 2),
                    params,
                    trained,
                )
        ends.append(trained)
    for other in ends[1:]:
        jax.tree.map(np.testing.assert_array_equal, ends[0], other)


def test_a_state_that_holds_the_params_is_a_copy():
    """Both are donated, which one array cannot be twice."""
    keeping = optax.GradientTransformation(
        lambda params: params, lambda updates, state, params: (updates, state)
    )
    functions = from_optax(lambda workload, hyperparameters: keeping)
    params = _train(functions, as_namedtuple({"x": 1}))
    assert np.isfinite(params["head"]["kernel"]).all()


def test_the_standard_chain_clips_decays_and_follows_the_schedule():
    point = as_namedtuple(
        {
            "learning_rate": 0.5,
            "weight_decay": 0.1,
            "warmup_factor": 0.02,
            "grad_clip": 1.0,
        }
    )
    params, _ = SYNTHETIC.init_model_fn(KEY)
    params = jax.tree.map(lambda x: x + 1.0, params)
    gradient = jax.tree.map(jnp.ones_like, params)
    chain = standard_chain(SYNTHETIC, point, optax.scale(3.0))
    state = chain.init(params)
    first, state = chain.update(gradient, state, params)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(first))
    second, state = chain.update(gradient, state, params)
    norm = np.sqrt(sum(leaf.size for leaf in jax.tree.leaves(params)))
    for decay, role in ((0.1, "kernel"), (0.0, "bias")):
        np.testing.assert_allclose(
            second["hidden"][role],
            -0.5 * (3.0 / norm + decay * params["hidden"][role]),
            rtol=1e-5,
        )
    unclipped = as_namedtuple(
        {"learning_rate": 0.5, "weight_decay": 0.0, "warmup_factor": 0.02}
    )
    constant = standard_chain(SYNTHETIC, unclipped, optax.scale(3.0), lambda _: 0.25)
    updates, _ = constant.update(gradient, constant.init(params), params)
    np.testing.assert_allclose(updates["hidden"]["bias"], -0.75)


def test_a_schedule_may_be_for_a_part_of_the_steps():
    usual = {"learning_rate": 0.5, "weight_decay": 0.0, "warmup_factor": 0.05}
    steps = SYNTHETIC.step_hint

    def rates(**more):
        chain = standard_chain(
            SYNTHETIC, as_namedtuple({**usual, **more}), optax.identity()
        )
        params, _ = SYNTHETIC.init_model_fn(KEY)
        ones = jax.tree.map(jnp.ones_like, params)
        state, found = chain.init(params), []
        # Of all the chain's state only the count of steps matters.
        for step in (0, steps // 4, steps // 2 - 1, steps // 2, steps):
            now = optax.tree.set(state, count=jnp.int32(step))
            update = chain.update(ones, now, params)[0]
            found.append(-float(update["hidden"]["bias"][0]))
        return np.array(found)

    whole, half = rates(), rates(step_hint_factor=0.5)
    np.testing.assert_array_equal(rates(step_hint_factor=1.0), whole)
    assert whole[3] > 0.2  # half way
    np.testing.assert_allclose(half[3:], 0.0, atol=1e-8)
    assert half[2] > 0
    assert half[1] == pytest.approx(0.25, abs=0.05)


def _lora(workload, hyperparameters):
    return low_rank.lora(workload, reparam.select(workload, output=False), 2)


@pytest.mark.parametrize(
    ("point", "more", "is_over"),
    [
        ({"step_hint_factor": 0.1}, {}, True),
        (None, {"self_tuned": {"learning_rate": 0.1, "step_hint_factor": 0.1}}, True),
        ({"step_hint_factor": 1.0}, {}, False),
        ({}, {}, False),
        # What is evaluated may change still.
        ({"step_hint_factor": 0.1}, {"eval_params": lambda _, params: params}, False),
        ({"step_hint_factor": 0.1}, {"reparametrise": _lora}, False),
    ],
)
def test_a_trial_ends_with_a_plan_for_a_part_of_the_steps(point, more, is_over):
    """At the hint itself it goes on: other submissions' rates need not be 0 there."""
    functions = from_optax(lambda *_: optax.sgd(0.1), **more)
    if point is not None:
        point = as_namedtuple({"learning_rate": 0.1, **point})
    workload = dataclasses.replace(SYNTHETIC, step_hint=50)
    start, model_state = workload.init_model_fn(KEY)
    state = functions.init_optimizer_state(workload, start, model_state, point, KEY)
    batch = {name: array[:32] for name, array in examples("train").items()}
    facts = {"loss_type": workload.loss_type, "eval_results": [], "rng": KEY}
    facts |= {"workload": workload, "batch": sharding.shard_along_batch_dim(batch)}
    facts |= {"current_params_types": None, "hyperparameters": point}
    raises = pytest.raises(spec.TrainingCompleteError)
    for step in (4, 5, 50):
        with raises if is_over and step >= 5 else contextlib.nullcontext():
            state, start, model_state = functions.update_params(
                current_param_container=start,
                model_state=model_state,
                optimizer_state=state,
                global_step=step,
                **facts,
            )
