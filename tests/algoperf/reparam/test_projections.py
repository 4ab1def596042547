"""GaLore, Fira and APOLLO against NumPy written from the papers, and their laws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from algoperf.errors import UserError
from algoperf.reparam import projections

SHAPES = {"wide": (4, 6), "tall": (7, 5), "square": (5, 5)}
STEPS, RANK, GAP, B1, B2 = 20, 2, 6, 0.9, 0.99
ADAM = optax.scale_by_adam(B1, B2)
PARAMS = {name: jnp.zeros(shape) for name, shape in SHAPES.items()}


@functools.cache
def _gradients():
    generator = np.random.default_rng(0)
    return [
        {name: generator.normal(size=shape) for name, shape in SHAPES.items()}
        for _ in range(STEPS)
    ]


def _updates(transformation, gradients=None):
    """Returns the updates of each step, float64."""
    update = jax.jit(transformation.update)
    state, found = transformation.init(PARAMS), []
    for gradient in gradients or _gradients():
        as_float32 = {k: jnp.asarray(g, jnp.float32) for k, g in gradient.items()}
        updates, state = update(as_float32, state)
        found.append({k: np.asarray(u, np.float64) for k, u in updates.items()})
    return found


class Adam:
    """Kingma and Ba 2015, algorithm 1, of one array in NumPy."""

    def __init__(self):
        self.t, self.m, self.v = 0, 0.0, 0.0

    def __call__(self, g):
        self.t += 1
        self.m = B1 * self.m + (1 - B1) * g
        self.v = B2 * self.v + (1 - B2) * g**2
        m, v = self.m / (1 - B1**self.t), self.v / (1 - B2**self.t)
        return m / (np.sqrt(v) + 1e-8)


def _basis(g, rank):
    """Top left singular vectors, their largest entries positive."""
    u = np.linalg.svd(g)[0][:, :rank]
    return u * np.sign(u[np.abs(u).argmax(axis=0), range(rank)])


def _limited(x, last):
    """Returns x with its norm at most 1.01 times the last one, and its norm."""
    norm = np.linalg.norm(x)
    if last is not None and norm > 1.01 * last:
        x, norm = x * (1.01 * last / norm), 1.01 * last
    return x, norm


def _oracle(method, rank=RANK, gap=GAP, draw=None):
    """Returns the updates of each step from the papers' algorithms."""
    found = [{} for _ in range(STEPS)]
    for name, (m, n) in SHAPES.items():
        adam, last, projector = Adam(), None, None
        for t in range(STEPS):
            g = _gradients()[t][name]
            g = g if m <= n else g.T  # (short, long)
            if t % gap == 0:
                projector = draw(name, t // gap) if draw else _basis(g, rank)
            r = projector.T @ g
            direction = adam(r)
            columns = np.linalg.norm(direction, axis=0) / np.linalg.norm(r, axis=0)
            tensor = np.linalg.norm(direction) / np.linalg.norm(r)
            if method == "galore":
                update = 0.25 * projector @ direction
            elif method == "fira":
                rest, last = _limited((g - projector @ r) * columns, last)
                update = 0.25 * (projector @ direction + rest)
            else:
                factor, scale = (columns, 1) if method == "apollo" else (tensor, 128)
                update, last = _limited(g * factor, last)
                update = np.sqrt(scale) * update
            found[t][name] = update if m <= n else update.T
    return found


def _assert_equal(found, wanted, tolerance=1e-4):
    for step, (one, other) in enumerate(zip(found, wanted, strict=True)):
        for name in SHAPES:
            np.testing.assert_allclose(
                one[name], other[name], rtol=0, atol=tolerance, err_msg=f"{name} {step}"
            )


def _gaussian(rank):
    """The projections that APOLLO draws from seed 0, by name and refresh."""

    def draw(name, refresh):
        key = jax.random.fold_in(jax.random.PRNGKey(0), refresh)
        number = sorted(SHAPES).index(name)  # dicts are flattened in this order
        s = min(SHAPES[name])
        return np.asarray(
            projections.gaussian(jax.random.fold_in(key, number), s, rank), np.float64
        )

    return draw


def test_galore_is_the_papers():
    found = _updates(projections.scale_by_galore(RANK, GAP, base=ADAM))
    _assert_equal(found, _oracle("galore"))


def test_fira_is_the_papers():
    found = _updates(projections.scale_by_fira(RANK, GAP, base=ADAM))
    _assert_equal(found, _oracle("fira"))


def test_apollo_is_the_papers():
    found = _updates(projections.scale_by_apollo(RANK, GAP, base=ADAM))
    _assert_equal(found, _oracle("apollo", draw=_gaussian(RANK)))


def test_apollo_mini_is_the_papers():
    mini = projections.scale_by_apollo(1, GAP, 128.0, ADAM, per_tensor=True)
    _assert_equal(_updates(mini), _oracle("mini", draw=_gaussian(1)))


def test_galore_at_full_rank_is_its_base_in_the_rotated_basis():
    """Refreshed at each step: U_t adam(U_t^T G_t), with U_t of NumPy."""
    found = _updates(projections.scale_by_galore(1.0, 1, 1.0, ADAM), _gradients()[:5])
    for name, (m, n) in SHAPES.items():
        adam = Adam()
        for t in range(5):
            g = _gradients()[t][name]
            g = g if m <= n else g.T
            u = _basis(g, min(m, n))
            wanted = u @ adam(u.T @ g)
            wanted = wanted if m <= n else wanted.T
            np.testing.assert_allclose(found[t][name], wanted, atol=1e-4)


@pytest.mark.parametrize(
    "rule", [projections.scale_by_galore, projections.scale_by_fira]
)
def test_at_full_rank_sgd_stays_sgd(rule):
    """Also between refreshes, for the short side is projected."""
    found = _updates(rule(1.0, 3, 1.0, optax.identity()), _gradients()[:5])
    _assert_equal(found, _gradients()[:5], 1e-5)


def test_galore_takes_no_directions_from_a_gradient_of_zero():
    """A matrix is due again after a zero at first, and stays after a later one."""
    gradients = [dict(g) for g in _gradients()[: GAP + 2]]
    for t in (0, 1, GAP):
        gradients[t]["tall"] = np.zeros(SHAPES["tall"])
    rule = projections.scale_by_galore(RANK, GAP, 1.0, optax.identity())
    for t, updates in enumerate(_updates(rule, gradients)):
        for name, update in updates.items():
            refresh = 2 if name == "tall" else t // GAP * GAP
            wanted = _projected(gradients[t][name], gradients[refresh][name])
            np.testing.assert_allclose(update, wanted, atol=1e-5)


def _projected(x, g):
    """Returns the part of x in the top directions of g."""
    turn = x.shape[0] > x.shape[1]
    p = _basis(g.T if turn else g, RANK)
    return (p @ p.T @ (x.T if turn else x)).T if turn else p @ p.T @ x


def test_optax_projects_the_long_side():
    """Why GaLore here is our own: theirs is no SGD between refreshes at full rank."""
    theirs = optax.contrib.scale_by_galore(
        rank=9, update_proj_gap=3, base_optimizer=optax.identity()
    )
    found = _updates(theirs, _gradients()[:2])
    wanted = _gradients()[:2]
    np.testing.assert_allclose(found[0]["tall"], wanted[0]["tall"], atol=1e-5)
    assert np.abs(found[1]["tall"] - wanted[1]["tall"]).max() > 0.1


def test_fira_at_full_rank_is_galore():
    one, other = (
        _updates(rule(1.0, GAP, base=ADAM), _gradients()[:8])
        for rule in (projections.scale_by_fira, projections.scale_by_galore)
    )
    _assert_equal(one, other, 1e-5)


def test_apollo_with_the_identity_scales_columns_by_adams():
    whole = projections.scale_by_apollo(
        1.0, base=ADAM, growth=1e9, projector=lambda key, s, r: jnp.eye(s, r)
    )
    found = _updates(whole, _gradients()[:6])
    for name, (m, n) in SHAPES.items():
        adam = Adam()
        for t in range(6):
            g = _gradients()[t][name]
            direction = adam(g)
            axis = 0 if m <= n else 1
            factor = np.linalg.norm(direction, axis=axis, keepdims=True)
            factor = factor / np.linalg.norm(g, axis=axis, keepdims=True)
            np.testing.assert_allclose(found[t][name], g * factor, atol=1e-5)


def test_the_limiter_caps_growth():
    """A gradient that grows tenfold gives an update that grows by 1 %."""
    rule = projections.scale_by_apollo(1.0, base=optax.identity())
    g = {"w": jnp.ones((2, 3))}
    state = rule.init(g)
    first, state = rule.update(g, state)
    second, _ = rule.update({"w": 10 * g["w"]}, state)
    np.testing.assert_allclose(second["w"], 1.01 * first["w"], rtol=1e-5)


@pytest.mark.parametrize(
    "rule", [projections.scale_by_fira, projections.scale_by_apollo]
)
def test_the_limiter_lets_an_update_start_after_zero_gradients(rule):
    """As behind a head that starts at 0, while the rate warms up from 0.

    With no moments both rules give the gradient back, as far as it is not limited.
    """
    g = _gradients()[0]
    found = _updates(rule(RANK, GAP, 1.0, optax.identity()), [PARAMS, PARAMS, g])
    _assert_equal(found, [PARAMS, PARAMS, g], 1e-5)


@pytest.mark.parametrize(
    ("rule", "numbers"),
    [
        (projections.scale_by_galore, lambda s, n, r: s * r + 2 * r * n),
        (projections.scale_by_fira, lambda s, n, r: s * r + 2 * r * n + 1),
        (projections.scale_by_apollo, lambda s, n, r: 2 * r * n + 1),
    ],
)
def test_the_size_of_the_state(rule, numbers):
    state = jax.eval_shape(rule(RANK).init, PARAMS)
    found = sum(leaf.size for leaf in jax.tree.leaves(state))
    sides = [(min(shape), max(shape)) for shape in SHAPES.values()]
    counters = 2  # ours and Adam's
    assert found == counters + sum(numbers(s, n, RANK) for s, n in sides)


def test_errors():
    with pytest.raises(UserError, match=r"rank 5 for a matrix of shape 4 x 6: give 1 "):
        projections.scale_by_galore(5).init(PARAMS)
    with pytest.raises(UserError, match="share must be above 0 and at most 1"):
        projections.scale_by_apollo(1.5).init(PARAMS)
    with pytest.raises(UserError, match="gap 0 between projections"):
        projections.scale_by_fira(1, gap=0)
    with pytest.raises(UserError, match="needs matrices, got shape"):
        projections.scale_by_fira(1).init({"bias": jnp.zeros(3)})
