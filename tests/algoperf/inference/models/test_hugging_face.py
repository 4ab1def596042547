"""The decoder agrees with Hugging Face transformers, with the same weights.

Logits that transformers gave are in `hf_logits.json`, so that this is checked
everywhere; where it is installed it is asked again, at every position.
"""

import dataclasses
import json

import hf_reference
import numpy as np
import pytest
from decoders import SHAPES, drawn_params, drawn_tokens

from algoperf.inference.models import decoder

SAVED = json.loads(hf_reference.FILE.read_text())["logits"]
TOLERANCE = 1e-4


def _ours(shape):
    tokens = drawn_tokens(shape, hf_reference.BATCH, hf_reference.LENGTH)
    return np.asarray(decoder.compiled_forward(shape, drawn_params(shape), tokens))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=lambda shape: shape.name)
def test_saved_logits(shape):
    np.testing.assert_allclose(
        _ours(shape)[:, -1], SAVED[shape.name], atol=TOLERANCE, rtol=TOLERANCE
    )


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("like llama", {"rotary_scaling": None}),
        ("like gpt-j", {"rotary_pairs": "halves"}),
        ("like neox", {"activation": "gelu_tanh"}),
    ],
)
def test_another_option_does_not_agree(name, change):
    """So that agreement is agreement about the options."""
    changed = dataclasses.replace(SHAPES[name], **change)
    assert np.abs(_ours(changed)[:, -1] - SAVED[name]).max() > 3 * TOLERANCE


@pytest.mark.filterwarnings("default")  # theirs
@pytest.mark.parametrize("shape", SHAPES.values(), ids=lambda shape: shape.name)
def test_logits_of_the_installed_library(shape):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    tokens = drawn_tokens(shape, hf_reference.BATCH, hf_reference.LENGTH)
    want = hf_reference.hf_logits(shape, drawn_params(shape), tokens)
    np.testing.assert_allclose(_ours(shape), want, atol=TOLERANCE, rtol=TOLERANCE)
