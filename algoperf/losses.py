"""Losses that several workloads share, masked for padding."""

import jax
import jax.numpy as jnp


def softmax_cross_entropy(
    labels: jax.Array,
    logits: jax.Array,
    mask: jax.Array | None,
    label_smoothing: float | jax.Array,
) -> dict[str, jax.Array]:
    """Cross-entropy of classes, in nats, as `spec.Workload.loss_fn` returns it.

    Args:
      labels: (...,) integer classes, or (..., classes) probabilities.
      logits: (..., classes).
      mask: (...,) weights, 0 on padding; None counts everything.
      label_smoothing: share of the probability spread over all classes (Szegedy et
        al. 2016, section 7); may be traced.
    """
    logits = logits.astype(jnp.float32)
    logits -= jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True))
    # The log-probabilities themselves are never formed: on CPU the gradient of a
    # small language model's step is twice as fast so.
    normaliser = jnp.log(jnp.exp(logits).sum(axis=-1))
    if labels.ndim == logits.ndim:
        true = (labels * logits).sum(axis=-1)
    else:
        true = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    smooth = logits.mean(axis=-1)
    losses = normaliser - (1 - label_smoothing) * true - label_smoothing * smooth
    valid = jnp.ones(losses.shape, jnp.float32) if mask is None else mask
    losses = losses * valid
    return {
        "summed": losses.sum(),
        "n_valid_examples": valid.sum(),
        "per_example": losses.reshape(losses.shape[0], -1).sum(-1),
    }


def sigmoid_cross_entropy(
    labels: jax.Array,
    logits: jax.Array,
    mask: jax.Array | None,
    label_smoothing: float | jax.Array,
) -> dict[str, jax.Array]:
    """Cross-entropy of independent yes-no answers, as `spec.Workload.loss_fn` has it.

    Args:
      labels: (batch, questions) probabilities of yes, usually 0 or 1.
      logits: (batch, questions).
      mask: (batch, questions) weights, 0 on padding and missing labels; None counts
        all.
      label_smoothing: labels are moved by this share towards 1 / questions, as if the
        questions were classes: that is what the official benchmark does to molecules
        (`optax.smooth_labels`). May be traced.
    """
    logits = logits.astype(jnp.float32)
    valid = jnp.ones(labels.shape, jnp.float32) if mask is None else mask
    # A missing label may be NaN: 0 times it would be NaN again.
    labels = jnp.where(valid > 0, labels, 0).astype(jnp.float32)
    labels = labels * (1 - label_smoothing) + label_smoothing / labels.shape[-1]
    # log(1 + exp(x)) - x y, without overflow.
    losses = (jax.nn.softplus(logits) - logits * labels) * valid
    return {
        "summed": losses.sum(),
        "n_valid_examples": valid.sum(),
        "per_example": losses.reshape(labels.shape[0], -1).sum(-1),
    }
