"""Scores by their formulas, masks of exact sizes, rewinding."""

import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import KEY, PARAMS, WORKLOAD, draw, make_workload
from synthetic import SYNTHETIC, examples

from algoperf import reparam, sharding, spec
from algoperf.cli.tune import SPACE_FILE
from algoperf.errors import UserError
from algoperf.loading import load_submission
from algoperf.reparam import pruning
from algoperf.submission import from_optax
from algoperf.tuning import as_namedtuple, load_search_space
from submissions.pruned import submission as pruned

CHOSEN = reparam.select(WORKLOAD)
N = 24 + 35 + 24


def _quadratic(size=6):
    """Returns H, c and the loss x' H x / 2 + c' x of {'w': (size,)}."""
    generator = np.random.default_rng(0)
    h = generator.normal(size=(size, size)).astype(np.float32)
    h, c = h + h.T, generator.normal(size=size).astype(np.float32)
    return h, c, lambda p: 0.5 * p["w"] @ h @ p["w"] + c @ p["w"]


def test_scores_that_follow_from_a_loss():
    h, c, loss = _quadratic()
    w = np.arange(1.0, 7.0, dtype=np.float32)
    g = h @ w + c
    params, gradient = {"w": jnp.asarray(w)}, jax.grad(loss)
    snip, grasp = pruning.snip(gradient, params), pruning.grasp(gradient, params)
    np.testing.assert_allclose(snip["w"], abs(w * g), rtol=1e-5)
    np.testing.assert_allclose(grasp["w"], w * (h @ g), rtol=1e-3, atol=1e-2)


def test_grasp_estimates_what_removing_does_to_the_gradients_norm():
    """To first order ||g(w - e w_i)||^2 = ||g||^2 - 2 e w_i (H g)_i."""
    h, c, loss = _quadratic()
    w = np.ones(6, np.float32)
    score = pruning.grasp(jax.grad(loss), {"w": jnp.asarray(w)})["w"]
    score = np.asarray(score, np.float64)

    def squared_norm(w):
        return np.sum((h.astype(np.float64) @ w + c) ** 2)

    for i in range(6):
        less = w.astype(np.float64)
        less[i] *= 1 - 1e-6
        slope = (squared_norm(less) - squared_norm(w.astype(np.float64))) / 1e-6
        np.testing.assert_allclose(slope, -2 * score[i], rtol=1e-3, atol=1e-3)


def _two_layers(params):
    hidden = jax.nn.relu(jnp.ones(3) @ params["first"])
    return jnp.sum(hidden @ params["second"])


def _layers():
    generator = np.random.default_rng(1)
    shapes = {"first": (3, 4), "second": (4, 2)}
    return {
        name: jnp.asarray(generator.normal(size=shape), jnp.float32)
        for name, shape in shapes.items()
    }


def test_synflow_is_conserved_and_never_cuts_a_layer():
    """All paths through a layer add up to R (Tanaka et al. 2020, theorem 2)."""
    params = _layers()
    scores = pruning.synflow(_two_layers, params)
    first, second = (np.abs(np.asarray(params[n])) for n in ("first", "second"))
    r = np.ones(3) @ first @ second @ np.ones(2)
    for layer in scores.values():
        np.testing.assert_allclose(layer.sum(), r, rtol=1e-5)
    wanted = first * second.sum(axis=1)
    np.testing.assert_allclose(scores["first"], wanted, rtol=1e-5)
    chosen = {"first": True, "second": True}

    def score(p):
        return pruning.synflow(_two_layers, p)

    masks = pruning.iterated(score, params, chosen, density=0.1, rounds=10)
    kept = {name: int(mask.sum()) for name, mask in masks.items()}
    assert kept == {"first": 1, "second": 1}  # two of 20, and one path
    one = np.argwhere(masks["first"])[0][1]
    assert masks["second"][one].any()


