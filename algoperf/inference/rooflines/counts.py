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

from algoperf.errors import UserError
from algoperf.numerics.cost import inner_length
from algoperf.numerics.find import CONVOLUTION, DOT, find_products


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

    Raises:
      UserError: a kind of product that nobody counts here.
    """
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    found = find_products(jaxpr, [None] * len(jaxpr.invars))
    if other := {item.primitive for item in found} - {DOT, CONVOLUTION}:
        raise UserError(f"cannot count the products of {', '.join(sorted(other))}")
    outputs = [item.repeats * math.prod(item.shapes[2]) for item in found]
    products = (
        output * inner_length(item) for item, output in zip(found, outputs, strict=True)
    )
    return Counts(float(sum(products)), float(sum(outputs)))
