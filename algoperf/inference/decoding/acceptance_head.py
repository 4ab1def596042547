"""A head on the draft that foresees whether the target will keep a guess.

SpecDec++ (Huang et al. 2024, arXiv:2405.19715): after the draft has read a guess, a
small residual network on its last hidden state says how likely the target is to accept
that guess. The product over a round's guesses decides when to stop guessing; see
`algoperf.inference.decoding.speculative`.

Dimension key: B batch, T tokens, D width of the draft, V vocabulary.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from algoperf.errors import UserError
from algoperf.inference.decoding import fitting
from algoperf.inference.models import decoder
from algoperf.inference.models.decoder import Model

Head = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a head is trained. The defaults of the first three are the paper's choice.

    Attributes:
      blocks: residual blocks, x + SiLU(W x + b).
      rejection_weight: w, of rejections in the loss; the draft is mostly right.
      target_share: of the tokens that the draft reads in training, how many are the
        target's; the others are its own guesses.
      temperature: of both models; as it will be used.
      num_steps: of training.
      batch_size: texts of a step.
      learning_rate: the highest.
    """

    blocks: int = 3
    rejection_weight: float = 6.0
    target_share: float = 0.15
    temperature: float = 1.0
    num_steps: int = 300
    batch_size: int = 16
    learning_rate: float = 2e-3

    def __post_init__(self) -> None:
        if not (self.rejection_weight > 0 and 0 <= self.target_share < 1):
            raise UserError(
                f"rejection weight {self.rejection_weight} must be above 0 and the "
                f"target's share {self.target_share} within [0, 1)"
            )


def init(width: int, blocks: int, key: jax.Array) -> Head:
    """Returns a head for hidden states (..., D): small random weights, zero biases."""
    keys = jax.random.split(key, blocks + 1)

    def dense(key: jax.Array, outside: int) -> dict[str, jax.Array]:
        kernel = jax.random.normal(key, (width, outside)) / width**0.5
        return {"kernel": kernel, "bias": jnp.zeros(outside)}

    return {
        "blocks": [dense(k, width) for k in keys[:-1]],
        "out": dense(keys[-1], 1),
    }


def logit(head: Head, hidden: jax.Array) -> jax.Array:
    """Returns log(a / (1 - a)) of the predicted acceptance a, (...), from (..., D).

    The released head has two outputs and a softmax, of which only the difference
    counts; this is that difference.
    """
    x = hidden.astype(jnp.float32)
    for block in head["blocks"]:
        x = x + jax.nn.silu(x @ block["kernel"] + block["bias"])
    return (x @ head["out"]["kernel"] + head["out"]["bias"])[..., 0]


def probability(head: Head, hidden: jax.Array) -> jax.Array:
    """Returns the predicted acceptance (...) of the token that was read last."""
    return jax.nn.sigmoid(logit(head, hidden))


def loss(
    logits: jax.Array, accepted: jax.Array, counts: jax.Array, rejection_weight: float
) -> jax.Array:
    """Returns the weighted cross-entropy of predicted and true acceptance.

    sum c (-a log s - w (1 - a) log(1 - s)) / sum c (a + w (1 - a)), s the sigmoid of
    the logits (arXiv:2405.19715, section 3.2, normalised as in the released code). Its
    minimum is at s = a / (a + w (1 - a)): with w > 1 rejection is feared more than it
    is likely.

    Args:
      logits: (...).
      accepted: a, probabilities of acceptance, (...).
      counts: c, 1 where a token counts, else 0.
      rejection_weight: w.
    """
    rejected = rejection_weight * (1 - accepted)
    terms = -accepted * jax.nn.log_sigmoid(logits)
    terms -= rejected * jax.nn.log_sigmoid(-logits)
    return jnp.sum(counts * terms) / jnp.sum(counts * (accepted + rejected))


