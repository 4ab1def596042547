"""Gradient descent for the small models that decoding strategies need.

A few hundred steps of Adam on a draft, a head or a linear map, so that a strategy can
be measured with trained parts. Training algorithms are compared elsewhere.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from algoperf.errors import UserError
from algoperf.inference.models import decoder
from algoperf.inference.models.shapes import DecoderShape

# (what is trained, what stays, batch, key) -> loss
Loss = Callable[[Any, Any, Any, jax.Array], jax.Array]
MOST_GRADIENT = 1.0
WARM_UP_SHARE = 0.1


def descend(
    loss: Loss,
    params: Any,
    constants: Any,
    batch_at: Callable[[int, Any], Any],
    num_steps: int,
    learning_rate: float,
    key: jax.Array,
) -> tuple[Any, np.ndarray]:
    """Returns trained parameters and the loss of each step (num_steps,).

    Adam with gradients of norm 1 at most; the rate rises over a tenth of the steps and
    falls to 0 along a cosine.

    Args:
      loss: of (params, constants, batch, key); compiled once.
      params: where to begin; not changed.
      constants: what the loss also reads, such as the weights of a target.
      batch_at: from the step, 0 first, and the parameters so far to a batch, so that
        data may come from the model in training.
      num_steps: at least 1.
      learning_rate: the highest.
      key: for the loss.

    Raises:
      UserError: no steps, or a loss that is not finite.
    """
    if num_steps < 1:
        raise UserError(f"{num_steps} steps train nothing; take at least 1")
    rates = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, max(1, int(WARM_UP_SHARE * num_steps)), num_steps + 1
    )
    adam = optax.chain(optax.clip_by_global_norm(MOST_GRADIENT), optax.adam(rates))

    @jax.jit
    def step(params: Any, state: Any, batch: Any, key: jax.Array) -> Any:
        value, gradient = jax.value_and_grad(loss)(params, constants, batch, key)
        updates, state = adam.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    state, values = adam.init(params), []
    for number in range(num_steps):
        batch = batch_at(number, params)
        params, state, value = step(
            params, state, batch, jax.random.fold_in(key, number)
        )
        values.append(value)
    losses = np.asarray(jnp.stack(values))
    if not np.isfinite(losses).all():
        raise UserError(
            f"the loss is not finite after {int(np.argmin(np.isfinite(losses))) + 1} "
            f"steps; take a learning rate below {learning_rate:g}"
        )
    return params, losses


def next_token_loss(
    shape: DecoderShape, params: decoder.Params, tokens_BT: jax.Array
) -> jax.Array:
    """Returns the mean cross-entropy, in nats, of tokens 1, 2, ... after those before.

    Args:
      shape: the model's.
      params: its weights.
      tokens_BT: int32.
    """
    logits_BTV = decoder.forward(shape, params, tokens_BT[:, :-1])
    chosen = optax.softmax_cross_entropy_with_integer_labels(
        logits_BTV, tokens_BT[:, 1:]
    )
    return jnp.mean(chosen)


def train_decoder(
    model: decoder.Model,
    batch_at: Callable[[int], np.ndarray],
    num_steps: int,
    learning_rate: float = 3e-3,
) -> tuple[decoder.Model, np.ndarray]:
    """Returns a language model and the loss of each step.

    Args:
      model: where to begin.
      batch_at: from the step to tokens (B, T), int32.
      num_steps: at least 1.
      learning_rate: the highest.
    """

    def loss(params: Any, constants: Any, tokens_BT: Any, key: Any) -> jax.Array:
        del constants, key
        return next_token_loss(model.shape, params, tokens_BT)

    params, losses = descend(
        loss,
        model.params,
        None,
        lambda step, _: jnp.asarray(batch_at(step), jnp.int32),
        num_steps,
        learning_rate,
        jax.random.key(0),
    )
    return decoder.Model(model.shape, params), losses


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def sample(
    shape: DecoderShape,
    params: decoder.Params,
    prompts_BP: jax.Array,
    num_tokens: int,
    temperature: float,
    key: jax.Array,
) -> jax.Array:
    """Returns prompts with what the model writes after them (B, P + num_tokens)."""
    batch, prompt = prompts_BP.shape
    dtype = params["embedding"].dtype
    cache = decoder.empty_cache(shape, batch, prompt + num_tokens, dtype)
    logits_BV, cache = decoder.prefill(shape, params, prompts_BP, prompt, cache)
    tokens_BS, _, _ = decoder.decode(
        shape, params, logits_BV, prompt, cache, num_tokens, key, temperature
    )
    return jnp.concatenate([prompts_BP, tokens_BS[:, :num_tokens]], axis=1)
