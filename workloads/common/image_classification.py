"""What the image classification families share: loss and metrics."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from algoperf import spec
from algoperf.losses import softmax_cross_entropy
from algoperf.workload import Workload


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ImageClassification(Workload):
    """Classify images."""

    def loss_fn(
        self,
        label_batch: spec.Tensor,
        logits_batch: spec.Tensor,
        mask_batch: spec.Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> dict[str, spec.Tensor]:
        """Cross-entropy in nats; see `spec.Workload.loss_fn`.

        Labels are classes (B,) or, after mixup, probabilities (B, classes).
        """
        return softmax_cross_entropy(
            label_batch, logits_batch, mask_batch, label_smoothing
        )

    def measure(self, logits: spec.Tensor, batch: spec.Batch) -> dict[str, jax.Array]:
        """Returns the sums of losses and of correct answers, and the examples."""
        loss = self.loss_fn(batch["targets"], logits, batch["weights"])
        correct = (jnp.argmax(logits, axis=-1) == batch["targets"]) * batch["weights"]
        return {
            "loss": loss["summed"],
            "correct": correct.sum(),
            "examples": loss["n_valid_examples"],
        }

    @functools.cached_property
    def _class_counts(self) -> np.ndarray:
        """How often each class occurs in part of the training data, at least once."""
        counts = np.ones(self.model.num_classes)
        for batch in self.batches("eval_train"):
            np.add.at(counts, batch["targets"], batch["weights"])
        return counts

    def trivial_logits(self, batch: spec.Batch) -> jax.Array:
        """Returns the logarithms of how often classes occur (B, classes)."""
        logits = jnp.log(self._class_counts)
        return jnp.broadcast_to(logits, (len(batch["targets"]), len(logits)))

    def metrics(self, measured: Mapping[str, Any]) -> dict[str, float]:
        """Returns 'loss' and 'accuracy', a share."""
        return {
            "loss": measured["loss"] / measured["examples"],
            "accuracy": measured["correct"] / measured["examples"],
        }
