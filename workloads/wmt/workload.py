"""WMT: translate German to English (MLCommons AlgoPerf workload wmt)."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from algoperf import spec
from algoperf.losses import softmax_cross_entropy
from algoperf.records import Direction
from algoperf.workload import Workload, variant
from workloads.wmt import bible, data
from workloads.wmt.beam_search import beam_search
from workloads.wmt.bleu import bleu
from workloads.wmt.model import Transformer

PACKED = (
    "inputs_position",
    "targets_position",
    "inputs_segmentation",
    "targets_segmentation",
)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Wmt(Workload):
    """Translate; a batch is described at `data.pipeline`.

    Evaluation translates by beam search, and compares the texts of the best sequences
    with those of the targets.
    """

    vocabulary: Callable[[Path | None], Any]  # has decode(lists of ids) -> texts
    num_beams: int = 4
    length_penalty: float = 0.6

    def example_batch(self) -> spec.Batch:
        """Returns a batch of one pair of padding."""
        return {name: jnp.zeros((1, 8), jnp.int32) for name in ("inputs", "targets")}

    def model_inputs(self, batch: spec.Batch) -> tuple[Any, ...]:
        """Returns source, target, and what tells the pairs of packed rows apart."""
        packed = (batch.get(name) for name in PACKED)
        return (batch["inputs"], batch["targets"], *packed)

    def loss_fn(
        self,
        label_batch: spec.Tensor,
        logits_batch: spec.Tensor,
        mask_batch: spec.Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> dict[str, spec.Tensor]:
        """Cross-entropy of the target tokens (B, T), in nats; padding never counts."""
        if mask_batch is None:
            mask_batch = (label_batch != data.PAD).astype(jnp.float32)
        return softmax_cross_entropy(
            label_batch, logits_batch, mask_batch, label_smoothing
        )

    def evaluation_step(
        self,
        params: spec.ParameterContainer,
        model_state: spec.ModelAuxiliaryState,
        batch: spec.Batch,
    ) -> dict[str, jax.Array]:
        """Returns what `measure` does, and the translations (B, T)."""
        measured = super().evaluation_step(params, model_state, batch)
        is_real = batch["weights"].any(axis=1)
        translations = self.translate(params, batch["inputs"], is_real)
        return {**measured, "translations": translations}

    def translate(
        self, params: spec.ParameterContainer, inputs: jax.Array, is_wanted: jax.Array
    ) -> jax.Array:
        """Returns the best sequences (B, S) that beam search finds for (B, S) ids.

        A translation is no longer than a row of sources, its end counted. Rows that are
        not wanted (B,) get some sequence.
        """
        model, variables = self.model, {"params": params}
        length = inputs.shape[1]
        encoded = model.apply(variables, inputs, method="encode")
        sources = model.apply(variables, encoded, method="sources")
        past = model.empty_past(len(inputs), length)
        state = jax.tree.map(
            lambda leaf: jnp.repeat(leaf, self.num_beams, axis=0), past
        )
        # The source is the same for all beams of a row and never reordered.
        sources, inputs = jax.tree.map(
            lambda leaf: jnp.repeat(leaf, self.num_beams, axis=0), (sources, inputs)
        )

        def next_logits(tokens, position, past):
            return model.apply(
                variables, tokens, position, past, sources, inputs, method="decode_one"
            )

        return beam_search(
            next_logits,
            state,
            is_wanted,
            num_beams=self.num_beams,
            alpha=self.length_penalty,
            end=data.END,
            max_length=length,
            pad=data.PAD,
        )

    def measure(self, logits: spec.Tensor, batch: spec.Batch) -> dict[str, jax.Array]:
        """Returns sums of losses, right tokens and tokens, and the targets (B, T)."""
        weights, targets = batch["weights"], batch["targets"]
        loss = self.loss_fn(targets, logits, weights)
        return {
            "loss": loss["summed"],
            "correct": ((logits.argmax(-1) == targets) * weights).sum(),
            "tokens": loss["n_valid_examples"],
            "targets": jnp.where(weights > 0, targets, data.PAD),
        }

    def trivial_measure(self, batch: spec.Batch) -> dict[str, jax.Array]:
        """Returns what `evaluation_step` does, for sources left untranslated."""
        measured = self.measure(self.trivial_logits(batch), batch)
        return {**measured, "translations": batch["inputs"]}

    def metrics(self, measured: Mapping[str, Any]) -> dict[str, float]:
        """Returns 'loss' and 'accuracy' per token, and 'bleu' of the translations."""
        targets = np.asarray(measured["targets"])
        is_real = (targets != data.PAD).any(axis=1)
        vocabulary = self.vocabulary(self.data.folder)
        references = _texts(vocabulary, targets[is_real])
        translations = np.asarray(measured["translations"])[is_real]
        return {
            "loss": measured["loss"] / measured["tokens"],
            "accuracy": measured["correct"] / measured["tokens"],
            "bleu": bleu(_texts(vocabulary, translations), references),
        }


def _texts(vocabulary: Any, rows: np.ndarray) -> list[str]:
    """Returns the texts of rows of ids (B, T), each up to its end."""
    has_ended = np.cumsum(rows == data.END, axis=1) > 0
    ids = [row[~ended].tolist() for row, ended in zip(rows, has_ended, strict=True)]
    return vocabulary.decode([[i for i in row if i != data.PAD] for row in ids])


FULL = Wmt(
    base_workload="wmt",
    variant="wmt",
    scale="full",
    model=Transformer(),
    vocabulary=data.load_vocabulary,
    pipeline=data.pipeline,
    data_source=data.DATA_SOURCE,
    input_shape=(data.MAX_LENGTH,),
    input_dtype=jnp.int32,
    loss_type=spec.LossType.SOFTMAX_CROSS_ENTROPY,
    target_metric_name="bleu",
    target_direction=Direction.MAXIMIZE,
    validation_target_value=30.8491,
    test_target_value=30.7219,
    num_train_examples=data.NUM_TRAIN,
    num_eval_train_examples=data.NUM_EVAL_TRAIN,
    num_validation_examples=data.NUM_VALIDATION,
    num_test_examples=data.NUM_TEST,
    default_batch_size=128,
    eval_batch_size=128,
    step_hint=120_000,
    eval_period_time_sec=840.0,
    max_allowed_runtime_sec=43_336.0,
    published_budgets_sec={"0.5": 48_151.0, "0.6": 43_336.0},
    published_step_sec={"8x A100": 0.139},
    default_dropout_rate=0.1,
    output_params=("shared",),
)

MINI = Wmt(
    base_workload="wmt",
    variant="wmt",
    scale="mini",
    model=Transformer(
        vocab_size=bible.VOCAB_SIZE,
        num_layers=2,
        width=96,
        num_heads=4,
        mlp_width=192,
        max_length=bible.ROW_LENGTH,
    ),
    vocabulary=bible.load_vocabulary,
    pipeline=bible.pipeline,
    input_shape=(bible.ROW_LENGTH,),
    input_dtype=jnp.int32,
    loss_type=spec.LossType.SOFTMAX_CROSS_ENTROPY,
    target_metric_name="bleu",
    target_direction=Direction.MAXIMIZE,
    validation_target_value=9.044,
    test_target_value=8.987,
    num_train_examples=bible.NUM_TRAIN,
    num_eval_train_examples=bible.NUM_EVAL_TRAIN,
    num_validation_examples=bible.NUM_VALIDATION,
    num_test_examples=bible.NUM_TEST,
    default_batch_size=8,
    eval_batch_size=32,
    step_hint=2160,
    eval_period_steps=135,
    max_allowed_runtime_sec=87.0,
    output_params=("shared",),
)

WORKLOADS: tuple[Workload, ...] = (
    FULL,
    variant(FULL, "wmt_post_ln", (30.0779, 29.8982), post_layer_norm=True),
    variant(FULL, "wmt_attention_temp", (29.3379, 29.4143), attention_temperature=4.0),
    variant(
        FULL, "wmt_glu_tanh", (29.5779, 29.0515), gated_mlp=True, activation=nn.tanh
    ),
    MINI,
    variant(MINI, "wmt_post_ln", (4.481, 2.664), post_layer_norm=True),
    variant(MINI, "wmt_attention_temp", (6.583, 5.981), attention_temperature=4.0),
    variant(MINI, "wmt_glu_tanh", (11.68, 10.68), gated_mlp=True, activation=nn.tanh),
)
