"""T(n) is found where it is planted; sizes of all workloads."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algoperf import registry
from algoperf.errors import UserError
from algoperf.inference.timing import forward_time, profiler
from algoperf.inference.timing.size_time import fit_sizes

SIZES = (1, 2, 4, 8, 16, 32, 64)


def planted(function, noise=0.0, held_out=(3, 12, 48), rounds=5):
    rng = np.random.default_rng(0)
    return {
        n: tuple(function(n) * rng.lognormal(0, noise, rounds)) if noise
        else (function(n),) * rounds
        for n in (*SIZES, *held_out)
    }  # fmt: skip


@settings(max_examples=25)
@given(st.floats(1e-4, 1.0), st.floats(1e-5, 0.1))
def test_a_line_is_found(constant, slope):
    def line(n):
        return constant + slope * n

    found = fit_sizes(planted(line), (3, 12, 48), "affine")
    assert found.seconds.coefficients == pytest.approx((constant, slope), rel=1e-6)
    assert found.r2 == pytest.approx(1)
    assert found.held_out_error == pytest.approx(0, abs=1e-6)


def test_a_hinge_is_chosen_where_there_is_one():
    """Flat as far as the weights' reading takes, then linear."""

    def hinge(n):
        return 0.01 + 0.001 * max(0, n - 8)

    found = fit_sizes(planted(hinge, 0.01), (3, 12, 48))
    assert found.seconds.rule in ("hinge", "table")
    assert found.held_out_error < 0.03
    assert found.uncertainty == pytest.approx(0.006, rel=0.6)
    line = fit_sizes(planted(hinge, 0.01), (3, 12, 48), "affine")
    assert line.held_out_error > 2 * found.held_out_error


def test_held_out_sizes_are_not_fitted():
    times = planted(lambda n: 0.01 + 0.001 * n)
    times[12] = (1.0,) * 5
    found = fit_sizes(times, (12,))
    assert found.seconds(12) == pytest.approx(0.022, rel=1e-3)
    assert found.held_out_error > 0.9
    assert found.medians[12] == 1.0
    assert list(found.medians) == sorted(times)


@pytest.mark.parametrize(
    ("function", "rule", "says"),
    [
        (lambda n: 0.01 + 0.001 * n, "auto", None),
        (lambda n: 0.01 + 0.001 * n**2, "affine", "R2 of the fit is 0."),
        (lambda n: 0.01 + (n == 12), "table", "has not seen is 33.0 % off"),
    ],
)
def test_a_fit_that_misses_is_refused_however_quiet_the_machine(function, rule, says):
    reason = profiler.refusal(fit_sizes(planted(function), (3, 12, 48), rule))
    if says is None:
        assert reason is None
    else:
        assert says in reason
        assert "the form is wrong" in reason


def test_few_sizes():
    assert fit_sizes({4: (2.0,)}).seconds(8) == 2.0
    assert fit_sizes({4: (2.0,), 8: (3.0,)}).seconds(6) == 2.5
    with pytest.raises(UserError, match="needs 4 sizes, not 2"):
        fit_sizes({4: (2.0,), 8: (3.0,)}, rule="hinge")
    with pytest.raises(UserError, match="at least one"):
        fit_sizes({})
    with pytest.raises(UserError, match="unknown rule"):
        fit_sizes({4: (2.0,)}, rule="proportional")


@pytest.mark.parametrize("workload", registry.select_workloads(["all"], "mini"))
def test_every_workload_has_sizes(workload):
    fitted, unseen = forward_time.default_sizes(workload)
    assert list(fitted) == sorted(set(fitted))
    assert unseen
    assert not set(fitted) & set(unseen)
    if workload.base_workload.startswith("librispeech"):
        assert forward_time.size_name(workload) == "samples"
        assert fitted[-1] == workload.input_shape[0] == 16_000
        audio, paddings = forward_time.forward_batch(workload, 2000)["inputs"]
        assert audio.shape == paddings.shape == (1, 2000)
        assert not paddings.any()
        with pytest.raises(UserError, match="give 1 to 16000"):
            forward_time.forward_batch(workload, 16_001)
    else:
        assert forward_time.size_name(workload) == "examples"
        assert (fitted[0], fitted[-1]) == (1, workload.default_batch_size)


@pytest.mark.parametrize(
    "name",
    ["imagenet_resnet", pytest.param("librispeech_conformer", marks=pytest.mark.slow)],
)
def test_a_profile_of_a_forward_pass(name):
    """Every size in every round, and nothing but a run between the clock's ticks."""
    workload = registry.find_workload(name, "mini")
    sizes = (1, 4) if name == "imagenet_resnet" else (2000, 16_000)
    ticks = []

    def clock():
        ticks.append(0)
        return float(len(ticks))

    plan = profiler.Plan(3, 3, 1e9)
    found = forward_time.profile_forward(workload, plan, clock, sizes)
    assert tuple(found.medians) == sizes
    assert all(len(times) == 3 for times in found.times.values())
    assert found.medians == dict.fromkeys(sizes, 1.0)


def test_a_size_is_at_least_one():
    workload = registry.find_workload("imagenet_vit", "mini")
    with pytest.raises(UserError, match="at least 1"):
        forward_time.profile_forward(workload, profiler.Plan(), float, (0, 1))