def test_exactly_the_largest_are_kept():
    for density in (1.0, 0.5, 0.1, 1 / N):
        masks = pruning.keep_largest(pruning.magnitude(PARAMS), CHOSEN, density)
        assert masks["embed"]["embedding"] is None
        leaves = jax.tree.leaves(masks)
        assert sum(int(mask.sum()) for mask in leaves) == round(density * N)
        kept, dropped = [], []
        for name in ("hidden", "head"):
            w, mask = np.abs(PARAMS[name]["kernel"]), masks[name]["kernel"]
            kept += list(w[mask])
            dropped += list(w[~mask])
        assert max(dropped, default=0) <= min(kept, default=np.inf)
    tied = jax.tree.map(jnp.ones_like, PARAMS)
    masks = pruning.keep_largest(tied, CHOSEN, 0.5)
    assert sum(int(mask.sum()) for mask in jax.tree.leaves(masks)) == round(0.5 * N)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_overflow_keep_nothing(value):
    scores = jax.tree.map(jnp.ones_like, PARAMS)
    scores["head"]["kernel"] = scores["head"]["kernel"].at[1, 1].set(value)
    masks = pruning.keep_largest(scores, CHOSEN, 0.5)
    assert not any(mask.any() for mask in jax.tree.leaves(masks))
    with pytest.raises(UserError, match="0 or no finite number"):
        pruning.check_masks(masks)


@pytest.mark.parametrize("density", [0.0, 1.1, 0.001])
def test_a_density_that_keeps_nothing(density):
    with pytest.raises(UserError, match=r"give a share in \(0, 1\] that keeps one"):
        pruning.keep_largest(PARAMS, CHOSEN, density)
    for small in (
        pruning.lottery_ticket(CHOSEN, density, 4, 2),
        pruning.masked(CHOSEN, lambda params, objective: None, density),
    ):
        with pytest.raises(UserError, match=r"give a share in \(0, 1\]"):
            small.init(PARAMS, KEY)


def _train(functions, point, steps, params=None):
    """Trains on the synthetic workload; returns its params as they begin and end."""
    workload, first = SYNTHETIC, params
    params, model_state = workload.init_model_fn(KEY)
    params = params if first is None else first
    before = jax.device_get(params)
    state = functions.init_optimizer_state(workload, params, model_state, point, KEY)
    batch = {name: array[:32] for name, array in examples("train").items()}
    for step in range(steps):
        state, params, model_state = functions.update_params(
            workload=workload,
            current_param_container=params,
            current_params_types=None,
            model_state=model_state,
            hyperparameters=point,
            batch=sharding.shard_along_batch_dim(batch),
            loss_type=None,
            optimizer_state=state,
            eval_results=[],
            global_step=step,
            rng=KEY,
        )
    return before, params


def test_snip_trains_through_from_optax():
    """The first batch decides; what is pruned stays at 0."""

    def reparametrise(workload, hyperparameters):
        chosen = reparam.select(workload)

        def masks_from(params, objective):
            scores = pruning.snip(objective.gradient, params)
            return pruning.keep_largest(scores, chosen, 0.25)

        return pruning.masked(chosen, masks_from, 0.25)

    functions = from_optax(lambda w, h: optax.adam(0.1), reparametrise=reparametrise)
    before, params = _train(functions, as_namedtuple({}), 2)
    kernels = [np.asarray(params[n]["kernel"]) for n in ("hidden", "head")]
    assert sum(np.count_nonzero(k) for k in kernels) == round(0.25 * (32 + 24))
    changed = kernels[0] != before["hidden"]["kernel"]
    assert changed.any()
    assert params["hidden"]["bias"].any()  # trained, not pruned


def test_scores_that_tell_nothing_are_refused():
    """Behind a layer of zeros nothing counts, whatever the output layer."""
    (point, *_) = load_search_space(Path(pruned.__file__).parent / SPACE_FILE)
    params, _ = SYNTHETIC.init_model_fn(KEY)
    params["hidden"] = jax.tree.map(jnp.zeros_like, params["hidden"])
    for score in ("snip", "grasp"):
        with pytest.raises(UserError, match="the largest pruning score is 0"):
            _train(pruned, as_namedtuple({**point, "score": score}), 1, params)


@pytest.mark.parametrize(
    ("inputs", "kind"),
    [
        (jnp.zeros((2, 8), jnp.int32), "int32"),
        ((jnp.zeros((2, 8)), jnp.zeros(2)), "tuple"),
        ({"floats": jnp.zeros((2, 8))}, "dict"),
    ],
)
def test_synflow_of_inputs_that_are_no_image_is_refused(inputs, kind):
    objective = types.SimpleNamespace(batch={"inputs": inputs})
    with pytest.raises(UserError, match=f"workload's are {kind}: take another score"):
        pruned.output_for_ones(objective, {})


