"""Width pruning of gated MLPs by maximum absolute weight.

A neuron of a gated MLP is a column of the value matrix, the same column of the gate and
a row of the output matrix. Those with the smallest scores are removed, equally many in
each layer, without training (arXiv:2512.22671). Shapes: D width, F neurons; `fc1` is
(D, 2F) = [values, gates], `fc2` (F, D), as in the language model's `GatedMLP`.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from algoperf import spec
from algoperf.errors import UserError
from algoperf.reparam.base import Reparametrisation, State, name_of

FIRST, SECOND = "fc1", "fc2"


def neuron_scores(mlp: Any) -> jax.Array:
    """Returns max|value_i| + max|gate_i| (F,), over the weights into neuron i."""
    value_DxF, gate_DxF = jnp.split(mlp[FIRST]["kernel"], 2, axis=-1)
    return jnp.abs(value_DxF).max(axis=0) + jnp.abs(gate_DxF).max(axis=0)


def kept_number(neurons: int, fraction: float) -> int:
    """Returns F - floor(fraction F), the neurons that stay of F.

    Raises:
      UserError: the fraction is not at least 0 and less than 1.
    """
    if not 0.0 <= fraction < 1.0:
        raise UserError(
            f"fraction {fraction} of {neurons} neurons: give at least 0 and less than 1"
        )
    return neurons - math.floor(fraction * neurons + 1e-9)


def kept_neurons(mlp: Any, fraction: float) -> jax.Array:
    """Returns the numbers of the neurons with the largest scores, in order.

    Args:
      mlp: {'fc1': {'kernel': (D, 2F)}, 'fc2': {'kernel': (F, D)}}.
      fraction: share of the neurons to remove; see `kept_number`.
    """
    number = kept_number(mlp[SECOND]["kernel"].shape[0], fraction)
    _, places = jax.lax.top_k(neuron_scores(mlp), number)
    return jnp.sort(places)


def narrowed(mlp: Any, kept: jax.Array) -> dict[str, Any]:
    """Returns the MLP with the kept neurons alone."""
    value, gate = jnp.split(mlp[FIRST]["kernel"], 2, axis=-1)
    first = jnp.concatenate([value[:, kept], gate[:, kept]], axis=-1)
    return {FIRST: {"kernel": first}, SECOND: {"kernel": mlp[SECOND]["kernel"][kept]}}


def widened(mlp: Any, kept: jax.Array, neurons: int) -> dict[str, Any]:
    """Puts a narrow MLP in its places among `neurons`; all others are 0."""
    width, both = mlp[FIRST]["kernel"].shape
    halves = mlp[FIRST]["kernel"].reshape(width, 2, both // 2)
    first = jnp.zeros((width, 2, neurons), halves.dtype).at[:, :, kept].set(halves)
    second = mlp[SECOND]["kernel"]
    wide = jnp.zeros((neurons, second.shape[1]), second.dtype).at[kept].set(second)
    return {FIRST: {"kernel": first.reshape(width, -1)}, SECOND: {"kernel": wide}}


def zeroed(mlp: Any, fraction: float) -> dict[str, Any]:
    """Returns the MLP with its pruned neurons at 0: the narrow one's function."""
    kept = kept_neurons(mlp, fraction)
    neurons = mlp[SECOND]["kernel"].shape[0]
    return widened(narrowed(mlp, kept), kept, neurons)


def gated_mlps(params: Any, path: str = "") -> list[str]:
    """Returns the top-level names of gated MLPs.

    Their `fc1` is twice as wide as `fc2` is long, and there are no biases.

    Args:
      params: of a model, arrays or shapes.
      path: a regular expression that the names must contain.

    Raises:
      UserError: there are none.
    """
    names = [
        name
        for name, part in params.items()
        if isinstance(part, dict) and _is_gated(part) and re.search(path, name)
    ]
    if not names:
        raise UserError(
            f"no gated MLP {f'matches {path!r}' if path else 'is there'}: one has fc1 "
            f"(D, 2F) and fc2 (F, D) without biases; there are: {', '.join(params)}"
        )
    return names


def _is_gated(part: Any) -> bool:
    leaves = {
        name_of(path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(part)
    }
    first, second = leaves.get(f"{FIRST}/kernel"), leaves.get(f"{SECOND}/kernel")
    if first is None or second is None or len(leaves) != 2:
        return False
    return first == (second[1], 2 * second[0])


def map_mlps(fn: Callable[[Any], Any], params: Any, path: str = "") -> Any:
    """Returns the params with a function applied to each gated MLP."""
    names = set(gated_mlps(params, path))
    return {name: fn(part) if name in names else part for name, part in params.items()}


def expansion(mlp: Any) -> float:
    """Returns F / D, the expansion ratio."""
    neurons, width = mlp[SECOND]["kernel"].shape
    return neurons / width


def removed_parameters(layers: int, width: int, neurons: int, fraction: float) -> int:
    """Returns how many parameters go: layers * 3 D * floor(fraction F)."""
    return layers * 3 * width * (neurons - kept_number(neurons, fraction))


def narrow(
    workload: spec.Workload, fraction: float, path: str = ""
) -> Reparametrisation:
    """Trains narrow MLPs inside the workload's tree; pruned neurons are 0 and stay so.

    Which neurons stay follows from the initial parameters.

    Args:
      workload: gives names and shapes.
      fraction: share of the neurons of each MLP that are removed.
      path: a regular expression on the names of MLPs.

    Raises:
      UserError: there is no gated MLP, or the fraction is out of range.
    """
    shapes = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape.shape_tuple, jnp.float32),
        workload.param_shapes,
    )
    neurons = {
        name: shapes[name][SECOND]["kernel"].shape[0]
        for name in gated_mlps(shapes, path)
    }
    for number in neurons.values():
        kept_number(number, fraction)

    def init(params: Any, key: Any) -> State:
        del key
        kept = {name: kept_neurons(params[name], fraction) for name in neurons}
        trainable = {
            name: narrowed(part, kept[name]) if name in kept else part
            for name, part in params.items()
        }
        return State(trainable, kept)

    def materialise(state: State) -> Any:
        wide = {
            name: widened(state.trainable[name], state.frozen[name], number)
            for name, number in neurons.items()
        }
        return {**state.trainable, **wide}

    return Reparametrisation(init, materialise)
