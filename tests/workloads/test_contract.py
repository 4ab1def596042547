"""What every workload at mini scale must keep to, one body for all."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from algoperf import registry, sharding, spec
from algoperf.workload import EVAL_SPLITS, Evaluator, derive
from workloads.finewebedu_lm.workload import WORKLOADS as FINEWEBEDU_LM
from workloads.imagenet_resnet.workload import WORKLOADS as IMAGENET_RESNET

MINI = [w for w in registry.all_workloads() if w.scale == "mini"]
WORKLOADS = [w for w in (*IMAGENET_RESNET, *FINEWEBEDU_LM) if w.scale == "mini"]
BASES = [w for w in WORKLOADS if w.variant == w.base_workload]
CLASSES = {"imagenet_resnet": 10, "finewebedu_lm": 1024}
TYPES = {
    "imagenet_resnet": {
        spec.ParameterType.CONV_WEIGHT: 13,
        spec.ParameterType.BATCH_NORM_SCALE: 13,
        spec.ParameterType.BATCH_NORM_BIAS: 13,
        spec.ParameterType.WEIGHT: 1,
        spec.ParameterType.BIAS: 1,
    },
    "finewebedu_lm": {
        spec.ParameterType.EMBEDDING: 1,
        spec.ParameterType.ATTENTION_QKV: 2,
        spec.ParameterType.ATTENTION_OUT: 2,
        spec.ParameterType.LAYER_NORM_SCALE: 5,
        spec.ParameterType.WEIGHT: 6,  # fc1, fc2, attention scale
    },
}

every = pytest.mark.parametrize("workload", WORKLOADS, ids=lambda w: w.name)
each_base = pytest.mark.parametrize("workload", BASES, ids=lambda w: w.name)


@pytest.fixture(scope="module")
def initial():
    """Initial (params, model state) of a workload, computed once."""
    cache = {}

    def get(workload):
        if workload.name not in cache:
            cache[workload.name] = workload.init_model_fn(jax.random.PRNGKey(0))
        return cache[workload.name]

    return get


@pytest.mark.parametrize("workload", MINI, ids=lambda w: w.name)
def test_facts_make_sense(workload):
    assert workload.scale == "mini"
    assert workload.name == f"{workload.variant}_mini"
    assert workload.step_hint % workload.eval_period_steps == 0
    assert 15 <= workload.step_hint // workload.eval_period_steps <= 25
    assert workload.max_allowed_runtime_sec > 0
    assert workload.eval_batch_size % 8 == 0  # even over eight devices
    assert workload.default_batch_size % 8 == 0


@every
def test_types_and_shapes_are_the_trees_of_the_parameters(workload):
    counts: dict[spec.ParameterType, int] = {}
    for kind in jax.tree.leaves(workload.model_params_types):
        counts[kind] = counts.get(kind, 0) + 1
    assert counts == TYPES[workload.base_workload]
    structure = jax.tree.structure(workload.param_shapes)
    assert jax.tree.structure(workload.model_params_types) == structure


@each_base
def test_initial_parameters_have_the_stated_shapes(workload, initial):
    params, _ = initial(workload)
    shapes = jax.tree.map(lambda leaf: spec.ShapeTuple(leaf.shape), params)
    assert shapes == workload.param_shapes
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    assert all(workload.is_output_params(key) for key in workload.output_params)
    assert set(workload.output_params) <= set(params)


@each_base
@pytest.mark.parametrize("split", ["train", *EVAL_SPLITS])
def test_batches_have_the_stated_shapes(workload, split):
    batch = workload.dataset(split, 16, seed=3)[0]
    assert batch["inputs"].shape == (16, *workload.input_shape)
    assert batch["inputs"].dtype == workload.input_dtype
    assert batch["targets"].dtype == np.int32
    assert batch["targets"].min() >= 0
    assert batch["targets"].max() < CLASSES[workload.base_workload]
    if split != "train":
        assert batch["weights"].shape == batch["targets"].shape
        assert batch["weights"].dtype == np.float32


@each_base
def test_evaluation_splits_have_the_stated_sizes(workload):
    sizes = {
        "eval_train": workload.num_eval_train_examples,
        "validation": workload.num_validation_examples,
        "test": workload.num_test_examples,
    }
    for split, size in sizes.items():
        dataset = workload.dataset(split, 48, seed=0)
        weights = np.concatenate([dataset[i]["weights"] for i in range(len(dataset))])
        assert set(np.unique(weights)) <= {0, 1}
        assert weights.reshape(len(weights), -1).any(-1).sum() == size


@each_base
def test_an_epoch_holds_each_example_once(workload):
    size = 64
    targets = workload.dataset("train", size, seed=5)
    num_batches = -(-workload.num_train_examples // size)
    rows = np.concatenate([targets[i]["targets"] for i in range(num_batches)])
    first = rows[: workload.num_train_examples]
    second = workload.dataset("train", workload.num_train_examples, seed=6)[1]
    # Targets are not augmented, and another order of the same epoch is as good.
    first = first.reshape(len(first), -1)
    second = second["targets"].reshape(len(first), -1)
    assert not np.array_equal(first, second)
    assert sorted(map(bytes, first)) == sorted(map(bytes, second))


@each_base
def test_a_batch_depends_on_seed_and_position_alone(workload):
    datasets = [workload.dataset("train", 8, seed=seed) for seed in (1, 1, 2)]
    _ = datasets[0][3]  # what was read before does not matter
    a, b, c = (dataset[7]["inputs"] for dataset in datasets)
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)
    assert not np.array_equal(a, datasets[0][8]["inputs"])


@each_base
def test_padding_does_not_change_metrics(workload, initial):
    params, state = initial(workload)
    exact = {"imagenet_resnet": 500, "finewebedu_lm": 64}[workload.base_workload]
    padded = 96
    assert workload.num_validation_examples % exact == 0
    assert workload.num_validation_examples % padded
    sums = jax.jit(
        lambda batch: workload.measure(
            workload.model_fn(
                params, batch, state, spec.ForwardPassMode.EVAL, None, False
            )[0],
            batch,
        )
    )

    def metrics(batch_size):
        dataset = workload.dataset("validation", batch_size, seed=0)
        parts = [sums(dataset[i]) for i in range(len(dataset))]
        return workload.metrics(
            {name: sum(float(part[name]) for part in parts) for name in parts[0]}
        )

    whole = metrics(exact)
    assert metrics(padded) == pytest.approx(whole, rel=1e-6)


@each_base
def test_loss_starts_at_that_of_a_uniform_guess(workload, initial):
    results = Evaluator(workload)(*initial(workload))
    want = math.log(CLASSES[workload.base_workload])
    for prefix in ("train", "validation", "test"):
        assert results[f"{prefix}/loss"] == pytest.approx(want, rel=0.05)
    assert not workload.has_reached_validation_target(results)
    assert not workload.has_reached_test_target(results)


@each_base
def test_adamw_lowers_the_loss_on_one_batch_and_compiles_once(workload, initial):
    params, state = initial(workload)
    optimizer = optax.adamw(3e-3)
    opt_state = sharding.replicate(optimizer.init(params))
    rng = sharding.replicate(jax.random.PRNGKey(0))
    batch = sharding.shard_along_batch_dim(workload.dataset("train", 16, seed=0)[0])

    @jax.jit
    def step(params, state, opt_state):
        def loss_fn(params):
            logits, new_state = workload.model_fn(
                params, batch, state, spec.ForwardPassMode.TRAIN, rng, True
            )
            loss = workload.loss_fn(batch["targets"], logits)
            return loss["summed"] / loss["n_valid_examples"], new_state

        (loss, new_state), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), new_state, opt_state, loss

    losses = []
    shapes = jax.tree.map(jnp.shape, state)
    for _ in range(6):
        params, state, opt_state, loss = step(params, state, opt_state)
        losses.append(float(loss))
    assert losses[5] < 0.9 * losses[0]
    assert jax.tree.map(jnp.shape, state) == shapes
    assert step._cache_size() == 1


# Whether batch norm takes the batch's statistics in every training pass, as officially,
# or only in those that update the running ones.
BATCH_NORM_FOLLOWS_MODE = {
    "imagenet_resnet": False,
    "librispeech_conformer": True,
    "librispeech_deepspeech": True,
}


@pytest.mark.parametrize("name", BATCH_NORM_FOLLOWS_MODE)
def test_which_batch_statistics_are_used_and_when_they_move(name, initial):
    (workload,) = (w for w in MINI if w.variant == name)
    params, state = initial(workload)
    batch = workload.dataset("train", 2, seed=0)[0]
    train, evaluation = spec.ForwardPassMode.TRAIN, spec.ForwardPassMode.EVAL

    @functools.partial(jax.jit, static_argnums=(0, 1, 2))
    def run(mode, update, running=None):
        logits, new_state = workload.model_fn(
            params, batch, state, mode, jax.random.PRNGKey(0), update, running
        )
        return jax.tree.leaves(logits)[0], jax.tree.leaves(new_state)

    def has_moved(statistics):
        return not all(map(np.array_equal, jax.tree.leaves(state), statistics))

    assert has_moved(run(train, True)[1])
    assert has_moved(run(evaluation, True)[1])  # as of averaged parameters
    assert not has_moved(run(evaluation, False)[1])
    alone, kept = run(train, False)
    assert not has_moved(kept)
    by_batch, running = run(train, False, False)[0], run(train, False, True)[0]
    assert not np.allclose(by_batch, running, rtol=1e-3)
    expected = by_batch if BATCH_NORM_FOLLOWS_MODE[name] else running
    np.testing.assert_allclose(alone, expected, rtol=1e-6)
    if name == "imagenet_resnet":  # has nothing else that knows the mode
        np.testing.assert_allclose(alone, run(evaluation, False)[0], rtol=1e-6)


@each_base
def test_deriving_with_an_unknown_field_is_an_error(workload):
    with pytest.raises(TypeError):
        derive(workload, target=1.0)
    with pytest.raises(TypeError):
        derive(workload, model={"depth": 3})
