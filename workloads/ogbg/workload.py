"""ogbg: predict 128 assays of molecules (MLCommons AlgoPerf workload ogbg).

The loss is a sum of sigmoid cross-entropies (the official code calls its type softmax).
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from algoperf import spec
from algoperf.losses import sigmoid_cross_entropy
from algoperf.records import Direction
from algoperf.workload import Workload, variant
from workloads.ogbg import b3db, data
from workloads.ogbg.average_precision import mean_average_precision
from workloads.ogbg.model import GraphNetwork, GraphsTuple


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Ogbg(Workload):
    """Classify molecules; a batch is described at `data.Batches`."""

    def example_batch(self) -> spec.Batch:
        """Returns a batch of one pack with one empty molecule."""
        graph = GraphsTuple(
            nodes=jnp.zeros((1, 1, data.NODE_FEATURES)),
            edges=jnp.zeros((1, 1, data.EDGE_FEATURES)),
            receivers=jnp.zeros((1, 1), jnp.int32),
            senders=jnp.zeros((1, 1), jnp.int32),
            globals=jnp.zeros((1, 1, 0)),
            n_node=jnp.ones((1, 1), jnp.int32),
            n_edge=jnp.ones((1, 1), jnp.int32),
        )
        return {"inputs": graph}

    def loss_fn(
        self,
        label_batch: spec.Tensor,
        logits_batch: spec.Tensor,
        mask_batch: spec.Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> dict[str, spec.Tensor]:
        """Sigmoid cross-entropy in nats; see `spec.Workload.loss_fn`.

        Labels, logits and mask are (molecules, 128); what is counted are the labels
        that are known.
        """
        return sigmoid_cross_entropy(
            label_batch, logits_batch, mask_batch, label_smoothing
        )

    def measure(self, logits: spec.Tensor, batch: spec.Batch) -> dict[str, jax.Array]:
        """Returns sums of losses and right answers, and all scores and labels."""
        weights, targets = batch["weights"], batch["targets"]
        loss = self.loss_fn(targets, logits, weights)
        correct = ((logits > 0) == (targets > 0)) * weights
        # A label is stored as 0 or 1, a missing one as -1: a quarter of the memory.
        labels = jnp.where(weights > 0, targets, data.MISSING).astype(jnp.int8)
        return {
            "loss": loss["summed"],
            "correct": correct.sum(),
            "labelled": loss["n_valid_examples"],
            "scores": logits,
            "labels": labels,
        }

    @functools.cached_property
    def _label_rates(self) -> np.ndarray:
        """Share of positive labels of each task in part of the training data."""
        batches = list(self.batches("eval_train"))
        positive = sum((b["targets"] * b["weights"]).sum(axis=0) for b in batches)
        return (positive + 1) / (sum(b["weights"].sum(axis=0) for b in batches) + 2)

    def trivial_logits(self, batch: spec.Batch) -> jax.Array:
        """Returns the logits of how often tasks are positive (B, tasks)."""
        rates = self._label_rates
        return jnp.broadcast_to(jnp.log(rates / (1 - rates)), batch["targets"].shape)

    def metrics(self, measured: Mapping[str, Any]) -> dict[str, float]:
        """Returns 'loss' and 'accuracy' per label and 'mean_average_precision'."""
        labels = np.asarray(measured["labels"])
        return {
            "loss": measured["loss"] / measured["labelled"],
            "accuracy": measured["correct"] / measured["labelled"],
            "mean_average_precision": mean_average_precision(
                np.asarray(measured["scores"]), labels == 1, labels != data.MISSING
            ),
        }


FULL = Ogbg(
    base_workload="ogbg",
    variant="ogbg",
    scale="full",
    model=GraphNetwork(),
    pipeline=data.pipeline,
    data_source=data.DATA_SOURCE,
    input_shape=(data.NODE_FEATURES,),  # of an atom
    input_dtype=jnp.float32,
    loss_type=spec.LossType.SIGMOID_CROSS_ENTROPY,
    target_metric_name="mean_average_precision",
    target_direction=Direction.MAXIMIZE,
    validation_target_value=0.28098,
    test_target_value=0.268729,
    num_train_examples=data.NUM_TRAIN,
    num_eval_train_examples=data.NUM_EVAL_TRAIN,
    num_validation_examples=data.NUM_VALIDATION,
    num_test_examples=data.NUM_TEST,
    default_batch_size=512,
    max_packs=data.MAX_PACKS,
    eval_batch_size=32_768,
    step_hint=52_000,
    eval_period_time_sec=240.0,
    max_allowed_runtime_sec=12_011.0,
    published_budgets_sec={"0.5": 18_477.0, "0.6": 12_011.0},
    published_step_sec={"8x A100": 0.220},
    default_dropout_rate=0.1,
    output_params=("head",),
)
SMALLER: dict[str, Any] = {
    "latent_width": 128,
    "hidden_widths": (256, 256),
    "num_steps": 3,
}

MINI = Ogbg(
    base_workload="ogbg",
    variant="ogbg",
    scale="mini",
    model=GraphNetwork(
        num_outputs=b3db.NUM_TASKS,
        latent_width=64,
        hidden_widths=(64,),
        num_steps=3,
    ),
    pipeline=b3db.pipeline,
    input_shape=(data.NODE_FEATURES,),
    input_dtype=jnp.float32,
    loss_type=spec.LossType.SIGMOID_CROSS_ENTROPY,
    target_metric_name="mean_average_precision",
    target_direction=Direction.MAXIMIZE,
    validation_target_value=0.4684,
    test_target_value=0.4589,
    num_train_examples=b3db.NUM_TRAIN,
    num_eval_train_examples=b3db.NUM_EVAL_TRAIN,
    num_validation_examples=b3db.NUM_VALIDATION,
    num_test_examples=b3db.NUM_TEST,
    default_batch_size=32,
    max_batch_size=128,
    max_packs=data.MAX_PACKS,
    eval_batch_size=184,
    step_hint=3800,
    eval_period_steps=190,
    max_allowed_runtime_sec=66.0,
    default_dropout_rate=0.1,
    output_params=("head",),
)
MINI_SMALLER: dict[str, Any] = {
    "latent_width": 32,
    "hidden_widths": (64, 64),
    "num_steps": 2,
}

WORKLOADS: tuple[Workload, ...] = (
    FULL,
    variant(FULL, "ogbg_gelu", (0.27771, 0.262926), activation=nn.gelu),
    variant(FULL, "ogbg_silu", (0.282178, 0.272144), activation=nn.silu),
    variant(FULL, "ogbg_model_size", (0.269446, 0.253051), **SMALLER),
    MINI,
    variant(MINI, "ogbg_gelu", (0.4603, 0.46), activation=nn.gelu),
    variant(MINI, "ogbg_silu", (0.4638, 0.4575), activation=nn.silu),
    variant(MINI, "ogbg_model_size", (0.3296, 0.3105), **MINI_SMALLER),
)