def test_no_point_of_the_search_space_is_for_some_workloads_alone():
    """One that a workload's inputs refuse would end the study."""
    points = load_search_space(Path(pruned.__file__).parent / SPACE_FILE)
    assert "synflow" not in {point["score"] for point in points}


def test_a_submission_that_looks_at_its_masks_still_takes_microbatches():
    assert load_submission(Path(pruned.__file__)).is_from_optax


def test_a_lottery_ticket_goes_back_to_its_early_weights():
    small = pruning.lottery_ticket(CHOSEN, 0.25, period=3, rounds=2, rewind_step=1)
    rule = optax.adam(optax.constant_schedule(0.1))
    training = reparam.start(small, rule, PARAMS, KEY)
    step = jax.jit(lambda t: reparam.begin_step(small, t, None))
    seen = []
    for number in range(8):
        training = step(training)
        seen.append(training)
        moved = draw(10 + number)  # what an optimizer might have made of it
        adam, rest = training.transformation
        adam = adam._replace(mu=moved, count=jnp.int32(number))
        rest = rest._replace(count=jnp.int32(number))
        training = reparam.Training(
            training.steps + 1, training.small._replace(trainable=moved), (adam, rest)
        )

    def density(training):
        masks, _ = training.small.frozen
        return sum(int(mask.sum()) for mask in jax.tree.leaves(masks)) / N

    wanted = [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]
    np.testing.assert_allclose([density(t) for t in seen], wanted, atol=0.6 / N)
    early = draw(10)  # after one step
    for number in (3, 6):
        jax.tree.map(np.testing.assert_array_equal, seen[number].small.trainable, early)
        assert not seen[number].transformation[0].mu["hidden"]["kernel"].any()
        # Adam corrects the bias of moments that begin anew; the rate goes on.
        adam, schedule = seen[number].transformation
        assert (int(adam.count), int(schedule.count)) == (0, number - 1)
    assert int(seen[4].transformation[0].count) == 3
    # The first mask holds the weights that were largest when they were pruned.
    largest = pruning.keep_largest(pruning.magnitude(draw(12)), CHOSEN, 0.5)
    jax.tree.map(np.testing.assert_array_equal, seen[3].small.frozen[0], largest)
    # Later masks lie within earlier ones, and are applied.
    for late, early_mask in zip(
        *(jax.tree.leaves(seen[n].small.frozen[0]) for n in (6, 3)), strict=True
    ):
        assert not (late & ~early_mask).any()
    full = small.materialise(seen[7].small)
    kernels = [full["attention"]["query"], full["hidden"], full["head"]]
    assert sum(np.count_nonzero(k["kernel"]) for k in kernels) == round(0.25 * N)


def test_the_submission_draws_its_ticket_in_three_eighths_of_the_steps():
    """Of 20 steps a period is 2; the last pruning is at step 6."""
    point = as_namedtuple({"score": "lottery_ticket", "density": 0.25})
    small = pruned.reparametrise(WORKLOAD, point)
    training = reparam.start(small, optax.identity(), PARAMS, KEY)
    step = jax.jit(lambda t: reparam.begin_step(small, t, None))
    kept = []
    for _ in range(8):
        training = step(training)
        masks = jax.tree.leaves(training.small.frozen[0])
        kept.append(sum(int(mask.sum()) for mask in masks))
        training = training._replace(steps=training.steps + 1)
    shares = [1, 1, 0.25 ** (1 / 3), 0.25 ** (1 / 3), 0.25 ** (2 / 3)]
    shares += [0.25 ** (2 / 3), 0.25, 0.25]
    assert kept == [round(share * N) for share in shares]


KINDS = spec.ParameterType
BRANCHED = {
    "stem": {"kernel": (KINDS.WEIGHT, (6, 6))},
    "branch_1": {"kernel": (KINDS.WEIGHT, (6, 6))},
    "branch_2": {"kernel": (KINDS.WEIGHT, (6, 6))},
    "norm": {"scale": (KINDS.BATCH_NORM_SCALE, (6,))},
    "head": {"kernel": (KINDS.WEIGHT, (6, 3))},
}


def _residual_block(params, inputs):
    """Returns the outputs (B, 3) of a branch beside a shortcut, for inputs (B, 6)."""
    x = jax.nn.relu(inputs @ params["stem"]["kernel"])
    y = jax.nn.relu(x @ params["branch_1"]["kernel"])
    y = y @ params["branch_2"]["kernel"] * params["norm"]["scale"]
    return (x + y) @ params["head"]["kernel"]


