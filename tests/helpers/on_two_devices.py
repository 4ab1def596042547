"""Generates on one and on two virtual devices; prints what differs, as JSON."""

import json

import jax
import numpy as np
from decoders import SHAPES, drawn_params, drawn_tokens

from algoperf.inference.models import decoder, parallel

PROMPT, OUTPUT, CAPACITY = 5, 4, 16


def generated(shape, mesh):
    params = drawn_params(shape)
    cache = decoder.empty_cache(shape, 1, CAPACITY)
    if mesh is not None:
        params = parallel.shard_params(shape, params, mesh)
        cache = parallel.shard_cache(shape, cache, mesh)
    tokens = drawn_tokens(shape, 1, PROMPT)
    logits, cache = decoder.compiled_prefill(shape, params, tokens, PROMPT, cache)
    tokens, logits, cache = decoder.compiled_decode(
        shape, params, logits, PROMPT, cache, OUTPUT, jax.random.key(0)
    )
    return params, np.asarray(tokens), np.asarray(logits), cache


def main():
    mesh = parallel.model_mesh()
    found = {}
    for name in ("like llama", "like gpt2"):
        shape = SHAPES[name]
        _, tokens, logits, _ = generated(shape, None)
        params, split_tokens, split_logits, cache = generated(shape, mesh)
        keys = cache[0][0]
        up = params["layers"][0]["up"]["kernel"]
        found[name] = {
            "devices": jax.device_count(),
            "same_tokens": bool((tokens == split_tokens).all()),
            "difference": float(np.abs(logits - split_logits).max()),
            "heads_of_cache_per_device": keys.addressable_shards[0].data.shape[0],
            "up_columns_per_device": up.addressable_shards[0].data.shape[1],
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
