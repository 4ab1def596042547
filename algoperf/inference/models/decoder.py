"""A decoder-only transformer with a static key-value cache: prefill, then decode.

Every function is pure in (shape, params, ...); `shape` is static under `jax.jit`.
Three ways to the same logits: `forward` without a cache, `prefill` of a whole prompt,
and `extend` by a few tokens, of which decoding takes one at a time.

Dimension key: B batch, T new tokens, P prompt, S capacity of the cache, D width, N
key-value heads x B, K width of a head, V vocabulary.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from algoperf.errors import UserError
from algoperf.inference.models import layers, weights
from algoperf.inference.models.shapes import DecoderShape, param_shapes

Params = dict[str, Any]
Cache = list[tuple[jax.Array, jax.Array]]  # for each layer: keys, values (N, S, K)


class Model(NamedTuple):
    """A decoder: its shape and its weights."""

    shape: DecoderShape
    params: Params


INIT_STDDEV = 0.02
SMALLEST_CAPACITY = 32


def init_params(
    shape: DecoderShape, key: jax.Array, dtype: Any = jnp.float32
) -> Params:
    """Returns random weights, N(0, 0.02), scales 1, biases 0; see `param_shapes`."""
    sizes = param_shapes(shape)
    paths, tree = jax.tree_util.tree_flatten_with_path(
        sizes, is_leaf=lambda leaf: isinstance(leaf, tuple)
    )
    keys = jax.random.split(key, len(paths))

    def fresh(path: Any, size: tuple[int, ...], key: jax.Array) -> jax.Array:
        kind = path[-1].key
        if kind in ("scale", "bias"):
            return jnp.full(size, float(kind == "scale"), dtype)
        if kind == "attention_scale":  # of unit vectors: about that of random ones
            return jnp.asarray(shape.head_width**0.5, dtype)
        return INIT_STDDEV * jax.random.normal(key, size, dtype)

    leaves = [fresh(path, size, k) for (path, size), k in zip(paths, keys, strict=True)]
    return jax.tree.unflatten(tree, leaves)


def capacity_for(tokens: int) -> int:
    """Returns the capacity of the cache for so many tokens: 32, 48, 64, 96, 128, ...

    Decoding reads the whole cache, so its capacity sets the cost of a token; sizes in
    steps of a half keep the compiled programs few.
    """
    capacity = SMALLEST_CAPACITY
    while capacity < tokens:
        is_power_of_two = capacity & (capacity - 1) == 0
        capacity = capacity * 3 // 2 if is_power_of_two else capacity * 4 // 3
    return capacity


def check_lengths(shape: DecoderShape, prompt: int, output: int) -> None:
    """Raises UserError unless prompt and output fit the model.

    Args:
      shape: the model's.
      prompt: tokens, at least 1.
      output: tokens, at least 1.
    """
    if prompt < 1:
        raise UserError(f"a prompt of {prompt} tokens; it needs at least one")
    if output < 0:
        raise UserError(f"an output of {output} tokens; it cannot be negative")
    if prompt + output > shape.max_length:
        raise UserError(
            f"{prompt} tokens of prompt and {output} of output are more than the "
            f"{shape.max_length} that {shape.name} holds; shorten one of them"
        )


def empty_cache(
    shape: DecoderShape, batch: int, capacity: int, dtype: Any = jnp.float32
) -> Cache:
    """Returns zeros (N, S, K), keys and values for each layer."""
    size = (shape.kv_heads * batch, capacity, shape.head_width)
    return [
        (jnp.zeros(size, dtype), jnp.zeros(size, dtype))
        for _ in range(shape.num_layers)
    ]


def forward(shape: DecoderShape, params: Params, tokens_BT: jax.Array) -> jax.Array:
    """Returns logits (B, T, V) of all positions, without a cache."""
    x_BTD = forward_hidden(shape, params, tokens_BT)
    return output_logits(shape, params, x_BTD)


def forward_hidden(
    shape: DecoderShape, params: Params, tokens_BT: jax.Array
) -> jax.Array:
    """Returns what the last block gives, (B, T, D), without a cache."""
    positions = jnp.arange(tokens_BT.shape[1])
    x_BTD = _embed(shape, params, tokens_BT, positions)
    causal = positions[:, None] >= positions
    for layer in params["layers"]:
        x_BTD, _, _ = _block_on_fresh(shape, layer, x_BTD, positions, causal)
    return x_BTD


def attention_inputs(
    shape: DecoderShape, params: Params, tokens_BT: jax.Array
) -> list[jax.Array]:
    """Returns what the attention of each block reads, (B, T, D), without a cache."""
    positions = jnp.arange(tokens_BT.shape[1])
    x_BTD = _embed(shape, params, tokens_BT, positions)
    causal = positions[:, None] >= positions
    inputs = []
    for layer in params["layers"]:
        inputs.append(layers.norm(shape, layer["attention_norm"], x_BTD))
        x_BTD, _, _ = _block_on_fresh(shape, layer, x_BTD, positions, causal)
    return inputs


def prefill(
    shape: DecoderShape,
    params: Params,
    tokens_BP: jax.Array,
    length: jax.Array | int,
    cache: Cache,
) -> tuple[jax.Array, Cache]:
    """Reads a prompt into an empty cache; F(p) of the idealized runtime.

    Args:
      shape: the model's.
      params: see `param_shapes`.
      tokens_BP: int32; ids after the first `length` are padding.
      length: tokens of the prompt, 1 to P; may be traced, so that prompts of many
        lengths share a program.
      cache: of capacity S >= P; its content does not count.

    Returns:
      logits (B, V) after the last token of the prompt, float32, and the cache.
    """
    positions = jnp.arange(tokens_BP.shape[1])
    x_BPD = _embed(shape, params, tokens_BP, positions)
    causal = positions[:, None] >= positions
    filled: Cache = []
    for layer, (keys, values) in zip(params["layers"], cache, strict=True):
        x_BPD, k, v = _block_on_fresh(shape, layer, x_BPD, positions, causal)
        filled.append((written(keys, k, 0), written(values, v, 0)))
    last_B1D = jax.lax.dynamic_slice_in_dim(x_BPD, length - 1, 1, axis=1)
    return output_logits(shape, params, last_B1D)[:, 0], filled


def extend(
    shape: DecoderShape,
    params: Params,
    tokens_BT: jax.Array,
    position: jax.Array | int,
    cache: Cache,
) -> tuple[jax.Array, Cache]:
    """Reads T more tokens, of which the first stands at `position`.

    Args:
      shape: the model's.
      params: see `param_shapes`.
      tokens_BT: int32; T = 1 in decoding, more when guesses are verified.
      position: tokens that the cache holds already; may be traced. What the cache
        holds from there on is overwritten, so going back is free.
      cache: of capacity S >= position + T, which is not checked when traced.

    Returns:
      logits (B, T, V), float32, and the cache.
    """
    x_BTD, filled = extend_hidden(shape, params, tokens_BT, position, cache)
    return output_logits(shape, params, x_BTD), filled


def extend_hidden(
    shape: DecoderShape,
    params: Params,
    tokens_BT: jax.Array,
    position: jax.Array | int,
    cache: Cache,
) -> tuple[jax.Array, Cache]:
    """As `extend`, but returns what the last block gives, (B, T, D), and the cache."""
    positions_T = position + jnp.arange(tokens_BT.shape[1])
    x_BTD = _embed(shape, params, tokens_BT, positions_T)
    capacity = cache[0][0].shape[1]
    seen_TS = positions_T[:, None] >= jnp.arange(capacity)
    filled: Cache = []
    for layer, (keys, values) in zip(params["layers"], cache, strict=True):
        h = layers.norm(shape, layer["attention_norm"], x_BTD)
        q, k, v = layers.queries_keys_values(shape, layer, h, positions_T)
        keys, values = written(keys, k, position), written(values, v, position)
        mixed = layers.attend(q, keys, values, seen_TS, len(x_BTD))
        x_BTD = _rest_of_block(shape, layer, x_BTD, h, mixed)
        filled.append((keys, values))
    return x_BTD, filled


def decode(
    shape: DecoderShape,
    params: Params,
    logits_BV: jax.Array,
    position: jax.Array | int,
    cache: Cache,
    num_tokens: jax.Array | int,
    key: jax.Array,
    temperature: float = 0.0,
) -> tuple[jax.Array, jax.Array, Cache]:
    """Generates in one loop on the device, after a prefill.

    The first token is chosen from `logits_BV`; each of the other num_tokens - 1 costs
    one pass, g of the idealized runtime.

    Args:
      shape: the model's.
      params: see `param_shapes`.
      logits_BV: after the prompt.
      position: tokens of the prompt.
      cache: of capacity S >= position + num_tokens - 1.
      num_tokens: at least 1; may be traced, so that outputs of any length share a
        program.
      key: for sampling.
      temperature: 0 takes the likeliest token; else logits are divided by it.

    Returns:
      tokens (B, S), int32, of which the first num_tokens count; the logits (B, V) that
      the last one was chosen from; the cache.
    """
    capacity = cache[0][0].shape[1]
    first_B = choose(logits_BV, jax.random.fold_in(key, 0), temperature)
    tokens_BS = jnp.zeros((logits_BV.shape[0], capacity), jnp.int32)
    tokens_BS = tokens_BS.at[:, 0].set(first_B)

    def goes_on(state: Any) -> jax.Array:
        return state[0] < num_tokens

    def one_more(state: Any) -> Any:
        done, last_B, tokens_BS, _, cache = state
        logits_B1V, cache = extend(
            shape, params, last_B[:, None], position + done - 1, cache
        )
        logits_BV = logits_B1V[:, 0]
        next_B = choose(logits_BV, jax.random.fold_in(key, done), temperature)
        tokens_BS = jax.lax.dynamic_update_slice_in_dim(
            tokens_BS, next_B[:, None], done, axis=1
        )
        return done + 1, next_B, tokens_BS, logits_BV, cache

    state = (jnp.int32(1), first_B, tokens_BS, logits_BV, cache)
    _, _, tokens_BS, logits_BV, cache = jax.lax.while_loop(goes_on, one_more, state)
    return tokens_BS, logits_BV, cache


def choose(logits_BV: jax.Array, key: jax.Array, temperature: float) -> jax.Array:
    """Returns tokens (B,), int32: the likeliest, or drawn at a temperature > 0."""
    if temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    drawn = jax.random.categorical(key, logits_BV / temperature, axis=-1)
    return drawn.astype(jnp.int32)


def probabilities(logits: jax.Array, temperature: float) -> jax.Array:
    """Returns what `choose` draws from (..., V): one-hot of the likeliest at 0."""
    if temperature == 0:
        return jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1])
    return jax.nn.softmax(logits / temperature, axis=-1)


def final_hidden(shape: DecoderShape, params: Params, x_BTD: jax.Array) -> jax.Array:
    """Returns what the output layer reads, (..., D): the last block, normed."""
    return layers.norm(shape, params["final_norm"], x_BTD)


# Compiled once for each shape and size; the cache's buffers are used again.
compiled_forward = jax.jit(forward, static_argnums=0)
compiled_prefill = jax.jit(prefill, static_argnums=0, donate_argnums=4)
compiled_extend = jax.jit(extend, static_argnums=0, donate_argnums=4)
compiled_decode = jax.jit(
    decode, static_argnums=0, static_argnames="temperature", donate_argnums=4
)


def generate(
    shape: DecoderShape,
    params: Params,
    prompt_BP: jax.Array,
    num_tokens: int,
    temperature: float = 0.0,
    key: jax.Array | None = None,
) -> jax.Array:
    """Returns num_tokens new tokens (B, num_tokens), int32, after prompts (B, P).

    Raises:
      UserError: prompt and output do not fit the model.
    """
    prompt = prompt_BP.shape[1]
    check_lengths(shape, prompt, num_tokens)
    if num_tokens == 0:
        return jnp.zeros((prompt_BP.shape[0], 0), jnp.int32)
    dtype = params["embedding"].dtype
    capacity = capacity_for(prompt + num_tokens)
    cache = empty_cache(shape, prompt_BP.shape[0], capacity, dtype)
    key = jax.random.key(0) if key is None else key
    logits_BV, cache = compiled_prefill(shape, params, prompt_BP, prompt, cache)
    tokens_BS, _, _ = compiled_decode(
        shape,
        params,
        logits_BV,
        prompt,
        cache,
        num_tokens,
        key,
        temperature=temperature,
    )
    return tokens_BS[:, :num_tokens]


def _embed(
    shape: DecoderShape, params: Params, tokens_BT: jax.Array, positions_T: jax.Array
) -> jax.Array:
    x_BTD = weights.rows(params["embedding"], tokens_BT)
    if shape.positions == "learned":
        x_BTD = x_BTD + params["positions"][positions_T]
    return x_BTD


def output_logits(shape: DecoderShape, params: Params, x_BTD: jax.Array) -> jax.Array:
    """Returns float32 logits (..., V) of what the last block gives, (..., D)."""
    h = layers.norm(shape, params["final_norm"], x_BTD)
    if shape.ties_head:
        return weights.product_with_rows(h, params["embedding"]).astype(jnp.float32)
    return layers.dense(params["head"], h).astype(jnp.float32)


def _block_on_fresh(
    shape: DecoderShape,
    layer: dict[str, Any],
    x_BTD: jax.Array,
    positions_T: jax.Array,
    causal_TT: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A block whose tokens see none but each other: output, keys, values."""
    h = layers.norm(shape, layer["attention_norm"], x_BTD)
    q, k, v = layers.queries_keys_values(shape, layer, h, positions_T)
    mixed = layers.attend(q, k, v, causal_TT, len(x_BTD))
    return _rest_of_block(shape, layer, x_BTD, h, mixed), k, v


def _rest_of_block(
    shape: DecoderShape,
    layer: dict[str, Any],
    x_BTD: jax.Array,
    normed_BTD: jax.Array,
    mixed: jax.Array,
) -> jax.Array:
    """Adds attention's output and the MLP's, in a row or side by side."""
    attended = layers.dense(layer["out"], mixed)
    between = x_BTD if shape.is_parallel else x_BTD + attended
    if shape.shares_norm:
        h = normed_BTD
    else:
        h = layers.norm(shape, layer["mlp_norm"], between)
    out = between + layers.mlp(shape, layer, h)
    return out + attended if shape.is_parallel else out


def written(
    cached: jax.Array, fresh: jax.Array, position: jax.Array | int
) -> jax.Array:
    """Returns (N, S, K) with (N, T, K) written from `position` on."""
    return jax.lax.dynamic_update_slice_in_dim(
        cached, fresh.astype(cached.dtype), position, axis=1
    )
