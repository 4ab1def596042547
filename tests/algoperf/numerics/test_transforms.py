"""Rotations, the QuEST projection and outliers."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from hypothesis import strategies as st

from algoperf import numerics
from algoperf.errors import UserError
from algoperf.numerics import rounding, transforms


@pytest.mark.parametrize("size", [1, 2, 16, 32, 128])
def test_the_matrix_is_orthogonal_and_sylvesters(size):
    matrix = transforms.hadamard_matrix(size).astype(np.float64)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-6)
    np.testing.assert_allclose(matrix, scipy.linalg.hadamard(size) / np.sqrt(size))


def test_no_matrix_of_another_size():
    with pytest.raises(UserError, match="power of two"):
        transforms.hadamard_matrix(24)


@pytest.mark.parametrize("is_random", [False, True])
def test_a_rotation_by_its_definition(is_random):
    x = np.random.default_rng(0).normal(size=(3, 64, 5)).astype(np.float32)
    signs = None
    if is_random:
        signs = transforms.random_signs(rounding.words_of(jax.random.key(0)), 32)
        assert 4 < np.sum(np.asarray(signs) == 1) < 28
        assert set(np.asarray(signs).tolist()) == {1.0, -1.0}
    rotated = transforms.rotate(x, 32, 1, signs)
    matrix = scipy.linalg.hadamard(32) / np.sqrt(32)
    diagonal = np.eye(32) if signs is None else np.diag(np.asarray(signs))
    expected = np.einsum("abkc,kj->abjc", x.reshape(3, 2, 32, 5), diagonal @ matrix)
    np.testing.assert_allclose(rotated, expected.reshape(x.shape), atol=1e-5)
    back = transforms.rotate_back(rotated, 32, 1, signs)
    np.testing.assert_allclose(back, x, atol=1e-6)


@hypothesis.given(st.integers(1, 70), st.sampled_from([16, 32]), st.integers(0, 9))
@hypothesis.settings(max_examples=6)
def test_a_rotation_of_both_operands_leaves_the_product(length, block, seed):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(4, length)).astype(np.float32)
    w = generator.normal(size=(length, 3)).astype(np.float32)
    signs = transforms.random_signs(rounding.words_of(jax.random.key(seed)), block)
    product = transforms.rotate(x, block, 1, signs) @ transforms.rotate(
        w, block, 0, signs
    )
    np.testing.assert_allclose(product, x @ w, atol=1e-4)
    back = transforms.rotate_back(
        transforms.rotate(x, block, 1, signs), block, 1, signs, length
    )
    np.testing.assert_allclose(back, x, atol=1e-5)


def test_a_rotation_spreads_an_outlier():
    x = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    x[:, 5] = 30.0

    def error(a):
        return np.linalg.norm(numerics.quantize(a, "mxint4") - a) / np.linalg.norm(x)

    assert error(transforms.rotate(x, 32)) < error(x)
    assert np.abs(transforms.rotate(x, 32)).max() < 12


def test_quest_by_its_definition():
    x = np.random.default_rng(0).normal(size=(50, 32)).astype(np.float32)
    x *= np.exp2(np.random.default_rng(1).uniform(-20, 20, (50, 1))).astype(np.float32)
    values, mask = transforms.quest(jnp.asarray(x))
    rms = np.sqrt(np.mean(np.float64(x) ** 2, axis=1, keepdims=True))
    scale = np.exp2(np.rint(np.log2(rms * 2.92247856 / 6)))
    grid = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    nearest = grid[np.argmin(np.abs(np.abs(x / scale)[..., None] - grid), axis=-1)]
    np.testing.assert_allclose(values, np.sign(x) * nearest * scale)
    np.testing.assert_array_equal(mask, np.abs(x / scale) < 6)
    assert 0 < np.sum(~np.asarray(mask)) < 0.02 * x.size


def test_the_quest_scale_is_of_what_a_block_holds_without_padding():
    x = np.random.default_rng(0).normal(size=(5, 3 * 32 + 1)).astype(np.float32)
    values, mask = transforms.quest(jnp.asarray(x))
    whole, _ = transforms.quest(jnp.asarray(x[:, :-1]))
    np.testing.assert_array_equal(values[:, :-1], whole)
    # A block of one: 1.45 to 2.9 scales, between which the grid has 1.5, 2 and 3.
    last = x[:, -1]
    scale = 2.0 ** np.round(np.log2(2.92247856 / 6 * np.abs(last)))
    grid = np.array([1.5, 2.0, 3.0])
    nearest = grid[np.abs(np.abs(last / scale)[:, None] - grid).argmin(axis=1)]
    np.testing.assert_array_equal(values[:, -1], np.sign(last) * nearest * scale)
    assert mask[:, -1].all()


def test_the_quest_scale_is_the_best_for_a_gaussian():
    """Panferov et al. 2025: scale 0.487079 and error 0.0126849, by integration."""
    grid = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    x = np.linspace(0, 9, 40_001)
    weight = 2 * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi) * (x[1] - x[0])

    def error(scale):
        nearest = grid[np.argmin(np.abs(x[:, None] / scale - grid), axis=1)]
        return np.sum((nearest * scale - x) ** 2 * weight)

    errors = {
        scale: error(scale) for scale in (0.47, 0.48, 2.92247856 / 6, 0.495, 0.51)
    }
    assert min(errors, key=errors.get) == 2.92247856 / 6
    assert abs(errors[2.92247856 / 6] - 0.0126849) < 1e-5


def test_outliers_are_the_largest():
    x = np.random.default_rng(0).normal(size=(20, 50)).astype(np.float32)
    rest, outliers = map(np.asarray, transforms.split_outliers(jnp.asarray(x), 0.01))
    np.testing.assert_array_equal(rest + outliers, x)
    assert np.count_nonzero(outliers) == 10
    assert np.abs(outliers[outliers != 0]).min() >= np.abs(rest).max()
