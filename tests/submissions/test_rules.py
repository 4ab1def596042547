"""Update rules against NumPy written from the papers, 20 steps, within 1e-5."""

import collections
import functools

import jax
import numpy as np
import pytest
from tensors import (
    GRADIENTS,
    IS_DECAYED,
    IS_HIDDEN,
    IS_KERNEL,
    PARAMS,
    STEPS,
    WORKLOAD,
    assert_close,
    build,
    cosine,
    draw,
    expected,
    make_workload,
    module_of,
    named,
    trained,
)

from algoperf.tuning import as_namedtuple

LR, DECAY = 0.01, 0.1
USUAL = {
    "learning_rate": LR,
    "weight_decay": DECAY,
    "warmup_factor": 0.05,
    "grad_clip": 1e9,
}
RATE = functools.partial(cosine, peak=LR)


def state():
    """Moving averages by (what, name), 0 at first."""
    return collections.defaultdict(float)


def each(rule):
    """Applies a rule of one tensor to all: rule(t, g, x, name)."""
    return lambda t, g, x: {name: rule(t, g[name], x[name], name) for name in g}


def averaged(s, what, name, new, beta):
    s[what, name] = beta * s[what, name] + (1 - beta) * new
    return s[what, name]


def adam(b1, b2, eps=1e-8, s=None):
    s = state() if s is None else s

    def rule(t, g, x, name):
        m = averaged(s, "m", name, g, b1) / (1 - b1**t)
        v = averaged(s, "v", name, g**2, b2) / (1 - b2**t)
        return m / (np.sqrt(v) + eps)

    return rule


def nadam(b1, b2):
    s = state()

    def rule(t, g, x, name):
        m = averaged(s, "m", name, g, b1)
        v = averaged(s, "v", name, g**2, b2) / (1 - b2**t)
        ahead = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        return ahead / (np.sqrt(v) + 1e-8)

    return rule


def lion(b1, b2):
    s = state()

    def rule(t, g, x, name):
        direction = np.sign(b1 * s[name] + (1 - b1) * g)
        s[name] = b2 * s[name] + (1 - b2) * g
        return direction

    return rule


def signum(b):
    s = state()
    return lambda t, g, x, name: np.sign(averaged(s, "m", name, g, b))


def adan(b1, b2, b3):
    s = state()

    def rule(t, g, x, name):
        change = g - s["g", name] if t > 1 else np.zeros_like(g)
        s["g", name] = g
        m = averaged(s, "m", name, g, b1) / (1 - b1**t)
        v = averaged(s, "v", name, change, b2) / (1 - b2**t)
        n = averaged(s, "n", name, (g + b2 * change) ** 2, b3) / (1 - b3**t)
        return (m + b2 * v) / (np.sqrt(n) + 1e-8)

    return rule


def ademamix(b1, b2, b3, alpha):
    s = state()

    def rule(t, g, x, name):
        share = (t - 1) / STEPS
        # The half-life of the slow average grows linearly.
        slow = np.exp(1 / ((1 - share) / np.log(b1) + share / np.log(b3)))
        m1 = averaged(s, "m1", name, g, b1) / (1 - b1**t)
        m2 = averaged(s, "m2", name, g, slow)
        v = averaged(s, "v", name, g**2, b2) / (1 - b2**t)
        return (m1 + share * alpha * m2) / (np.sqrt(v) + 1e-8)

    return rule


def cautious(b1, b2):
    inner = adam(b1, b2)

    def rule(t, g, x, name):
        u = inner(t, g, x, name)
        kept = u * g > 0
        return u * kept * g.size / (kept.sum() + 1)

    return rule


