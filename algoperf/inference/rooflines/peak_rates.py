"""What this machine can do at best: FLOP/s and bytes per second, measured.

Products of square matrices give FLOP/s. Two loops give bytes per second: a triad in
place (x = a x + y, after STREAM, McCalpin 1995) and a matrix-vector product, which
only reads. Each goes over the same bytes many times within one compiled loop, so what
fits a cache comes from that cache: the rates by size are those of the machine's levels,
the largest size's is that of its memory.

The best of all tries counts: a peak is what nothing is faster than.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from algoperf.errors import UserError
from algoperf.inference.rooflines.roofline import Peak


@dataclasses.dataclass(frozen=True)
class Ladder:
    """What is measured on a kind of device.

    Attributes:
      widths: of the matrices.
      sizes: bytes that a loop moves in one turn, ascending, from what the smallest
        cache holds to what none does.
      moved: bytes that it moves in all its turns.
    """

    widths: tuple[int, ...]
    sizes: tuple[int, ...]
    moved: int


_MIB = 2**20
PROCESSOR = Ladder(
    widths=(256, 512, 1024),
    sizes=(
        *(2**power for power in (14, 16, 18)),
        *(_MIB * size for size in (1, 4, 8, 16, 32, 64, 128, 256)),
    ),
    moved=128 * _MIB,
)
ACCELERATOR = Ladder(
    widths=(1024, 4096, 8192),
    sizes=tuple(_MIB * size for size in (1, 4, 16, 32, 64, 128, 256, 1024, 4096)),
    moved=8192 * _MIB,
)


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One loop to time.

    Attributes:
      kind: 'product', 'triad' or 'read'.
      size: width of the matrices, or bytes that one turn moves.
      amount: FLOPs, or bytes, of all turns.
      function: compiled.
      arguments: its own, on the device.
    """

    kind: str
    size: int
    amount: float
    function: Callable[..., Any]
    arguments: tuple[jax.Array, ...]

    def run(self) -> None:
        """Runs it, to its end."""
        jax.block_until_ready(self.function(*self.arguments))


def benchmarks(ladder: Ladder) -> list[Benchmark]:
    """Returns the loops of a ladder; their arrays are on the device."""
    found = [product(width) for width in ladder.widths]
    for size in ladder.sizes:
        turns = max(1, ladder.moved // size)
        found += [triad(size, turns), read(size, turns)]
    return found


def product(width: int) -> Benchmark:
    """Returns a product of square matrices (width, width), float32."""
    matrix = jnp.full((width, width), 1 / width)

    @jax.jit
    def run(matrix: jax.Array) -> jax.Array:
        return matrix @ matrix

    return Benchmark("product", width, 2.0 * width**3, run, (matrix,))


def triad(size: int, turns: int) -> Benchmark:
    """Returns x = a x + y in place: reads two arrays of size / 3 bytes, writes one."""
    x, y = (jnp.ones(max(1, size // 12)) for _ in range(2))

    @jax.jit
    def run(x: jax.Array, y: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, turns, lambda _, x: 0.5 * x + y, x)

    return Benchmark("triad", size, 3.0 * x.nbytes * turns, run, (x, y))


def read(size: int, turns: int) -> Benchmark:
    """Returns A v, where A has `size` bytes; v changes, so each turn reads A anew."""
    width = 64 if size < _MIB else 512
    matrix = jnp.full((size // 4 // width, width), 1e-3)

    @jax.jit
    def run(matrix: jax.Array) -> jax.Array:
        def turn(_: Any, vector: jax.Array) -> jax.Array:
            return vector + 1e-9 * (matrix @ vector)[0]

        return jax.lax.fori_loop(0, turns, turn, jnp.ones(width))

    moved = float(matrix.nbytes * turns)
    return Benchmark("read", size, moved, run, (matrix,))


def peak_of(timed: Iterable[tuple[Benchmark, Sequence[float]]]) -> Peak:
    """Returns the peak rates, the best of all tries.

    A level is no slower than the next larger one: a loop over few bytes may be slow
    for other reasons than its bytes.

    Args:
      timed: benchmarks with the seconds of their tries.

    Raises:
      UserError: there is no product, or nothing that moves bytes.
    """
    flops: list[float] = []
    by_size: dict[int, float] = {}
    for benchmark, seconds in timed:
        rate = benchmark.amount / min(seconds)
        if benchmark.kind == "product":
            flops.append(rate)
        else:
            by_size[benchmark.size] = max(rate, by_size.get(benchmark.size, 0.0))
    if not flops or not by_size:
        raise UserError("peak rates need a product and a loop over memory")
    sizes = sorted(by_size, reverse=True)
    rates = itertools.accumulate((by_size[size] for size in sizes), max)
    levels = sorted(zip(map(float, sizes), rates, strict=True))
    return Peak(max(flops), levels[-1][1], tuple(levels))
