"""Shared memories: loads, bijections, gradients that sum over the uses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import (
    KEY,
    KINDS,
    PARAMS,
    WORKLOAD,
    assert_trees_close,
    draw,
    make_workload,
)

from algoperf import reparam
from algoperf.errors import UserError
from algoperf.reparam import sharing
from algoperf.tuning import as_namedtuple
from submissions.momentum import submission as momentum
from submissions.stable_rps import submission as stable_rps

CHOSEN = reparam.select(WORKLOAD)
N = 24 + 35 + 24  # in three matrices


@settings(max_examples=12)
@given(st.integers(1, N), st.integers(0, 2**32 - 1))
def test_random_fold_is_balanced(slots, seed):
    """floor(n/m) or ceil(n/m) weights in each slot; one each if m = n."""
    plan = sharing.make_plan(WORKLOAD, CHOSEN, slots, seed=seed)
    h = np.asarray(sharing.slot_of_weight(plan))
    loads = np.bincount(h, minlength=slots)
    assert loads.sum() == N
    assert set(loads) <= {N // slots, -(-N // slots)}
    # Each piece of m weights is a rotation of the memory.
    for first in range(0, N, slots):
        piece = h[first : first + slots]
        np.testing.assert_array_equal(np.diff(piece) % slots, 1 % slots)


@pytest.mark.parametrize("layout", sharing.LAYOUTS)
def test_the_submission_takes_any_layout(layout):
    point = as_namedtuple({"share": 0.5, "layout": layout, "init_std": 0.1})
    _, plan = stable_rps.plan_of(WORKLOAD, point)
    assert (plan.layout, plan.slots) == (layout, round(0.5 * N))
    assert plan.init_std == 0.1
    slots = np.asarray(sharing.slot_of_weight(plan))
    assert slots.shape == (N,)
    assert 0 <= slots.min() <= slots.max() < plan.slots


def test_a_memory_of_full_size_is_a_bijection_and_trains_as_the_dense_weights():
    """SGD on M is SGD on w at the rate lambda^2, with one lambda."""
    plan = sharing.make_plan(WORKLOAD, reparam.select(WORKLOAD, path="hidden"), 1.0)
    assert sorted(np.asarray(sharing.slot_of_weight(plan))) == list(range(35))
    small = sharing.shared(WORKLOAD, reparam.select(WORKLOAD, path="hidden"), plan)
    state = small.init(PARAMS, KEY)
    dense = small.materialise(state)["hidden"]["kernel"]
    target = draw(3)["hidden"]["kernel"]
    scale = plan.scales[0]

    @jax.jit
    @jax.grad
    def gradient_of(trainable):
        w = small.materialise(small.with_trainable(state, trainable))
        return 0.5 * jnp.sum(jnp.square(w["hidden"]["kernel"] - target))

    for _ in range(3):
        wanted = dense - 0.1 * (dense - target)
        gradient = gradient_of(state.trainable).memory
        memory = state.trainable.memory - 0.1 / scale**2 * gradient
        state = small.with_trainable(state, state.trainable._replace(memory=memory))
        dense = small.materialise(state)["hidden"]["kernel"]
        np.testing.assert_allclose(dense, wanted, atol=1e-5)


@pytest.mark.parametrize("layout", sharing.LAYOUTS)
def test_weights_and_gradients_are_those_of_the_formula(layout):
    """w_i = lambda g(i) M[h(i)]; dL/dM_j sums lambda g(i) dL/dw_i over h(i) = j."""
    plan = sharing.make_plan(WORKLOAD, CHOSEN, 20, layout=layout, tile=(2, 3))
    small = sharing.shared(WORKLOAD, CHOSEN, plan)
    state = small.init(PARAMS, KEY)
    h, g = (np.asarray(f(plan)) for f in (sharing.slot_of_weight, sharing.signs))
    assert h.shape == g.shape == (N,)
    assert h.min() >= 0
    assert h.max() < 20
    assert set(g) == {-1.0, 1.0}
    factor = g * np.repeat(plan.scales, plan.sizes)
    wanted = factor * np.asarray(state.trainable.memory)[h]
    full = small.materialise(state)
    matrices = [p["kernel"] for p in (full["attention"]["query"], full["head"])]
    matrices.append(full["hidden"]["kernel"])  # the tree's order
    found = np.concatenate([np.ravel(m) for m in matrices])
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    np.testing.assert_array_equal(full["hidden"]["bias"], PARAMS["hidden"]["bias"])
    upstream = draw(5)
    parts = [upstream["attention"]["query"], upstream["head"], upstream["hidden"]]
    flat = np.concatenate([np.ravel(p["kernel"]) for p in parts])
    _, pull = jax.vjp(small.materialise_from(state), state.trainable)
    (gradient,) = pull(upstream)
    sums = np.zeros(20)
    np.add.at(sums, h, factor * flat)
    np.testing.assert_allclose(gradient.memory, sums, rtol=1e-3, atol=1e-3)


def test_tiles_are_runs_of_the_memory():
    plan = sharing.make_plan(
        WORKLOAD,
        reparam.select(WORKLOAD, path="hidden"),
        30,
        layout="tiles",
        tile=(2, 4),
    )
    h = np.asarray(sharing.slot_of_weight(plan)).reshape(5, 7)
    tile = h[2:4, 4:7]
    start = tile[0, 0]
    wanted = (start + np.array([[0, 1, 2], [4, 5, 6]])) % 30
    np.testing.assert_array_equal(tile, wanted)


@pytest.mark.parametrize("layout", sharing.LAYOUTS)
def test_gamma_by_the_formulas(layout):
    plan = sharing.make_plan(WORKLOAD, CHOSEN, 30, layout=layout, tile=(4, 4))
    h = np.asarray(sharing.slot_of_weight(plan))
    scale = np.repeat(plan.scales, plan.sizes)

    def sums(values):
        return np.bincount(h, weights=values, minlength=30)

    total, squares = sums(scale), sums(scale**2)
    uses = np.maximum(np.bincount(h, minlength=30), 1)
    wanted = {
        "v1": total**2 / uses,
        "v2": total,
        "v3": total / uses,
        "v4": np.sqrt(squares),
        "v5": squares,
    }
    found = jax.jit(lambda: {mode: sharing.gamma(plan, mode) for mode in wanted})()
    assert tuple(wanted) == sharing.SCALERS
    for mode in wanted:
        np.testing.assert_allclose(found[mode], wanted[mode], rtol=1e-4)


@pytest.mark.parametrize("mode", ["v1", "v5"])
def test_the_scale_of_the_memory_does_not_matter(mode):
    """Another init_std gives the same function after scaled SGD steps."""

    def trained(init_std):
        plan = sharing.make_plan(WORKLOAD, CHOSEN, 0.25, init_std=init_std)
        small = sharing.shared(WORKLOAD, CHOSEN, plan)
        rule = optax.chain(sharing.scale_memory_gradient(plan, mode), optax.sgd(0.5))
        training = reparam.start(small, rule, PARAMS, KEY)
        target = draw(2)

        @jax.jit
        def step(training):
            full = small.materialise_from(training.small)

            def loss(x):
                return optax.tree.norm(optax.tree.sub(full(x), target), squared=True)

            x = training.small.trainable
            updates, state = rule.update(jax.grad(loss)(x), training.transformation)
            x = optax.apply_updates(x, updates)
            return reparam.finish_step(small, training, x, state)[0]

        for _ in range(3):
            training = step(training)
        return small.materialise(training.small)

    assert_trees_close(trained(0.02), trained(0.05), 1e-3)


def test_by_sgd_a_memory_with_a_slot_for_each_weight_trains_as_no_memory():
    """So the submission and `momentum` are a pair: they differ by sharing alone."""
    point = {"learning_rate": 0.3, "weight_decay": 0.1, "one_minus_beta1": 0.1}
    point |= {"warmup_factor": 0.05, "grad_clip": 1e9, "beta2": 0.99}
    point |= {"share": 1.0, "layout": "fold", "rule": "sgd", "scaler": "v1"}
    point = as_namedtuple(point | {"init_std": 0.1, "nesterov": True})
    small = stable_rps.reparametrise(WORKLOAD, point)
    rule, plain = stable_rps.build(WORKLOAD, point), momentum.build(WORKLOAD, point)
    training = reparam.start(small, rule, PARAMS, KEY)
    params = small.materialise(training.small)
    state = plain.init(params)
    for number in range(4):
        gradient = draw(20 + number)
        full, back = jax.vjp(
            small.materialise_from(training.small), training.small.trainable
        )
        assert_trees_close(full, params, 1e-4)
        (own,) = back(gradient)
        x = training.small.trainable
        updates, own_state = rule.update(own, training.transformation, x)
        x = optax.apply_updates(x, updates)
        training, _ = reparam.finish_step(small, training, x, own_state)
        updates, state = plain.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    assert_trees_close(small.materialise(training.small), params, 1e-4)


def test_weights_have_the_scale_of_their_fan_in():
    parameters = {"w": {"kernel": (KINDS.WEIGHT, (400, 100))}}
    workload = make_workload(parameters)
    chosen = reparam.select(workload)
    plan = sharing.make_plan(workload, chosen, 0.5)
    small = sharing.shared(workload, chosen, plan)
    w = small.materialise(small.init(draw(0, parameters), KEY))["w"]["kernel"]
    np.testing.assert_allclose(np.std(w), 400**-0.5, rtol=0.02)
    assert abs(np.mean(np.asarray(sharing.signs(plan)))) < 4 * 40_000**-0.5


def test_what_is_stored():
    plan = sharing.make_plan(WORKLOAD, CHOSEN, 0.25)
    small = sharing.shared(WORKLOAD, CHOSEN, plan)
    rule = optax.chain(sharing.scale_memory_gradient(plan), optax.sgd(0.1))
    found = reparam.sizes(PARAMS, reparam.start(small, rule, PARAMS, KEY))
    others = 24 + 7
    assert plan.slots == round(N / 4)
    assert found["trainable_parameters"] == plan.slots + others
    assert found["stored_bytes"] == 4 * (plan.slots + others)
    assert found["optimizer_state_bytes"] == 4 * plan.slots + 4  # Gamma, a counter


@pytest.mark.parametrize("slots", [0, 0.0, N + 1, -1, 1.5, 0.001])
def test_a_memory_of_no_slots_or_too_many(slots):
    with pytest.raises(UserError, match=rf"slots for {N} weights: give 1 to {N} slots"):
        sharing.make_plan(WORKLOAD, CHOSEN, slots)


def test_unknown_names():
    with pytest.raises(UserError, match="layout 'fold2' is none of fold, tiles"):
        sharing.make_plan(WORKLOAD, CHOSEN, 4, layout="fold2")
    plan = sharing.make_plan(WORKLOAD, CHOSEN, 4)
    with pytest.raises(UserError, match="gradient scaler 'v6' is none of v1"):
        sharing.gamma(dataclasses.replace(plan, slots=5), "v6")
