"""A first token sooner: a small model reads the prompt, its cache becomes the large's.

KV prediction (Horton et al. 2024, arXiv:2410.08391): an auxiliary model reads the
prompt; a linear map for each layer of the base model predicts that layer's keys and
values from those of an auxiliary layer; the base model then goes on with the predicted
cache as with its own. What is gained is time to the first token, what is lost is
quality, and both are measured here.

Keys are predicted before norm and rotation, which the base model then applies: a linear
map that is one for all positions cannot turn keys of one rotation into those of
another.

Dimension key: B batch, T tokens, P prompt, S capacity, V vocabulary, E features of all
keys of a layer (heads x width of a head).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from algoperf.errors import UserError
from algoperf.inference.decoding import fitting, speculative
from algoperf.inference.models import decoder, layers
from algoperf.inference.models.decoder import Model
from algoperf.inference.models.shapes import DecoderShape

Maps = list[dict[str, Any]]  # for each layer of the base: 'key' and 'value'


@dataclasses.dataclass(frozen=True)
class Settings:
    """How maps and auxiliary model are trained; the base model stays as it is.

    The loss is the sum of three, as in the paper, each with a weight:

    Attributes:
      base_weight: of the base model's loss on what follows, from the predicted cache.
      auxiliary_weight: of the auxiliary model's own loss, so that it stays one.
      consistency_weight: of the mean squared error of keys and values.
      num_steps: of training.
      learning_rate: the highest.
    """

    base_weight: float = 1.0
    auxiliary_weight: float = 0.5
    consistency_weight: float = 1.0
    num_steps: int = 300
    learning_rate: float = 3e-3


def source_layer(layer: int, auxiliary: DecoderShape, base: DecoderShape) -> int:
    """Returns the auxiliary layer from which a base layer is predicted."""
    return layer * auxiliary.num_layers // base.num_layers


def init_maps(auxiliary: DecoderShape, base: DecoderShape, key: jax.Array) -> Maps:
    """Returns random maps, kernels (E of the auxiliary, E of the base)."""
    inside, outside = (s.kv_heads * s.head_width for s in (auxiliary, base))

    def dense(key: jax.Array) -> dict[str, jax.Array]:
        return {"kernel": jax.random.normal(key, (inside, outside)) / inside**0.5}

    keys = jax.random.split(key, 2 * base.num_layers)
    return [
        {"key": dense(keys[2 * i]), "value": dense(keys[2 * i + 1])}
        for i in range(base.num_layers)
    ]


def identity_maps(shape: DecoderShape) -> Maps:
    """Returns maps that predict a model's cache from its own, exactly."""
    eye = jnp.eye(shape.kv_heads * shape.head_width)
    one = {"key": {"kernel": eye}, "value": {"kernel": eye}}
    return [one for _ in range(shape.num_layers)]


def predicted_cache(
    auxiliary: Model, base: Model, maps: Maps, tokens_BP: jax.Array, capacity: int
) -> decoder.Cache:
    """Returns the base model's cache of a prompt that it has not read.

    Args:
      auxiliary: reads the prompt.
      base: its norms and positions are used, its blocks are not.
      maps: of each base layer.
      tokens_BP: int32.
      capacity: S >= P.
    """
    positions_P = jnp.arange(tokens_BP.shape[1])
    read = decoder.attention_inputs(*auxiliary, tokens_BP)
    cache = decoder.empty_cache(
        base.shape, tokens_BP.shape[0], capacity, base.params["embedding"].dtype
    )
    filled: decoder.Cache = []
    for i, (keys, values) in enumerate(cache):
        source = source_layer(i, auxiliary.shape, base.shape)
        k_BPE, v_BPE = (
            layers.dense(auxiliary.params["layers"][source][name], read[source])
            for name in ("key", "value")
        )
        k_NPK, v_NPK = layers.placed_keys_values(
            base.shape,
            base.params["layers"][i],
            layers.dense(maps[i]["key"], k_BPE),
            layers.dense(maps[i]["value"], v_BPE),
            positions_P,
        )
        filled.append(
            (decoder.written(keys, k_NPK, 0), decoder.written(values, v_NPK, 0))
        )
    return filled


