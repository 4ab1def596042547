"""Rules that look at the loss again, averages, local training; special cases."""

import contextlib
import dataclasses
import functools
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree
from tensors import (
    GRADIENTS,
    IS_DECAYED,
    PARAMS,
    STEPS,
    assert_close,
    build,
    cosine,
    draw,
    make_workload,
    module_of,
    named,
    quadratic_of,
    trained,
)

from algoperf import registry, spec, tuning
from algoperf.errors import UserError
from algoperf.losses import softmax_cross_entropy
from algoperf.schedules import warmup_cosine

SIZE = ravel_pytree(PARAMS)[0].size
HESSIAN = quadratic_of(SIZE)
FLAT, UNRAVEL = ravel_pytree(PARAMS)
FLAT = np.asarray(FLAT, np.float64)
SLOPES = [np.asarray(ravel_pytree(g)[0], np.float64) for g in GRADIENTS]
DECAYED = np.asarray(
    ravel_pytree(
        jax.tree.unflatten(
            jax.tree.structure(PARAMS),
            [
                np.full(x.shape, float(IS_DECAYED[name]))
                for name, x in named(PARAMS).items()
            ],
        )
    )[0]
)
ADAM = {
    "learning_rate": 0.01,
    "one_minus_beta1": 0.1,
    "beta2": 0.99,
    "weight_decay": 0.1,
    "warmup_factor": 0.05,
    "grad_clip": 1e9,
}


def flat(params_by_name):
    """Lays params end to end, as JAX does."""
    return np.concatenate([x.ravel() for x in params_by_name.values()])


def adamw(gradient, params=FLAT):
    """Trains laid-out params in NumPy: gradient(t, x), t from 0."""
    x, m, v = params, 0.0, 0.0
    for t in range(STEPS):
        g = gradient(t, x)
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
        step = m / (1 - 0.9 ** (t + 1)) / (np.sqrt(v / (1 - 0.99 ** (t + 1))) + 1e-8)
        x = x - cosine(t, 0.01) * (step + 0.1 * DECAYED * x)
    return x


def test_sam():
    def gradient(t, x):
        g = HESSIAN @ x + SLOPES[t]
        return HESSIAN @ (x + 0.05 * g / np.linalg.norm(g)) + SLOPES[t]

    path, _ = trained(build("sam", **ADAM, rho=0.05), hessian=HESSIAN)
    np.testing.assert_allclose(flat(path[-1]), adamw(gradient), atol=1e-5)


def test_sam_of_radius_0_is_its_base():
    path, _ = trained(build("sam", **ADAM, rho=0.0), hessian=HESSIAN)
    base, _ = trained(build("adamw", **ADAM), hessian=HESSIAN)
    assert_close(path[-1], base[-1], 0.0)


def _normal(key, shapes):
    """Draws as the submissions do: one key for each leaf."""
    return jax.device_get(_draws(key, tuple(shapes)))


@functools.partial(jax.jit, static_argnums=1)
def _draws(key, shapes):
    keys = jax.random.split(key, len(shapes))
    return [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]


def _key(step):
    return jax.random.fold_in(jax.random.fold_in(jax.random.PRNGKey(0), step), 1)


def test_sophia():
    m, h, x = 0.0, 0.0, FLAT
    shapes = [leaf.shape for leaf in jax.tree.leaves(PARAMS)]
    for t in range(STEPS):
        m = 0.96 * m + 0.04 * (HESSIAN @ x + SLOPES[t])
        if t % 10 == 0:
            u = np.concatenate([n.ravel() for n in _normal(_key(t), shapes)])
            h = 0.99 * h + 0.01 * u * (HESSIAN @ u)
        step = np.clip(m / np.maximum(0.05 * h, 1e-12), -1, 1)
        x = x - cosine(t, 0.01) * (step + 0.1 * DECAYED * x)
    point = {**ADAM, "one_minus_beta1": 0.04, "gamma": 0.05}
    path, _ = trained(build("sophia", **point), hessian=HESSIAN)
    np.testing.assert_allclose(flat(path[-1]), x, atol=1e-5)


