"""Narrow convolutional networks inside a wide one's parameter tree.

The weights of a network with fewer channels lie in the first places of the wide one's
arrays, all else is 0. The wide network then computes the narrow one's function: its
other channels are 0 from the first layer to the last.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from algoperf import reparam, spec
from algoperf.errors import UserError
from algoperf.reparam.base import Reparametrisation, State, name_of

_TYPES = spec.ParameterType
KERNELS = (_TYPES.CONV_WEIGHT, _TYPES.WEIGHT)
VECTORS = (_TYPES.BIAS, _TYPES.BATCH_NORM_SCALE, _TYPES.BATCH_NORM_BIAS)


def kept(channels: int, share: float) -> int:
    """Returns how many of the channels a network of this share has, 1 at least."""
    return max(1, round(share * channels))


def narrow_shapes(workload: Any, share: float) -> Any:
    """Returns the params' tree with the narrow shapes, as tuples.

    All channels are scaled but those of the images and the classes.

    Args:
      workload: of a network of convolutions, batch norms and dense layers.
      share: of the channels, in (0, 1].

    Raises:
      UserError: another kind of network, or share.
    """
    if not 0.0 < share <= 1.0:
        raise UserError(f"a share {share} of the channels: give one in (0, 1]")
    images = workload.input_shape[-1]
    kinds = jax.tree_util.tree_leaves_with_path(workload.model_params_types)
    shapes = [leaf.shape_tuple for leaf in jax.tree.leaves(workload.param_shapes)]
    first = [len(shape) > 2 and shape[-2] == images for shape in shapes]
    unknown = [
        f"{name_of(path)} ({kind.name})"
        for path, kind in kinds
        if kind not in KERNELS + VECTORS
    ]
    if unknown or sum(first) != 1:
        why = f"it has {unknown[0]}" if unknown else "its first layer is not told apart"
        raise UserError(
            f"only networks of convolutions, batch norms and dense layers can be made "
            f"narrow, and {why}; leave the series 'narrow' out"
        )
    found = []
    for (path, kind), shape, is_first in zip(kinds, shapes, first, strict=True):
        is_output = workload.is_output_params(path[0].key)
        outside = shape[-1] if is_output else kept(shape[-1], share)
        if kind not in KERNELS:
            found.append((outside,))
            continue
        inside = shape[-2] if is_first else kept(shape[-2], share)
        found.append((*shape[:-2], inside, outside))
    structure: Any = jax.tree.structure(workload.param_shapes)
    return structure.unflatten(found)


def share_for(workload: Any, compression: float) -> float:
    """Returns the largest share whose kernels are the wide ones' over `compression`.

    At most: channels are whole numbers.

    Raises:
      UserError: even one channel in each layer has more weights.
    """
    sizes = [leaf.shape_tuple for leaf in jax.tree.leaves(workload.param_shapes)]
    widest = max(max(shape) for shape in sizes)
    wanted = _kernel_weights(workload, 1.0) / compression
    for channels in range(widest, 0, -1):
        if _kernel_weights(workload, channels / widest) <= wanted:
            return channels / widest
    raise UserError(
        f"no network is {compression:g} times smaller: one channel for each layer has "
        f"{_kernel_weights(workload, 1 / widest)} kernel weights, more than "
        f"{wanted:.0f}"
    )


def _kernel_weights(workload: Any, share: float) -> int:
    structure: Any = jax.tree.structure(workload.param_shapes)
    shapes = structure.flatten_up_to(narrow_shapes(workload, share))
    chosen = jax.tree.leaves(reparam.select(workload))
    pairs = zip(shapes, chosen, strict=True)
    return sum(math.prod(shape) for shape, is_kernel in pairs if is_kernel)


def narrow_channels(workload: Any, share: float) -> Reparametrisation:
    """Trains a network of fewer channels inside the workload's tree.

    Kernels start as the workload's, their first channels, times sqrt(fan-in / narrow
    fan-in), so that their variance is 1 / fan-in if it was; those of the output layer
    as they are.

    Raises:
      UserError: see `narrow_shapes`.
    """
    structure: Any = jax.tree.structure(workload.param_shapes)
    small = structure.flatten_up_to(narrow_shapes(workload, share))
    paths = jax.tree_util.tree_leaves_with_path(workload.param_shapes)
    grows = [
        len(leaf.shape_tuple) > 1 and not workload.is_output_params(path[0].key)
        for path, leaf in paths
    ]

    def init(params: Any, key: Any) -> State:
        del key
        leaves = []
        for x, shape, is_scaled in zip(
            structure.flatten_up_to(params), small, grows, strict=True
        ):
            block = x[tuple(slice(size) for size in shape)]
            gain = math.sqrt(x.shape[-2] / shape[-2]) if is_scaled else 1.0
            leaves.append(gain * block)
        return State(structure.unflatten(leaves), None)

    def materialise(state: State) -> Any:
        return jax.tree.map(_widened, state.trainable, workload.param_shapes)

    return Reparametrisation(init, materialise)


def _widened(block: jax.Array, shape: spec.ShapeTuple) -> jax.Array:
    """Returns the block with zeros behind it along each axis."""
    return jnp.pad(
        block,
        [(0, n - k) for k, n in zip(block.shape, shape.shape_tuple, strict=True)],
    )
