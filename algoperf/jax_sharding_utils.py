"""`algoperf.sharding` under the name that official submissions import."""

from algoperf.sharding import (
    display_shard_info,
    get_batch_dim_sharding,
    get_mesh,
    get_replicate_sharding,
    replicate,
    shard_along_batch_dim,
)

__all__ = [
    "display_shard_info",
    "get_batch_dim_sharding",
    "get_mesh",
    "get_replicate_sharding",
    "replicate",
    "shard_along_batch_dim",
]