def adam_mini(b1, b2):
    s = state()
    # Axes that share one second moment.
    axes = {
        "embed/embedding": (1,),  # of a row
        "attention/query/kernel": (0, 2),  # of a head
        "attention/out/kernel": (0, 1),
        "conv/kernel": (0, 1, 2),
        "hidden/kernel": (0,),
        "head/kernel": (0,),
        "hidden/bias": (0,),
        "norm/scale": (0,),
    }

    def rule(t, g, x, name):
        square = (g**2).mean(axis=axes[name], keepdims=True)
        m = averaged(s, "m", name, g, b1) / (1 - b1**t)
        v = averaged(s, "v", name, square, b2) / (1 - b2**t)
        return m / (np.sqrt(v) + 1e-8)

    return rule


def adafactor(b1, factored):
    s = state()

    def second_moment(g, decay, name):
        square = g**2 + 1e-30
        if not factored or g.ndim < 2:
            return averaged(s, "v", name, square, decay)
        small, large = sorted(np.argsort(g.shape, kind="stable")[-2:])
        rows = averaged(s, "r", name, square.sum(axis=large, keepdims=True), decay)
        columns = averaged(s, "c", name, square.sum(axis=small, keepdims=True), decay)
        return rows * columns / rows.sum(axis=small, keepdims=True)

    def rule(t, g, x, name):
        u = g / np.sqrt(second_moment(g, 1 - t**-0.8, name))
        u /= max(1.0, np.sqrt((u**2).mean()))
        u *= max(1e-3, np.sqrt((x**2).mean()))
        return averaged(s, "m", name, u, b1)

    return rule


ELEMENTWISE = {
    "adamw": ({"one_minus_beta1": 0.1, "beta2": 0.99}, adam, (0.9, 0.99)),
    "nadamw": ({"one_minus_beta1": 0.1, "beta2": 0.99}, nadam, (0.9, 0.99)),
    "lion": ({"one_minus_beta1": 0.1, "beta2": 0.98}, lion, (0.9, 0.98)),
    "signum": ({"one_minus_beta1": 0.1}, signum, (0.9,)),
    "ademamix": (
        {"one_minus_beta1": 0.1, "beta2": 0.999, "beta3": 0.9999, "alpha": 8.0},
        ademamix,
        (0.9, 0.999, 0.9999, 8.0),
    ),
    "cautious_adamw": ({"one_minus_beta1": 0.1, "beta2": 0.99}, cautious, (0.9, 0.99)),
    "adam_mini": ({"one_minus_beta1": 0.1, "beta2": 0.98}, adam_mini, (0.9, 0.98)),
    "adafactor": ({"one_minus_beta1": 0.1, "factored": True}, adafactor, (0.9, True)),
}


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_a_rule_of_one_tensor_at_a_time(name):
    point, rule, arguments = ELEMENTWISE[name]
    path, _ = trained(build(name, **USUAL, **point))
    assert_close(path[-1], expected(each(rule(*arguments)), RATE, DECAY))


def test_adafactor_without_factors_keeps_whole_matrices():
    transformation = build("adafactor", **USUAL, one_minus_beta1=0.1, factored=False)
    path, _ = trained(transformation)
    assert_close(path[-1], expected(each(adafactor(0.9, False)), RATE, DECAY))


def test_adan():
    """Its decay is proximal."""
    rule, decay, x = adan(0.98, 0.92, 0.99), 5.0, named(PARAMS)
    for t, given in enumerate(GRADIENTS):
        s, g = RATE(t), named(given)
        x = {
            name: (x[name] - s * rule(t + 1, g[name], x[name], name))
            / (1 + s * decay * IS_DECAYED[name])
            for name in x
        }
    point = {**USUAL, "weight_decay": decay, "one_minus_beta1": 0.02}
    path, _ = trained(build("adan", **point, beta2=0.92, beta3=0.99))
    assert_close(path[-1], x)


