"""What a submission's functions return is named where it is wrong."""

import jax
import numpy as np
import pytest

from algoperf import outputs


def test_three_values_are_taken_as_they_are():
    assert outputs.returned("f", ("state", "params", {})) == ("state", "params", {})
    assert outputs.returned("f", [1, 2, 3]) == (1, 2, 3)


@pytest.mark.parametrize(
    ("value", "says"), [(None, "NoneType"), ((1, 2), "2 values"), ("abc", "str")]
)
def test_anything_else_is_named(value, says):
    words = rf"f must return \(optimizer_state, params, model_state\), got {says}"
    with pytest.raises(TypeError, match=words):
        outputs.returned("f", value)


def test_the_first_leaf_that_changes_is_named():
    tree = {"a": np.ones(3, np.float32), "b": [np.zeros((2, 2), np.int32), 1.0, len]}
    types = outputs.leaf_types(tree)
    assert types == {"['a']": "float32[3]", "['b'][0]": "int32[2, 2]"} | {
        "['b'][1]": "float32[]"
    }
    assert outputs.change("f", "params", types, tree) is None
    assert outputs.change("f", "params", types, jax.tree.map(lambda x: x, tree)) is None
    for change, says in (
        ({"a": np.ones(3, np.float16)}, "['a'] was float32[3], is float16[3]"),
        ({"a": np.ones(4, np.float32)}, "['a'] was float32[3], is float32[4]"),
        ({"b": []}, "['b'][0] was int32[2, 2], is nothing"),
        ({"c": 1.0}, "['c'] was nothing, is float32[]"),
    ):
        words = f"f changes the shapes or dtypes of the params: {says}"
        assert outputs.change("f", "params", types, tree | change) == words
