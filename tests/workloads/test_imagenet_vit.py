"""The vision transformer: arithmetic, positions, dropout, learning."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import count_types, each_variant, evaluate, losses_on_one_batch
from devices import assert_agree

from algoperf import spec
from algoperf.workload import derive
from workloads.imagenet_vit.model import (
    MLP,
    Attention,
    AttentionPool,
    Block,
    VisionTransformer,
    positions_2d,
)
from workloads.imagenet_vit.workload import FULL, WORKLOADS

KEY = jax.random.PRNGKey(0)
SMALL = {
    "num_classes": 10,
    "patch_size": 4,
    "width": 16,
    "num_layers": 2,
    "num_heads": 2,
    "mlp_width": 24,
}
VARIANTS = {
    "base": {},
    "glu": {"gated_mlp": True},
    "post_ln": {"post_layer_norm": True},
    "map": {"attention_pool": True},
}


def _random(params, key=KEY):
    """Replaces all parameters, zeros among them, by noise."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    noise = [
        jax.random.normal(k, leaf.shape) * 0.3
        for k, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, noise)


def _layer_norm(x, p):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return scaled * np.asarray(p["scale"]) + np.asarray(p["bias"])


def _gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _attention(queries, x, p):
    """Head by head and query by query, from the definition."""
    p = jax.tree.map(np.asarray, p)
    out = np.zeros_like(queries)
    for b in range(len(x)):
        for h in range(p["query"]["kernel"].shape[1]):

            def project(name, inputs, h=h):
                return inputs @ p[name]["kernel"][:, h] + p[name]["bias"][h]

            q, k, v = (
                project("query", queries[b]),
                project("key", x[b]),
                project("value", x[b]),
            )
            for i in range(len(q)):
                scores = k @ q[i] / np.sqrt(k.shape[-1])
                weights = np.exp(scores - scores.max())
                mixed = weights / weights.sum() @ v
                out[b, i] += mixed @ p["out"]["kernel"][h]
        out[b] += p["out"]["bias"]
    return out


def _mlp(x, p, gated=False):
    p = jax.tree.map(np.asarray, p)
    hidden = _gelu(x @ p["fc1"]["kernel"] + p["fc1"]["bias"])
    if gated:
        hidden = hidden * (hidden @ p["gate"]["kernel"] + p["gate"]["bias"])
    return hidden @ p["fc2"]["kernel"] + p["fc2"]["bias"]


@pytest.fixture
def x():
    return np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)


def test_attention_agrees_with_the_definition(x):
    module = Attention(num_heads=2)
    queries = x[:, :3]
    params = _random(module.init(KEY, queries, x)["params"])
    got = module.apply({"params": params}, queries, x)
    np.testing.assert_allclose(got, _attention(queries, x, params), atol=1e-5)


@pytest.mark.parametrize("gated", [False, True])
def test_mlp_agrees_with_the_definition(x, gated):
    module = MLP(12, gated)
    params = _random(module.init(KEY, x, False, 0.0)["params"])
    got = module.apply({"params": params}, x, False, 0.0)
    np.testing.assert_allclose(got, _mlp(x, params, gated), atol=1e-5)


@pytest.mark.parametrize("post", [False, True])
def test_block_agrees_with_the_definition(x, post):
    module = Block(2, 12, gated_mlp=False, post_layer_norm=post)
    p = _random(module.init(KEY, x, False, 0.0)["params"])
    got = module.apply({"params": p}, x, False, 0.0)
    if post:
        y = _layer_norm(x + _attention(x, x, p["attention"]), p["attention_norm"])
        want = _layer_norm(y + _mlp(y, p["mlp"]), p["mlp_norm"])
    else:
        normed = _layer_norm(x, p["attention_norm"])
        y = x + _attention(normed, normed, p["attention"])
        want = y + _mlp(_layer_norm(y, p["mlp_norm"]), p["mlp"])
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_attention_pool_agrees_with_the_definition(x):
    module = AttentionPool(2, 12)
    p = _random(module.init(KEY, x, False, 0.0)["params"])
    got = module.apply({"params": p}, x, False, 0.0)
    probe = np.tile(np.asarray(p["probe"]), (2, 1, 1))
    y = _attention(probe, x, p["attention"])
    want = y + _mlp(_layer_norm(y, p["mlp_norm"]), p["mlp"])
    np.testing.assert_allclose(got, want[:, 0], atol=1e-5)


def test_positions_follow_the_formula():
    got = positions_2d(3, 5, 8)
    for row in range(3):
        for column in range(5):
            for i, frequency in enumerate((1.0, 1e-4)):
                want = [
                    np.sin(column * frequency),
                    np.cos(column * frequency),
                    np.sin(row * frequency),
                    np.cos(row * frequency),
                ]
                position = got[row * 5 + column]
                np.testing.assert_allclose(position[i::2], want, atol=1e-6)


