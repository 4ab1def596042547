"""Dropout: what it drops, also where the rate is traced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from workloads.common.dropout import Dropout

X = jnp.full((40, 30, 20), 3.0)


def apply(rate, train=True, dims=(), x=X):
    return Dropout(dims).apply(
        {}, x, train, rate, rngs={"dropout": jax.random.PRNGKey(0)}
    )


def test_it_drops_the_share_and_keeps_the_mean():
    out = np.asarray(apply(0.25))
    assert np.unique(out).tolist() == [0, 4]
    # 24,000 draws: the standard deviation of the share is 0.0028.
    assert abs((out == 0).mean() - 0.25) < 0.014


def test_it_does_nothing_in_evaluation_or_at_rate_zero():
    assert apply(0.5, train=False) is X
    assert apply(0) is X
    np.testing.assert_array_equal(jax.jit(apply)(jnp.float32(0)), X)


def test_a_traced_rate_drops_the_same_and_compiles_once():
    traced = jax.jit(lambda rate: apply(rate))
    for rate in (0.1, 0.25, 0.5):
        np.testing.assert_allclose(traced(rate), apply(rate), rtol=1e-6)
    assert traced._cache_size() == 1


@pytest.mark.parametrize("wrap", [float, jnp.float32])
def test_at_rate_one_nothing_is_left_and_the_gradient_is_finite(wrap):
    assert not apply(wrap(1)).any()
    gradient = jax.grad(lambda x: apply(wrap(1), x=x).sum())(X)
    np.testing.assert_array_equal(gradient, 0)


def test_whole_axes_are_dropped_together():
    out = np.asarray(apply(0.5, dims=(0, -1)))
    assert (out == out[:1, :, :1]).all()
    assert len(np.unique(out[0, :, 0])) == 2
