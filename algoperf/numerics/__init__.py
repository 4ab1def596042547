"""Low-precision matrix products for any workload: formats, recipes, their cost."""

from algoperf.numerics.blocks import quantize
from algoperf.numerics.formats import FORMATS, Format

__all__ = ["FORMATS", "Format", "quantize"]
