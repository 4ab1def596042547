"""Tensor parallelism: how a decoder's weights and cache are split over devices.

Products that open a block (query, key, value, up, gate) are split by columns, those
that close it (out, down) by rows, so that a block needs two sums over the devices
(Megatron-LM, arXiv:1909.08053, section 3). The embedding is split by tokens. XLA puts
the communication in.
"""

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from algoperf.errors import UserError
from algoperf.inference.models.shapes import DecoderShape

AXIS = "model"

_BY_COLUMNS = ("query", "key", "value", "up", "gate", "head")
_BY_ROWS = ("out", "down")


def model_mesh(devices: list[Any] | None = None) -> Mesh:
    """Returns a mesh whose one axis splits the model; by default over all devices."""
    return Mesh(devices or jax.devices(), (AXIS,))


def partition(
    shape: DecoderShape, path: tuple[str, ...], num_devices: int
) -> PartitionSpec:
    """Returns how the parameter at a path is split.

    Args:
      shape: the model's.
      path: keys from the root: ('layers', '3', 'query', 'kernel').
      num_devices: over how many. Keys and values are whole on every device when
        they have fewer heads than that, or no multiple of it; so is the embedding when
        the vocabulary is no multiple.
    """
    product, kind = path[-2:] if len(path) > 1 else ("", path[0])
    splits_vocabulary = shape.vocab_size % num_devices == 0
    if kind == "embedding":
        return PartitionSpec(AXIS) if splits_vocabulary else PartitionSpec()
    if product in ("key", "value") and shape.kv_heads % num_devices:
        return PartitionSpec()
    if product == "head" and not splits_vocabulary:
        return PartitionSpec()
    if product in _BY_COLUMNS:
        return PartitionSpec(None, AXIS) if kind == "kernel" else PartitionSpec(AXIS)
    if product in _BY_ROWS and kind == "kernel":
        return PartitionSpec(AXIS)
    return PartitionSpec()


def param_shardings(shape: DecoderShape, params: Any, mesh: Mesh) -> Any:
    """Returns a tree of shardings like `params`.

    Raises:
      UserError: heads or the width of the MLP cannot be split evenly.
    """
    count = mesh.shape[AXIS]
    for what, size in (("heads", shape.num_heads), ("MLP width", shape.mlp_width)):
        if size % count:
            raise UserError(
                f"{shape.name} has {what} {size}, no multiple of {count} devices; "
                "take fewer devices"
            )

    def one(path: Any, leaf: Any) -> NamedSharding:
        del leaf
        names = tuple(str(getattr(key, "key", getattr(key, "idx", ""))) for key in path)
        return NamedSharding(mesh, partition(shape, names, count))

    return jax.tree_util.tree_map_with_path(one, params)


def shard_params(shape: DecoderShape, params: Any, mesh: Mesh) -> Any:
    """Puts parameters on the devices, split."""
    return jax.device_put(params, param_shardings(shape, params, mesh))


def shard_cache(shape: DecoderShape, cache: Any, mesh: Mesh) -> Any:
    """Puts a cache on the devices, split by heads where they can be."""
    splits = shape.kv_heads % mesh.shape[AXIS] == 0
    spec = PartitionSpec(AXIS) if splits else PartitionSpec()
    return jax.device_put(cache, NamedSharding(mesh, spec))
