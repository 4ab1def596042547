"""What a trained model costs to run: decoder, profiler, idealized runtime, costs.

These names need no JAX; `decoder`, `measure`, `parallel` and `trained` do and are
imported by themselves.
"""

from algoperf.inference.prompt_time import PromptTime
from algoperf.inference.runtime import (
    DecodeRegression,
    RuntimeModel,
    decode_regression,
    fit_runtime,
)
from algoperf.inference.shapes import SHAPES, DecoderShape, find_shape

__all__ = [
    "SHAPES",
    "DecodeRegression",
    "DecoderShape",
    "PromptTime",
    "RuntimeModel",
    "decode_regression",
    "find_shape",
    "fit_runtime",
]
