"""The hash behind stochastic rounding: uniform, and its streams are independent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algoperf.numerics import rounding, transforms

SIZE = 1 << 16
WORDS = rounding.words_of(jax.random.key(5))
_uniform = jax.jit(rounding.uniform, static_argnums=1)
SIGMA = 1 / np.sqrt(SIZE)  # of a correlation of this many independent pairs


def _numbers(words, size=SIZE):
    return np.asarray(_uniform(words, (size,)), np.float64)


def _correlation(one, other):
    return np.corrcoef(one, other)[0, 1]


@pytest.mark.parametrize("number", [0, 1, 100, 102])
def test_numbers_are_uniform(number):
    """Chi-square over 256 bins of their leading, and of their next 8 bits."""
    found = _numbers(rounding.stream(WORDS, number))
    for values in (found, found * 256 % 1):
        counts = np.bincount((values * 256).astype(int), minlength=256)
        expected = SIZE / 256
        chi_square = np.sum((counts - expected) ** 2) / expected
        assert abs(chi_square - 255) < 5 * np.sqrt(2 * 255)
    assert len(np.unique(found)) > 0.99 * SIZE
    assert found.min() >= 0
    assert found.max() < 1


def test_streams_products_steps_and_neighbours_are_independent():
    keys = [
        *(rounding.stream(WORDS, slot) for slot in (0, 1, 2, 5)),
        *rounding.fold(WORDS, np.arange(3, dtype=np.uint32)),
        rounding.words_of(jax.random.key(6)),
    ]
    sequences = [_numbers(key) for key in keys]
    for i, one in enumerate(sequences):
        for lag in (1, 2, 32, 96):
            assert abs(_correlation(one[:-lag], one[lag:])) < 5 * SIGMA
        for other in sequences[:i]:
            assert abs(_correlation(one, other)) < 5 * SIGMA
            assert abs(_correlation(one[1:], other[:-1])) < 5 * SIGMA
            assert np.mean(one == other) < 1e-3


def test_many_keys_at_once_are_those_one_by_one():
    numbers = np.array([0, 7, 2**32 - 1], np.uint32)
    together = rounding.fold(WORDS, numbers)
    alone = [rounding.fold(WORDS, int(number)) for number in numbers]
    np.testing.assert_array_equal(together, jnp.stack(alone))


@pytest.mark.parametrize("size", [1, 16, 32, 128])
def test_signs_are_fair(size):
    keys = rounding.fold(WORDS, np.arange(2000, dtype=np.uint32))
    signs = np.asarray(jax.vmap(lambda key: transforms.random_signs(key, size))(keys))
    assert signs.shape == (2000, size)
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert np.abs(signs.mean(axis=0)).max() < 5 / np.sqrt(2000)
    products = signs.T @ signs / 2000 - np.eye(size)
    assert np.abs(products).max() < 5.5 / np.sqrt(2000)
