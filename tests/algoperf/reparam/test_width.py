"""Width pruning: zeroing neurons is removing them."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import KEY

from algoperf import reparam, spec
from algoperf.errors import UserError
from algoperf.reparam import width
from workloads.finewebedu_lm.model import Decoder

MODEL = Decoder(
    vocab_size=16, num_layers=2, width=8, num_heads=2, mlp_width=10, max_length=6
)
TOKENS = np.random.default_rng(0).integers(16, size=(2, 6))
PARAMS = jax.jit(lambda key: MODEL.init(key, TOKENS, train=False)["params"])(KEY)
SHAPES = jax.tree.map(lambda x: spec.ShapeTuple(x.shape), PARAMS)
WORKLOAD = types.SimpleNamespace(param_shapes=SHAPES)


def _logits(model, params):
    return jax.jit(lambda p: model.apply({"params": p}, TOKENS, train=False))(params)


def test_scores_and_the_neurons_that_stay():
    mlp = PARAMS["layer_0_mlp"]
    fc1 = np.asarray(mlp["fc1"]["kernel"])
    value, gate = fc1[:, :10], fc1[:, 10:]
    wanted = np.abs(value).max(axis=0) + np.abs(gate).max(axis=0)
    np.testing.assert_allclose(width.neuron_scores(mlp), wanted, rtol=1e-6)
    kept = width.kept_neurons(mlp, 0.4)
    np.testing.assert_array_equal(kept, np.sort(np.argsort(-wanted)[:6]))


def test_zeroing_neurons_is_the_pruned_model():
    zeroed = width.map_mlps(lambda mlp: width.zeroed(mlp, 0.4), PARAMS)
    pruned = width.map_mlps(
        lambda mlp: width.narrowed(mlp, width.kept_neurons(mlp, 0.4)), PARAMS
    )
    small = dataclasses.replace(MODEL, mlp_width=6)
    # Exactly, up to the order in which a product adds up.
    np.testing.assert_allclose(
        _logits(MODEL, zeroed), _logits(small, pruned), rtol=0, atol=1e-6
    )
    assert np.abs(_logits(MODEL, zeroed) - _logits(MODEL, PARAMS)).max() > 1e-4
    kernel = zeroed["layer_1_mlp"]["fc2"]["kernel"]
    assert np.count_nonzero(np.any(kernel != 0, axis=1)) == 6
    removed = sum(x.size for x in jax.tree.leaves(PARAMS)) - sum(
        x.size for x in jax.tree.leaves(pruned)
    )
    assert removed == width.removed_parameters(2, 8, 10, 0.4)
    assert width.expansion(PARAMS["layer_0_mlp"]) == 1.25
    assert width.expansion(pruned["layer_0_mlp"]) == 0.75


@pytest.mark.parametrize(
    ("layers", "size", "before", "after"),
    [(16, 2048, 1235.81, 913.77), (28, 3072, 3212.75, 2367.38)],
)
def test_published_sizes(layers, size, before, after):
    """Llama-3.2 1B and 3B at 40 %, millions of parameters (arXiv:2512.22671)."""
    removed = width.removed_parameters(layers, size, 8192, 0.4)
    assert before - removed / 1e6 == pytest.approx(after, abs=0.011)


def test_narrow_mlps_train_inside_the_wide_tree():
    small = width.narrow(WORKLOAD, 0.4)
    state = small.init(PARAMS, KEY)
    wanted = width.map_mlps(lambda mlp: width.zeroed(mlp, 0.4), PARAMS)
    full = small.materialise(state)
    jax.tree.map(np.testing.assert_array_equal, full, wanted)
    removed = width.removed_parameters(2, 8, 10, 0.4)
    numbers = sum(x.size for x in jax.tree.leaves(PARAMS))
    assert reparam.count(state.trainable) == numbers - removed
    _, pull = jax.vjp(small.materialise_from(state), state.trainable)
    (gradient,) = pull(full)
    jax.tree.map(np.testing.assert_array_equal, gradient, state.trainable)


def test_errors():
    with pytest.raises(UserError, match=r"no gated MLP matches 'layer_7'.*there are"):
        width.narrow(WORKLOAD, 0.4, path="layer_7")
    with pytest.raises(UserError, match="no gated MLP is there"):
        width.gated_mlps({"head": {"kernel": jnp.ones((2, 3))}})
    for bad in (1.0, -0.1):
        with pytest.raises(UserError, match="give at least 0 and less than 1"):
            width.narrow(WORKLOAD, bad)
