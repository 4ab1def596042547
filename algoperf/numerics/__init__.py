"""Low-precision matrix products for any workload: formats, recipes, their cost.

`quantize` rounds an array, `apply` every product of a function, forward and backward.
See docs/numerics.md.
"""

from algoperf.numerics.application import apply, products, table
from algoperf.numerics.blocks import quantize
from algoperf.numerics.formats import FORMATS, Format
from algoperf.numerics.recipes import RECIPES, Recipe, Rotation, find_recipe

__all__ = [
    "FORMATS",
    "RECIPES",
    "Format",
    "Recipe",
    "Rotation",
    "apply",
    "find_recipe",
    "products",
    "quantize",
    "table",
]
