"""Parameters as matrices."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from algoperf import spec
from algoperf.matrices import (
    from_blocks,
    hidden_matrices,
    in_matrix_shape,
    kernel_matrices,
    matrix_shape,
    orthogonalise,
    to_blocks,
)

KINDS = spec.ParameterType


@pytest.mark.parametrize(
    ("kind", "shape", "wanted"),
    [
        (KINDS.WEIGHT, (5, 7), (5, 7)),
        (KINDS.CONV_WEIGHT, (3, 3, 16, 32), (144, 32)),
        (KINDS.ATTENTION_Q, (96, 4, 24), (96, 96)),
        (KINDS.ATTENTION_OUT, (4, 24, 95), (96, 95)),
        (KINDS.ATTENTION_QKV, (96, 288), (96, 288)),
        (KINDS.EMBEDDING, (100, 8), (100, 8)),
        (KINDS.ATTENTION_BIAS, (4, 24), (96,)),
        (KINDS.WEIGHT, (), (1,)),
        (KINDS.BIAS, (7,), (7,)),
    ],
)
def test_matrix_shape(kind, shape, wanted):
    assert matrix_shape(kind, shape) == wanted


WORKLOAD = types.SimpleNamespace(
    model_params_types={
        "a": {"kernel": KINDS.ATTENTION_OUT, "bias": KINDS.ATTENTION_BIAS},
        "head": {"kernel": KINDS.WEIGHT, "scale": KINDS.WEIGHT},
    },
    param_shapes={
        "a": {"kernel": spec.ShapeTuple((2, 3, 4)), "bias": spec.ShapeTuple((2, 3))},
        "head": {"kernel": spec.ShapeTuple((4, 5)), "scale": spec.ShapeTuple(())},
    },
    is_output_params=lambda key: key == "head",
)


def test_hidden_matrices_are_kernels_that_are_no_output():
    assert kernel_matrices(WORKLOAD) == {
        "a": {"kernel": True, "bias": False},
        "head": {"kernel": True, "scale": False},
    }
    assert hidden_matrices(WORKLOAD) == {
        "a": {"kernel": True, "bias": False},
        "head": {"kernel": False, "scale": False},
    }


def test_a_transformation_sees_matrices_and_the_params_keep_their_shapes():
    seen = []

    def look(updates, params):
        seen.append([jax.tree.map(jnp.shape, tree) for tree in (updates, params)])
        return jax.tree.map(lambda u: 2 * u, updates)

    params = jax.tree.map(lambda s: jnp.ones(s.shape_tuple), WORKLOAD.param_shapes)
    transformation = in_matrix_shape(
        WORKLOAD, optax.chain(optax.trace(0.9), optax.stateless(look))
    )
    state = transformation.init(params)
    updates, state = transformation.update(params, state, params)
    wanted = {
        "a": {"kernel": (6, 4), "bias": (6,)},
        "head": {"kernel": (4, 5), "scale": (1,)},
    }
    assert seen == [[wanted, wanted]]
    assert jax.tree.map(jnp.shape, state[0].trace) == wanted
    assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params)
    assert all((leaf == 2).all() for leaf in jax.tree.leaves(updates))


_orthogonalise = jax.jit(orthogonalise)


@pytest.mark.parametrize("shape", [(16, 16), (48, 12), (12, 48)])
def test_singular_values_end_near_1(shape):
    for seed in range(20):
        x = np.random.default_rng(seed).normal(size=shape)
        u, values, vt = np.linalg.svd(x, full_matrices=False)
        # Conditioned up to 50, as the bound asks for values that are not tiny.
        values = np.geomspace(1, 0.02, len(values)) * values[0]
        found = np.asarray(_orthogonalise(jnp.asarray(u @ np.diag(values) @ vt)))
        singular = np.linalg.svd(found, compute_uv=False)
        # What the steps make of [0.002, 1], by the scalar iteration: 0.8525 to 1.1450.
        assert singular.min() > 0.8524
        assert singular.max() < 1.1451
        # The singular vectors stay: u' found v is diagonal.
        inner = u.T @ found @ vt.T
        np.testing.assert_allclose(inner, np.diag(np.diag(inner)), atol=1e-4)
        assert (np.diag(inner) > 0).all()


@pytest.mark.parametrize(
    ("rows", "columns", "size"), [(6, 4, 10), (7, 5, 3), (9, 1, 4), (1, 1, 1)]
)
def test_blocks_go_back_together(rows, columns, size):
    x = jnp.arange(1.0, rows * columns + 1).reshape(rows, columns)
    blocks = to_blocks(x, size)
    assert max(blocks.shape[1:]) <= size
    assert blocks.shape[0] == -(-rows // size) * -(-columns // size)
    assert blocks.sum() == x.sum()
    np.testing.assert_array_equal(from_blocks(blocks, x.shape, size), x)


def test_a_block_is_a_part_of_the_matrix():
    x = jnp.arange(30.0).reshape(6, 5)
    blocks = to_blocks(x, 3)
    np.testing.assert_array_equal(blocks[0], x[:3, :3])
    np.testing.assert_array_equal(blocks[1], jnp.pad(x[:3, 3:], ((0, 0), (0, 1))))
    np.testing.assert_array_equal(blocks[2], x[3:, :3])