def test_the_hessian_estimate_is_unbiased():
    module = module_of("sophia")
    hessian = quadratic_of(6)

    class Objective:
        def gradient(self, x):
            return jnp.asarray(hessian) @ x

    keys = jax.random.split(jax.random.PRNGKey(0), 20_000)
    draws = jax.vmap(lambda key: module.hutchinson(Objective(), jnp.zeros(6), key))(
        keys
    )
    error = np.asarray(draws.std(axis=0)) / np.sqrt(len(keys))
    assert (np.abs(draws.mean(axis=0) - np.diag(hessian)) < 4 * error).all()


def test_ignite():
    """For a quadratic output, the penalty is lambda rho H grad h / ||grad h||."""
    multiplier = [0.5]

    def gradient(t, x):
        g = HESSIAN @ x + SLOPES[t]
        # The output of the test's objective is its loss.
        norm = np.linalg.norm(g)
        new = g + multiplier[0] * 0.05 * HESSIAN @ g / norm
        multiplier[0] = max(0.0, multiplier[0] + 0.1 * (0.05 * norm - 0.5))
        return new

    point = {"rho": 0.05, "bound": 0.5, "multiplier_rate": 0.1, "multiplier_start": 0.5}
    path, state = trained(build("ignite", **ADAM, **point), hessian=HESSIAN)
    wanted = adamw(gradient)
    assert multiplier[0] > 0.5
    np.testing.assert_allclose(state[0].multiplier, multiplier[0], rtol=1e-4)
    np.testing.assert_allclose(flat(path[-1]), wanted, atol=2e-5)


# Kron.


def _fitted(left, right, g, noise, rate):
    a = left @ g @ right.T
    b = np.linalg.inv(left).T @ noise @ np.linalg.inv(right)

    def norm(x):
        column = x[:, np.argmax((x**2).sum(axis=0))]
        return np.linalg.norm(x @ column) / np.linalg.norm(column)

    def moved(q, plus, minus):
        return q - rate * np.triu(plus - minus) @ q / norm(plus + minus)

    left, right = moved(left, a @ a.T, b @ b.T), moved(right, a.T @ a, b.T @ b)
    ratio = np.sqrt(np.abs(right).max() / np.abs(left).max())
    return left * ratio, right / ratio


def test_kron():
    module = module_of("kron")
    transformation = module.scale_by_kron(0.9, 0.2, flat_steps=5, every=3)
    params = {"a": np.zeros((4, 3), np.float32), "b": np.zeros((2, 5), np.float32)}
    generator = np.random.default_rng(0)
    gradients = [
        {
            n: generator.normal(size=x.shape).astype(np.float32)
            for n, x in params.items()
        }
        for _ in range(STEPS)
    ]
    path, _ = trained(transformation, params, gradients)
    x = named(params)
    m = dict.fromkeys(x, 0.0)
    factors = {n: [np.eye(side) for side in x[n].shape] for n in x}
    for t in range(1, STEPS + 1):
        noise = _normal(_key(t - 1), [(1, *x[n].shape) for n in x])
        for n, v in zip(x, noise, strict=True):
            m[n] = 0.9 * m[n] + 0.1 * gradients[t - 1][n]
            mean = m[n] / (1 - 0.9**t)
            if t <= 5 or t % 3 == 0:
                factors[n] = _fitted(*factors[n], mean + 1e-9 * v[0], v[0], 0.2)
            left, right = factors[n]
            step = left.T @ left @ mean @ right.T @ right
            step *= min(1.0, 1.1 / np.sqrt((step**2).mean()))
            x[n] = x[n] + step
    assert_close(path[-1], x, tolerance=1e-4)
    assert max(np.abs(x[n]).max() for n in x) > 5  # so that is 2e-5 of the way


