"""A tree of a few tensors with names, types and shapes, and what trains on it."""

import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from algoperf import spec

KINDS = spec.ParameterType
PARAMETERS = {
    "embed": {"embedding": (KINDS.EMBEDDING, (6, 4))},
    "attention": {"query": {"kernel": (KINDS.ATTENTION_Q, (4, 2, 3))}},
    "hidden": {"kernel": (KINDS.WEIGHT, (5, 7)), "bias": (KINDS.BIAS, (7,))},
    "head": {"kernel": (KINDS.WEIGHT, (8, 3))},
}
KEY = jax.random.PRNGKey(0)


def _is_pair(x):
    return isinstance(x, tuple)


def make_workload(parameters=PARAMETERS) -> Any:
    """Returns what a reparametrisation asks of a workload."""

    def pick(i):
        return jax.tree.map(lambda pair: pair[i], parameters, is_leaf=_is_pair)

    shapes = jax.tree.map(
        lambda pair: spec.ShapeTuple(pair[1]), parameters, is_leaf=_is_pair
    )
    return types.SimpleNamespace(
        step_hint=20,
        model_params_types=pick(0),
        param_shapes=shapes,
        is_output_params=lambda key: key == "head",
    )


WORKLOAD = make_workload()


def draw(seed, parameters=PARAMETERS):
    """Returns a tree of standard normal numbers, float32."""
    generator = np.random.default_rng(seed)
    return jax.tree.map(
        lambda pair: jnp.asarray(generator.normal(size=pair[1]), jnp.float32),
        parameters,
        is_leaf=_is_pair,
    )


PARAMS = draw(0)


def assert_trees_close(one, other, tolerance=1e-5):
    """Compares two trees of equal structure; the largest difference counts."""
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance),
        one,
        other,
    )
