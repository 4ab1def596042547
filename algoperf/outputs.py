"""What the functions of a submission may return."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

LeafTypes = dict[str, str]  # path -> dtype and shape


def returned(function: str, outputs: Any) -> tuple[Any, Any, Any]:
    """Returns (optimizer_state, params, model_state).

    Raises:
      TypeError: the function returned something else.
    """
    if isinstance(outputs, tuple | list) and len(outputs) == 3:
        optimizer_state, params, model_state = outputs
        return optimizer_state, params, model_state
    found = type(outputs).__name__
    if isinstance(outputs, tuple | list):
        found = f"{len(outputs)} values"
    raise TypeError(
        f"{function} must return (optimizer_state, params, model_state), got {found}"
    )


def leaf_types(tree: Any) -> LeafTypes:
    """Returns path -> dtype and shape of the arrays and numbers of a tree."""
    return {
        jax.tree_util.keystr(path): f"{jnp.result_type(leaf)}{list(np.shape(leaf))}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float)
    }


def change(function: str, name: str, before: LeafTypes, output: Any) -> str | None:
    """Says where what a function returns as `name` leaves its types first."""
    after = leaf_types(output)
    for path in sorted(before.keys() | after.keys()):
        old, new = before.get(path, "nothing"), after.get(path, "nothing")
        if old != new:
            what = f"{function} changes the shapes or dtypes of the {name}"
            return f"{what}: {path} was {old}, is {new}"
    return None