def prefill(
    auxiliary_shape: DecoderShape,
    base_shape: DecoderShape,
    auxiliary_params: decoder.Params,
    base_params: decoder.Params,
    maps: Maps,
    tokens_BP: jax.Array,
    capacity: int,
) -> tuple[jax.Array, decoder.Cache]:
    """Reads a prompt: the small model all but its last token, the base model that.

    Args:
      auxiliary_shape: of the small model.
      base_shape: of the base model.
      auxiliary_params: of the small model.
      base_params: of the base model.
      maps: of each base layer.
      tokens_BP: int32, P at least 2.
      capacity: of the cache, S >= P.

    Returns:
      the base model's logits (B, V) after the prompt, float32, and its cache.
    """
    last = tokens_BP.shape[1] - 1
    base = Model(base_shape, base_params)
    cache = predicted_cache(
        Model(auxiliary_shape, auxiliary_params),
        base,
        maps,
        tokens_BP[:, :last],
        capacity,
    )
    logits_B1V, cache = decoder.extend(*base, tokens_BP[:, last:], last, cache)
    return logits_B1V[:, 0], cache


def own_prefill(
    shape: DecoderShape, params: decoder.Params, tokens_BP: jax.Array, capacity: int
) -> tuple[jax.Array, decoder.Cache]:
    """Returns the same of a model that reads its prompt itself, to compare with."""
    dtype = params["embedding"].dtype
    cache = decoder.empty_cache(shape, tokens_BP.shape[0], capacity, dtype)
    return decoder.prefill(shape, params, tokens_BP, tokens_BP.shape[1], cache)


compiled_prefill = jax.jit(prefill, static_argnums=(0, 1, 6))
compiled_own_prefill = jax.jit(own_prefill, static_argnums=(0, 3))


def generate(
    auxiliary: Model,
    base: Model,
    maps: Maps,
    prompt_BP: jax.Array,
    num_tokens: int,
    temperature: float = 0.0,
    key: jax.Array | None = None,
) -> jax.Array:
    """Returns num_tokens new tokens (B, num_tokens), int32, from a predicted cache.

    Raises:
      UserError: the vocabularies differ, the prompt has one token, or the request does
        not fit a model.
    """
    check_prompt(auxiliary.shape, base.shape, prompt_BP.shape[1], num_tokens)
    prompt = prompt_BP.shape[1]
    logits_BV, cache = compiled_prefill(
        auxiliary.shape,
        base.shape,
        auxiliary.params,
        base.params,
        maps,
        prompt_BP,
        decoder.capacity_for(prompt + num_tokens),
    )
    tokens_BS, _, _ = decoder.compiled_decode(
        *base,
        logits_BV,
        prompt,
        cache,
        num_tokens,
        jax.random.key(0) if key is None else key,
        temperature=temperature,
    )
    return tokens_BS[:, :num_tokens]


def check_prompt(
    auxiliary: DecoderShape, base: DecoderShape, prompt: int, num_tokens: int
) -> None:
    """Raises UserError unless both models can take the request."""
    speculative.check_pair(base, auxiliary)
    if prompt < 2 or num_tokens < 1:
        raise UserError(
            f"a prompt of {prompt} tokens and an output of {num_tokens}: predicting a "
            "cache needs a prompt of two tokens and an output of one"
        )
    decoder.check_lengths(base, prompt, num_tokens)
    decoder.check_lengths(auxiliary, prompt, 1)


def continuation_loss(
    base: Model, cache: decoder.Cache, tokens_BT: jax.Array, prompt: int
) -> jax.Array:
    """Returns the base model's mean loss, in nats, on tokens after the prompt.

    Args:
      base: the model.
      cache: of all tokens of the prompt but the last, S >= T.
      tokens_BT: int32.
      prompt: P.
    """
    logits_BTV, _ = decoder.extend(
        *base, tokens_BT[:, prompt - 1 : -1], prompt - 1, cache
    )
    chosen = optax.softmax_cross_entropy_with_integer_labels(
        logits_BTV, tokens_BT[:, prompt:]
    )
    return jnp.mean(chosen)


