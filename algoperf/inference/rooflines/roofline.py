"""The time that a program would take at a machine's peak rates, kernel by kernel.

'On the Efficiency of Convolutional Neural Networks' (arXiv:2404.03617): a kernel takes
at least max(FLOPs / peak, bytes / bandwidth); a program runs its kernels one after
another, so its ideal time is their sum, which is more than one roofline over the totals
gives.
"""

import dataclasses
from collections.abc import Iterable

from algoperf.errors import UserError
from algoperf.inference.timing.hlo import Kernel


@dataclasses.dataclass(frozen=True)
class Peak:
    """What a machine can do at best.

    Attributes:
      flops: per second, of the products' type.
      bytes_per_second: of memory.
      levels: (bytes, bytes per second), ascending: what is moved over and over within
        so many bytes, from caches. A kernel that moves little may find it all there,
        so it is held to the rate of the greatest level that is no larger than what it
        moves.
    """

    flops: float
    bytes_per_second: float
    levels: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        if not (self.flops > 0 and self.bytes_per_second > 0):
            raise UserError(f"peak rates must be above 0: {self}")
        if list(self.levels) != sorted(self.levels):
            raise UserError(f"levels must ascend in bytes: {self.levels}")

    def bandwidth(self, moved: float) -> float:
        """Returns the bytes per second that a kernel can have that moves so many."""
        if not self.levels or moved > self.levels[-1][0]:
            return self.bytes_per_second
        rates = [rate for size, rate in self.levels if size <= moved]
        return rates[-1] if rates else self.levels[0][1]

    def seconds(self, kernel: Kernel) -> float:
        """Returns the least time of one run of a kernel."""
        return max(kernel.flops / self.flops, self.memory_seconds(kernel))

    def memory_seconds(self, kernel: Kernel) -> float:
        """Returns the least time that moving its bytes takes."""
        return kernel.bytes / self.bandwidth(kernel.bytes)

    def is_compute_bound(self, kernel: Kernel) -> bool:
        """Whether its FLOPs take longer than its bytes."""
        return kernel.flops / self.flops > self.memory_seconds(kernel)


def ideal_seconds(kernels: Iterable[Kernel], peak: Peak) -> float:
    """Returns the sum over kernels of max(FLOPs / peak, bytes / bandwidth)."""
    return sum(kernel.repeats * peak.seconds(kernel) for kernel in kernels)


def totals(kernels: Iterable[Kernel]) -> Kernel:
    """Returns all FLOPs and bytes as one kernel: what a single roofline would see."""
    found = list(kernels)
    return Kernel(
        "all",
        "all",
        sum(kernel.repeats * kernel.flops for kernel in found),
        sum(kernel.repeats * kernel.bytes for kernel in found),
    )
