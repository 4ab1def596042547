"""Where arrays live: a mesh over all devices, params replicated or sharded.

A run's `Placement` says which; a workload carries it. The functions without one keep
their official names and meaning: one axis over all devices.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from algoperf.errors import UserError

BATCH_AXIS = "batch"
MODEL_AXIS = "model"
KINDS = ("replicated", "fsdp")
# Smaller arrays are not worth the latency of gathering them; so many numbers.
MIN_SHARDED_SIZE = 2**12


@dataclasses.dataclass(frozen=True)
class Placement:
    """How a run lays its arrays out over the devices.

    Devices form a mesh of (device_count / m) rows and m columns: the axes 'batch' and
    'model'. Batches are split over both, so every device computes on examples of its
    own. 'replicated' puts all else on every device. 'fsdp' splits each large array
    over the m devices of a row (fully sharded data parallelism: Rajbhandari et al.
    2020, arXiv:1910.02054, stage 3; Zhao et al. 2023, arXiv:2304.11277, where m below
    the device count is called hybrid) and gathers parameters while they are used.

    Attributes:
      kind: one of KINDS.
      model_devices: m, for 'fsdp'; all devices where it is None.
      min_size: arrays of fewer numbers stay whole.
      microbatches: each device computes its part of a batch in so many pieces, one
        after another, and sums their gradients (gradient accumulation).
    """

    kind: str = "replicated"
    model_devices: int | None = None
    min_size: int = MIN_SHARDED_SIZE
    microbatches: int = 1

    @property
    def is_sharded(self) -> bool:
        """Whether parameters and optimizer state are split."""
        return self.kind == "fsdp"

    @property
    def num_shards(self) -> int:
        """Over how many devices a large array is split."""
        if not self.is_sharded:
            return 1
        return self.model_devices or jax.device_count()

    def check(self) -> None:
        """Raises UserError unless the devices can be laid out like this."""
        if self.kind not in KINDS:
            raise UserError(f"no sharding is called {self.kind!r}; take one of {KINDS}")
        if self.model_devices is None:
            return
        devices = jax.device_count()
        if not self.is_sharded:
            raise UserError("the number of model devices is for fsdp sharding alone")
        if self.model_devices > devices:
            raise UserError(
                f"{self.model_devices} model devices are asked for and {devices} are "
                f"here; ask for {devices} or fewer, or run on more"
            )
        if self.model_devices < 1 or devices % self.model_devices:
            raise UserError(
                f"{devices} devices are not divisible by {self.model_devices} model "
                "devices; ask for a number that divides them"
            )

    def mesh(self) -> Mesh:
        """Returns the mesh; neighbours, on one host if it has enough, share a row."""
        if not self.is_sharded:
            return get_mesh()
        devices = _devices().reshape(-1, self.num_shards)
        return Mesh(devices, (BATCH_AXIS, MODEL_AXIS))

    def batch_sharding(self) -> NamedSharding:
        """Returns the sharding that splits the first axis over all devices."""
        axes = (BATCH_AXIS, MODEL_AXIS) if self.is_sharded else BATCH_AXIS
        return NamedSharding(self.mesh(), PartitionSpec(axes))

    def sharded_axis(self, shape: Sequence[int]) -> int | None:
        """Returns which axis of an array is split; None where it stays whole.

        The longest that divides evenly, the last one of those.
        """
        shards = self.num_shards
        if shards == 1 or math.prod(shape) < max(self.min_size, shards):
            return None
        axes = [axis for axis, size in enumerate(shape) if size % shards == 0]
        return max(axes, key=lambda axis: (shape[axis], axis), default=None)

    def sharding_of(self, array: Any) -> NamedSharding:
        """Returns the sharding of an array of parameters or state, by its shape."""
        axis = None if _is_key(array) else self.sharded_axis(array.shape)
        spec = PartitionSpec()
        if axis is not None:
            spec = PartitionSpec(*[None] * axis, MODEL_AXIS)
        return NamedSharding(self.mesh(), spec)

    def shardings(self, tree: Any) -> Any:
        """Returns the tree of shardings of a tree of arrays or their shapes."""
        return jax.tree.map(self.sharding_of, tree)

    def constrain(self, tree: Any) -> Any:
        """Keeps arrays that a compiled function makes where `shardings` puts them."""
        if not self.is_sharded:
            return tree
        return jax.lax.with_sharding_constraint(tree, self.shardings(tree))

    def gather(self, params: Any) -> Any:
        """Returns parameters whole on every device: an all-gather of what is split.

        Linear, so gradients are summed over the devices where it is transposed.
        """
        if not self.is_sharded:
            return params
        whole = get_replicate_sharding(self.mesh())
        return jax.tree.map(
            lambda leaf: (
                leaf
                if self.sharded_axis(leaf.shape) is None
                else jax.lax.with_sharding_constraint(leaf, whole)
            ),
            params,
        )

    def bytes_per_device(self, tree: Any) -> int:
        """Returns what a tree of parameters or state takes on each device.

        sum over arrays of size x itemsize / (m if the array is split, else 1).
        """
        return sum(
            _bytes(leaf) // (1 if axis is None else self.num_shards)
            for leaf in jax.tree.leaves(tree)
            for axis in [None if _is_key(leaf) else self.sharded_axis(leaf.shape)]
        )


def explain(error: BaseException, placement: Placement) -> str | None:
    """Says what to do if a submission's own shardings refuse split parameters."""
    if placement.is_sharded and "harding passed to jit does not match" in str(error):
        return (
            "the submission names shardings of its own, which are not those of fsdp; "
            "run it with --sharding replicated"
        )
    return None


