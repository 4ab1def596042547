"""Selecting, counting, and training a reparametrisation through the harness."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import KEY, KINDS, PARAMS, WORKLOAD, assert_trees_close, make_workload
from synthetic import SYNTHETIC, examples

from algoperf import numerics, records, registry, reparam, runner, sharding, tuning
from algoperf.errors import UserError
from algoperf.loading import load_submission
from algoperf.submission import from_optax, mask_without
from algoperf.tuning import as_namedtuple

POINT = as_namedtuple({"learning_rate": 0.1})


def _halves(workload, hyperparameters=None):
    """W = 2 x, with x trained; the smallest reparametrisation there is."""
    rule = reparam.Rule(lambda w, key: (w / 2, None), lambda x, frozen: 2 * x)
    chosen = reparam.select(workload)
    return reparam.per_matrix(workload, chosen, lambda name, shape: rule)


def test_select_by_type_path_shape_and_layer():
    chosen = reparam.select(WORKLOAD)
    assert chosen == {
        "embed": {"embedding": False},
        "attention": {"query": {"kernel": True}},
        "hidden": {"kernel": True, "bias": False},
        "head": {"kernel": True},
    }
    assert not reparam.select(WORKLOAD, output=False)["head"]["kernel"]
    only = reparam.select(WORKLOAD, path="^hidden/")
    assert sum(jax.tree.leaves(only)) == 1
    assert only["hidden"]["kernel"]
    large = reparam.select(WORKLOAD, smallest=4)
    assert not large["head"]["kernel"]  # 8 x 3
    assert large["attention"]["query"]["kernel"]  # 4 x (2 x 3)
    embedding = reparam.select(WORKLOAD, types=[KINDS.EMBEDDING])
    assert embedding["embed"]["embedding"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"path": "decoder"}, "path 'decoder'"),
        ({"types": [KINDS.CONV_WEIGHT]}, "types CONV_WEIGHT"),
        ({"smallest": 100}, "sides of 100 or more"),
    ],
)
def test_a_selector_that_matches_nothing(options, words):
    with pytest.raises(UserError, match=r"no parameter matches .*there are: ") as error:
        reparam.select(WORKLOAD, **options)
    assert words in str(error.value)
    assert "hidden/kernel (WEIGHT)" in str(error.value)


def test_a_selector_that_is_no_expression():
    with pytest.raises(UserError, match=r"'\(' is no regular expression"):
        reparam.select(WORKLOAD, path="(")


def test_ranks():
    assert reparam.rank_of(3, (4, 9)) == 3
    assert reparam.rank_of(0.5, (9, 4)) == 2
    assert reparam.rank_of(0.01, (9, 4)) == 1
    assert reparam.rank_of(1.0, (9, 4)) == 4
    for bad in (0, 5, -1):
        with pytest.raises(UserError, match=f"rank {bad} for a: 4 x 9|for a of shape"):
            reparam.rank_of(bad, (4, 9), "a")
    with pytest.raises(UserError, match="a share must be above 0"):
        reparam.rank_of(0.0, (4, 9))


def test_per_matrix_and_back():
    small = _halves(WORKLOAD)
    state = small.init(PARAMS, KEY)
    assert state.trainable["attention"]["query"]["kernel"].shape == (4, 6)
    assert_trees_close(small.materialise(state), PARAMS, 0)
    assert state.trainable["hidden"]["bias"] is PARAMS["hidden"]["bias"]


def test_parameters_that_are_not_chosen_may_stay():
    rule = reparam.Rule(lambda w, key: (w, None), lambda x, frozen: x)
    chosen = reparam.select(WORKLOAD, path="hidden")
    small = reparam.per_matrix(WORKLOAD, chosen, lambda *_: rule, train_others=False)
    state = small.init(PARAMS, KEY)
    assert reparam.count(state.trainable) == 5 * 7
    assert_trees_close(small.materialise(state), PARAMS, 0)


def test_a_mask_over_params_is_a_prefix_of_what_is_trained():
    pair = reparam.Rule(lambda w, key: ((w, w), None), lambda x, frozen: x[0])
    chosen = reparam.select(WORKLOAD)
    small = reparam.per_matrix(WORKLOAD, chosen, lambda *_: pair)
    trainable = small.init(PARAMS, KEY).trainable
    decay = optax.add_decayed_weights(0.5, mask=mask_without(WORKLOAD))
    zeros = jax.tree.map(jnp.zeros_like, trainable)
    updates, _ = decay.update(zeros, decay.init(trainable), trainable)
    assert not updates["hidden"]["bias"].any()
    for part in updates["hidden"]["kernel"]:
        np.testing.assert_allclose(part, PARAMS["hidden"]["kernel"] / 2)


def _arguments(workload, state, params, model_state, step):
    return {
        "workload": workload,
        "current_param_container": params,
        "current_params_types": workload.model_params_types,
        "model_state": model_state,
        "hyperparameters": POINT,
        "loss_type": workload.loss_type,
        "optimizer_state": state,
        "eval_results": [],
        "global_step": step,
        "rng": jax.random.fold_in(KEY, step),
    }


def _train(functions, steps):
    params, model_state = SYNTHETIC.init_model_fn(KEY)
    state = functions.init_optimizer_state(SYNTHETIC, params, model_state, POINT, KEY)
    batch = {name: array[:32] for name, array in examples("train").items()}
    for step in range(steps):
        state, params, model_state = functions.update_params(
            **_arguments(SYNTHETIC, state, params, model_state, step),
            batch=sharding.shard_along_batch_dim(batch),
        )
    return state, params


def test_from_optax_trains_what_is_small():
    """SGD on x with W = 2 x is SGD on W at four times the rate."""
    dense = from_optax(lambda w, h: optax.sgd(4 * h.learning_rate))
    small = from_optax(
        lambda w, h: optax.partition(
            {True: optax.sgd(h.learning_rate), False: optax.sgd(4 * h.learning_rate)},
            reparam.select(w),
        ),
        reparametrise=_halves,
    )
    _, wanted = _train(dense, 3)
    (state, _), found = _train(small, 3)
    assert_trees_close(found, wanted, 1e-6)
    assert int(state.steps) == 3
    again = _halves(SYNTHETIC).materialise(state.small)
    assert_trees_close(found, again, 0)  # what the harness holds is the small thing's


def test_the_first_gradient_is_of_the_materialised_params():
    """Also where they are not those that the workload began with."""
    tenth = reparam.Rule(lambda w, key: (w / 10, None), lambda x, frozen: x)

    def shrunk(workload, hyperparameters):
        return reparam.per_matrix(workload, reparam.select(workload), lambda *_: tenth)

    functions = from_optax(lambda w, h: optax.sgd(0.0), reparametrise=shrunk)
    _, found = _train(functions, 1)
    params, _ = SYNTHETIC.init_model_fn(KEY)
    np.testing.assert_allclose(
        found["head"]["kernel"], params["head"]["kernel"] / 10, rtol=1e-6
    )


def test_begin_step_may_change_what_stays():
    """`advance` sees the finished steps and the objective of the full parameters."""

    def advance(small, transformation, steps, objective):
        del transformation
        loss = objective.loss(_halves(SYNTHETIC).materialise(small))
        return small, {"steps": steps, "loss": loss}

    def watched(workload, hyperparameters):
        return dataclasses.replace(_halves(workload), advance=advance)

    def update(updates, state, params=None, *, value, **_):
        same = jnp.abs(state["loss"] - value) < 1e-6
        return updates, {"steps": state["steps"], "loss": jnp.where(same, 0.0, 1.0)}

    blank = {"steps": jnp.int32(-1), "loss": jnp.float32(0)}
    rule = optax.GradientTransformationExtraArgs(lambda _: blank, update)
    (state, _), _ = _train(from_optax(lambda w, h: rule, reparametrise=watched), 2)
    assert state.transformation == {"steps": 1, "loss": 0.0}


@pytest.mark.parametrize("name", ["fp8", "mxfp4"])
def test_a_recipe_of_numerics_goes_with_it(name):
    """Its loss sees full parameters; the gradient is that of the quantised products."""

    recipe = numerics.RECIPES[name].replace(keep_types=(), keep_last=0)

    def quantised(workload, hyperparameters, loss, rng):
        def full_only(params, *rest):
            assert jax.tree.map(jnp.shape, params) == jax.tree.map(
                lambda shape: shape.shape_tuple, workload.param_shapes
            )
            return numerics.apply(recipe, loss)(params, *rest)

        return full_only

    rate = 0.1
    halved = from_optax(
        lambda w, h: optax.sgd(rate), rewrite_loss=quantised, reparametrise=_halves
    )
    quadruple = {True: optax.sgd(4 * rate), False: optax.sgd(rate)}
    dense = from_optax(
        lambda w, h: optax.partition(quadruple, reparam.select(w)),
        rewrite_loss=quantised,
    )
    (_, found), (_, wanted) = _train(halved, 1), _train(dense, 1)
    assert_trees_close(found, wanted, 1e-6)


def test_averages_and_reparametrisations_do_not_go_together():
    with pytest.raises(UserError, match="eval_params or reparametrise, not both"):
        from_optax(lambda w, h: None, None, None, lambda s, p: p, None, _halves)


def test_sizes():
    workload = make_workload()
    params = jax.tree.map(jnp.copy, PARAMS)
    numbers = 24 + 24 + 35 + 7 + 24
    dense = reparam.sizes(params, (optax.adam(0.1).init(params), lambda: None))
    assert dense == {
        "trainable_parameters": numbers,
        "stored_bytes": 4 * numbers,
        "compression_ratio": 1.0,
        "optimizer_state_bytes": 8 * numbers + 4,
    }
    keys = (jax.random.key(0), np.zeros(2, np.uint8), 3, "text")
    assert reparam.sizes(params, keys)["optimizer_state_bytes"] == 8 + 2
    # Params that the state holds too cost nothing.
    assert reparam.sizes(params, (params, jnp.zeros(3)))["optimizer_state_bytes"] == 12
    pair = reparam.Rule(lambda w, key: (w[:1], w), lambda x, frozen: frozen)
    small = reparam.per_matrix(
        workload, reparam.select(workload, path="hidden"), lambda *_: pair
    )
    state = reparam.start(small, optax.sgd(0.1, momentum=0.9), params, KEY)
    found = reparam.sizes(params, (state, lambda: None))
    assert found["trainable_parameters"] == numbers - 35 + 7
    assert found["stored_bytes"] == 4 * (numbers + 7)
    assert found["compression_ratio"] == pytest.approx(numbers / (numbers + 7))
    assert found["optimizer_state_bytes"] == 4 * (numbers - 35 + 7) + 4  # and a counter


def _lora(make_config, **changes):
    submission = load_submission(registry.find_submission("lora"))
    space = tuning.load_search_space(submission.default_search_space)
    point = {**tuning.trial_point(space, 0, 1), **changes}
    return make_config(submission=submission, hyperparameters=point, max_steps=4)


def test_a_record_has_the_sizes(make_config):
    """LoRA of rank 1 in the hidden layer (4, 8); all else is trained as it is."""
    config = _lora(make_config, rank=1)
    runner.run_trial(config)
    sizes = records.read_record(config.folder)["sizes"]
    trained = (4 + 8) + 8 + (8 * 3 + 3)
    stored = trained + 4 * 8
    assert sizes == {
        "trainable_parameters": trained,
        "stored_bytes": 4 * stored,
        "compression_ratio": pytest.approx((32 + 8 + 24 + 3) / stored),
        "optimizer_state_bytes": 8 * trained + 3 * 4,  # and three counters
    }


def test_a_rank_above_the_dimension_ends_the_run_before_it_begins(make_config):
    config = _lora(make_config, rank=5)
    with pytest.raises(UserError, match="rank 5 for hidden/kernel of shape 4 x 8"):
        runner.run_trial(config)
    assert not config.folder.exists()
