"""FlexMoRE: experts of low rank, their router, their mixtures and sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algoperf.errors import UserError
from algoperf.reparam import experts

WIDTH, NEURONS, TOKENS = 4, 6, 5


def _mlp(seed):
    generator = np.random.default_rng(seed)
    shapes = {"fc1": (WIDTH, 2 * NEURONS), "fc2": (NEURONS, WIDTH)}
    return {
        name: jnp.asarray(generator.normal(size=shape), jnp.float32)
        for name, shape in shapes.items()
    }


PUBLIC, EXPERTS = _mlp(0), [_mlp(1), _mlp(2)]
X = jnp.asarray(np.random.default_rng(3).normal(size=(TOKENS, WIDTH)), jnp.float32)
ROWS = jnp.asarray(np.random.default_rng(4).normal(size=(3, WIDTH)), jnp.float32)


def _forward(mlp, x):
    value, gate = jnp.split(x @ mlp["fc1"], 2, axis=-1)
    return (value * jax.nn.sigmoid(gate)) @ mlp["fc2"]


def _numpy_forward(mlp, x):
    fc1, fc2 = (np.asarray(mlp[name], np.float64) for name in ("fc1", "fc2"))
    value, gate = np.split(np.asarray(x, np.float64) @ fc1, 2, axis=-1)
    return (value / (1 + np.exp(-gate))) @ fc2


def test_full_rank_reproduces_the_expert():
    lossless = experts.low_rank_expert(PUBLIC, EXPERTS[0], 1.0)
    found = experts.full_expert(PUBLIC, lossless)
    for name in found:
        np.testing.assert_allclose(found[name], EXPERTS[0][name], atol=1e-5)
    np.testing.assert_allclose(
        _forward(found, X), _numpy_forward(EXPERTS[0], X), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("rank", [1, 3])
def test_a_rank_costs_the_dropped_spectrum_of_the_difference(rank):
    cut = experts.low_rank_expert(PUBLIC, EXPERTS[0], rank)
    for name, full in experts.full_expert(PUBLIC, cut).items():
        difference = np.asarray(EXPERTS[0][name] - PUBLIC[name], np.float64)
        s = np.linalg.svd(difference, compute_uv=False)
        error = np.sum((np.asarray(full) - EXPERTS[0][name]) ** 2)
        np.testing.assert_allclose(error, np.sum(s[rank:] ** 2), rtol=1e-4)


def test_a_mixture_of_ranks_is_the_sum_of_its_experts():
    """One of rank 2 and a full one beside the public MLP, against NumPy."""
    mixed = [experts.low_rank_expert(PUBLIC, EXPERTS[0], 2), EXPERTS[1]]
    weights = experts.route(X, ROWS, top_k=2)
    found = experts.mixture(_forward, PUBLIC, mixed, X, weights)
    logits = np.asarray(X, np.float64) @ np.asarray(ROWS, np.float64).T
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    worst = probabilities.argmin(axis=1)
    probabilities[np.arange(TOKENS), worst] = 0
    np.testing.assert_allclose(weights, probabilities, atol=1e-5)
    models = [PUBLIC, experts.full_expert(PUBLIC, mixed[0]), EXPERTS[1]]
    wanted = sum(
        probabilities[:, [e]] * _numpy_forward(model, X)
        for e, model in enumerate(models)
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


def test_the_router():
    all_three = experts.route(X, ROWS)
    np.testing.assert_allclose(all_three.sum(axis=1), 1, rtol=1e-5)
    one = experts.route(X, ROWS, top_k=1, renormalise=True)
    np.testing.assert_allclose(one, np.eye(3)[np.argmax(all_three, axis=1)], atol=1e-6)
    # Rows of experts trained apart: adding one leaves the odds of the others.
    fewer = experts.route(X, ROWS[:2])
    np.testing.assert_allclose(
        fewer[:, 0] / fewer[:, 1], all_three[:, 0] / all_three[:, 1], rtol=1e-4
    )
    biased = experts.route(X, ROWS, bias_E=jnp.array([0.0, 1e4, 0.0]))
    np.testing.assert_allclose(biased[:, 1], 1, atol=1e-6)


def test_sizes():
    cut = experts.low_rank_expert(PUBLIC, EXPERTS[0], 2)
    numbers = sum(leaf.size for leaf in jax.tree.leaves(cut))
    shapes = [(WIDTH, 2 * NEURONS), (NEURONS, WIDTH)]
    full = sum(m * n for m, n in shapes)
    assert numbers == 2 * (WIDTH + 2 * NEURONS) + 2 * (NEURONS + WIDTH)
    found = experts.num_parameters(shapes, [2, None], WIDTH)
    assert found == numbers + full + 3 * WIDTH


def test_errors():
    with pytest.raises(UserError, match="rank 5 for fc1 of shape 4 x 12"):
        experts.low_rank_expert(PUBLIC, EXPERTS[0], 5)
    with pytest.raises(UserError, match="an expert has matrices"):
        experts.low_rank_expert(PUBLIC, {"fc1": PUBLIC["fc1"]}, 1)
    with pytest.raises(UserError, match="top_k 4 of 3 experts"):
        experts.route(X, ROWS, top_k=4)
    with pytest.raises(UserError, match="3 weights for 1 experts and the public one"):
        experts.mixture(_forward, PUBLIC, EXPERTS[:1], X, experts.route(X, ROWS))
