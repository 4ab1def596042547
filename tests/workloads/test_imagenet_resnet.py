"""The residual network: size, arithmetic, initial state, batch statistics."""

import itertools
import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import each_variant, evaluate, losses_on_one_batch
from devices import assert_agree

from algoperf.workload import derive
from workloads.imagenet_resnet.model import BottleneckBlock, ResNet
from workloads.imagenet_resnet.workload import FULL, MINI, WORKLOADS


def count(model: nn.Module, inputs) -> dict[str, int]:
    shapes = jax.eval_shape(
        lambda key: model.init(key, inputs, train=False), jax.random.PRNGKey(0)
    )
    return {
        name: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
        for name, tree in shapes.items()
    }


def test_full_size_has_the_published_numbers_of_parameters_and_statistics():
    assert count(ResNet(), jnp.zeros((1, 224, 224, 3))) == {
        "params": 25_557_032,
        "batch_stats": 53_120,
    }


def test_mini_has_the_parameters_that_the_targets_were_set_on():
    assert MINI.num_parameters == 33_090


def same_padding(size: int, strides: int) -> tuple[int, int]:
    total = max((-(-size // strides) - 1) * strides + 3 - size, 0)
    return total // 2, total - total // 2


def numpy_conv(x, kernel, strides):
    """Convolution by loops over positions; 'SAME' padding for 3x3."""
    height, width = kernel.shape[:2]
    if height == 3:
        pads = [same_padding(size, strides) for size in x.shape[1:3]]
        x = np.pad(x, [(0, 0), *pads, (0, 0)])
    rows = range(0, x.shape[1] - height + 1, strides)
    columns = range(0, x.shape[2] - width + 1, strides)
    out = np.zeros((len(x), len(rows), len(columns), kernel.shape[-1]))
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            patch = x[:, row : row + height, column : column + width]
            out[:, i, j] = np.tensordot(patch, kernel, 3)
    return out


def numpy_norm(x, params):
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return (x - mean) / np.sqrt(variance + 1e-5) * params["scale"] + params["bias"]


@pytest.mark.parametrize("strides", [1, 2])
def test_block_agrees_with_numpy(strides):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 6, 6, 5)).astype(np.float32)
    block = BottleneckBlock(3, strides, nn.relu, bn_init_scale=0.0)
    variables = block.init(jax.random.PRNGKey(0), x, False)
    params = jax.tree.map(  # away from the initial scale of 0
        lambda leaf: leaf + 0.3 * rng.standard_normal(leaf.shape).astype(np.float32),
        variables["params"],
    )
    got, _ = block.apply(
        {**variables, "params": params}, x, False, mutable=["batch_stats"]
    )
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    y = numpy_conv(x, p["conv_1"]["kernel"], 1)
    y = np.maximum(numpy_norm(y, p["bn_1"]), 0)
    y = numpy_conv(y, p["conv_2"]["kernel"], strides)
    y = np.maximum(numpy_norm(y, p["bn_2"]), 0)
    y = numpy_norm(numpy_conv(y, p["conv_3"]["kernel"], 1), p["bn_3"])
    shortcut = numpy_conv(x, p["conv_shortcut"]["kernel"], strides)
    want = np.maximum(y + numpy_norm(shortcut, p["bn_shortcut"]), 0)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_block_with_last_scale_zero_starts_as_its_shortcut():
    x = jax.random.normal(jax.random.PRNGKey(1), (2, 4, 4, 8))
    for scale, same in ((0.0, True), (1.0, False)):
        block = BottleneckBlock(2, 1, nn.relu, bn_init_scale=scale)
        variables = block.init(jax.random.PRNGKey(0), x, True)
        got = block.apply(variables, x, True)
        assert np.array_equal(got, nn.relu(x)) == same


def test_the_full_stem_divides_the_size_by_four():
    model = ResNet(stage_sizes=(1,), num_filters=2, num_classes=3)
    x = jnp.ones((1, 32, 32, 3))
    _, state = model.init_with_output(jax.random.PRNGKey(0), x, train=False)
    _, captured = model.apply(state, x, train=False, capture_intermediates=True)
    (block,) = captured["intermediates"]["stage_0_block_0"]["__call__"]
    assert block.shape == (1, 8, 8, 8)


def test_variants_differ_from_the_base_in_their_outputs():
    x = jax.random.normal(jax.random.PRNGKey(1), (2, 8, 8, 3))
    logits = {}
    for workload in WORKLOADS:
        if workload.scale == "full":
            model = workload.model.clone(stage_sizes=(1,), num_filters=2)
            variables = model.init(jax.random.PRNGKey(0), x, train=False)
            logits[workload.variant] = model.apply(variables, x, train=False)
    assert len(logits) == 4
    for one, other in itertools.combinations(logits, 2):
        assert not np.allclose(logits[one], logits[other], atol=1e-4), (one, other)


def test_names_of_the_variants():
    assert [w.name for w in WORKLOADS if w.scale == "mini"] == [
        "imagenet_resnet_mini",
        "imagenet_resnet_silu_mini",
        "imagenet_resnet_gelu_mini",
        "imagenet_resnet_large_bn_init_mini",
    ]


def test_permuting_a_batch_permutes_the_logits():
    model = ResNet(stage_sizes=(1, 1), num_filters=4, num_classes=7)
    x = jax.random.normal(jax.random.PRNGKey(1), (4, 32, 32, 3))
    variables = model.init(jax.random.PRNGKey(0), x, train=False)
    order = np.array([2, 0, 3, 1])

    @partial(jax.jit, static_argnums=1)
    def apply(x, train):
        return model.apply(variables, x, train=train, mutable=["batch_stats"])[0]

    for train in (False, True):
        want = apply(x, train)[order]
        np.testing.assert_allclose(apply(x[order], train), want, atol=1e-5)


def test_padding_does_not_change_metrics():
    workload, (_, padded) = small_evaluation()
    params, state = workload.init_model_fn(jax.random.PRNGKey(0))
    exact = {name: array[:11] for name, array in padded.items()}
    padded["inputs"][11:] = 100.0
    want = evaluate(workload, params, state, [exact])
    assert evaluate(workload, params, state, [padded]) == pytest.approx(want, rel=1e-5)


def small_evaluation():
    """For `devices`: a small model on images of two batches, padding among them."""
    model = {"stage_sizes": (1, 1), "num_filters": 4, "num_classes": 10}
    rng = np.random.default_rng(0)
    batches = [
        {
            "inputs": rng.standard_normal((16, 32, 32, 3)).astype(np.float32),
            "targets": rng.integers(0, 10, 16),
            "weights": (np.arange(16) < valid).astype(np.float32),
        }
        for valid in (16, 11)
    ]
    return derive(FULL, model=model), batches


@pytest.mark.slow
def test_one_and_eight_devices_agree():
    assert_agree(__file__)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("workload", each_variant(WORKLOADS))
def test_the_full_model_learns_one_batch(workload):
    rng = np.random.default_rng(0)
    batch = {
        "inputs": rng.standard_normal((4, 224, 224, 3)).astype(np.float32),
        "targets": np.array([1, 999, 500, 7]),
    }
    losses = losses_on_one_batch(workload, batch)
    assert losses[5] < losses[0] - 1
