"""Low-precision matrix products for any workload: formats, recipes, their cost.

`quantize` rounds an array, `apply` every product of a function, forward and backward.
See docs/numerics.md.
"""

from algoperf.numerics.application import (
    apply,
    init_state,
    products,
    table,
    value_and_grad,
)
from algoperf.numerics.blocks import quantize
from algoperf.numerics.formats import FORMATS, Format
from algoperf.numerics.recipes import (
    RECIPES,
    DynamicLossScale,
    Recipe,
    Rotation,
    find_recipe,
)
from algoperf.numerics.state import State

__all__ = [
    "FORMATS",
    "RECIPES",
    "DynamicLossScale",
    "Format",
    "Recipe",
    "Rotation",
    "State",
    "apply",
    "find_recipe",
    "init_state",
    "products",
    "quantize",
    "table",
    "value_and_grad",
]
