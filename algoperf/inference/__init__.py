"""What a trained model costs to run: decoder, profiler, idealized runtime, costs.

Rooms, each of which imports from those before it alone: `models`, `timing`,
`rooflines`, `tradeoffs`, `decoding`. The names here need no JAX; what does is imported
by itself.
"""

from algoperf.inference.models.shapes import SHAPES, DecoderShape, find_shape
from algoperf.inference.timing.prompt_time import PromptTime
from algoperf.inference.timing.runtime import (
    DecodeRegression,
    RuntimeModel,
    decode_regression,
    fit_runtime,
)

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
