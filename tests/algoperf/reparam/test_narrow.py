"""Narrow convolutional networks: the wide tree computes the narrow function."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import KEY

from algoperf import reparam, spec
from algoperf.errors import UserError
from algoperf.reparam import narrow
from algoperf.workload import derive
from workloads.finewebedu_lm.workload import MINI as LANGUAGE_MODEL
from workloads.imagenet_resnet.workload import MINI

# One block, whose shortcut has weights; 8 and 4 filters.
WIDE = derive(MINI, model={"stage_sizes": (1,)})
NARROW = derive(WIDE, model={"num_filters": 4})
BATCH = {
    "inputs": np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
}


def _drawn(workload):
    """Returns params of chance, and fresh batch statistics; compiles nothing."""
    generator = np.random.default_rng(1)
    params, state = jax.eval_shape(workload.init_model_fn, KEY)
    params = jax.tree.map(
        lambda x: jnp.asarray(generator.normal(size=x.shape), jnp.float32), params
    )
    return params, jax.tree.map(lambda x: jnp.zeros(x.shape), state)


PARAMS, STATE = _drawn(WIDE)
SMALL = narrow.narrow_channels(WIDE, 0.5)


def _run(workload, params, model_state):
    """Returns logits in training, and the new batch statistics."""
    mode = spec.ForwardPassMode.TRAIN
    return workload.model_fn(params, BATCH, model_state, mode, KEY, True)


def test_the_wide_tree_computes_the_narrow_network_and_its_gradient():
    _, narrow_state = _drawn(NARROW)
    state = SMALL.init(PARAMS, KEY)
    shapes = jax.tree.map(lambda x: x.shape, state.trainable)
    wanted = jax.tree.map(lambda s: s.shape_tuple, NARROW.param_shapes)
    assert shapes == wanted

    def through_the_wide(trainable):
        full = SMALL.materialise(SMALL.with_trainable(state, trainable))
        logits, statistics = _run(WIDE, full, STATE)
        return jnp.sum(logits**2), (logits, statistics)

    def by_itself(trainable):
        logits, statistics = _run(NARROW, trainable, narrow_state)
        return jnp.sum(logits**2), (logits, statistics)

    found, wanted = (
        jax.jit(jax.value_and_grad(fn, has_aux=True))(state.trainable)
        for fn in (through_the_wide, by_itself)
    )
    (_, (logits, statistics)), gradient = found
    (_, (wanted_logits, wanted_statistics)), wanted_gradient = wanted
    np.testing.assert_allclose(logits, wanted_logits, rtol=1e-4, atol=1e-5)
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(wanted_gradient))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * scale),
        gradient,
        wanted_gradient,
    )
    # Batch statistics of the channels that are there; those of the others are 0.
    mean = statistics["batch_stats"]["bn_stem"]["mean"]
    wanted_mean = wanted_statistics["batch_stats"]["bn_stem"]["mean"]
    np.testing.assert_allclose(mean[:4], wanted_mean, rtol=1e-4, atol=1e-6)
    assert not mean[4:].any()


def test_kernels_start_with_the_variance_of_their_own_fan_in():
    params, small = PARAMS, SMALL.init(PARAMS, KEY).trainable
    kernel = params["stage_0_block_0"]["conv_2"]["kernel"]
    block = small["stage_0_block_0"]["conv_2"]["kernel"]
    np.testing.assert_allclose(block, math.sqrt(2) * kernel[:, :, :4, :4], rtol=1e-6)
    stem = params["conv_stem"]["kernel"]  # of images, whose channels all stay
    np.testing.assert_array_equal(small["conv_stem"]["kernel"], stem[..., :4])
    head = params["head"]["kernel"]
    np.testing.assert_array_equal(small["head"]["kernel"], head[: head.shape[0] // 2])
    np.testing.assert_array_equal(small["head"]["bias"], params["head"]["bias"])


@pytest.mark.parametrize("compression", [1.0, 2.0, 4.0, 16.0, 64.0])
def test_the_share_is_the_largest_that_is_small_enough(compression):
    def weights(channels):
        shapes = jax.tree.leaves(
            narrow.narrow_shapes(MINI, channels / 128),
            is_leaf=lambda x: isinstance(x, tuple),
        )
        return sum(math.prod(shape) for shape in shapes if len(shape) > 1)

    share = narrow.share_for(MINI, compression)
    channels = round(128 * share)
    assert weights(channels) <= weights(128) / compression
    assert channels == 128 or weights(channels + 1) > weights(128) / compression


def test_errors():
    with pytest.raises(UserError, match="no network is 1000 times smaller"):
        narrow.share_for(MINI, 1000.0)
    with pytest.raises(UserError, match="a share 0 of the channels"):
        narrow.narrow_channels(MINI, 0)
    with pytest.raises(UserError, match=r"only networks of convolutions.*and it has"):
        narrow.narrow_channels(LANGUAGE_MODEL, 0.5)


def test_what_is_trained_is_counted():
    state = SMALL.init(PARAMS, KEY)
    assert reparam.count(state.trainable) == NARROW.num_parameters
