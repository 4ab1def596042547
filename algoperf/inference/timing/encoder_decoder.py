"""Encoder-decoder models: read a source, then decode with cached keys and values.

A model has a decode path if it has these methods (as `workloads/wmt` does):

    encode(inputs_BS) -> encoded_BSD
    sources(encoded_BSD) -> what the decoder's layers read of it
    empty_past(batch_size, length) -> the cache
    decode_one(tokens_B, position, past, sources, inputs_BS) -> logits_BV, past

T(p, o) = F(p) + g (o - 1) holds as for decoders: F(p) is the time to encode p source
tokens and to give the first output token.

Dimension key: B batch, S source tokens, T target tokens, D width, V vocabulary.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from algoperf.errors import UserError
from algoperf.inference.models.decoder import capacity_for
from algoperf.inference.timing.profiler import Measure, repeated

METHODS = ("encode", "sources", "empty_past", "decode_one")
START = 0  # what the decoder reads first
SOURCE_TOKEN = 1  # any that is no padding


def has_decode_path(model: Any) -> bool:
    """Whether a model encodes a source and decodes from it, token by token."""
    return all(hasattr(model, name) for name in METHODS)


def cached_logits(
    model: Any, params: Any, inputs_BS: jax.Array, targets_BT: jax.Array
) -> jax.Array:
    """Returns logits (B, T, V) of given targets, decoded one by one with the cache.

    They equal those of one pass over all targets.

    Args:
      model: with a decode path.
      params: its parameters.
      inputs_BS: ids of the source.
      targets_BT: ids, none of them padding.
    """
    decode, past = _decoding(model, params, inputs_BS, targets_BT.shape[1])

    def step(carry: Any, token_B: jax.Array) -> Any:
        read_B, position, past = carry
        logits_BV, past = decode(read_B, position, past)
        return (token_B, position + 1, past), logits_BV

    first = jnp.full(len(inputs_BS), START, jnp.int32), 0, past
    _, logits_TBV = jax.lax.scan(step, first, targets_BT.T)
    return jnp.swapaxes(logits_TBV, 0, 1)


def greedy(
    model: Any, params: Any, inputs_BS: jax.Array, output: Any, capacity: int
) -> jax.Array:
    """Returns the most probable tokens (B, capacity), `output` of them; 0 beyond.

    All in one loop, which does not end early: its time is what is asked for.

    Args:
      model: with a decode path.
      params: its parameters.
      inputs_BS: ids of the source.
      output: () how many tokens; may be traced.
      capacity: of the cache.
    """
    decode, past = _decoding(model, params, inputs_BS, capacity)

    def step(position: Any, carry: Any) -> Any:
        read_B, past, tokens_BT = carry
        logits_BV, past = decode(read_B, position, past)
        token_B = logits_BV.argmax(axis=-1).astype(jnp.int32)
        return token_B, past, tokens_BT.at[:, position].set(token_B)

    batch_size = len(inputs_BS)
    first = jnp.full(batch_size, START, jnp.int32)
    tokens_BT = jnp.zeros((batch_size, capacity), jnp.int32)
    return jax.lax.fori_loop(0, output, step, (first, past, tokens_BT))[2]


def _decoding(
    model: Any, params: Any, inputs_BS: jax.Array, length: int
) -> tuple[Callable[[Any, Any, Any], Any], Any]:
    """Encodes; returns (token, position, past) -> (logits, past), and an empty past."""
    variables = {"params": params}
    encoded_BSD = model.apply(variables, inputs_BS, method="encode")
    sources = model.apply(variables, encoded_BSD, method="sources")

    def decode(tokens_B: Any, position: Any, past: Any) -> Any:
        arguments = tokens_B, position, past, sources, inputs_BS
        return model.apply(variables, *arguments, method="decode_one")

    return decode, model.empty_past(len(inputs_BS), length)


def translation_measure(
    model: Any,
    params: Any,
    batch_size: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    longest: int | None = None,
) -> Measure:
    """Returns what takes (source tokens, output tokens) to seconds of such requests.

    Short requests are repeated and the mean is taken. The first call with a source
    length compiles.

    Args:
      model: with a decode path.
      params: its parameters.
      batch_size: requests at once.
      clock: seconds.
      longest: the most tokens of a source, and of an output; None: no limit.
    """
    run = jax.jit(
        lambda params, inputs_BS, output, capacity: greedy(
            model, params, inputs_BS, output, capacity
        ),
        static_argnums=3,
    )

    def once(source: int, output: int) -> Callable[[], None]:
        if longest is not None and max(source, output) > longest:
            raise UserError(
                f"{source} source and {output} output tokens: the model takes "
                f"{longest} of each at most"
            )
        capacity = capacity_for(output)
        if longest is not None:
            capacity = min(capacity, longest)
        inputs_BS = jnp.full((batch_size, source), SOURCE_TOKEN, jnp.int32)
        return lambda: jax.block_until_ready(run(params, inputs_BS, output, capacity))

    return repeated(once, clock)