@pytest.mark.parametrize("nesterov", [False, True])
def test_momentum(nesterov):
    s = state()

    def rule(t, g, x, name):
        g = g + DECAY * IS_DECAYED[name] * x
        s[name] = 0.9 * s[name] + g
        return g + 0.9 * s[name] if nesterov else s[name]

    path, _ = trained(
        build("momentum", **USUAL, one_minus_beta1=0.1, nesterov=nesterov)
    )
    assert_close(path[-1], expected(each(rule), RATE, 0.0))


def test_lamb():
    inner = adam(0.9, 0.99, eps=1e-6)

    def rule(t, g, x, name):
        r = inner(t, g, x, name)
        if not IS_DECAYED[name]:
            return r
        r = r + DECAY * x
        return r * max(np.linalg.norm(x), 1.0) / max(np.linalg.norm(r), 1.0)

    path, _ = trained(build("lamb", **USUAL, one_minus_beta1=0.1, beta2=0.99))
    assert_close(path[-1], expected(each(rule), RATE, 0.0))


def test_lamb_trains_a_kernel_that_starts_at_zero():
    """Adam steps with one sign: the norm, as it is below 1, is the sum of the rates."""
    zeros, ones = (jax.tree.map(like, PARAMS) for like in (np.zeros_like, np.ones_like))
    point = {**USUAL, "weight_decay": 0.0, "one_minus_beta1": 0.1, "beta2": 0.99}
    path, _ = trained(build("lamb", **point), zeros, [ones] * STEPS)
    grown = sum(RATE(t) for t in range(STEPS))
    assert 0.05 < grown < 1
    norms = [np.linalg.norm(path[-1][name]) for name in IS_DECAYED if IS_DECAYED[name]]
    assert norms == pytest.approx([grown] * len(norms), rel=1e-4)


def test_mars():
    inner, old = adam(0.95, 0.99), {}

    def rule(t, g, x):
        factor = 0.025 * 0.95 / 0.05 if t > 1 else 0.0
        c = {name: g[name] + factor * (g[name] - old.get(name, 0.0)) for name in g}
        norm = np.sqrt(sum((c[name] ** 2).sum() for name in c))
        old.update(g)
        return each(inner)(t, {name: c[name] / max(norm, 1.0) for name in c}, x)

    path, _ = trained(
        build("mars", **USUAL, one_minus_beta1=0.05, beta2=0.99, gamma=0.025)
    )
    assert_close(path[-1], expected(rule, RATE, DECAY))


def test_gradients_are_clipped_at_their_global_norm():
    """Signum's momentum shows it; Adam hardly sees the scale of its gradients."""
    point = {**USUAL, "grad_clip": 0.5, "one_minus_beta1": 0.1}
    _, last = trained(build("signum", **point), gradients=GRADIENTS[:1])
    (momentum,) = [x for x in jax.tree.leaves(last) if x.shape == (5, 7)]
    g = named(GRADIENTS[0])
    norm = np.sqrt(sum((g[name] ** 2).sum() for name in g))
    np.testing.assert_allclose(
        momentum, 0.1 * 0.5 / norm * g["hidden/kernel"], rtol=1e-4
    )


# Muon and Scion.


def matrix(name, g):
    """Kernels as (fan-in, fan-out)."""
    inputs = 1 if "query" in name else g.ndim - 1
    return g.reshape(int(np.prod(g.shape[:inputs])), -1)


def newton_schulz(u):
    """Five quintics with the coefficients of modded-nanogpt."""
    u = u / np.linalg.norm(u)
    for a, b, c in (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ):
        u = a * u + b * (u @ u.T) @ u + c * (u @ u.T) @ (u @ u.T) @ u
    return u


def wsd(step, peak, decay_steps):
    return peak * min(1.0, (STEPS - step) / decay_steps)


