"""Parameters as matrices, for rules that precondition or orthogonalise them.

Kernels of dense layers, convolutions and attention become (fan-in, fan-out): a
convolution (3, 3, 16, 32) is (144, 32), the query kernel (width, heads, size) is
(width, heads * size), the output kernel (heads, size, width) is (heads * size, width).
All else that is no embedding becomes a vector.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from algoperf import spec

KERNELS = frozenset(
    {
        spec.ParameterType.WEIGHT,
        spec.ParameterType.CONV_WEIGHT,
        spec.ParameterType.ATTENTION_Q,
        spec.ParameterType.ATTENTION_K,
        spec.ParameterType.ATTENTION_V,
        spec.ParameterType.ATTENTION_OUT,
        spec.ParameterType.ATTENTION_QKV,
        spec.ParameterType.ATTENTION_KV,
    }
)
# Their first axis alone is what comes in; else the last alone is what goes out.
_PROJECTIONS = KERNELS - {
    spec.ParameterType.WEIGHT,
    spec.ParameterType.CONV_WEIGHT,
    spec.ParameterType.ATTENTION_OUT,
}
# One quintic for each step, as in modded-nanogpt (2025): closer to 1 than the one
# quintic (3.4445, -4.7750, 2.0315) of Jordan et al. 2024, which leaves 0.68 to 1.21.
NEWTON_SCHULZ = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)


def matrix_shape(kind: spec.ParameterType, shape: Sequence[int]) -> tuple[int, ...]:
    """Returns (fan-in, fan-out) of a kernel or embedding, (size,) of all else."""
    if kind is spec.ParameterType.EMBEDDING and len(shape) >= 2:
        return (math.prod(shape[:-1]), shape[-1])
    if kind not in KERNELS or len(shape) < 2:
        return (math.prod(shape),)
    inputs = 1 if kind in _PROJECTIONS else len(shape) - 1
    return (math.prod(shape[:inputs]), math.prod(shape[inputs:]))


def in_matrix_shape(
    workload: spec.Workload, transformation: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """Lets a transformation see every parameter in its `matrix_shape`.

    Its state is of those shapes too; what it returns is shaped back.
    """
    inner = optax.with_extra_args_support(transformation)
    shapes = jax.tree.map(
        lambda kind, shape: spec.ShapeTuple(matrix_shape(kind, shape.shape_tuple)),
        workload.model_params_types,
        workload.param_shapes,
    )

    def to_matrices(tree):
        return jax.tree.map(lambda x, shape: x.reshape(shape.shape_tuple), tree, shapes)

    def update(updates, state, params=None, **extra):
        matrices = None if params is None else to_matrices(params)
        new, state = inner.update(to_matrices(updates), state, matrices, **extra)
        return jax.tree.map(lambda x, like: x.reshape(like.shape), new, updates), state

    return optax.GradientTransformationExtraArgs(
        lambda params: inner.init(to_matrices(params)), update
    )


def kernel_matrices(workload: spec.Workload) -> Any:
    """Returns the params' tree: True for kernels of two axes or more."""
    return jax.tree.map(
        lambda kind, shape: kind in KERNELS and len(shape.shape_tuple) >= 2,
        workload.model_params_types,
        workload.param_shapes,
    )


def hidden_matrices(workload: spec.Workload) -> Any:
    """Returns the params' tree: True for kernels that are not of the output layer."""
    return jax.tree_util.tree_map_with_path(
        lambda path, kernel: kernel and not workload.is_output_params(path[0].key),
        kernel_matrices(workload),
    )


def precondition_kernels(
    workload: spec.Workload,
    for_kernels: optax.GradientTransformation,
    for_others: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Returns one rule for kernels, as matrices, and another for all else."""
    kinds = jax.tree.map(
        lambda kernel: "kernel" if kernel else "other", kernel_matrices(workload)
    )
    rules = {"kernel": for_kernels, "other": for_others}
    return in_matrix_shape(workload, optax.partition(rules, kinds))


def orthogonalise(
    x: jax.Array,
    coefficients: Sequence[tuple[float, float, float]] = NEWTON_SCHULZ,
) -> jax.Array:
    """Returns about U V^T of a matrix U S V^T (m, n), by Newton-Schulz iteration.

    X <- a X + (b A + c A A) X with A = X X^T, from X / ||X||_F (Jordan et al. 2024),
    one step for each (a, b, c). With these, singular values of at least 0.002 ||X||_F
    end between 0.85 and 1.15.
    """
    is_tall = x.shape[0] > x.shape[1]
    x = x.T if is_tall else x
    x = x / (jnp.linalg.norm(x) + 1e-7)
    for a, b, c in coefficients:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if is_tall else x


def to_blocks(x: jax.Array, size: int) -> jax.Array:
    """Cuts a matrix (m, n) into blocks (k, p, q) of equal shape, padded with zeros.

    p and q are at most `size`, and the smallest that give as few blocks as that.
    """
    (rows, p), (columns, q) = (_split(length, size) for length in x.shape)
    padded = jnp.pad(x, ((0, rows * p - x.shape[0]), (0, columns * q - x.shape[1])))
    blocks = padded.reshape(rows, p, columns, q).transpose(0, 2, 1, 3)
    return blocks.reshape(rows * columns, p, q)


def from_blocks(blocks: jax.Array, shape: Sequence[int], size: int) -> jax.Array:
    """Undoes `to_blocks` of a matrix of this shape."""
    (rows, p), (columns, q) = (_split(length, size) for length in shape)
    x = blocks.reshape(rows, columns, p, q).transpose(0, 2, 1, 3)
    return x.reshape(rows * p, columns * q)[: shape[0], : shape[1]]


def _split(length: int, size: int) -> tuple[int, int]:
    """Returns how many parts of at most `size`, and how long they are."""
    parts = -(-length // size)
    return parts, -(-length // parts)
