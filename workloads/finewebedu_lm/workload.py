"""FineWeb-Edu: predict the next token (MLCommons AlgoPerf workload finewebedu_lm)."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from algoperf import spec
from algoperf.data.apart import Probe
from algoperf.losses import softmax_cross_entropy
from algoperf.records import Direction
from algoperf.workload import Workload, derive
from workloads.finewebedu_lm import data, parts, prepare, probes
from workloads.finewebedu_lm.model import Decoder

UNIGRAM_BATCHES = 200  # that a predictor by frequency counts


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FinewebeduLM(Workload):
    """Predict the next token."""

    def loss_fn(
        self,
        label_batch: spec.Tensor,
        logits_batch: spec.Tensor,
        mask_batch: spec.Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> dict[str, spec.Tensor]:
        """Cross-entropy of the tokens (B, L), in nats; see `spec.Workload.loss_fn`."""
        return softmax_cross_entropy(
            label_batch, logits_batch, mask_batch, label_smoothing
        )

    def measure(self, logits: spec.Tensor, batch: spec.Batch) -> dict[str, jax.Array]:
        """Returns the sum of losses, and the tokens."""
        loss = self.loss_fn(batch["targets"], logits, batch["weights"])
        return {"loss": loss["summed"], "tokens": loss["n_valid_examples"]}

    @functools.cached_property
    def _token_counts(self) -> np.ndarray:
        """How often each token occurs in some training batches, at least once."""
        counts = np.ones(self.model.vocab_size)
        dataset = self.dataset("train", self.default_batch_size, seed=0)
        for position in range(UNIGRAM_BATCHES):
            np.add.at(counts, dataset[position]["targets"], 1)
        return counts

    def trivial_logits(self, batch: spec.Batch) -> jax.Array:
        """Returns the logarithms of how often tokens occur (B, L, tokens)."""
        logits = jnp.log(self._token_counts)
        return jnp.broadcast_to(logits, (*batch["targets"].shape, len(logits)))

    def by_domain(self) -> dict[str, Workload]:
        """Returns the workload on each part of the Bible; see `parts`.

        None at full scale, whose text is not told apart.
        """
        if self.pipeline is not data.king_james:
            return {}
        return {
            part: derive(
                self,
                variant=f"{self.variant}_{part}",
                pipeline=functools.partial(parts.pipeline, part),
                **parts.counts(part),
            )
            for part in parts.NAMES
        }

    def probes(self) -> dict[str, Probe]:
        """Returns tests of knowledge and of rules; see `probes`. None at full scale."""
        return probes.probes() if self.pipeline is data.king_james else {}

    def metrics(self, measured: Mapping[str, Any]) -> dict[str, float]:
        """Returns 'loss' per token and perplexity 'ppl' = exp(loss)."""
        loss = measured["loss"] / measured["tokens"]
        with np.errstate(over="ignore"):
            return {"loss": loss, "ppl": float(np.exp(loss))}


MINI = FinewebeduLM(
    base_workload="finewebedu_lm",
    variant="finewebedu_lm",
    scale="mini",
    model=Decoder(
        vocab_size=data.VOCAB_SIZE,
        num_layers=2,
        width=96,
        num_heads=3,
        mlp_width=192,
        max_length=data.SEQUENCE_LENGTH,
    ),
    pipeline=data.king_james,
    input_shape=(data.SEQUENCE_LENGTH,),
    input_dtype=jnp.int32,
    loss_type=spec.LossType.SOFTMAX_CROSS_ENTROPY,
    target_metric_name="ppl",
    target_direction=Direction.MINIMIZE,
    validation_target_value=25.68,
    test_target_value=25.91,
    num_train_examples=data.NUM_TRAIN,
    num_eval_train_examples=data.NUM_EVAL_TRAIN,
    num_validation_examples=data.NUM_VALIDATION,
    num_test_examples=data.NUM_TEST,
    default_batch_size=16,
    max_batch_size=32,
    eval_batch_size=32,
    step_hint=2000,
    eval_period_steps=100,
    max_allowed_runtime_sec=61.0,
)

# The published target is that of the scoring of version 0.6; the code of the benchmark
# says 22.432. There is no test split.
FULL = FinewebeduLM(
    base_workload="finewebedu_lm",
    variant="finewebedu_lm",
    scale="full",
    model=Decoder(dtype=jnp.bfloat16),
    pipeline=data.fineweb_edu,
    data_source=data.DATA_SOURCE,
    input_shape=(prepare.SEQUENCE_LENGTH,),
    input_dtype=jnp.int32,
    loss_type=spec.LossType.SOFTMAX_CROSS_ENTROPY,
    target_metric_name="ppl",
    target_direction=Direction.MINIMIZE,
    validation_target_value=22.2995,
    test_target_value=None,
    num_train_examples=prepare.NUM_TRAIN,
    num_eval_train_examples=data.FULL_NUM_EVAL_TRAIN,
    num_validation_examples=prepare.NUM_VALIDATION,
    num_test_examples=0,
    default_batch_size=64,
    eval_batch_size=256,
    step_hint=72_000,
    eval_period_time_sec=2_571.0,
    max_allowed_runtime_sec=31_967.0,
    published_budgets_sec={"0.6": 31_967.0},
    published_step_sec={"8x A100": 0.448},
)

WORKLOADS: tuple[Workload, ...] = (FULL, MINI)
