"""All mini workloads: every product is found, and the identity recipe is the model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from algoperf import numerics, registry, spec

NAMES = [
    "criteo1tb",
    "fastmri",
    "finewebedu_lm",
    "imagenet_resnet",
    "imagenet_vit",
    "librispeech_conformer",
    "librispeech_deepspeech",
    "ogbg",
    "wmt",
]


def _mean_loss(workload):
    def mean_loss(params, model_state, batch, rng):
        logits, _ = workload.model_fn(
            params,
            batch,
            model_state,
            spec.ForwardPassMode.TRAIN,
            rng,
            update_batch_norm=True,
        )
        loss = workload.loss_fn(batch["targets"], logits, batch.get("weights"))
        return loss["summed"] / loss["n_valid_examples"]

    return mean_loss


def _arguments(workload, batch_size):
    """Parameters, state, a batch and a key; few examples are enough."""
    rng = jax.random.PRNGKey(0)
    params, model_state = workload.init_model_fn(rng)
    # A kernel that begins at zero, as the head of the ViT, hides all below it.
    noise = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: (
            leaf
            if jnp.any(leaf) or leaf.ndim < 2
            else 0.02 * noise.normal(size=leaf.shape).astype("float32")
        ),
        params,
    )
    batch = workload.dataset("train", batch_size, seed=0)[0]
    return params, model_state, jax.tree.map(jnp.asarray, dict(batch)), rng


def _count(jaxpr):
    """Counts products in a jaxpr and all jaxprs in it, however they are wrapped."""
    names = ("dot_general", "conv_general_dilated")
    total = 0
    for eqn in jaxpr.eqns:
        total += eqn.primitive.name in names
        for inner in core.jaxprs_in_params(eqn.params):
            total += _count(getattr(inner, "jaxpr", inner))
    return total


def _cosine(one, other):
    one, other = (
        np.concatenate([np.ravel(a) for a in jax.tree.leaves(tree)]).astype(np.float64)
        for tree in (one, other)
    )
    return one @ other / np.linalg.norm(one) / np.linalg.norm(other)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_recipes_on(name):
    workload = registry.find_workload(name, "mini")
    loss = _mean_loss(workload)
    size = 4 if name != "ogbg" else workload.default_batch_size  # packs of graphs
    arguments = _arguments(workload, size)
    jaxpr = jax.make_jaxpr(loss)(*arguments).jaxpr
    found = numerics.products("identity", loss, *arguments)
    assert len(found) == _count(jaxpr) > 0
    assert [item for item in found if item.reason is not None] == []
    plain = jax.jit(jax.grad(loss))(*arguments)
    replaced = jax.jit(jax.grad(numerics.apply("identity", loss)))(*arguments)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(plain))
    for one, other in zip(
        jax.tree.leaves(plain), jax.tree.leaves(replaced), strict=True
    ):
        # By its own size, so that a small gradient cannot be lost, and what is left of
        # sums that cancel (the bias of attention keys has no gradient but that).
        tolerance = 1e-6 * float(jnp.abs(one).max()) + 1e-7 * largest
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=tolerance)
    # Not the filter banks of speech: rounding power spectra shows in their logarithms.
    recipe = numerics.RECIPES["mxint8"].replace(weights_only=True)
    quantised = jax.jit(jax.grad(numerics.apply(recipe, loss)))(*arguments)
    assert 0.9 < _cosine(plain, quantised) < 1 - 1e-9
