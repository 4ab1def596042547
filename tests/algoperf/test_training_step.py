"""One step: recipes among the hyperparameters, and batches in parts."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from synthetic import BATCH_NORM, SYNTHETIC, examples

from algoperf import (
    contract,
    numerics,
    records,
    registry,
    runner,
    sharding,
    spec,
    tuning,
)
from algoperf.errors import UserError
from algoperf.loading import load_submission
from algoperf.numerics import RECIPES, DynamicLossScale, units
from algoperf.reparam import pruning
from algoperf.submission import (
    Objective,
    WithTrainingParams,
    from_optax,
)
from algoperf.tuning import as_namedtuple
from submissions.sophia import submission as sophia

KEY = jax.random.PRNGKey(0)
POINT = {"learning_rate": 0.1}


def _build(workload, hyperparameters):
    return optax.adam(hyperparameters.learning_rate)


def _train(functions, steps=3, workload=SYNTHETIC, **point):
    """Returns the params after each of some steps on the first batch."""
    point = as_namedtuple({**POINT, **point})
    params, model_state = workload.init_model_fn(KEY)
    state = functions.init_optimizer_state(workload, params, model_state, point, KEY)
    batch = {name: array[:32] for name, array in examples("train").items()}
    batch = sharding.shard_along_batch_dim(batch)
    seen = [jax.device_get(params)]
    for step in range(steps):
        state, params, model_state = functions.update_params(
            workload=workload,
            current_param_container=params,
            current_params_types=workload.model_params_types,
            model_state=model_state,
            hyperparameters=point,
            batch=batch,
            loss_type=workload.loss_type,
            optimizer_state=state,
            eval_results=[],
            global_step=step,
            rng=jax.random.fold_in(KEY, step),
        )
        seen.append(jax.device_get(params))
    return seen


def _kernels(seen):
    return [params["hidden"]["kernel"] for params in seen]


def test_a_recipe_is_the_rewritten_loss():
    def rewritten(workload, hyperparameters, loss, rng):
        return numerics.apply("mxint8", loss, key=jax.random.fold_in(rng, 1))

    by_name = _kernels(_train(from_optax(_build), recipe="mxint8"))
    by_hand = _kernels(_train(from_optax(_build, rewrite_loss=rewritten)))
    np.testing.assert_array_equal(by_name, by_hand)
    plain = _kernels(_train(from_optax(_build)))
    assert not np.array_equal(by_name, plain)


def _batch_norm_step(functions, rows, **point):
    """Returns params and model state before a step, its batch, and what it returned."""
    point = as_namedtuple({**POINT, **point})
    params, model_state = BATCH_NORM.init_model_fn(KEY)
    batch = {name: array[:rows] for name, array in examples("train").items()}
    state, step = functions.init_optimizer_state(
        BATCH_NORM, params, model_state, point, KEY
    )
    if isinstance(state, WithTrainingParams):
        state = state.transformation
    before = jax.device_get((params, model_state))
    return *before, batch, step(state, params, model_state, batch, KEY)


def _assert_statistics_are_of(found, params, model_state, batch):
    mode = spec.ForwardPassMode.TRAIN
    want = BATCH_NORM.model_fn(params, batch, model_state, mode, KEY, True)[1]
    assert jax.tree.leaves(found)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, want
    )


@pytest.mark.parametrize("recipe", ["mxfp4", "fp8_delayed"])
@pytest.mark.parametrize("rows", [32, 12])
def test_running_statistics_are_those_of_the_model_that_is_evaluated(recipe, rows):
    """Of one example in 8, where they can be split so; of no quantised activation."""
    functions = from_optax(_build)
    params, model_state, batch, after = _batch_norm_step(functions, rows, recipe=recipe)
    seen = {n: a[::8] for n, a in batch.items()} if rows % 8 == 0 else batch
    _assert_statistics_are_of(after[2], params, model_state, seen)


@pytest.mark.parametrize("point", [{}, {"recipe": "mxfp4"}, {"recipe": "fp8_delayed"}])
def test_running_statistics_are_those_of_the_average_that_is_evaluated(point):
    def twice(state, params):
        return jax.tree.map(lambda leaf: 2 * leaf, params)

    functions = from_optax(_build, eval_params=twice)
    _, model_state, batch, after = _batch_norm_step(functions, 32, **point)
    seen = {name: array[::8] for name, array in batch.items()}
    _assert_statistics_are_of(after[2], twice(None, after[1]), model_state, seen)


def _looked_at(look, **point):
    """Returns what look(objective, params) gives within a step."""

    def update(updates, state, params=None, *, objective, **extra):
        return updates, look(objective, params)

    def init(params):
        shapes = jax.eval_shape(_objective_of(SYNTHETIC, look), params)
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    transformation = optax.GradientTransformationExtraArgs(init, update)
    functions = from_optax(lambda workload, point: transformation)
    params, model_state = SYNTHETIC.init_model_fn(KEY)
    point = as_namedtuple(point)
    state, step = functions.init_optimizer_state(
        SYNTHETIC, params, model_state, point, KEY
    )
    state = step(state, params, model_state, _rows(), KEY)[0]
    return getattr(state, "transformation", state)


def _rows():
    return {name: array[:32] for name, array in examples("train").items()}


def _objective_of(workload, look):
    return lambda params: look(Objective(workload, _rows(), {}, KEY), params)


@pytest.mark.parametrize("recipe", ["mxfp8", "fp8_delayed"])
def test_logits_are_those_of_the_recipe(recipe):
    def look(objective, params):
        return objective.logits(params)

    plain, quantised = _looked_at(look), _looked_at(look, recipe=recipe)
    difference = np.abs(plain - quantised)
    assert 0 < difference.mean() < 0.1 * np.abs(plain).mean()

    def of_loss(objective, params):
        losses = SYNTHETIC.loss_fn(_rows()["targets"], objective.logits(params))
        return losses["summed"] / losses["n_valid_examples"] - objective.loss(params)

    assert abs(_looked_at(of_loss, recipe=recipe)) < 1e-6


@pytest.mark.parametrize("recipe", ["bf16", "mxfp8", "int8", "fp8_delayed"])
def test_what_is_known_of_the_curvature_under_a_recipe(recipe):
    """Sophia's estimate and GraSP's score are those without one, but for rounding."""

    def look(objective, params):
        return {
            "sophia": sophia.hutchinson(objective, params, KEY),
            "grasp": pruning.grasp(objective.gradient, params),
        }

    plain, quantised = _looked_at(look), _looked_at(look, recipe=recipe)
    for name, want in plain.items():
        away = optax.tree.norm(optax.tree.sub(quantised[name], want))
        assert 0 < away < 0.25 * optax.tree.norm(want), name


def test_a_recipe_beside_a_rewritten_loss_is_told():
    functions = from_optax(_build, rewrite_loss=lambda workload, point, loss, rng: loss)
    with pytest.raises(UserError, match="the recipe 'mxint8', and rewrite"):
        _train(functions, steps=0, recipe="mxint8")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("mxpf8", "mxfp8"),
        (RECIPES["mxfp8"].replace(keep_last=2), "matches none of the function's 2"),
        (RECIPES["fp16"].replace(keep_last=2), "matches none of the function's 2"),
    ],
)
def test_a_recipe_that_cannot_be_is_told_before_the_first_step(recipe, message):
    with pytest.raises(UserError, match=message):
        _train(from_optax(_build), steps=0, recipe=recipe)


def test_bits_of_moments_that_there_are_not():
    submission = load_submission(registry.find_submission("quantized_adamw"))
    space = tuning.load_search_space(submission.default_search_space)
    point = tuning.trial_point(space, 0, 1)
    with pytest.raises(UserError, match="moment_bits is 16; give 32, or 8"):
        _train(submission.functions, steps=0, **{**point, "moment_bits": 16})


def test_delayed_scaling_trains():
    """Its first step scales by what it sees, as the recipe without history does."""
    functions = from_optax(_build)
    delayed = _kernels(_train(functions, recipe="fp8_delayed"))
    current = RECIPES["fp8"].replace(weights_only=True)
    at_once = _kernels(_train(functions, recipe=current))
    np.testing.assert_allclose(delayed[1], at_once[1], atol=1e-5)
    assert not np.array_equal(delayed[3], at_once[3])
    np.testing.assert_allclose(delayed[3], at_once[3], atol=0.2)


def test_a_step_that_overflows_is_skipped():
    """Half precision overflows at a loss scale of 2^24, which is halved until it fits.

    Skipped steps leave parameters and moments, so what follows is training as it is.
    """
    scale = DynamicLossScale(initial=2.0**24, largest=2.0**24)
    recipe = RECIPES["fp16"].replace(loss_scale=scale)
    seen = _kernels(_train(from_optax(_build), steps=16, recipe=recipe))
    is_skipped = [np.array_equal(*pair) for pair in itertools.pairwise(seen)]
    first = is_skipped.index(False)
    assert 0 < first < 14
    assert sum(is_skipped[first:]) <= 2  # gradients may grow once more
    fixed = RECIPES["fp16"].replace(loss_scale=2.0**24 / 2**first)
    plain = _kernels(_train(from_optax(_build), steps=1, recipe=fixed))
    np.testing.assert_allclose(seen[first + 1], plain[1], atol=1e-3)


def test_a_step_is_skipped_where_a_second_gradient_overflows():
    """Far from where the first is taken, as that of SAM is; the scale is halved too."""

    def build(workload, hyperparameters):
        def update(updates, state, params=None, *, objective, **extra):
            far = jax.tree.map(lambda x: 1000 * x, params)
            return objective.gradient(far), state

        farther = optax.GradientTransformationExtraArgs(
            lambda params: optax.EmptyState(), update
        )
        return optax.chain(farther, optax.sgd(1e-6))

    def skipped(build):
        scale = DynamicLossScale(initial=2.0**15)
        recipe = RECIPES["fp16"].replace(loss_scale=scale)
        seen = _kernels(_train(from_optax(build), steps=16, recipe=recipe))
        assert np.isfinite(seen).all()
        return [np.array_equal(*pair) for pair in itertools.pairwise(seen)]

    assert not any(skipped(_build))
    is_skipped = skipped(build)
    first = is_skipped.index(False)
    assert 0 < first < 14
    assert not any(is_skipped[first:])


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["fp8_delayed", "quartet"])
def test_muon_keeps_the_contract_with_a_recipe(recipe):
    """Any submission takes one; stopped and resumed too."""
    muon = load_submission(registry.find_submission("muon"))
    space = tuning.load_search_space(muon.default_search_space)
    point = {**tuning.trial_point(space, 0, 1), "recipe": recipe}
    assert contract.try_out(muon, BATCH_NORM, point, steps=3).violations == []


def test_averages_go_with_a_recipe_that_has_state():
    functions = from_optax(_build, eval_params=lambda state, params: params)
    point = as_namedtuple({**POINT, "recipe": "fp8_delayed"})
    params, model_state = SYNTHETIC.init_model_fn(KEY)
    state = functions.init_optimizer_state(SYNTHETIC, params, model_state, point, KEY)
    _, evaluated, _ = functions.prepare_for_eval(
        SYNTHETIC, params, None, model_state, point, None, state, [], 0, KEY
    )
    np.testing.assert_array_equal(evaluated["head"]["kernel"], params["head"]["kernel"])


WEIGHTS = np.float32(np.arange(32) % 3)  # many differ between parts of the batch


def _objective(workload, microbatches):
    _, model_state = workload.init_model_fn(KEY)
    batch = {name: array[:32] for name, array in examples("train").items()}
    batch["weights"] = WEIGHTS
    objective = Objective(workload, batch, model_state, KEY, dropout_rate=0.0)
    return dataclasses.replace(objective, microbatches=microbatches)


@pytest.mark.parametrize("microbatches", [2, 8, 32])
def test_microbatches_give_the_gradient_of_the_batch(microbatches):
    """With weights, so that parts count differently; some of one example weigh 0."""
    params, _ = SYNTHETIC.init_model_fn(KEY)
    (loss, _), gradient = _objective(SYNTHETIC, 1).value_and_gradient(params)
    parts = _objective(SYNTHETIC, microbatches)
    (loss_of_parts, _), of_parts = parts.value_and_gradient(params)
    np.testing.assert_allclose(loss_of_parts, loss, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        of_parts,
        gradient,
    )


@pytest.mark.parametrize("score", [pruning.snip, pruning.grasp])
def test_scores_in_microbatches_are_those_of_the_batch(score):
    params, _ = SYNTHETIC.init_model_fn(KEY)
    whole, parts = (
        score(_objective(SYNTHETIC, number).gradient, params) for number in (1, 8)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        parts,
        whole,
    )


def test_microbatches_go_through_batch_norm_in_turn():
    params, model_state = BATCH_NORM.init_model_fn(KEY)
    (_, after), _ = _objective(BATCH_NORM, 2).value_and_gradient(params)
    whole = _objective(BATCH_NORM, 1)
    for part in range(2):  # every second example, so that devices keep their own
        batch = {name: array[part::2] for name, array in whole.batch.items()}
        step = dataclasses.replace(whole.on(batch), model_state=model_state)
        _, model_state = step.loss_and_state(params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), after, model_state
    )


def _in_parts(microbatches):
    place = sharding.Placement(microbatches=microbatches)
    return dataclasses.replace(SYNTHETIC, placement=place)


def test_training_in_microbatches_goes_the_same_way():
    functions = from_optax(_build)
    seen = {n: _kernels(_train(functions, workload=_in_parts(n))) for n in (1, 4)}
    np.testing.assert_allclose(seen[4], seen[1], atol=1e-5)
    assert not np.array_equal(seen[1][0], seen[1][3])


def test_ignite_takes_no_microbatches():
    """Its penalty is of the outputs of the whole batch, whose memory they would be."""
    ignite = load_submission(registry.find_submission("ignite"))
    (point, *_) = tuning.load_search_space(ignite.default_search_space)
    with pytest.raises(UserError, match=r"ignite .* run it with --microbatches 1"):
        _train(ignite.functions, steps=0, workload=_in_parts(2), **point)


def test_a_recipe_with_state_takes_no_microbatches():
    with pytest.raises(UserError, match="run it with --microbatches 1"):
        _train(from_optax(_build), workload=_in_parts(2), recipe="fp8_delayed")


@pytest.mark.parametrize("score", [None, "snip", "grasp"])
def test_microbatches_hold_the_activations_of_one_part(score):
    """XLA's own count, for a hidden layer of 8 numbers and 65,536 examples.

    With a score of the whole batch too, that the first step prunes by.
    """
    functions, point = from_optax(_build), as_namedtuple(POINT)
    if score is not None:
        pruned = load_submission(registry.find_submission("pruned"))
        (usual, *_) = tuning.load_search_space(pruned.default_search_space)
        functions, point = pruned.functions, as_namedtuple({**usual, "score": score})
    temporary = {}
    for parts in (1, 8):
        workload = _in_parts(parts)
        params, model_state = workload.init_model_fn(KEY)
        state, step = functions.init_optimizer_state(
            workload, params, model_state, point, KEY
        )
        batch = {
            "inputs": jax.ShapeDtypeStruct((65_536, 4), np.float32),
            "targets": jax.ShapeDtypeStruct((65_536,), np.int32),
        }
        compiled = step.lower(state, params, model_state, batch, KEY).compile()
        temporary[parts] = compiled.memory_analysis().temp_size_in_bytes
    inputs = 65_536 * 5 * 4  # the parts, in another order; once for each gradient
    inputs *= 1 if score is None else 2
    assert temporary[8] < inputs + temporary[1] / 4


def test_a_record_says_which_units_a_recipe_runs_in(make_config, monkeypatch):
    """Two layers, so six products: forward and both gradients."""
    monkeypatch.setattr(
        numerics.application,
        "this_device",
        lambda: units.Device("cpu", units=("int8",)),
    )
    submission = load_submission(registry.find_submission("quantized_adamw"))
    space = tuning.load_search_space(submission.default_search_space)
    point = {**tuning.trial_point(space, 0, 1), "recipe": "int8"}
    config = make_config(submission=submission, hyperparameters=point, max_steps=2)
    runner.run_trial(config)
    assert records.read_record(config.folder)["numerics"] == {
        "recipe": "int8",
        "products": 2,
        "quantised": 2,
        "units": {"int8": 6},
    }


def test_a_record_names_the_recipe_of_a_submission_that_tunes_itself(make_config):
    text = (
        "(get_batch_size, init_optimizer_state, update_params, prepare_for_eval,\n"
        " data_selection) = from_optax(\n"
        "    build, self_tuned={'learning_rate': 0.01, 'recipe': 'int8'})\n"
    )
    config = make_config(text, ruleset="self", hyperparameters=None, max_steps=2)
    record = runner.run_trial(config)
    assert record["hyperparameters"] is None
    assert record["numerics"]["recipe"] == "int8"


def test_a_record_without_a_recipe_says_so(make_config):
    config = make_config(max_steps=2)
    runner.run_trial(config)
    assert records.read_record(config.folder)["numerics"] is None
