"""The cached decoder of a translation model against one pass over all tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algoperf import registry
from algoperf.errors import UserError
from algoperf.inference.timing import encoder_decoder, profiler, programs

WMT = registry.find_workload("wmt", "mini")
KEY = jax.random.PRNGKey(3)


def make_params(workload):
    """Of no meaning, but with biases, and norms that scale."""
    params, _ = programs.params_for_speed(workload)
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(np.float32), params
    )


@pytest.fixture(scope="module")
def params():
    return make_params(WMT)


@pytest.fixture(scope="module")
def source():
    """Two sources, one of them padded: PAD must stay unseen."""
    ids = jax.random.randint(KEY, (2, 12), 3, WMT.model.vocab_size)
    return ids.at[1, 9:].set(0)


def full_logits(workload, params, source, targets):
    """One pass over all targets, as in training."""
    batch = {"inputs": source, "targets": targets}
    return jax.jit(programs.forward_of(workload))(params, {}, batch)


@pytest.mark.parametrize(
    "workload",
    [
        WMT,
        pytest.param(
            registry.find_workload("wmt_post_ln", "mini"), marks=pytest.mark.slow
        ),
    ],
    ids=lambda workload: workload.name,
)
def test_cached_decoding_equals_one_pass(workload, source):
    params = make_params(workload)
    targets = jax.random.randint(KEY, (2, 16), 1, workload.model.vocab_size)
    cached = jax.jit(
        lambda *arguments: encoder_decoder.cached_logits(workload.model, *arguments)
    )(params, source, targets)
    whole = full_logits(workload, params, source, targets)
    assert whole.shape == cached.shape == (2, 16, workload.model.vocab_size)
    scale = float(jnp.abs(whole).max())
    np.testing.assert_allclose(cached / scale, whole / scale, atol=1e-5)


def test_the_loop_gives_the_most_probable_tokens(params, source):
    """Each is what one pass over the tokens before it says; no cache is involved."""
    run = jax.jit(
        lambda output, capacity: encoder_decoder.greedy(
            WMT.model, params, source, output, capacity
        ),
        static_argnums=1,
    )
    tokens = run(10, 16)
    assert tokens.shape == (2, 16)
    assert not tokens[:, 10:].any()
    written = tokens[:, :10]
    assert (written > 0).all()  # one pass would not see padding
    assert len(np.unique(written)) > 1
    logits = full_logits(WMT, params, source, written)
    np.testing.assert_array_equal(logits.argmax(-1), written)
    # Fewer tokens are the same ones.
    np.testing.assert_array_equal(run(4, 16)[:, :4], tokens[:, :4])


def test_requests_are_measured_and_too_long_ones_are_not(params):
    ticks = iter(range(1000))
    measure = encoder_decoder.translation_measure(
        WMT.model, params, clock=lambda: float(next(ticks)), longest=64
    )
    assert measure(4, 2) == 1.0
    for request in ((65, 2), (4, 65)):
        with pytest.raises(UserError, match="takes 64 of each"):
            measure(*request)


def test_who_has_a_decode_path():
    found = {
        workload.base_workload
        for workload in registry.select_workloads(["all"], "mini")
        if encoder_decoder.has_decode_path(workload.model)
    }
    assert found == {"wmt"}


def test_repeats_are_averaged():
    now = 0.0
    calls = 0

    def run_of(one, other):
        def run():
            nonlocal now, calls
            calls += 1
            now += one / 1000 + other / 10_000

        return run

    measure = profiler.repeated(run_of, lambda: now)
    assert measure(2, 5) == pytest.approx(0.0025)
    assert calls == 1 + 1 + 4  # to compile, to see how long it is, 0.01 s
    assert measure(30, 0) == pytest.approx(0.03)
    assert calls == 6 + 3
    measure(2, 5)
    assert calls == 9 + 4