def test_kron_whitens():
    """After the fit, directions P g have about the covariance 1."""
    module = module_of("kron")
    generator = np.random.default_rng(0)
    a, b = (generator.normal(size=(n, n)) / np.sqrt(n) for n in (4, 3))

    def gradients(key, shape):
        return a @ jax.random.normal(key, shape) @ b

    def fit(factors, number):
        key, other = jax.random.split(jax.random.fold_in(jax.random.PRNGKey(1), number))
        rate = 0.2 * jnp.exp(-number / 400)
        noise = jax.random.normal(other, (4, 3))
        return module.fitted(*factors, gradients(key, (4, 3)), noise, rate), None

    eyes = jnp.eye(4), jnp.eye(3)
    (left, right), _ = jax.jit(lambda f: jax.lax.scan(fit, f, jnp.arange(2500)))(eyes)
    assert (np.tril(left, -1) == 0).all()
    precondition = np.kron(left.T @ left, (right.T @ right).T)
    covariance = np.kron(a @ a.T, b.T @ b)
    whitened = precondition @ covariance @ precondition.T
    eigenvalues = np.linalg.eigvalsh(whitened)
    before = np.linalg.eigvalsh(covariance)
    assert before.max() / before.min() > 100
    assert eigenvalues.max() / eigenvalues.min() < 3
    assert 0.5 < eigenvalues.mean() < 2


# Averages.


def test_ema():
    module = module_of("ema")
    path, state = trained(build("ema", **ADAM, ema_decay=0.8))
    weights = 0.8 ** np.arange(STEPS)[::-1]
    wanted = sum(w * flat(x) for w, x in zip(weights, path[1:], strict=True))
    wanted /= weights.sum()
    found = named(module.average_of(state, None))
    np.testing.assert_allclose(flat(found), wanted, atol=1e-5)


def test_lawa():
    average = jax.jit(module_of("lawa").average_of)
    transformation = build("lawa", **ADAM, checkpoints=3, period_factor=0.2)
    path, state = trained(transformation)
    wanted = np.mean([flat(path[step]) for step in (12, 16, 20)], axis=0)
    found = named(average(state, PARAMS))
    np.testing.assert_allclose(flat(found), wanted, atol=1e-6)
    path, state = trained(transformation, gradients=GRADIENTS[:5])
    assert_close(named(average(state, PARAMS)), path[4], 1e-7)
    _, state = trained(transformation, gradients=GRADIENTS[:3])
    assert_close(named(average(state, PARAMS)), named(PARAMS), 0.0)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_lawa_of_equal_params_is_the_identity(steps):
    module = module_of("lawa")
    average = jax.jit(module.average_of)
    transformation = module.with_lawa(optax.set_to_zero(), size=5, period=1)
    _, state = trained(transformation, gradients=GRADIENTS[:steps])
    assert_close(named(average(state, draw(99))), named(PARAMS), 0.0)


def test_schedule_free_with_beta_1_is_primal_averaging():
    """Nesterov and Shikhovskiy 2015: the gradient is taken at the average itself."""
    rate, x, z = 0.1, FLAT, FLAT
    transformation = optax.contrib.schedule_free(optax.sgd(rate), rate, b1=1.0)
    path, state = trained(transformation, hessian=HESSIAN)
    for t in range(STEPS):
        z = z - rate * (HESSIAN @ x + SLOPES[t])
        x = x + (z - x) / (t + 1)
    np.testing.assert_allclose(flat(path[-1]), x, atol=1e-5)
    params = UNRAVEL(jnp.asarray(flat(path[-1]), jnp.float32))
    evaluated = optax.contrib.schedule_free_eval_params(state, params)
    assert_close(named(evaluated), path[-1], 0.0)


# FedSpeed.


@dataclasses.dataclass(frozen=True)
class Clients:
    """The mean over a batch's rows c, H of (x - c)' H (x - c) / 2."""

    batch: Any  # 'targets': (rows, n); 'hessians': (rows, n, n)
    microbatches: int = 1

    def on(self, batch):
        return Clients(batch)

    def reseeded(self, number):
        return self

    def gradient(self, x):
        distance = x - self.batch["targets"]
        return jnp.einsum("rij,rj->i", self.batch["hessians"], distance) / len(distance)


class LeafOfClients(Clients):
    """The same with its params in a tree of one leaf."""

    def on(self, batch):
        return LeafOfClients(batch)

    def gradient(self, x):
        return {"x": super().gradient(x["x"])}


def _rounds(count, batch, schedule=lambda _: 1.0, **facts):
    """Returns the params after so many rounds, and the last state."""
    module = module_of("fedspeed")
    usual = {
        "clients": 2,
        "local_steps": 3,
        "prox": 0.0,
        "rho": 0.1,
        "alpha": 0.0,
        "weight_decay": 0.0,
        "grad_clip": 1e9,
    }
    transformation = module.fedspeed(0.1, schedule, **{**usual, **facts})
    x = jnp.zeros(batch["targets"].shape[1])

    @jax.jit
    def one(x, state):
        updates, state = transformation.update(x, state, x, objective=Clients(batch))
        return x + updates, state

    state = transformation.init(x)
    for _ in range(count):
        x, state = one(x, state)
    return np.asarray(x), state


