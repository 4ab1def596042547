"""What the speech recognition families share: loss, decoding, word error rate.

Dimension key: B batch, S samples, T frames, L tokens of a transcript, V vocabulary.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from algoperf import spec
from algoperf.workload import Workload

BLANK = 0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SpeechRecognition(Workload):
    """Transcribe utterances; a batch is described at `librispeech.pipeline`.

    The model is called with audio (B, S) and paddings (B, S), and returns logits
    (B, T, V) and paddings (B, T); the token 0 is the blank.
    """

    vocabulary: Callable[[Path | None], Any]  # has decode(lists of ids) -> texts

    def example_batch(self) -> spec.Batch:
        """Returns a silent batch."""
        audio = jnp.zeros((1, *self.input_shape), self.input_dtype)
        return {"inputs": (audio, jnp.zeros(audio.shape, jnp.uint8))}

    def model_inputs(self, batch: spec.Batch) -> tuple[Any, ...]:
        """Returns audio and paddings."""
        return batch["inputs"]

    def loss_fn(
        self,
        label_batch: Any,
        logits_batch: Any,
        mask_batch: spec.Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> dict[str, spec.Tensor]:
        """CTC loss in nats (Graves et al. 2006); 'n_valid_examples' counts tokens.

        Args:
          label_batch: tokens (B, L) and their paddings (B, L), 1 on padding.
          logits_batch: (B, T, V) and paddings (B, T).
          mask_batch: (B,) 0 for utterances that do not count.
          label_smoothing: has no meaning here and is ignored, as published.
        """
        del label_smoothing
        targets_BL, target_paddings_BL = label_batch
        logits_BTV, paddings_BT = logits_batch
        losses_B = optax.ctc_loss(
            logits_BTV, paddings_BT, targets_BL, target_paddings_BL, blank_id=BLANK
        )
        tokens_B = (1 - target_paddings_BL).sum(axis=1)
        if mask_batch is not None:
            # An utterance that does not count may well have an infinite loss.
            losses_B = jnp.where(mask_batch > 0, losses_B, 0) * mask_batch
            tokens_B = tokens_B * mask_batch
        return {
            "summed": losses_B.sum(),
            "n_valid_examples": jnp.maximum(tokens_B.sum(), 1),
            "per_example": losses_B,
        }

    def measure(self, logits: Any, batch: spec.Batch) -> dict[str, jax.Array]:
        """Returns sums of losses and tokens, and what was heard and said, 0 between."""
        weights_B = batch["weights"]
        targets_BL, target_paddings_BL = batch["targets"]
        loss = self.loss_fn(batch["targets"], logits, weights_B)
        is_token = (target_paddings_BL == 0) & (weights_B > 0)[:, None]
        return {
            "loss": loss["summed"],
            "tokens": loss["n_valid_examples"],
            "heard": greedy_decode(*logits),
            "said": jnp.where(is_token, targets_BL, BLANK),
        }

    def trivial_logits(self, batch: spec.Batch) -> Any:
        """Returns logits and paddings of a model that hears nothing."""
        logits_BTV, paddings_BT = super().trivial_logits(batch)
        return logits_BTV.at[..., BLANK].set(10.0), paddings_BT

    def metrics(self, measured: Mapping[str, Any]) -> dict[str, float]:
        """Returns 'loss' per token, 'wer', and 'official_wer' (see `official_text`)."""
        said, heard = np.asarray(measured["said"]), np.asarray(measured["heard"])
        is_real = (said != BLANK).any(axis=1)
        vocabulary = self.vocabulary(self.data.folder)
        references, texts = (
            vocabulary.decode([row[row != BLANK].tolist() for row in rows[is_real]])
            for rows in (said, heard)
        )
        return {
            "loss": measured["loss"] / measured["tokens"],
            "wer": word_error_rate(references, texts),
            "official_wer": word_error_rate(
                [official_text(t) for t in references],
                [official_text(t) for t in texts],
            ),
        }


def greedy_decode(logits_BTV: jax.Array, paddings_BT: jax.Array) -> jax.Array:
    """Returns the most probable token of each frame (B, T), repeated ones once.

    A token counts where it differs from the frame before; BLANK elsewhere, and on
    padding.
    """
    best_BT = logits_BTV.argmax(axis=-1).astype(jnp.int32)
    before_BT = jnp.pad(best_BT, ((0, 0), (1, 0)), constant_values=BLANK)[:, :-1]
    counts_BT = (best_BT != before_BT) & (paddings_BT == 0)
    return jnp.where(counts_BT, best_BT, BLANK)


def word_error_rate(references: Sequence[str], texts: Sequence[str]) -> float:
    """Returns the edits from texts to references, per word of the references.

    Raises:
      ValueError: the references have no word.
    """
    pairs = [(r.split(), t.split()) for r, t in zip(references, texts, strict=True)]
    words = sum(len(reference) for reference, _ in pairs)
    if not words:
        raise ValueError("the references have no word")
    return sum(edit_distance(*pair) for pair in pairs) / words


def edit_distance(one: Sequence[str], other: Sequence[str]) -> int:
    """Returns how many words to insert, delete or replace (Levenshtein 1966)."""
    row = list(range(len(other) + 1))
    for i, word in enumerate(one, start=1):
        diagonal, row[0] = row[0], i
        for j, wanted in enumerate(other, start=1):
            replaced = diagonal + (word != wanted)
            diagonal = row[j]
            row[j] = min(row[j] + 1, row[j - 1] + 1, replaced)
    return row[-1]


def official_text(text: str) -> str:
    """Returns the words that the official code compares.

    It splits the printed form of a tensor, which adds two words that are always right,
    and glues quotes to the first and last word: the rate comes out too low by a factor
    of about n / (n + 2) for utterances of n words. The published targets are of this
    kind.
    """
    return f"tf.Tensor({text.encode()!r}, shape=(), dtype=string)"