def examples(
    target: Model,
    draft: Model,
    texts_BT: jax.Array,
    prompt: int,
    settings: Settings,
    key: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns what a head learns from: hidden states, acceptances, what counts.

    After every prefix of the target's text the draft makes a guess y, which is accepted
    with probability min(1, p(y) / q(y)). The draft then reads its guesses, with a share
    of the target's tokens put in their place, which do not count.

    Args:
      target: the model that wrote the texts.
      draft: the model whose guesses count.
      texts_BT: int32, prompts and what the target wrote after them.
      prompt: tokens of the prompts; at least 1.
      settings: the share of the target's tokens and the temperature.
      key: for the guesses.

    Returns:
      hidden (B, T, D), accepted (B, T), counts (B, T), all float32.
    """
    guess_key, mix_key = jax.random.split(key)
    before = texts_BT[:, :-1]
    p_BTV, q_logits_BTV = (
        decoder.forward(model.shape, model.params, before) for model in (target, draft)
    )
    p_BTV, q_BTV = (
        decoder.probabilities(logits, settings.temperature)
        for logits in (p_BTV, q_logits_BTV)
    )
    guesses = decoder.choose(
        q_logits_BTV.reshape(-1, q_BTV.shape[-1]), guess_key, settings.temperature
    ).reshape(before.shape)
    p, q = (
        jnp.take_along_axis(x, guesses[..., None], axis=-1)[..., 0]
        for x in (p_BTV, q_BTV)
    )
    accepted = jnp.minimum(1.0, p / q)
    is_new = jnp.arange(1, texts_BT.shape[1]) >= prompt
    is_own = jax.random.uniform(mix_key, before.shape) >= settings.target_share
    counts = (is_own & is_new).astype(jnp.float32)
    read = jnp.where(counts > 0, guesses, texts_BT[:, 1:])
    read_BT = jnp.concatenate([texts_BT[:, :1], read], axis=1)
    x_BTD = decoder.forward_hidden(draft.shape, draft.params, read_BT)
    hidden_BTD = decoder.final_hidden(draft.shape, draft.params, x_BTD)
    first = ((0, 0), (1, 0))  # nothing is known of the first token
    return hidden_BTD, jnp.pad(accepted, first), jnp.pad(counts, first)


def train(
    target: Model,
    draft: Model,
    texts: np.ndarray,
    prompt: int,
    settings: Settings,
    key: jax.Array,
) -> tuple[Head, np.ndarray]:
    """Returns a head for the draft and the loss of each step.

    Args:
      target: the model that wrote the texts.
      draft: stays as it is.
      texts: (N, T) tokens, prompts and what the target wrote after them.
      prompt: tokens of the prompts.
      settings: of the head and its training.
      key: for weights, batches and guesses.

    Raises:
      UserError: the texts are no longer than their prompts.
    """
    if not 1 <= prompt < texts.shape[1]:
        raise UserError(
            f"texts of {texts.shape[1]} tokens with prompts of {prompt} leave a head "
            "nothing to learn from; give longer texts"
        )
    init_key, rows_key, loss_key = jax.random.split(key, 3)
    rows = np.random.default_rng(np.asarray(jax.random.key_data(rows_key)))

    def step_loss(head: Head, models: Any, texts_BT: Any, key: Any) -> jax.Array:
        target_params, draft_params = models
        hidden, accepted, counts = examples(
            Model(target.shape, target_params),
            Model(draft.shape, draft_params),
            texts_BT,
            prompt,
            settings,
            key,
        )
        return loss(logit(head, hidden), accepted, counts, settings.rejection_weight)

    def batch_at(step: int, head: Head) -> jax.Array:
        del step, head
        chosen = rows.integers(len(texts), size=settings.batch_size)
        return jnp.asarray(texts[chosen], jnp.int32)

    return fitting.descend(
        step_loss,
        init(draft.shape.width, settings.blocks, init_key),
        (target.params, draft.params),
        batch_at,
        settings.num_steps,
        settings.learning_rate,
        loss_key,
    )