CENTERS = np.array([[1.0, 0.0], [3.0, 2.0], [-2.0, 4.0], [0.0, 1.0]], np.float32)
CURVED = {
    "targets": CENTERS,
    "hessians": np.stack([np.diag(d) for d in ([4, 1], [4, 1], [1, 2], [1, 2])]).astype(
        np.float32
    ),
}


def _gradient(x, rows):
    h, c = CURVED["hessians"][rows], CURVED["targets"][rows]
    return np.einsum("rij,rj->i", h, x - c) / len(c)


def test_fedspeed():
    shards, prox, x = [[0, 1], [2, 3]], 0.5, np.zeros(2)
    corrections = [np.zeros(2)] * 2  # the paper's g-hat
    for _ in range(STEPS):
        sent = []
        for client, rows in enumerate(shards):
            local = x
            for _ in range(3):
                g = _gradient(local, rows)
                worst = local + 0.1 * g / np.linalg.norm(g)
                g = 0.2 * g + 0.8 * _gradient(worst, rows)
                step = g - corrections[client] + prox * (local - x)
                local = local - 0.1 * step
            corrections[client] = corrections[client] - prox * (local - x)
            sent.append(local - corrections[client] / prox)
        x = np.mean(sent, axis=0)
    found, _ = _rounds(STEPS, CURVED, prox=prox, alpha=0.8)
    np.testing.assert_allclose(found, x, atol=1e-5)


def test_fedspeed_finds_the_optimum_that_fedavg_misses():
    hessians, centers = CURVED["hessians"], CURVED["targets"]
    optimum = np.linalg.solve(
        hessians.sum(axis=0), np.einsum("rij,rj->i", hessians, centers)
    )
    averaged, _ = _rounds(400, CURVED)
    corrected, _ = _rounds(400, CURVED, prox=0.5)
    assert np.abs(averaged - optimum).max() > 0.05
    np.testing.assert_allclose(corrected, optimum, atol=1e-3)


def test_fedspeed_without_prox_and_perturbation_is_fedavg():
    x = np.zeros(2)
    for _ in range(STEPS):
        ends = []
        for rows in ([0, 1], [2, 3]):
            local = x
            for _ in range(3):
                local = local - 0.1 * _gradient(local, rows)
            ends.append(local)
        x = np.mean(ends, axis=0)
    found, _ = _rounds(STEPS, CURVED)
    np.testing.assert_allclose(found, x, atol=1e-5)


def test_fedspeed_with_one_client_and_one_step_is_sgd():
    x = np.zeros(2)
    for step in range(STEPS):
        x = x - cosine(step, 0.1) * _gradient(x, [0, 1, 2, 3])
    schedule = warmup_cosine(STEPS, 1.0)
    found, _ = _rounds(STEPS, CURVED, schedule, clients=1, local_steps=1)
    np.testing.assert_allclose(found, x, atol=1e-6)


def test_fedspeed_stands_still_once_its_schedule_has_ended():
    """Though the clients' corrections are not 0."""
    point = {
        "learning_rate": 0.1,
        "warmup_factor": 0.0,
        "clients": 2,
        "local_steps": 3,
        "prox": 0.5,
        "rho": 0.1,
        "alpha": 0.8,
        "weight_decay": 0.0,
        "grad_clip": 1e9,
    }
    workload = make_workload({"x": (spec.ParameterType.BIAS, (2,))}, step_hint=5)
    transformation = build("fedspeed", workload, **point)
    x = {"x": jnp.ones(2)}
    state = transformation.init(x)

    def update(state):
        return transformation.update(x, state, x, objective=LeafOfClients(CURVED))

    for step in range(8):
        updates, state = jax.jit(update)(state)
        assert (np.abs(updates["x"]) > 0).any() == (step < 5)
    assert np.abs(np.mean(state.correction["x"], axis=0)).max() > 0.1


