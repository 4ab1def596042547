"""A handful of tensors with given gradients, trained in JAX and in NumPy."""

import dataclasses
import functools
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scripts
from jax.flatten_util import ravel_pytree

from algoperf import registry, sharding, spec
from algoperf.tuning import as_namedtuple

STEPS = 20
KINDS = spec.ParameterType
PARAMETERS = {
    "embed": {"embedding": (KINDS.EMBEDDING, (6, 4))},
    "attention": {
        "query": {"kernel": (KINDS.ATTENTION_Q, (4, 2, 3))},
        "out": {"kernel": (KINDS.ATTENTION_OUT, (2, 3, 4))},
    },
    "conv": {"kernel": (KINDS.CONV_WEIGHT, (2, 2, 3, 4))},
    "hidden": {"kernel": (KINDS.WEIGHT, (5, 7)), "bias": (KINDS.BIAS, (7,))},
    "norm": {"scale": (KINDS.LAYER_NORM_SCALE, (4,))},
    "head": {"kernel": (KINDS.WEIGHT, (4, 3))},
}


def _is_pair(x):
    return isinstance(x, tuple)


def make_workload(parameters=PARAMETERS, step_hint=STEPS) -> Any:
    """Returns what submissions ask of a workload: steps, types and shapes."""

    def pick(i):
        return jax.tree.map(lambda pair: pair[i], parameters, is_leaf=_is_pair)

    return types.SimpleNamespace(
        step_hint=step_hint,
        model_params_types=pick(0),
        param_shapes=jax.tree.map(
            lambda pair: spec.ShapeTuple(pair[1]), parameters, is_leaf=_is_pair
        ),
        is_output_params=lambda key: key == "head",
        placement=sharding.Placement(),
    )


WORKLOAD = make_workload()


def draw(seed, parameters=PARAMETERS):
    """Returns a tree of standard normal numbers, float32."""
    generator = np.random.default_rng(seed)
    return jax.tree.map(
        lambda pair: generator.normal(size=pair[1]).astype(np.float32),
        parameters,
        is_leaf=_is_pair,
    )


PARAMS = draw(0)
GRADIENTS = [draw(seed) for seed in range(1, STEPS + 1)]


def module_of(name):
    """Imports the module of a bundled submission."""
    return scripts.load(registry.find_submission(name), f"rule_{name}")


def build(name, workload=WORKLOAD, **point):
    """Returns the transformation of a bundled submission."""
    return module_of(name).build(workload, as_namedtuple(point))


@dataclasses.dataclass(frozen=True)
class Quadratic:
    """x' H x / 2 + c' x of the params, laid end to end, for a step's objective."""

    hessian: Any  # (n, n)
    slope: Any  # (n,)
    rng: Any = None

    def gradient(self, params):
        flat, unravel = ravel_pytree(params)
        return unravel(self.hessian @ flat + self.slope)

    def logits(self, params):
        flat, _ = ravel_pytree(params)
        return {"first": 0.5 * flat @ self.hessian @ flat + self.slope @ flat}


def quadratic_of(size, seed=0):
    """Returns a symmetric positive definite matrix (size, size), float32."""
    x = np.random.default_rng(seed).normal(size=(size, size))
    return (x @ x.T / size + np.eye(size)).astype(np.float32)


def trained(transformation, params=PARAMS, gradients=GRADIENTS, hessian=None):
    """Returns all params that a transformation goes through, and its last state.

    Gradients are those given or, with a Hessian, those of the quadratic whose slopes
    they are.
    """
    step = _compiled_step(transformation)
    params = jax.tree.map(jnp.asarray, params)
    state = jax.jit(transformation.init)(params)
    path = [params]
    for number, given in enumerate(gradients):
        params, state = step(params, state, given, number, hessian)
        path.append(params)
    return [named(params) for params in path], state


@functools.cache
def _compiled_step(transformation):
    transformation = optax.with_extra_args_support(transformation)

    @jax.jit
    def step(params, state, given, number, hessian):
        rng = jax.random.fold_in(jax.random.PRNGKey(0), number)
        objective = Quadratic(jnp.zeros((1, 1)), jnp.zeros(1), rng)
        gradient = given
        if hessian is not None:
            objective = Quadratic(hessian, ravel_pytree(given)[0], rng)
            gradient = objective.gradient(params)
        updates, state = transformation.update(
            gradient, state, params, value=0.0, objective=objective
        )
        return optax.apply_updates(params, updates), state

    return step


def named(tree):
    """Returns name -> float64 array for the leaves of a tree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(
            leaf, np.float64
        )
        for path, leaf in leaves
    }


IS_DECAYED = {name: not name.endswith(("bias", "scale")) for name in named(PARAMS)}
IS_HIDDEN = {
    name: name.endswith("kernel") and "head" not in name for name in IS_DECAYED
}
IS_KERNEL = {name: name.endswith("kernel") for name in IS_DECAYED}


def cosine(step, peak, warmup=1, steps=STEPS):
    """Warm-up and cosine, from its formula."""
    if step < warmup:
        return peak * step / warmup
    return peak * 0.5 * (1 + np.cos(np.pi * (step - warmup) / (steps - warmup)))


def expected(rule, rate, weight_decay, params=PARAMS, gradients=GRADIENTS):
    """Trains in NumPy: x <- x - s (d + weight_decay x), no decay of biases and norms.

    `rule(t, gradients by name, params by name) -> directions by name`, t from 1.
    """
    x = named(params)
    for step, given in enumerate(gradients):
        directions = rule(step + 1, named(given), x)
        s = rate(step)
        x = {
            name: x[name]
            - s * (directions[name] + weight_decay * IS_DECAYED[name] * x[name])
            for name in x
        }
    return x


def assert_close(found, wanted, tolerance=1e-5):
    """Compares name -> array; the largest difference counts."""
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_allclose(
            found[name], wanted[name], rtol=0, atol=tolerance, err_msg=name
        )
