"""Criteo: predict clicks (MLCommons AlgoPerf workload criteo1tb).

Ids are integers all the way; the official code passes them through float32, in which
ids above 2^24 share neighbours.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from algoperf import spec
from algoperf.losses import sigmoid_cross_entropy
from algoperf.records import Direction
from algoperf.workload import Workload, variant
from workloads.criteo1tb import data, flights, prepare
from workloads.criteo1tb.model import DLRM, ResidualDLRM


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Criteo(Workload):
    """Predict clicks; a batch is described at `data.read`."""

    def example_batch(self) -> spec.Batch:
        """Returns one empty row."""
        return {
            "inputs": {
                "dense": jnp.zeros((1, prepare.NUM_INTEGERS)),
                "ids": jnp.zeros((1, prepare.NUM_CATEGORIES), jnp.int32),
            }
        }

    def loss_fn(
        self,
        label_batch: spec.Tensor,
        logits_batch: spec.Tensor,
        mask_batch: spec.Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> dict[str, spec.Tensor]:
        """Sigmoid cross-entropy of clicks (B, 1); see `spec.Workload.loss_fn`.

        Smoothing is ignored, as published: what is predicted is a rate of clicks.
        """
        del label_smoothing
        return sigmoid_cross_entropy(label_batch, logits_batch, mask_batch, 0.0)

    def measure(self, logits: spec.Tensor, batch: spec.Batch) -> dict[str, jax.Array]:
        """Returns the sum of losses, and the rows."""
        loss = self.loss_fn(batch["targets"], logits, batch["weights"])
        return {"loss": loss["summed"], "examples": loss["n_valid_examples"]}

    @functools.cached_property
    def _click_rate(self) -> float:
        """Share of clicks in part of the training data."""
        batches = list(self.batches("eval_train"))
        clicks = sum((b["targets"] * b["weights"]).sum() for b in batches)
        return float(clicks / sum(b["weights"].sum() for b in batches))

    def trivial_logits(self, batch: spec.Batch) -> jax.Array:
        """Returns the logit of the rate of clicks (B, 1)."""
        logit = math.log(self._click_rate / (1 - self._click_rate))
        return jnp.full(batch["targets"].shape, logit)

    def metrics(self, measured: Mapping[str, Any]) -> dict[str, float]:
        """Returns the mean 'loss', in nats."""
        return {"loss": measured["loss"] / measured["examples"]}


FULL = Criteo(
    base_workload="criteo1tb",
    variant="criteo1tb",
    scale="full",
    model=DLRM(),
    pipeline=data.read,
    data_source=data.DATA_SOURCE,
    input_shape=(prepare.NUM_INTEGERS + prepare.NUM_CATEGORIES,),
    input_dtype=jnp.float32,
    loss_type=spec.LossType.SIGMOID_CROSS_ENTROPY,
    target_metric_name="loss",
    target_direction=Direction.MINIMIZE,
    validation_target_value=0.123735,
    test_target_value=0.126041,
    num_train_examples=prepare.NUM_TRAIN,
    num_eval_train_examples=data.NUM_EVAL_TRAIN,
    num_validation_examples=prepare.NUM_VALIDATION,
    num_test_examples=prepare.NUM_TEST,
    default_batch_size=262_144,
    eval_batch_size=131_072,
    step_hint=10_666,
    eval_period_time_sec=120.0,
    max_allowed_runtime_sec=7_703.0,
    published_budgets_sec={"0.5": 7_703.0, "0.6": 7_703.0},
    published_step_sec={"8x A100": 0.835},
    output_params=("head",),
)

MINI = Criteo(
    base_workload="criteo1tb",
    variant="criteo1tb",
    scale="mini",
    model=DLRM(
        vocab_size=32_768,
        embedding_width=32,
        bottom_widths=(256, 128, 32),
        top_widths=(512, 512, 256, 128),
    ),
    pipeline=flights.dataset,
    input_shape=(prepare.NUM_INTEGERS + prepare.NUM_CATEGORIES,),
    input_dtype=jnp.float32,
    loss_type=spec.LossType.SIGMOID_CROSS_ENTROPY,
    target_metric_name="loss",
    target_direction=Direction.MINIMIZE,
    validation_target_value=0.4288,
    test_target_value=0.4348,
    num_train_examples=flights.NUM_TRAIN,
    num_eval_train_examples=flights.NUM_EVAL_TRAIN,
    num_validation_examples=flights.NUM_VALIDATION,
    num_test_examples=flights.NUM_TEST,
    default_batch_size=256,
    max_batch_size=1024,
    eval_batch_size=2048,
    # Two epochs: a third one overfits.
    step_hint=4100,
    eval_period_steps=205,
    max_allowed_runtime_sec=50.0,
    output_params=("head",),
)
MINI_RESIDUAL = ResidualDLRM(
    vocab_size=32_768,
    embedding_width=32,
    bottom_widths=(128, 128, 128),
    top_widths=(256, 256, 256, 256),
)
DEVELOP = {"for_development": True}

WORKLOADS: tuple[Workload, ...] = (
    FULL,
    variant(FULL, "criteo1tb_layernorm", (0.123757, 0.126152), layer_norm=True),
    variant(FULL, "criteo1tb_embed_init", (0.129657, 0.131967), embedding_scale=1.0),
    variant(FULL, "criteo1tb_resnet", (0.12415, 0.12648), {"model": ResidualDLRM()}),
    # For development, with a small table and the base's targets.
    variant(FULL, "criteo1tb_test", (0.123735, 0.126041), DEVELOP, vocab_size=65_536),
    MINI,
    variant(MINI, "criteo1tb_layernorm", (0.4293, 0.4322), layer_norm=True),
    variant(MINI, "criteo1tb_embed_init", (0.4351, 0.4394), embedding_scale=1.0),
    variant(MINI, "criteo1tb_resnet", (0.4366, 0.4428), {"model": MINI_RESIDUAL}),
)
