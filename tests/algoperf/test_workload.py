"""What all workloads share: parameters, the model function, evaluation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from synthetic import BATCH_NORM, SPLITS, SYNTHETIC, examples

from algoperf import spec
from algoperf import workload as workload_module
from algoperf.workload import Evaluator, derive, parameter_types

KEY = jax.random.PRNGKey(0)
TRAIN, EVAL = spec.ForwardPassMode.TRAIN, spec.ForwardPassMode.EVAL
Type = spec.ParameterType


def _batch(split="train", size=16):
    return {name: array[:size] for name, array in examples(split).items()}


def test_types_shapes_and_counts_follow_the_parameters():
    params, model_state = BATCH_NORM.init_model_fn(KEY)
    assert BATCH_NORM.model_params_types == {
        "hidden": {"kernel": Type.WEIGHT, "bias": Type.BIAS},
        "BatchNorm_0": {"scale": Type.BATCH_NORM_SCALE, "bias": Type.BATCH_NORM_BIAS},
        "head": {"kernel": Type.WEIGHT, "bias": Type.BIAS},
    }
    shapes = jax.tree.map(lambda leaf: spec.ShapeTuple(leaf.shape), params)
    assert BATCH_NORM.param_shapes == shapes
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    assert BATCH_NORM.num_parameters == sum(sizes)
    assert list(model_state) == ["batch_stats"]
    assert BATCH_NORM.is_output_params("head")
    assert not BATCH_NORM.is_output_params("hidden")


@pytest.mark.parametrize(
    ("path", "shape", "kind"),
    [
        ("Conv_0/kernel", (3, 3, 1, 8), Type.CONV_WEIGHT),
        ("Conv_0/bias", (8,), Type.BIAS),
        ("LayerNorm_1/scale", (8,), Type.LAYER_NORM_SCALE),
        ("ln_1/bias", (8,), Type.LAYER_NORM_BIAS),
        ("RMSNorm_0/scale", (8,), Type.LAYER_NORM_SCALE),
        ("bn_init/scale", (8,), Type.BATCH_NORM_SCALE),
        ("Embed_0/embedding", (9, 8), Type.EMBEDDING),
        ("SelfAttention_0/query/kernel", (8, 2, 4), Type.ATTENTION_Q),
        ("SelfAttention_0/key/kernel", (8, 2, 4), Type.ATTENTION_K),
        ("SelfAttention_0/value/kernel", (8, 2, 4), Type.ATTENTION_V),
        ("SelfAttention_0/out/kernel", (2, 4, 8), Type.ATTENTION_OUT),
        ("SelfAttention_0/qkv/kernel", (8, 24), Type.ATTENTION_QKV),
        ("SelfAttention_0/query/bias", (2, 4), Type.ATTENTION_BIAS),
        ("query/kernel", (8, 8), Type.WEIGHT),
        ("layer/gain/scale", (1,), Type.WEIGHT),
    ],
)
def test_types_are_read_off_the_names(path, shape, kind):
    tree = jnp.zeros(shape)
    for name in reversed(path.split("/")):
        tree = {name: tree}
    assert jax.tree.leaves(parameter_types(tree)) == [kind]


def test_a_parameter_of_unknown_type_is_named():
    with pytest.raises(ValueError, match="parameter Dense_0/gamma; name its last key"):
        parameter_types({"Dense_0": {"gamma": jnp.ones(3)}})


def _forward(params, state, mode=TRAIN, update=True, workload=BATCH_NORM, **options):
    return workload.model_fn(params, _batch(), state, mode, KEY, update, **options)


def _mean(state):
    return state["batch_stats"]["BatchNorm_0"]["mean"]


def test_batch_statistics_are_updated_only_when_asked():
    params, state = BATCH_NORM.init_model_fn(KEY)
    _, kept = _forward(params, state, update=False)
    _, changed = _forward(params, state)
    np.testing.assert_array_equal(_mean(kept), _mean(state))
    assert not np.allclose(_mean(changed), _mean(state))
    assert jax.tree.structure(changed) == jax.tree.structure(state)


def test_running_averages_follow_the_mode_unless_told():
    params, state = BATCH_NORM.init_model_fn(KEY)
    train, _ = _forward(params, state)
    evaluated, same = _forward(params, state, EVAL, update=False)
    assert not np.allclose(train, evaluated)
    assert jax.tree.structure(same) == jax.tree.structure(state)
    for mode in (TRAIN, EVAL):
        told, _ = _forward(params, state, mode, False, use_running_average_bn=True)
        np.testing.assert_array_equal(told, evaluated)
        told, _ = _forward(params, state, mode, False, use_running_average_bn=False)
        np.testing.assert_array_equal(told, train)


def test_statistics_are_refreshed_in_evaluation_mode_too():
    params, state = BATCH_NORM.init_model_fn(KEY)
    train, trained = _forward(params, state)
    evaluated, refreshed = _forward(params, state, EVAL)
    np.testing.assert_array_equal(evaluated, train)
    np.testing.assert_array_equal(_mean(refreshed), _mean(trained))


@pytest.mark.parametrize("follows", [True, False])
def test_a_training_pass_without_update_takes_what_the_workload_says(follows):
    workload = derive(BATCH_NORM, batch_norm_follows_mode=follows)
    params, state = workload.init_model_fn(KEY)
    got, kept = _forward(params, state, update=False, workload=workload)
    mode = TRAIN if follows else EVAL
    want, _ = _forward(params, state, mode, use_running_average_bn=not follows)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(_mean(kept), _mean(state))


def test_dropout_acts_in_training_only():
    params, state = SYNTHETIC.init_model_fn(KEY)

    def forward(rate, rng):
        return SYNTHETIC.model_fn(
            params, _batch(), state, TRAIN, rng, True, dropout_rate=rate
        )[0]

    plain = SYNTHETIC.model_fn(params, _batch(), state, TRAIN, KEY, True)[0]
    np.testing.assert_allclose(forward(0.0, KEY), plain, rtol=1e-6)
    assert not np.allclose(forward(0.5, KEY), plain)
    assert not np.allclose(forward(0.5, KEY), forward(0.5, jax.random.PRNGKey(1)))
    evaluated = SYNTHETIC.model_fn(
        params, _batch(), state, EVAL, None, False, dropout_rate=0.5
    )[0]
    np.testing.assert_allclose(evaluated, plain, rtol=1e-6)


@pytest.mark.parametrize("eval_batch_size", [7, 32, 64])
def test_evaluation_is_the_mean_over_the_examples(eval_batch_size):
    workload = derive(BATCH_NORM, eval_batch_size=eval_batch_size)
    params, state = workload.init_model_fn(KEY)
    results = Evaluator(workload)(params, state)
    names = {"eval_train": "train", "validation": "validation", "test": "test"}
    for split, prefix in names.items():
        batch = examples(split)
        logits, _ = workload.model_fn(params, batch, state, EVAL, None, False)
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits, batch["targets"]
        )
        correct = np.argmax(logits, axis=-1) == batch["targets"]
        assert results[f"{prefix}/loss"] == pytest.approx(
            float(losses.mean()), rel=1e-5
        )
        assert results[f"{prefix}/accuracy"] == pytest.approx(correct.mean())
    assert results["validation/num_examples"] == SPLITS["validation"]
    assert results["test/num_examples"] == SPLITS["test"]
    assert all(isinstance(results[f"{p}/loss"], float) for p in names.values())


def test_the_second_evaluation_compiles_nothing_with_a_cache_or_without(monkeypatch):
    for limit in (0, 2**30):
        monkeypatch.setattr(workload_module, "EVAL_CACHE_BYTES", limit)
        evaluator = Evaluator(SYNTHETIC)
        params, state = SYNTHETIC.init_model_fn(KEY)
        first = evaluator(params, state)
        assert evaluator(params, state) == first
        assert evaluator._step._cache_size() == 1
        assert bool(evaluator._cache) == bool(limit)


def test_a_variant_is_a_copy_with_other_facts():
    assert BATCH_NORM.model.batch_norm
    assert not SYNTHETIC.model.batch_norm
    assert derive(SYNTHETIC, scale="full").name == "synthetic"
    with pytest.raises(TypeError, match="no_such_fact"):
        derive(SYNTHETIC, no_such_fact=1)
    with pytest.raises(TypeError, match="no_such_field"):
        derive(SYNTHETIC, model={"no_such_field": 1})


def test_a_workload_is_read_only_and_may_be_a_static_argument():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SYNTHETIC.validation_target_value = 0.0
    assert hash(SYNTHETIC) != hash(derive(SYNTHETIC))
    assert derive(SYNTHETIC) != SYNTHETIC


def test_targets_count_from_the_value_on():
    workload = derive(SYNTHETIC, validation_target_value=0.9, test_target_value=0.8)
    results = {"validation/accuracy": 0.9, "test/accuracy": 0.79}
    assert workload.has_reached_validation_target(results)
    assert not workload.has_reached_test_target(results)