SPEEDS = tuning.load_search_space(
    registry.find_submission("fedspeed").with_name("tuning_search_space.json")
)


@pytest.mark.parametrize("point", SPEEDS)
def test_fedspeed_plans_as_many_rounds_as_the_plain_steps_have_gradients(point):
    taken = []

    class Counted(LeafOfClients):
        def on(self, batch):
            return Counted(batch)

        def gradient(self, x):
            taken.append(x)
            return super().gradient(x)

    workload = make_workload({"x": (spec.ParameterType.BIAS, (2,))})
    transformation, x = build("fedspeed", workload, **point), {"x": jnp.ones(2)}
    transformation.update(x, transformation.init(x), x, objective=Counted(CURVED))
    # And that of the whole batch, which the step takes before the update.
    wanted = 1 / (len(taken) + 1)
    assert point["step_hint_factor"] == pytest.approx(wanted, rel=1e-4)


@dataclasses.dataclass(frozen=True)
class Seeded(Clients):
    """Clients whose gradients are 10 to the number that they were seeded with."""

    number: Any = None

    def on(self, batch):
        return Seeded(batch)

    def reseeded(self, number):
        return dataclasses.replace(self, number=number)

    def gradient(self, x):
        return jnp.full(x.shape, 10.0**self.number)


def test_fedspeed_seeds_each_step_of_each_client():
    transformation = module_of("fedspeed").fedspeed(
        1.0, lambda _: 1.0, 2, 2, 0.0, 0.0, 0.0, 0.0, 1e9
    )
    x = jnp.zeros(2)
    updates, _ = transformation.update(
        x, transformation.init(x), x, objective=Seeded(CURVED)
    )
    np.testing.assert_allclose(updates, -1111 / 2)


def test_a_batch_that_cannot_be_split_is_refused():
    split = module_of("fedspeed").split_batch
    with pytest.raises(UserError, match="a batch of 4 cannot be split over 3 clients;"):
        split(CURVED, 3)
    says = "over 2 clients in 4 microbatches each; choose .* that divides 1"
    with pytest.raises(UserError, match=says):
        split(CURVED, 2, 4)


# Which data.


def test_selection_without_power_draws_alike():
    choose = jax.jit(module_of("data_selection").choose, static_argnums=1)
    losses = jnp.arange(6.0)
    draws = np.stack(
        [choose(losses, 3, 0.0, jax.random.PRNGKey(k)) for k in range(600)]
    )
    assert all(len(set(row)) == 3 for row in draws.tolist())
    counts = np.bincount(draws.ravel(), minlength=6)
    # 300 each; standard deviation sqrt(600 / 4) = 12.
    assert (np.abs(counts - 300) < 5 * 12.3).all()


def test_selection_with_power_prefers_high_losses():
    choose = jax.jit(module_of("data_selection").choose, static_argnums=1)
    losses = jnp.array([5.0, 1.0, 3.0, 2.0])
    firsts = [
        int(choose(losses, 1, 2.0, jax.random.PRNGKey(k))[0]) for k in range(1000)
    ]
    # Weights (rank / 4)^2 = 16, 1, 9, 4 of 30.
    found = np.bincount(firsts, minlength=4) / 1000
    np.testing.assert_allclose(found, np.array([16, 1, 9, 4]) / 30, atol=0.06)
    greedy = choose(losses, 2, 1e6, jax.random.PRNGKey(0))
    assert set(np.asarray(greedy).tolist()) == {0, 2}


def test_selection_ranks_means_so_that_long_sequences_have_no_advantage():
    """A long easy row and a short hard one, whose sum is smaller; one of padding."""
    module = module_of("data_selection")
    pool = [
        {"targets": jnp.zeros((1, 10), jnp.int32), "weights": jnp.arange(10)[None] < n}
        for n in (10, 1, 0)
    ]
    chances = jnp.array([0.8, 0.2, 0.1])  # of the right token, by row
    logits = jnp.log(jnp.stack([chances, 1 - chances], axis=1))

    class Tokens:
        loss_fn = staticmethod(
            functools.partial(softmax_cross_entropy, label_smoothing=0.0)
        )

        def model_fn(self, *unused):
            return jnp.broadcast_to(logits[:, None], (3, 10, 2)), None

    joined = jax.tree.map(lambda *parts: jnp.concatenate(parts), *pool)
    losses = module.losses_of_rows(Tokens(), Tokens().model_fn()[0], joined, 3)
    np.testing.assert_allclose(losses, -np.log([0.8, 0.2, 1.0]), rtol=1e-5, atol=1e-7)
    args = (None, None, pool, 1e6, jax.random.PRNGKey(0))
    chosen = module.batch_from(Tokens(), *args)
    assert chosen["weights"].sum() == 1


