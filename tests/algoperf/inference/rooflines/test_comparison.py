"""Counts against closed forms and published ones; ranks against SciPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from algoperf import registry
from algoperf.errors import UserError
from algoperf.inference.rooflines import comparison, counts, ranks
from algoperf.inference.timing.profiler import Plan
from algoperf.inference.tradeoffs import scaling


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_products_by_hand():
    def run(x, w):
        y = x @ w  # (3, 5)
        z, _ = jax.lax.scan(lambda c, _: (jnp.tanh(c @ w.T @ w), None), y, None, 7)
        return z

    found = counts.count_products(run, array(3, 4), array(4, 5))
    assert found.multiply_adds == 3 * 4 * 5 * (1 + 7 * 2)
    assert found.activations == 3 * 5 + 7 * (3 * 4 + 3 * 5)
    assert found.per(3).activations == found.activations / 3


def test_a_grouped_convolution_by_hand():
    def run(x, k):
        return jax.lax.conv_general_dilated(
            x,
            k,
            (2, 2),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=4,
        )

    found = counts.count_products(run, array(2, 10, 8, 8), array(3, 3, 2, 12))
    assert found.activations == 2 * 5 * 4 * 12
    assert found.multiply_adds == found.activations * 3 * 3 * 2


def test_resnet_50_has_the_published_counts():
    """4.1 G multiply-adds, 11.1 M activations (RegNet, arXiv:2003.13678, table 4)."""
    found = comparison.count_forward(registry.find_workload("imagenet_resnet", "full"))
    assert round(found.multiply_adds / 1e9, 1) == 4.1
    assert round(found.activations / 1e6, 1) == 11.1


def stack(depth, width, resolution):
    """A plain stack of 3 x 3 convolutions."""

    def run(x, k):
        for _ in range(depth):
            x = jax.lax.conv_general_dilated(
                x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        return x

    x, k = array(1, resolution, resolution, width), array(3, 3, width, width)
    return counts.count_products(run, x, k)


@pytest.mark.parametrize("alpha", [0, 0.5, 1])
def test_a_scaled_network_has_the_activations_that_the_law_says(alpha):
    """s times the FLOPs, s^(1 - alpha / 2) times the activations (2103.06877)."""
    factors = scaling.fast_compound_scaling(16, alpha)
    base, scaled = (
        stack(round(2 * depth), round(8 * width), round(100 * resolution))
        for depth, width, resolution in (
            (1, 1, 1),
            (factors.depth, factors.width, factors.resolution),
        )
    )
    flops = scaled.multiply_adds / base.multiply_adds
    activations = scaled.activations / base.activations
    assert flops == pytest.approx(16, rel=0.01)
    assert activations == pytest.approx(16 ** (1 - alpha / 2), rel=0.01)
    assert activations == pytest.approx(factors.activations, rel=0.01)


VALUES = st.lists(
    st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=4, max_size=30
)


@settings(max_examples=60)
@given(VALUES)
def test_spearman_is_scipys(pairs):
    one, other = zip(*pairs, strict=True)
    if len(set(one)) == 1 or len(set(other)) == 1:
        with pytest.raises(UserError, match="all equal"):
            ranks.spearman(one, other)
        return
    found = ranks.spearman(one, other)
    assert found.rho == pytest.approx(scipy.stats.spearmanr(one, other)[0])
    assert -1 <= found.low <= found.rho <= found.high <= 1
    # Ranks know no scale.
    again = ranks.spearman([math.exp(x) for x in one], [-(x**3) for x in other])
    assert again.rho == pytest.approx(-found.rho)
    assert again.low == pytest.approx(-found.high)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_the_interval_holds_the_truth_as_often_as_it_says(correlation):
    """Of normal pairs, Spearman's is 6 / pi asin(rho / 2) (Pearson 1907)."""
    rng = np.random.default_rng(0)
    truth = 6 / math.pi * math.asin(correlation / 2)
    covariance = [[1, correlation], [correlation, 1]]
    held = 0
    for _ in range(400):
        pairs = rng.multivariate_normal([0, 0], covariance, 20)
        found = ranks.spearman(*pairs.T)
        held += found.low <= truth <= found.high
    assert 0.91 < held / 400 < 0.985


def test_few_things_say_little():
    three = ranks.spearman([1, 2, 3], [1, 2, 3])
    assert (three.low, three.high, three.count) == (-1, 1, 3)
    perfect = ranks.spearman([1, 2, 3, 4, 5], [2, 3, 5, 7, 8])
    assert perfect.rho == pytest.approx(1)
    assert perfect.high == pytest.approx(1)
    assert perfect.low < 0.9
    with pytest.raises(UserError, match="two values"):
        ranks.spearman([1], [2])
    with pytest.raises(UserError, match="not 2 and 3"):
        ranks.spearman([1, 2], [2, 3, 4])


TYPICAL = ("criteo1tb", "imagenet_vit")


@pytest.mark.parametrize(
    "name",
    [
        n if n in TYPICAL else pytest.param(n, marks=pytest.mark.slow)
        for n in registry.family_names()
    ],
)
def test_every_family_has_other_sizes(name):
    """Wider is more for each layer, deeper is more layers: both are more parameters."""
    workload = registry.find_workload(name, "mini")
    _, half, double, *deep = comparison.family([workload])
    assert half.num_parameters < workload.num_parameters < double.num_parameters
    assert double.name == f"{workload.variant}_double_width_mini"
    has_depth = name not in ("criteo1tb", "fastmri")
    assert len(deep) == has_depth
    assert all(d.num_parameters > workload.num_parameters for d in deep)


def model(macs, throughput, latency):
    return comparison.Model("m", 10, macs, 2 * macs, throughput, latency, 8)


def test_correlations_have_the_sign_that_they_say():
    """More work that takes longer is 1, whichever way the column points."""
    models = [model(n, 100 / n, 7 - n) for n in (1, 2, 3, 4, 5)]
    found = comparison.correlations(models)
    assert found["multiply-adds, time of a batch"].rho == pytest.approx(1)
    assert found["multiply-adds, latency"].rho == pytest.approx(-1)
    assert found["time of a batch, latency"].rho == pytest.approx(-1)
    value = comparison.to_json(models)
    assert len(value["models"]) == 5
    assert set(value["rank_correlations"]) == set(found)


def test_a_comparison_pairs_times_with_models(monkeypatch):
    """Programs that take as many seconds as their batch has examples, and one more."""
    now = 0.0

    class Fake:
        def __init__(self, workload, name, size):
            del workload
            assert name == "forward"
            self.size = size

        def runner(self):
            def run():
                nonlocal now
                now += self.size + 1

            return run

    monkeypatch.setattr(comparison, "compile_program", Fake)
    workloads = registry.select_workloads(["imagenet_resnet", "fastmri"], "mini")
    models = comparison.compare(workloads, None, Plan(3, 3, 1e9), clock=lambda: now)
    for workload, found in zip(workloads, models, strict=True):
        size = workload.default_batch_size
        assert found.name == workload.name
        assert found.batch_size == size
        assert found.examples_per_second == pytest.approx(size / (size + 1))
        assert found.latency == 2
        assert comparison.table_row(found)[0] == workload.name
