"""The Conformer: layers against definitions, padding, dropout, learning."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import count_types, each_variant, losses_on_one_batch
from devices import assert_agree
from speech_checks import (
    KEY,
    check_logits_of_the_batch,
    check_padding,
    full_batch,
    random_params,
    small,
    utterances,
)

from algoperf import spec
from workloads.librispeech_conformer.model import Block, Convolution, SelfAttention
from workloads.librispeech_conformer.workload import FULL
from workloads.librispeech_conformer.workload import WORKLOADS as ALL

WORKLOADS = [w for w in ALL if w.scale == "full"]
SIZES = {"width": 16, "num_layers": 1, "num_heads": 2, "kernel_size": 3, "expansion": 2}
SMALL = small(FULL, **SIZES)


def _noise(tree):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: 0.5 * rng.standard_normal(a.shape), tree)


def _norm(x, p):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    return x * (1 + p["scale"]) + p["bias"]


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _dense(x, p):
    return x @ p["kernel"] + p["bias"]


class NumpyBlock:
    """A block for one utterance without padding, in float64, from the paper."""

    def __init__(self, params, state, heads=2, temperature=1.0, post=True):
        self.p, self.stats = params, state["convolution"]["batch_norm"]
        self.heads, self.temperature, self.post = heads, temperature, post
        self.activation = lambda x: x * _sigmoid(x)

    def feed_forward(self, x, p):
        hidden = self.activation(_dense(_norm(x, p["norm"]), p["fc1"]))
        return _dense(hidden, p["fc2"])

    def attention(self, x):
        p = self.p["attention"]
        x = _norm(x, p["norm"])
        out = p["out"]["bias"]
        scale = np.log1p(np.exp(p["scale"])) / np.log(2)
        for h in range(self.heads):
            q, k, v = (
                x @ p[name]["kernel"][:, h] + p[name]["bias"][h]
                for name in ("query", "key", "value")
            )
            scores = (q * scale) @ k.T / np.sqrt(q.shape[-1])
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            out = out + self.temperature * (weights @ v) @ p["out"]["kernel"][h]
        return out

    def convolution(self, x):
        p = self.p["convolution"]
        x = _norm(x, p["norm"])
        x = _dense(x, p["linear"]) * _sigmoid(_dense(x, p["gate"]))
        kernel = p["conv"]["kernel"][:, 0]  # (3, D)
        padded = np.pad(x, ((1, 1), (0, 0)))
        x = sum(padded[i : i + len(x)] * kernel[i] for i in range(3))
        x = (x - self.stats["mean"]) / np.sqrt(self.stats["var"] + 1e-3)
        x = x * (1 + p["batch_norm"]["scale"]) + p["batch_norm"]["bias"]
        return _dense(self.activation(x), p["out"])

    def __call__(self, x):
        x = x + self.feed_forward(x, self.p["before"]) / 2
        x = x + self.attention(x)
        x = x + self.convolution(x)
        x = x + self.feed_forward(x, self.p["after"]) / 2
        return _norm(x, self.p["norm"]) if self.post else x


@pytest.mark.parametrize(
    ("temperature", "post"), [(1.0, True), (1.6, True), (1.0, False)]
)
def test_a_block_agrees_with_numpy_and_padding_changes_nothing(temperature, post):
    block = Block(2, 3, 2, jax.nn.swish, temperature, post)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 9, 8))
    lengths = np.array([9, 6])
    paddings = (np.arange(9) >= lengths[:, None]).astype(np.float32)
    arguments = (x, paddings, False, 0.0, True)
    variables = block.init(KEY, *arguments)
    params = _noise(variables["params"])
    state = jax.tree.map(
        lambda a: a + 0.3 * rng.random(a.shape), variables["batch_stats"]
    )
    got = block.apply({"params": params, "batch_stats": state}, *arguments)
    reference = NumpyBlock(params, state, temperature=temperature, post=post)
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(
            got[row, :length], reference(x[row, :length]), atol=1e-5
        )


def test_attention_has_no_say_in_padding():
    attention = SelfAttention(2, 1.0)
    rng = np.random.default_rng(2)
    x = rng.standard_normal((1, 7, 8)).astype(np.float32)
    paddings = np.array([[0, 0, 0, 0, 1, 1, 1]], np.float32)
    params = attention.init(KEY, x, paddings, False, 0.0)
    changed = x.copy()
    changed[0, 4:] = 50
    want = attention.apply(params, x, paddings, False, 0.0)
    got = attention.apply(params, changed, paddings, False, 0.0)
    np.testing.assert_allclose(got[0, :4], want[0, :4], atol=1e-6)


def test_the_query_scale_starts_at_one():
    attention = SelfAttention(2, 1.0)
    params = attention.init(KEY, jnp.ones((1, 3, 8)), jnp.zeros((1, 3)), False, 0.0)
    assert not params["params"]["scale"].any()
    assert params["params"]["scale"].shape == (4,)
    assert jax.nn.softplus(0.0) / np.log(2) == pytest.approx(1)


def test_the_convolution_reads_no_padding():
    layer = Convolution(jax.nn.swish, 3)
    rng = np.random.default_rng(3)
    x = rng.standard_normal((1, 6, 4)).astype(np.float32)
    paddings = np.array([[0, 0, 0, 0, 1, 1]], np.float32)
    rest = (paddings, False, 0.0, True)
    variables = layer.init(KEY, x, *rest)
    changed = x.copy()
    changed[0, 4:] = 50
    want, got = (layer.apply(variables, a, *rest) for a in (x, changed))
    np.testing.assert_allclose(got[0, :4], want[0, :4], atol=1e-6)


def test_logits_are_those_of_each_utterance_alone():
    check_logits_of_the_batch(SMALL)


def test_padding_changes_no_metric():
    check_padding(SMALL)


def test_dropout_and_masks_act_in_training_only(dropouts):
    params, state = random_params(SMALL)
    batch = utterances(np.random.default_rng(4), 2)
    dropouts.clear()

    def forward(mode, key, rate):
        (logits, _), _ = SMALL.model_fn(
            params, batch, state, mode, key, True, dropout_rate=rate
        )
        return logits

    train, evaluation = spec.ForwardPassMode.TRAIN, spec.ForwardPassMode.EVAL
    forward(train, KEY, 0.3)
    # Frames; two in each feed-forward branch and in attention, one in convolution.
    assert dropouts == [(0.3, True)] * (1 + 2 + 2 + 1 + 2)
    one, other = (forward(train, jax.random.PRNGKey(i), 0.0) for i in (0, 1))
    assert not np.allclose(one, other)  # masks differ
    np.testing.assert_array_equal(
        forward(evaluation, None, 0.3), forward(evaluation, None, 0.0)
    )


def test_batch_statistics_keep_their_shape_and_are_those_of_all_layers():
    params, state = SMALL.init_model_fn(KEY)
    batch = utterances(np.random.default_rng(5), 2)
    _, new = SMALL.model_fn(
        params, batch, state, spec.ForwardPassMode.TRAIN, KEY, update_batch_norm=True
    )
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, state)
    assert not jax.tree.all(jax.tree.map(np.array_equal, new, state))
    _, same = SMALL.model_fn(
        params, batch, state, spec.ForwardPassMode.TRAIN, KEY, update_batch_norm=False
    )
    jax.tree.map(np.testing.assert_array_equal, same, state)
    _, full = jax.eval_shape(FULL.init_model_fn, KEY)
    assert sum(leaf.size for leaf in jax.tree.leaves(full)) == 4096


def test_types_of_the_parameters():
    types = spec.ParameterType
    assert count_types(FULL) == {
        types.CONV_WEIGHT: 2 + 4,
        types.BIAS: 2 + 1 + 4 * (4 + 3) + 1,
        types.WEIGHT: 1 + 4 * (4 + 3) + 1 + 4,  # four of them scale queries
        types.ATTENTION_Q: 4,
        types.ATTENTION_K: 4,
        types.ATTENTION_V: 4,
        types.ATTENTION_OUT: 4,
        types.ATTENTION_BIAS: 16,
        types.LAYER_NORM_SCALE: 4 * 5 + 1,
        types.LAYER_NORM_BIAS: 4 * 5 + 1,
        types.BATCH_NORM_SCALE: 4,
        types.BATCH_NORM_BIAS: 4,
    }
    assert FULL.is_output_params("head")


@pytest.mark.slow
def test_variants_differ_from_the_base_in_their_outputs():
    batch = utterances(np.random.default_rng(6), 2)
    found = {}
    for workload in WORKLOADS:
        tiny = small(workload, **{**SIZES, "num_layers": 2})
        params, state = tiny.init_model_fn(KEY)
        variables = {"params": params, **state}
        found[workload.variant], _ = tiny.model.apply(
            variables, *batch["inputs"], train=False
        )
    base = found.pop("librispeech_conformer")
    assert len(found) == 3
    for name, logits in found.items():
        assert not np.allclose(logits, base, atol=1e-4), name


def small_evaluation():
    """For `devices`: a small model on two batches, padding among them."""
    rng = np.random.default_rng(7)
    return SMALL, [utterances(rng, 8, valid) for valid in (8, 5)]


@pytest.mark.slow
def test_one_and_eight_devices_agree():
    assert_agree(__file__)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("workload", each_variant(WORKLOADS))
def test_the_full_model_learns_one_batch(workload):
    losses = losses_on_one_batch(workload, full_batch(), learning_rate=1e-3)
    assert np.isfinite(losses).all()
    assert losses[5] < 0.8 * losses[0]