def test_rows_of_several_entries_stay_together():
    take = module_of("data_selection").take
    batch = {"inputs": jnp.arange(4.0), "targets": jnp.arange(8.0).reshape(8, 1)}
    found = take(batch, jnp.array([3, 1]), 4)
    np.testing.assert_array_equal(found["inputs"], [3, 1])
    np.testing.assert_array_equal(found["targets"], [[6], [7], [2], [3]])
    split = module_of("fedspeed").split_batch(batch, 2)
    np.testing.assert_array_equal(split["inputs"], [[0, 1], [2, 3]])
    np.testing.assert_array_equal(split["targets"][1], [[4], [5], [6], [7]])


def test_the_teacher_averages_logits():
    teacher = module_of("infinite_compute").teacher_probabilities
    logits = np.random.default_rng(0).normal(size=(3, 2, 4))
    geometric = np.exp(logits).prod(axis=0) ** (1 / 3)
    geometric /= geometric.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(teacher(jnp.asarray(logits)), geometric, rtol=1e-5)


def test_each_member_has_a_batch_of_its_own():
    """One row of each in turn: devices, which have rows in order, have some of all."""
    module = module_of("infinite_compute")
    shares = {"ensemble_share": 1.0, "distillation_share": 0.5}
    point = types.SimpleNamespace(**shares, members=4)
    workload = types.SimpleNamespace(step_hint=100)
    queue = ({"inputs": np.full((6, 2), i)} for i in range(4))
    facts = (workload, queue, *[None] * 3, point, 0, None)
    inputs = module.data_selection(*facts)["inputs"]
    assert inputs[:, 0].tolist() == [0, 1, 2, 3] * 6
    assert inputs.shape == (24, 2)

    class Known(module.Objective):
        def loss_and_state(self, params):
            return params * jnp.mean(self.batch["inputs"]), None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "Objective", Known)
        patch.setattr(module, "build", lambda *_: (optax.sgd(1.0), optax.sgd(1.0)))
        train_members, _ = module.make_steps(workload, point)
        members = module.Learner(jnp.zeros(4), None, optax.sgd(1.0).init(0.0))
        members, *_ = train_members(members, {"inputs": inputs}, jax.random.PRNGKey(0))
    assert members.params.tolist() == [0.0, -1.0, -2.0, -3.0]


POINTS = tuning.load_search_space(
    registry.find_submission("infinite_compute").with_name("tuning_search_space.json")
)


@pytest.mark.parametrize("point", POINTS)
def test_the_budget_of_the_plain_steps_is_enough_for_the_student(point):
    """By the costs that the module names; a benchmark measures those."""
    module, hint = module_of("infinite_compute"), 1000
    workload = types.SimpleNamespace(step_hint=hint, metrics_logger=None)
    point = tuning.as_namedtuple(point)
    of_teachers = module.FORWARD * point.members
    costs = {"member": module.MEMBER * point.members, "student": 1 + of_teachers}
    taken = []

    def step_of(name):
        def step(*unused):
            taken.append(name)
            return None, name, None, 0.0  # the model, its params and state, the loss

        return step

    state, shown = ((None, None), step_of("member"), step_of("student")), None
    with contextlib.suppress(spec.TrainingCompleteError):
        for step in range(hint):
            facts = (workload, *[None] * 3, point, None, None, state, [], step)
            state, shown, _ = module.update_params(*facts, None)
    assert shown == "student"
    # Its schedule has just ended: a step more would change nothing.
    assert taken.count("student") == module.student_steps(workload, point)
    spent = sum(costs[name] for name in taken)
    assert abs(spent - hint) <= max(costs.values())
    of_members = costs["member"] * taken.count("member") / hint
    assert of_members == pytest.approx(point.ensemble_share, abs=0.01)
