"""The losses that workloads share, against optax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from algoperf.losses import sigmoid_cross_entropy, softmax_cross_entropy

KEY = jax.random.PRNGKey(0)


def test_softmax_cross_entropy_is_that_of_optax_with_smoothing_and_mask():
    logits = jax.random.normal(KEY, (6, 5, 4)) * 30
    labels = jax.random.randint(KEY, (6, 5), 0, 4)
    mask = jnp.ones((6, 5)).at[2:, 3:].set(0)
    smooth = optax.smooth_labels(jax.nn.one_hot(labels, 4), 0.1)
    expected = optax.softmax_cross_entropy(logits, smooth) * mask
    loss = softmax_cross_entropy(labels, logits, mask, 0.1)
    np.testing.assert_allclose(loss["summed"], expected.sum(), rtol=1e-5)
    np.testing.assert_allclose(loss["per_example"], expected.sum(-1), rtol=1e-4)
    assert loss["n_valid_examples"] == mask.sum()
    assert softmax_cross_entropy(labels, logits, None, 0.0)["n_valid_examples"] == 30


def test_softmax_cross_entropy_of_probabilities():
    logits = jax.random.normal(KEY, (6, 4)) * 3
    labels = jax.nn.softmax(jax.random.normal(KEY, (6, 4)))
    mask = jnp.arange(6) < 4
    loss = softmax_cross_entropy(labels, logits, mask, 0.1)
    smooth = optax.smooth_labels(labels, 0.1)
    expected = optax.softmax_cross_entropy(logits, smooth) * mask
    np.testing.assert_allclose(loss["per_example"], expected, rtol=1e-5)
    assert loss["n_valid_examples"] == 4
    unmasked = softmax_cross_entropy(labels, logits, None, 0.1)
    assert unmasked["n_valid_examples"] == 6
    assert unmasked["per_example"].shape == (6,)


def test_sigmoid_cross_entropy_is_that_of_optax_and_leaves_missing_labels_out():
    logits = jax.random.normal(KEY, (6, 5)) * 30
    labels = (jax.random.uniform(KEY, (6, 5)) > 0.5).astype(jnp.float32)
    mask = jnp.ones((6, 5)).at[2:, 3:].set(0)
    smooth = optax.smooth_labels(labels, 0.2)
    expected = optax.sigmoid_binary_cross_entropy(logits, smooth) * mask
    missing = jnp.where(mask > 0, labels, jnp.nan)
    loss = sigmoid_cross_entropy(missing, logits, mask, 0.2)
    np.testing.assert_allclose(loss["summed"], expected.sum(), rtol=1e-5)
    np.testing.assert_allclose(loss["per_example"], expected.sum(-1), rtol=1e-5)
    assert loss["n_valid_examples"] == mask.sum()
    gradient = jax.grad(lambda x: sigmoid_cross_entropy(missing, x, mask, 0)["summed"])
    assert jnp.isfinite(gradient(logits)).all()
    assert sigmoid_cross_entropy(labels, logits, None, 0)["n_valid_examples"] == 30
