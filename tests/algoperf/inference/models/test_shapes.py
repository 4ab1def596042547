"""Named shapes have the parameters that their makers publish."""

import pytest

from algoperf.errors import UserError
from algoperf.inference.models.shapes import SHAPES, find_shape

# Of the published checkpoints.
PARAMETERS = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "gpt-j-6b": 6_050_882_784,
    "gpt-neox-20b": 20_554_567_680,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.1-8b": 8_030_261_248,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    assert find_shape(name).num_parameters == PARAMETERS[name]


def test_active_parameters_leave_out_tables():
    shape = find_shape("gpt2")
    assert shape.num_active_parameters == PARAMETERS["gpt2"] - 1024 * 768
    untied = find_shape("qwen3-8b")
    assert untied.num_active_parameters == PARAMETERS["qwen3-8b"] - 151_936 * 4096


def test_the_deep_narrow_shape_is_smaller_and_deeper_than_the_wide_one():
    deep, wide = find_shape("deep-narrow"), find_shape("shallow-wide")
    assert deep.num_parameters < 0.8 * wide.num_parameters
    assert deep.num_layers == 24 * wide.num_layers


def test_cache_bytes():
    """Llama 3.2 1B: 2 x 16 layers x 8 heads x 64 features x 2 bytes a token."""
    assert find_shape("llama-3.2-1b").cache_bytes(1) == 32_768
    assert find_shape("gpt2").cache_bytes(10, element_bytes=4) == 10 * 2 * 12 * 768 * 4


def test_an_unknown_shape_names_the_nearest():
    with pytest.raises(UserError, match=r"did you mean llama-3\.2-1b"):
        find_shape("llama-3.2-1")
    assert all(name == shape.name for name, shape in SHAPES.items())