def test_muon():
    s, other = state(), adam(0.8, 0.98)

    def rule(t, g, x, name):
        if not IS_HIDDEN[name]:
            decay = DECAY * IS_DECAYED[name] * x
            return 0.3 * (other(t, g, x, name) + decay)
        s[name] = 0.95 * s[name] + g
        u = newton_schulz(matrix(name, g + 0.95 * s[name]))
        u *= np.sqrt(max(1, u.shape[1] / u.shape[0]))
        return u.reshape(g.shape) + DECAY * x

    transformation = build(
        "muon",
        **{**USUAL, "warmup_factor": 0.0},
        adam_rate=0.3,
        momentum=0.95,
        one_minus_beta1=0.2,
        beta2=0.98,
        decay_factor=0.8,
    )
    path, _ = trained(transformation)
    rate = functools.partial(wsd, peak=LR, decay_steps=16)
    assert_close(path[-1], expected(each(rule), rate, 0.0))


@pytest.mark.parametrize("constrained", [False, True])
def test_scion(constrained):
    s = state()

    def rule(t, g, x, name):
        d = averaged(s, "d", name, g, 0.9)
        if IS_HIDDEN[name]:
            u = newton_schulz(matrix(name, d))
            u = 5.0 * u.reshape(d.shape) * np.sqrt(u.shape[1] / u.shape[0])
            if name == "conv/kernel":  # (2, 2, 3, 4)
                u *= (np.sqrt(4 / 3) / 4) / np.sqrt(4 / 12)
        elif name == "head/kernel":
            u = 3.0 * np.sign(d) / d.shape[0]
        elif name == "embed/embedding":
            u = 2.0 * np.sign(d)
        else:
            u = 2.0 * d / np.sqrt((d**2).mean())
        return u + constrained * x

    transformation = build(
        "scion",
        learning_rate=LR,
        one_minus_beta1=0.1,
        hidden_radius=5.0,
        output_radius=3.0,
        other_radius=2.0,
        constrained=constrained,
        decay_factor=0.8,
        warmup_factor=0.0,
    )
    path, _ = trained(transformation)
    rate = functools.partial(wsd, peak=LR, decay_steps=16)
    assert_close(path[-1], expected(each(rule), rate, 0.0))


# Schedule-Free and Prodigy.


def test_schedule_free_adamw():
    module = module_of("schedule_free_adamw")
    transformation = build(
        "schedule_free_adamw",
        learning_rate=LR,
        one_minus_beta1=0.1,
        beta2=0.99,
        weight_decay=DECAY,
        warmup_factor=0.2,
    )
    path, last = trained(transformation)
    y = z = x = named(PARAMS)
    v, total = state(), 0.0
    for t in range(1, STEPS + 1):
        g = named(GRADIENTS[t - 1])
        rate = LR * np.sqrt(1 - 0.99**t) * min(1.0, t / 4)
        total += rate**2
        for name in g:
            v[name] = 0.99 * v[name] + 0.01 * g[name] ** 2
        direction = {
            n: g[n] / (np.sqrt(v[n]) + 1e-8) + DECAY * IS_DECAYED[n] * y[n] for n in g
        }
        z = {n: z[n] - rate * direction[n] for n in z}
        c = rate**2 / total
        x = {n: (1 - c) * x[n] + c * z[n] for n in x}
        y = {n: 0.1 * z[n] + 0.9 * x[n] for n in x}
    assert_close(path[-1], y)
    params = jax.tree.unflatten(jax.tree.structure(PARAMS), list(path[-1].values()))
    evaluated = module.optax.contrib.schedule_free_eval_params(last, params)
    assert_close(named(evaluated), x)