def _is_key(array: Any) -> bool:
    return jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key)


def _bytes(array: Any) -> int:
    if _is_key(array):
        array = jax.eval_shape(jax.random.key_data, array)
    return math.prod(array.shape) * array.dtype.itemsize


def get_mesh() -> Mesh:
    """Returns the mesh over all devices; its one axis is the batch."""
    return Mesh(_devices(), (BATCH_AXIS,))


def _devices() -> np.ndarray:
    """Returns all devices, those of one host side by side."""
    devices = sorted(
        jax.devices(), key=lambda device: (device.process_index, device.id)
    )
    return np.asarray(devices)


def put_batches(batches: Any, place: NamedSharding) -> Any:
    """Sends batches to the devices: whole ones, or this host's rows of each.

    Several hosts each give (batch / hosts, ...), in the order of the hosts.
    """
    if jax.process_count() == 1:
        return jax.device_put(batches, place)
    return jax.tree.map(
        lambda array: jax.make_array_from_process_local_data(place, array), batches
    )


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


def check_batch_size(batch_size: int, what: str, microbatches: int = 1) -> None:
    """Raises UserError unless `batch_size` can be split evenly over the devices."""
    devices = jax.device_count()
    parts = devices * microbatches
    if batch_size < 1 or batch_size % parts:
        times = f" times {microbatches} microbatches" if microbatches > 1 else ""
        raise UserError(
            f"{what} is {batch_size}, which is not divisible by the {devices} devices"
            f"{times}; the nearest that is: "
            f"{max(1, round(batch_size / parts)) * parts}"
        )


def check_packs(max_packs: int, name: str, microbatches: int = 1) -> None:
    """Raises UserError unless batches of packs can be split over the devices.

    A batch of b examples is gcd(b, max_packs) packs, so where the devices divide b and
    max_packs they divide the packs too.
    """
    devices = jax.device_count()
    if max_packs % devices:
        raise UserError(
            f"{name}, whose batches are {max_packs} packs, runs on at most {max_packs} "
            f"devices, a number that divides {max_packs}; {devices} are here"
        )
    if microbatches > 1:
        raise UserError(
            f"{name} has batches of packs, which are not cut into parts; run it "
            "without --microbatches"
        )
