"""Distil a draft from its target, so that more of its guesses are accepted.

DistillSpec (Zhou et al. 2023, arXiv:2310.08461): the draft learns the target's
distribution of the next token, under a divergence of choice, on text that the draft
writes itself, on given text, or on some of both. A guess is accepted with probability
1 - TVD(p, q), so that the total variation distance that falls is the acceptance that
rises.

Dimension key: B batch, T tokens, P prompt, V vocabulary.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from algoperf.errors import UserError, unknown_name
from algoperf.inference.decoding import fitting
from algoperf.inference.models import decoder
from algoperf.inference.models.decoder import Model

DIVERGENCES = ("forward_kl", "reverse_kl", "jensen_shannon", "total_variation")


def divergence(
    name: str, target: jax.Array, draft: jax.Array, beta: float = 0.5
) -> jax.Array:
    """Returns the divergence of p, the target's, and q, the draft's, in nats, (...).

    forward_kl: sum p log(p / q). reverse_kl: sum q log(q / p). jensen_shannon:
    b KL(p, m) + (1 - b) KL(q, m) with m = b p + (1 - b) q (arXiv:2306.13649, section
    2). total_variation: sum |p - q| / 2.

    Args:
      name: one of `DIVERGENCES`.
      target: logits (..., V).
      draft: logits (..., V).
      beta: b of jensen_shannon, in (0, 1).

    Raises:
      UserError: an unknown name, or a beta outside (0, 1).
    """
    log_p, log_q = (jax.nn.log_softmax(x, axis=-1) for x in (target, draft))
    if name == "forward_kl":
        return _kl(log_p, log_q)
    if name == "reverse_kl":
        return _kl(log_q, log_p)
    if name == "total_variation":
        return jnp.sum(jnp.abs(jnp.exp(log_p) - jnp.exp(log_q)), axis=-1) / 2
    if name != "jensen_shannon":
        raise unknown_name("divergence", name, DIVERGENCES)
    if not 0 < beta < 1:
        raise UserError(f"beta {beta} of jensen_shannon must be within (0, 1)")
    log_m = jnp.logaddexp(jnp.log(beta) + log_p, jnp.log(1 - beta) + log_q)
    return beta * _kl(log_p, log_m) + (1 - beta) * _kl(log_q, log_m)


def _kl(log_a: jax.Array, log_b: jax.Array) -> jax.Array:
    return jnp.sum(jnp.exp(log_a) * (log_a - log_b), axis=-1)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a draft is distilled.

    Attributes:
      divergence: one of `DIVERGENCES`.
      beta: of jensen_shannon.
      on_policy: the share of steps on text that the draft, as it is then, writes after
        given prompts; the others take the given text.
      temperature: that the draft writes at.
      num_steps: of training.
      learning_rate: the highest.
    """

    divergence: str = "total_variation"
    beta: float = 0.5
    on_policy: float = 0.5
    temperature: float = 1.0
    num_steps: int = 300
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        if self.divergence not in DIVERGENCES:
            raise unknown_name("divergence", self.divergence, DIVERGENCES)
        if not (0 < self.beta < 1 and 0 <= self.on_policy <= 1):
            raise UserError(
                f"beta {self.beta} must be within (0, 1), the share on policy "
                f"{self.on_policy} within [0, 1]"
            )


def distil(
    target: Model,
    draft: Model,
    batch_at: Callable[[int], np.ndarray],
    prompt: int,
    settings: Settings,
    key: jax.Array,
) -> tuple[Model, np.ndarray]:
    """Returns the draft after training, and the divergence of each step.

    No gradient goes through the writing of text (arXiv:2310.08461, section 4).

    Args:
      target: stays as it is.
      draft: where to begin.
      batch_at: from the step to given text (B, T), int32.
      prompt: P, tokens of it that the draft writes after; tokens after them count.
      settings: of the training.
      key: for what the draft writes.

    Raises:
      UserError: no text after the prompt.
    """
    shape = draft.shape
    coin_key, text_key, loss_key = jax.random.split(key, 3)
    coins = np.random.default_rng(np.asarray(jax.random.key_data(coin_key)))

    def texts(step: int, params: decoder.Params) -> jax.Array:
        given_BT = jnp.asarray(batch_at(step), jnp.int32)
        further = given_BT.shape[1] - prompt
        if not (prompt >= 1 and further >= 1):
            raise UserError(
                f"texts of {given_BT.shape[1]} tokens with prompts of {prompt} leave "
                "nothing to learn from; give longer texts"
            )
        if coins.random() >= settings.on_policy:
            return given_BT
        return fitting.sample(
            shape,
            params,
            given_BT[:, :prompt],
            further,
            settings.temperature,
            jax.random.fold_in(text_key, step),
        )

    def loss(params: Any, target_params: Any, texts_BT: Any, key: Any) -> jax.Array:
        del key
        read_BT = texts_BT[:, :-1]
        logits = (
            decoder.forward(target.shape, target_params, read_BT),
            decoder.forward(shape, params, read_BT),
        )
        apart_BT = divergence(settings.divergence, *logits, settings.beta)
        return jnp.mean(apart_BT[:, prompt - 1 :])

    params, losses = fitting.descend(
        loss,
        draft.params,
        target.params,
        texts,
        settings.num_steps,
        settings.learning_rate,
        loss_key,
    )
    return Model(shape, params), losses