def test_prodigy():
    steps = 100  # it takes that many to find a rate from 1e-6
    transformation = build(
        "prodigy",
        make_workload(step_hint=steps),
        learning_rate=1.0,
        one_minus_beta1=0.1,
        beta2=0.99,
        weight_decay=DECAY,
        warmup_factor=0.06,
    )
    # Gradients of one sign, so that the estimate grows.
    gradients = [jax.tree.map(np.abs, draw(seed)) for seed in range(steps)]
    zeros = jax.tree.map(np.zeros_like, PARAMS)  # so that small moves are exact
    path, last = trained(transformation, zeros, gradients)
    x = start = named(zeros)
    m, v, s = state(), state(), state()
    d, r, b = 1e-6, 0.0, np.sqrt(0.99)
    for t in range(1, steps + 1):
        g, gamma = named(gradients[t - 1]), cosine(t - 1, 1.0, warmup=6, steps=steps)
        rate = d * gamma * np.sqrt(1 - 0.99**t) / (1 - 0.9**t)
        inner = sum((g[n] * (start[n] - x[n])).sum() for n in g)
        r = b * r + d * rate * inner
        for n in g:
            m[n] = 0.9 * m[n] + 0.1 * d * g[n]
            v[n] = 0.99 * v[n] + 0.01 * d**2 * g[n] ** 2
            s[n] = b * s[n] + d * d * g[n]
        new = max(d, r / sum(np.abs(s[n]).sum() for n in g))
        x = {
            n: x[n] - rate * (m[n] / (np.sqrt(v[n]) + new * 1e-8) + DECAY * x[n])
            for n in x
        }
        d = new
    assert d > 1e-5
    np.testing.assert_allclose(last.estim_lr, d, rtol=1e-3)
    for name in x:
        np.testing.assert_allclose(path[-1][name], x[name], rtol=1e-3)


# Preconditioned matrices: SOAP and Shampoo.

SQUARE = {"a": {"kernel": (WORKLOAD.model_params_types["hidden"]["kernel"], (5, 5))}}
SQUARE["b"] = {"kernel": (SQUARE["a"]["kernel"][0], (3, 3))}


def root(x, power):
    values, vectors = np.linalg.eigh(x)
    values = np.maximum(values, 0)
    return vectors @ np.diag((values + 1e-6 * values.max()) ** power) @ vectors.T


