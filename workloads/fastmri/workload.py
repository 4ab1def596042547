"""fastMRI: reconstruct knees (MLCommons AlgoPerf workload fastmri)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from algoperf import spec
from algoperf.records import Direction
from algoperf.workload import Workload, variant
from workloads.fastmri import brains, data
from workloads.fastmri.model import UNet
from workloads.fastmri.ssim import ssim


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FastMRI(Workload):
    """Reconstruct images; the fields of a batch are those of `data.undersample`."""

    def loss_fn(
        self,
        label_batch: spec.Tensor,
        logits_batch: spec.Tensor,
        mask_batch: spec.Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> dict[str, spec.Tensor]:
        """Mean absolute difference of images (B, H, W); smoothing does not apply."""
        del label_smoothing
        losses = jnp.abs(logits_batch - label_batch).mean((1, 2))
        valid = jnp.ones_like(losses) if mask_batch is None else mask_batch
        losses = losses * valid
        return {
            "summed": losses.sum(),
            "n_valid_examples": valid.sum(),
            "per_example": losses,
        }

    def measure(self, logits: spec.Tensor, batch: spec.Batch) -> dict[str, jax.Array]:
        """Returns the sums of losses and similarities, and the slices."""
        weights = batch["weights"]
        loss = self.loss_fn(batch["targets"], logits, weights)
        mean, std = batch["mean"][:, None, None], batch["std"][:, None, None]
        similarity = ssim(
            logits * std + mean, batch["targets"] * std + mean, batch["volume_max"]
        )
        return {
            "loss": loss["summed"],
            "ssim": (similarity * weights).sum(),
            "examples": loss["n_valid_examples"],
        }

    def trivial_logits(self, batch: spec.Batch) -> jax.Array:
        """Returns the input (B, H, W): unmeasured columns are taken as zeros."""
        return batch["inputs"]

    def metrics(self, measured: Mapping[str, Any]) -> dict[str, float]:
        """Returns the means 'loss', in standard deviations, and 'ssim'."""
        return {
            "loss": measured["loss"] / measured["examples"],
            "ssim": measured["ssim"] / measured["examples"],
        }


FULL = FastMRI(
    base_workload="fastmri",
    variant="fastmri",
    scale="full",
    model=UNet(),
    pipeline=data.read,
    data_source=data.DATA_SOURCE,
    input_shape=(data.IMAGE_SIZE, data.IMAGE_SIZE),
    input_dtype=jnp.float32,
    loss_type=spec.LossType.MEAN_ABSOLUTE_ERROR,
    target_metric_name="ssim",
    target_direction=Direction.MAXIMIZE,
    validation_target_value=0.723653,
    test_target_value=0.740633,
    num_train_examples=data.NUM_TRAIN,
    num_eval_train_examples=data.NUM_EVAL_TRAIN,
    num_validation_examples=data.NUM_VALIDATION,
    num_test_examples=data.NUM_TEST,
    default_batch_size=32,
    eval_batch_size=256,
    step_hint=18_094,
    eval_period_time_sec=80.0,
    max_allowed_runtime_sec=4_430.0,
    published_budgets_sec={"0.5": 8_859.0, "0.6": 4_430.0},
    published_step_sec={"8x A100": 0.277},
    train_mean=0.0,
    train_stddev=1.0,
    output_params=("head",),
)

MINI = FastMRI(
    base_workload="fastmri",
    variant="fastmri",
    scale="mini",
    model=UNet(channels=8, num_pools=3),
    pipeline=brains.read,
    input_shape=(brains.IMAGE_SIZE, brains.IMAGE_SIZE),
    input_dtype=jnp.float32,
    loss_type=spec.LossType.MEAN_ABSOLUTE_ERROR,
    target_metric_name="ssim",
    target_direction=Direction.MAXIMIZE,
    validation_target_value=0.7349,
    test_target_value=0.7239,
    num_train_examples=brains.NUM_TRAIN,
    num_eval_train_examples=brains.NUM_EVAL_TRAIN,
    num_validation_examples=brains.NUM_VALIDATION,
    num_test_examples=brains.NUM_TEST,
    default_batch_size=8,
    max_batch_size=32,
    eval_batch_size=16,
    step_hint=1280,
    eval_period_steps=80,
    max_allowed_runtime_sec=63.0,
    train_mean=0.0,
    train_stddev=1.0,
    output_params=("head",),
)

WORKLOADS: tuple[Workload, ...] = (
    FULL,
    variant(FULL, "fastmri_model_size", (0.723559, 0.740726), channels=64, num_pools=3),
    variant(FULL, "fastmri_tanh", (0.71784, 0.734505), activation=nn.tanh),
    variant(FULL, "fastmri_layernorm", (0.723284, 0.739996), layer_norm=True),
    MINI,
    variant(MINI, "fastmri_model_size", (0.7514, 0.7443), channels=16, num_pools=2),
    variant(MINI, "fastmri_tanh", (0.6142, 0.6195), activation=nn.tanh),
    variant(MINI, "fastmri_layernorm", (0.7323, 0.723), layer_norm=True),
)