def _masked_block(score, params):
    """Returns the residual block's state when its first step begins."""
    workload = make_workload(BRANCHED)
    workload.model_fn = lambda params, batch, state, *_, **__: (
        _residual_block(params, batch["inputs"]),
        state,
    )
    inputs = jax.random.normal(KEY, (32, 6))
    targets = jax.random.normal(KEY, (32, 3))
    objective = types.SimpleNamespace(
        workload=workload,
        batch={"inputs": inputs},
        model_state=None,
        rng=KEY,
        gradient=jax.grad(
            lambda p: jnp.mean((_residual_block(p, inputs) - targets) ** 2)
        ),
    )
    point = as_namedtuple({"score": score, "density": 0.25})
    small = pruned.reparametrise(workload, point)
    training = reparam.start(small, optax.identity(), params, KEY)
    return reparam.begin_step(small, training, objective).small


SCORES = ["magnitude", "snip", "grasp", "synflow"]


@pytest.mark.parametrize("zeros", ["norm", "head"])
@pytest.mark.parametrize("score", SCORES)
def test_no_kernel_behind_what_starts_at_zero_is_emptied(score, zeros):
    params = jax.tree.map(lambda x: x / 6**0.5, draw(0, BRANCHED))
    params[zeros] = jax.tree.map(jnp.zeros_like, params[zeros])
    small = _masked_block(score, params)
    for name in ("stem", "branch_1", "branch_2", "head"):
        assert small.frozen[name]["kernel"].any(), name
    # What starts at 0 is trained from 0.
    assert not jax.tree.leaves(small.trainable[zeros])[0].any()


def test_a_drawn_output_layer_is_the_same_in_all_runs_and_a_live_one_stays():
    params = jax.tree.map(lambda x: x / 6**0.5, draw(0, BRANCHED))
    workload = make_workload(BRANCHED)
    alive = pruning.with_drawn_outputs(params, workload)
    jax.tree.map(np.testing.assert_array_equal, alive, params)
    params["head"]["kernel"] = jnp.zeros((600, 30))
    once, again = (pruning.with_drawn_outputs(params, workload) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, once, again)
    np.testing.assert_allclose(once["head"]["kernel"].std(), 600**-0.5, rtol=0.02)


def test_magnitude_keeps_an_output_layer_that_starts_small():
    """By itself it would be the last to stay: each of its weights is smallest."""
    params = jax.tree.map(lambda x: x / 3, draw(0))  # fan-ins of 4, 5 and 8
    params["head"]["kernel"] *= 1e-3
    point = as_namedtuple({"score": "magnitude", "density": 0.25})
    small = pruned.reparametrise(WORKLOAD, point)
    training = reparam.start(small, optax.identity(), params, KEY)
    masks = reparam.begin_step(small, training, None).small.frozen
    assert masks["head"]["kernel"].any()
    # Which of its weights are kept, its scale does not change; nor other layers.
    scaled = pruning.with_unit_outputs(params, WORKLOAD)
    np.testing.assert_allclose(scaled["head"]["kernel"].std(), 8**-0.5, rtol=1e-5)
    np.testing.assert_array_equal(
        jnp.argsort(scaled["head"]["kernel"].ravel()),
        jnp.argsort(params["head"]["kernel"].ravel()),
    )
    assert scaled["hidden"]["kernel"] is params["hidden"]["kernel"]


def test_a_bad_lottery():
    for options in ({"period": 0}, {"rounds": 0}, {"rewind_step": 4}):
        with pytest.raises(UserError, match="give positive numbers, and rewind before"):
            pruning.lottery_ticket(
                CHOSEN, **{"density": 1.0, "period": 4, "rounds": 1} | options
            )


def test_stored_bytes():
    assert pruning.stored_bytes(kept=10, total=100) == 40 + 13
    others = reparam.count(PARAMS) - N
    stored = pruning.stored_bytes(21, N) + 4 * others
    assert pruning.sizes(WORKLOAD, CHOSEN, 0.25) == {
        "trainable_parameters": 21 + others,
        "stored_bytes": stored,
        "compression_ratio": 4 * (N + others) / stored,
    }