def cut(x, size):
    """The blocks of a matrix, as slices."""
    spans = []
    for length in x.shape:
        parts = -(-length // size)
        width = -(-length // parts)
        spans.append([slice(i * width, (i + 1) * width) for i in range(parts)])
    return [(rows, columns) for rows in spans[0] for columns in spans[1]]


@pytest.mark.parametrize("size", [pytest.param(512, marks=pytest.mark.slow), 3])
def test_shampoo(monkeypatch, size):
    module = module_of("shampoo")
    monkeypatch.setattr(module, "BLOCK_SIZE", size)
    b1, b2, every, s = 0.9, 0.95, 4, state()
    plain = adam(b1, b2)

    def block(t, g, key):
        left = averaged(s, "l", key, g @ g.T, b2) / (1 - b2**t)
        right = averaged(s, "r", key, g.T @ g, b2) / (1 - b2**t)
        if t % every == 0:
            s["roots", key] = root(left, -0.25), root(right, -0.25)
        direction = plain(t, g, None, key)
        if t < every:
            return direction
        mean = s["m", key]
        a, b = s["roots", key]
        step = a @ mean @ b
        return step * np.linalg.norm(direction) / np.linalg.norm(step)

    def rule(t, g, x, name):
        if not IS_KERNEL[name]:
            return plain(t, g, x, name)
        whole = matrix(name, g)
        out = np.zeros_like(whole)
        for number, place in enumerate(cut(whole, size)):
            averaged(s, "m", (name, number), whole[place], b1)
            out[place] = block(t, whole[place], (name, number))
        return out.reshape(g.shape)

    point = {**USUAL, "one_minus_beta1": 0.1, "beta2": b2, "precondition_every": every}
    path, _ = trained(module.build(WORKLOAD, as_namedtuple(point)))
    assert_close(path[-1], expected(each(rule), RATE, DECAY))


def test_soap_of_square_matrices():
    module, s = module_of("soap"), state()
    b1, b2, b3, every = 0.9, 0.95, 0.8, 3
    transformation = module.scale_by_soap(b1, b2, b3, every)
    gradients = [draw(seed, SQUARE) for seed in range(STEPS)]
    params = draw(99, SQUARE)
    path, _ = trained(transformation, params, gradients)
    x = named(params)
    for step, given in enumerate(gradients):
        for name, g in named(given).items():
            left = averaged(s, "l", name, g @ g.T, b3)
            right = averaged(s, "r", name, g.T @ g, b3)
            if step == 0:
                s["bases", name] = [np.linalg.svd(a)[0] for a in (left, right)]
                continue
            ql, qr = s["bases", name]
            m = averaged(s, "m", name, g, b1) / (1 - b1**step)
            v = averaged(s, "v", name, (ql.T @ g @ qr) ** 2, b2) / (1 - b2**step)
            direction = ql @ ((ql.T @ m @ qr) / (np.sqrt(v) + 1e-8)) @ qr.T
            x[name] = x[name] + direction
            if step % every == 0:
                # As in the authors' code: sorted by q' L q, the second moment too.
                orders = [
                    np.argsort(-np.diag(q.T @ a @ q))
                    for a, q in ((left, ql), (right, qr))
                ]
                s["v", name] = s["v", name][np.ix_(*orders)]
                s["bases", name] = [
                    np.linalg.qr((a @ q)[:, order])[0]
                    for a, q, order in zip((left, right), (ql, qr), orders, strict=True)
                ]
    assert_close(path[-1], x, tolerance=1e-3)
    change = max(np.abs(x[name] - named(params)[name]).max() for name in x)
    assert change > 3  # directions are added as they are: that is 1e-4 of the way


def test_steps_of_soap_stay_near_1_when_its_bases_are_renewed():
    """Of gradients with a few strong directions; steps 11 to 19 are in new bases.

    Columns that change places divide a large gradient by the small second moment of
    another pair of them.
    """
    every, shape = 10, (24, 16)
    parameters = {"a": {"kernel": (SQUARE["a"]["kernel"][0], shape)}}
    generator = np.random.default_rng(0)
    left, right = (np.linalg.qr(generator.normal(size=(n, n)))[0] for n in shape)
    sizes = np.outer(0.6 ** np.arange(24), 0.6 ** np.arange(16))
    gradients = [
        {"a": {"kernel": np.float32(left @ (sizes * noise) @ right.T)}}
        for noise in generator.normal(size=(STEPS, *shape))
    ]
    module = module_of("soap")
    transformation = module.scale_by_soap(0.95, 0.95, 0.95, every)
    path, last = trained(transformation, draw(99, parameters), gradients)
    steps = np.diff([x["a/kernel"] for x in path], axis=0)[every + 1 :]
    bases = last.blocks["a"]["kernel"]
    rotated = np.asarray(bases.left_basis[0]).T @ steps @ bases.right_basis[0]
    assert 0.3 < np.abs(rotated).max() < 2


def test_soap_in_given_bases_is_adam_and_skips_the_first_gradient():
    module = module_of("soap")
    transformation = module.scale_by_soap(0.9, 0.95, 0.8, every=100)
    path, last = trained(transformation, draw(99, SQUARE), [draw(1, SQUARE)] * 2)
    assert_close(path[1], path[0], 0.0)
    # The first step of Adam has the size 1 along every pair of eigenvectors.
    blocks = last.blocks["a"]["kernel"]
    moved = path[2]["a/kernel"] - path[1]["a/kernel"]
    rotated = np.asarray(blocks.left_basis[0]).T @ moved @ blocks.right_basis[0]
    g = draw(1, SQUARE)["a"]["kernel"]
    wanted = np.asarray(blocks.left_basis[0]).T @ g @ blocks.right_basis[0]
    big = np.abs(wanted) > 1e-3
    np.testing.assert_allclose(rotated[big], np.sign(wanted)[big], atol=1e-3)
