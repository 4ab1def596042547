"""How a served weight is stored, and its products: dense, packed, two thin factors.

A kernel (m, n) is one of three: an array; `Packed`, codes of a few bits that every
product turns into numbers again; `LowRank`, of which x L R needs r (m + n) numbers
instead of m n. Factors may be packed too.

Dimension key: M inputs, N outputs, R rank, V rows of a table, D its columns.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from algoperf.numerics.packed import Packed, unpack


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("left", "right"), meta_fields=()
)
@dataclasses.dataclass(frozen=True)
class LowRank:
    """A kernel as left (M, R) times right (R, N), each an array or `Packed`."""

    left: Any
    right: Any

    @property
    def shape(self) -> tuple[int, int]:
        """Of the kernel that the factors stand for."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def dtype(self) -> Any:
        """Of the kernel."""
        return self.left.dtype


Kernel = jax.Array | Packed | LowRank


def is_kernel(node: Any) -> bool:
    """Whether a node of a tree is packed or a pair of factors, for `is_leaf`."""
    return isinstance(node, Packed | LowRank)


def product(x: jax.Array, kernel: Any) -> jax.Array:
    """Returns x (..., M) times a kernel (M, N): (..., N)."""
    if isinstance(kernel, LowRank):
        return product(product(x, kernel.left), kernel.right)
    if isinstance(kernel, Packed):
        x, dense_MN = _unpacked_beside(x, kernel)
        return x @ dense_MN
    return x @ kernel


def product_with_rows(x: jax.Array, table: Any) -> jax.Array:
    """Returns x (..., D) times the transpose of a table (V, D): (..., V)."""
    if isinstance(table, Packed):
        x, table = _unpacked_beside(x, table)
    return x @ table.T


def rows(table: Any, numbers: jax.Array) -> jax.Array:
    """Returns rows (..., D) of a table (V, D); of a packed one, only those are read.

    A packed table must be packed along D.
    """
    if not isinstance(table, Packed):
        return table[numbers]
    num_rows, width = table.shape
    if table.codes.size % num_rows:  # a row's codes begin inside a byte
        return unpack(table)[numbers]
    scales = table.scales
    if scales.size and scales.shape[0] == num_rows:
        scales = scales[numbers]
    chosen = dataclasses.replace(
        table,
        codes=table.codes.reshape(num_rows, -1)[numbers].ravel(),
        scales=scales,
        shape=(*numbers.shape, width),
        axis=numbers.ndim,
    )
    return unpack(chosen)


def dense(kernel: Any) -> jax.Array:
    """Returns the array that a kernel stands for."""
    if isinstance(kernel, LowRank):
        return dense(kernel.left) @ dense(kernel.right)
    return _unpack(kernel) if isinstance(kernel, Packed) else kernel


_unpack = jax.jit(unpack)


def materialised(params: Any) -> Any:
    """Returns a tree with arrays in place of all packed and factorised kernels."""
    return jax.tree.map(
        lambda node: dense(node) if is_kernel(node) else node, params, is_leaf=is_kernel
    )


def num_bytes(params: Any) -> int:
    """Returns the bytes of the arrays of a tree, of packed ones as they are stored."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def _unpacked_beside(x: jax.Array, packed: Packed) -> tuple[jax.Array, jax.Array]:
    """Unpacks where x is used.

    Codes are the same in every pass, so XLA would unpack them once before a loop that
    decodes and read the dense array in it: the packed model's bytes and time would be
    the dense one's. The barrier makes them follow from x.
    """
    x, packed = jax.lax.optimization_barrier((x, packed))
    return x, unpack(packed).astype(jnp.result_type(x))
