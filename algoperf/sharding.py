"""Where arrays live: one mesh over all devices, params replicated, batches split."""

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from algoperf.errors import UserError

BATCH_AXIS = "batch"


def get_mesh() -> Mesh:
    """Returns the mesh over all devices; its one axis is the batch."""
    return Mesh(jax.devices(), (BATCH_AXIS,))


def get_replicate_sharding(mesh: Mesh | None = None) -> NamedSharding:
    """Returns the sharding that puts a whole copy on every device."""
    return NamedSharding(mesh or get_mesh(), PartitionSpec())


def get_batch_dim_sharding(mesh: Mesh | None = None) -> NamedSharding:
    """Returns the sharding that splits the first axis over the devices."""
    return NamedSharding(mesh or get_mesh(), PartitionSpec(BATCH_AXIS))


def replicate(tree: Any) -> Any:
    """Puts a whole copy of each leaf on every device."""
    return jax.device_put(tree, get_replicate_sharding())


def shard_along_batch_dim(tree: Any) -> Any:
    """Splits the first axis of each leaf over the devices."""
    return jax.device_put(tree, get_batch_dim_sharding())


def display_shard_info(array: jax.Array) -> None:
    """Prints which part of the array each device of this host holds."""
    for shard in array.addressable_shards:
        print(f"{shard.device}: index {shard.index}, replica {shard.replica_id}")


def check_batch_size(batch_size: int, what: str) -> None:
    """Raises UserError unless `batch_size` can be split evenly over the devices."""
    devices = jax.device_count()
    if batch_size < 1 or batch_size % devices:
        raise UserError(
            f"{what} is {batch_size}, which is not divisible by the {devices} devices; "
            f"the nearest that is: {max(1, round(batch_size / devices)) * devices}"
        )