def own_cache(base: Model, tokens_BT: jax.Array, prompt: int) -> decoder.Cache:
    """Returns the cache that the base model makes itself of all but the last token."""
    batch, length = tokens_BT.shape
    cache = decoder.empty_cache(
        base.shape, batch, length, base.params["embedding"].dtype
    )
    return decoder.prefill(*base, tokens_BT[:, : prompt - 1], prompt - 1, cache)[1]


def train(
    auxiliary: Model,
    base: Model,
    batch_at: Callable[[int], np.ndarray],
    prompt: int,
    settings: Settings,
    key: jax.Array,
) -> tuple[Model, Maps, np.ndarray]:
    """Returns the auxiliary model, the maps, and the loss of each step.

    Args:
      auxiliary: where it begins; it is trained along.
      base: stays as it is.
      batch_at: from the step to text (B, T), int32, T > P.
      prompt: P, at least 2.
      settings: of the training.
      key: of the maps' beginning.

    Raises:
      UserError: the prompt is too short.
    """
    check_prompt(auxiliary.shape, base.shape, prompt, 1)

    def loss(trained: Any, base_params: Any, tokens_BT: Any, key: Any) -> jax.Array:
        del key
        small = Model(auxiliary.shape, trained["auxiliary"])
        large = Model(base.shape, base_params)
        before = tokens_BT[:, : prompt - 1]
        found = predicted_cache(
            small, large, trained["maps"], before, tokens_BT.shape[1]
        )
        true = own_cache(large, tokens_BT, prompt)
        errors = [
            jnp.mean(jnp.square(a - b)[:, : prompt - 1])
            for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(true), strict=True)
        ]
        return (
            settings.base_weight * continuation_loss(large, found, tokens_BT, prompt)
            + settings.auxiliary_weight * fitting.next_token_loss(*small, tokens_BT)
            + settings.consistency_weight * jnp.mean(jnp.stack(errors))
        )

    begin = {
        "auxiliary": auxiliary.params,
        "maps": init_maps(auxiliary.shape, base.shape, key),
    }
    trained, losses = fitting.descend(
        loss,
        begin,
        base.params,
        lambda step, _: jnp.asarray(batch_at(step), jnp.int32),
        settings.num_steps,
        settings.learning_rate,
        key,
    )
    return Model(auxiliary.shape, trained["auxiliary"]), trained["maps"], losses


def quality(
    auxiliary: Model, base: Model, maps: Maps, tokens_BT: jax.Array, prompt: int
) -> dict[str, float]:
    """Returns losses in nats on tokens after the prompt: what prediction costs.

    'base': with its own cache; 'predicted': with the predicted one; 'auxiliary': of the
    small model by itself, the other way to a first token that soon; 'blind': of the
    base model that has seen but the prompt's last token.

    Args:
      auxiliary: the small model.
      base: the base model.
      maps: of each base layer.
      tokens_BT: int32, held out.
      prompt: P.
    """

    found = _losses(
        auxiliary.shape, base.shape, prompt, auxiliary.params, base.params, maps,
        tokens_BT,
    )  # fmt: skip
    return {name: float(value) for name, value in found.items()}


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _losses(
    auxiliary_shape: DecoderShape,
    base_shape: DecoderShape,
    prompt: int,
    auxiliary_params: decoder.Params,
    base_params: decoder.Params,
    maps: Maps,
    tokens_BT: jax.Array,
) -> dict[str, jax.Array]:
    small, large = (
        Model(auxiliary_shape, auxiliary_params),
        Model(base_shape, base_params),
    )
    read, length = tokens_BT[:, : prompt - 1], tokens_BT.shape[1]
    predicted = predicted_cache(small, large, maps, read, length)
    of_small, of_large = (own_cache(m, tokens_BT, prompt) for m in (small, large))
    seen = tokens_BT[:, prompt - 1 :]
    return {
        "base": continuation_loss(large, of_large, tokens_BT, prompt),
        "predicted": continuation_loss(large, predicted, tokens_BT, prompt),
        "auxiliary": continuation_loss(small, of_small, tokens_BT, prompt),
        "blind": fitting.next_token_loss(large.shape, large.params, seen),
    }
