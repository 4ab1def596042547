"""The loops that give peak rates move and compute what they say."""

import jax
import pytest

from algoperf.errors import UserError
from algoperf.inference.rooflines import peak_rates, roofline
from algoperf.inference.rooflines.peak_rates import Benchmark
from algoperf.inference.timing.hlo import kernels


def counted(benchmark):
    """FLOPs and bytes read off the compiled loop."""
    text = benchmark.function.lower(*benchmark.arguments).compile().as_text()
    return roofline.totals(kernels(text))


def test_a_product():
    benchmark = peak_rates.product(64)
    assert counted(benchmark).flops == benchmark.amount == 2 * 64**3
    benchmark.run()


@pytest.mark.parametrize("make", [peak_rates.triad, peak_rates.read])
def test_a_loop_moves_what_it_says_in_every_turn(make):
    """The compiler took nothing out of the loop, and moves little else."""
    benchmark = make(98_304, 7)
    assert benchmark.amount == pytest.approx(7 * 98_304, rel=0.001)
    assert 1 <= counted(benchmark).bytes / benchmark.amount < 1.15
    benchmark.run()


def test_all_loops_of_a_ladder():
    ladder = peak_rates.Ladder(widths=(8,), sizes=(4096, 8192), moved=16_384)
    found = peak_rates.benchmarks(ladder)
    assert [(b.kind, b.size) for b in found] == [
        ("product", 8),
        ("triad", 4096),
        ("read", 4096),
        ("triad", 8192),
        ("read", 8192),
    ]
    for benchmark in found:
        benchmark.run()


def fake(kind, size, amount):
    return Benchmark(kind, size, amount, jax.numpy.sin, ())


def test_peaks_are_the_best_of_all_tries():
    timed = [
        (fake("product", 8, 100.0), (2.0, 1.0, 4.0)),
        (fake("product", 16, 100.0), (2.0, 2.0)),
        (fake("triad", 10, 60.0), (10.0,)),  # slower than the next: held to its rate
        (fake("triad", 100, 60.0), (3.0, 2.0)),
        (fake("read", 100, 60.0), (3.0, 3.0)),
        (fake("triad", 1000, 60.0), (60.0,)),
        (fake("read", 1000, 60.0), (30.0,)),
    ]
    peak = peak_rates.peak_of(timed)
    assert peak.flops == 100
    assert peak.levels == ((10, 30), (100, 30), (1000, 2))
    assert peak.bytes_per_second == 2
    # A kernel is held to the level that is no larger than what it moves.
    assert [peak.bandwidth(n) for n in (1, 10, 99, 100, 999, 1000, 1e9)] == [
        *(30, 30, 30, 30, 30, 2, 2)
    ]


def test_peaks_need_both():
    with pytest.raises(UserError, match="a product and a loop"):
        peak_rates.peak_of([(fake("product", 8, 1.0), (1.0,))])
