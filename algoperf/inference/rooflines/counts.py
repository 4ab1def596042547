"""Multiply-adds and activations of a function, from its trace; runs nothing.

Multiply-adds (MACs) are those of all products, padding included, as papers count them.
Activations are the elements of all products' results ('Fast and Accurate Model
Scaling', arXiv:2103.06877, section 3, counts those of convolutions): what must be
written and read again, which times on accelerators follow better than FLOPs.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax

from algoperf.numerics.find import CONVOLUTION, DOT, Found, find_products


@dataclasses.dataclass(frozen=True)
class Counts:
    """Of one call.

    Attributes:
      multiply_adds: of all products.
      activations: elements of their results.
    """

    multiply_adds: float
    activations: float

    def per(self, examples: int) -> "Counts":
        """Returns the counts of one example of so many."""
        return Counts(self.multiply_adds / examples, self.activations / examples)


def count_products(function: Callable[..., Any], *arguments: Any) -> Counts:
    """Returns the counts of `function(*arguments)`.

    Args:
      function: that JAX can trace.
      arguments: arrays, or their shapes (`jax.ShapeDtypeStruct`).
    """
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    found = find_products(jaxpr, [None] * len(jaxpr.invars))
    outputs = [item.repeats * math.prod(item.shapes[2]) for item in found]
    products = (
        output * _inner(item) for item, output in zip(found, outputs, strict=True)
    )
    return Counts(float(sum(products)), float(sum(outputs)))


def _inner(item: Found) -> int:
    """Multiply-adds for one element of the result."""
    left, right, _ = item.shapes
    if item.primitive == DOT:
        (contracted, _), _ = item.params["dimension_numbers"]
        return math.prod(left[axis] for axis in contracted)
    if item.primitive == CONVOLUTION:
        out_axis = item.params["dimension_numbers"].rhs_spec[0]
        return math.prod(right) // right[out_axis]
    raise NotImplementedError(f"no count for {item.primitive}")