def test_the_untrained_model_guesses_uniformly():
    model = VisionTransformer(**SMALL)
    images = jax.random.normal(KEY, (2, 8, 12, 3))
    params = model.init({"params": KEY}, images, train=False)
    assert not np.any(model.apply(params, images, train=False))


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS)
def test_permuting_a_batch_permutes_the_logits(fields):
    model = VisionTransformer(**SMALL, **fields)
    images = jax.random.normal(KEY, (4, 8, 8, 3))
    params = _random(model.init({"params": KEY}, images, train=False)["params"])
    apply = functools.partial(model.apply, {"params": params}, train=False)
    order = np.array([2, 0, 3, 1])
    np.testing.assert_allclose(apply(images)[order], apply(images[order]), atol=1e-5)
    turned = apply(images[:, ::-1])
    assert not np.allclose(apply(images), turned, atol=1e-3)  # positions matter


@pytest.mark.parametrize(("fields", "places"), [({}, 7), ({"attention_pool": True}, 8)])
def test_dropout_reaches_every_place_and_only_in_training(fields, places, dropouts):
    model = VisionTransformer(**SMALL, **fields)
    images = jnp.zeros((1, 8, 8, 3))
    params = model.init({"params": KEY}, images, train=False)
    dropouts.clear()
    rngs = {"dropout": KEY}
    model.apply(params, images, train=True, dropout_rate=0.25, rngs=rngs)
    # After the positions; in each layer after attention, in the MLP and after it.
    assert dropouts == [(0.25, True)] * places
    dropouts.clear()
    model.apply(params, images, train=False, dropout_rate=0.25)
    assert dropouts == [(0.25, False)] * places


def test_types_of_the_parameters():
    types = spec.ParameterType
    assert count_types(FULL) == {
        types.CONV_WEIGHT: 1,
        types.BIAS: 1 + 12 * 2 + 2,
        types.ATTENTION_Q: 12,
        types.ATTENTION_K: 12,
        types.ATTENTION_V: 12,
        types.ATTENTION_OUT: 12,
        types.ATTENTION_BIAS: 48,
        types.LAYER_NORM_SCALE: 25,
        types.LAYER_NORM_BIAS: 25,
        types.WEIGHT: 12 * 2 + 2,
    }
    pooled = next(w for w in WORKLOADS if w.variant == "imagenet_vit_map")
    assert pooled.model_params_types["pool"]["probe"] is types.WEIGHT
    assert FULL.is_output_params("head")


def test_the_post_norm_variant_has_no_final_norm():
    post = next(w for w in WORKLOADS if w.variant == "imagenet_vit_post_ln")
    assert post.num_parameters == FULL.num_parameters - 2 * 384 == 22_121_704


def test_padding_does_not_change_metrics():
    workload = derive(FULL, model=SMALL)
    images = np.random.default_rng(0).standard_normal((5, 16, 16, 3)).astype(np.float32)
    params = _random(workload.model.init({"params": KEY}, images, train=False))
    batch = {"inputs": images, "targets": np.arange(5), "weights": np.ones(5)}
    exact = evaluate(workload, params["params"], {}, [batch])
    padded = {name: np.concatenate([a, a[:3]]) for name, a in batch.items()}
    padded["weights"][5:] = 0
    got = evaluate(workload, params["params"], {}, [padded])
    assert got == pytest.approx(exact, rel=1e-5)


def _batch(size=2):
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 1000, size)
    mixed = 0.7 * np.eye(1000)[classes] + 0.3 * np.eye(1000)[np.roll(classes, 1)]
    return {
        "inputs": rng.standard_normal((size, 224, 224, 3)).astype(np.float32),
        "targets": mixed.astype(np.float32),
    }


def small_evaluation():
    """For `devices`: a small model on images of two batches, padding among them."""
    rng = np.random.default_rng(0)
    batches = [
        {
            "inputs": rng.standard_normal((16, 16, 16, 3)).astype(np.float32),
            "targets": rng.integers(0, 10, 16),
            "weights": (np.arange(16) < valid).astype(np.float32),
        }
        for valid in (16, 11)
    ]
    return derive(FULL, model=SMALL), batches


@pytest.mark.slow
def test_one_and_eight_devices_agree():
    assert_agree(__file__)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("workload", each_variant(WORKLOADS))
def test_the_full_model_learns_one_batch(workload):
    losses = losses_on_one_batch(workload, _batch(), learning_rate=1e-4)
    assert losses[0] == pytest.approx(np.log(1000), abs=1e-4)
    assert losses[5] < losses[0] - 0.1
