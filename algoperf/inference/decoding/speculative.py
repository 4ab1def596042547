"""Speculative decoding, the real loop: a draft guesses, the target verifies.

Greedy, it gives the target's own tokens; sampling, tokens with the target's own
distribution (Leviathan et al. 2023, arXiv:2211.17192, appendix A.1). The whole
generation is one loop on the device. `decoding.speculation` has the arithmetic of what
it costs, `decoding.drafting` the ways to end a round's guessing.

Dimension key: P prompt, S capacity, K guesses a round at most, V vocabulary. One
sequence at a time.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from algoperf.errors import UserError
from algoperf.inference.decoding import acceptance_head
from algoperf.inference.decoding.drafting import Guesses, Help, Strategy, Text, guess
from algoperf.inference.decoding.speculation import Counts
from algoperf.inference.models import decoder
from algoperf.inference.models.decoder import Model
from algoperf.inference.models.shapes import DecoderShape

__all__ = ["Counts", "Help", "Model", "Strategy", "check_pair", "generate", "run"]


class _State(NamedTuple):
    """Between two rounds.

    The text's first `known` tokens are fixed. The target's cache holds all of them but
    the last, the draft's at least all but the last `window`.
    """

    text_S: jax.Array
    known: jax.Array
    target_cache: decoder.Cache
    draft_cache: decoder.Cache
    drafted: jax.Array
    verified: jax.Array
    accepted: jax.Array
    unused: jax.Array
    key: jax.Array


def generate(
    target: Model,
    draft: Model,
    prompt_P: jax.Array,
    num_tokens: int,
    strategy: Strategy,
    key: jax.Array | None = None,
    head: acceptance_head.Head | None = None,
) -> tuple[jax.Array, Counts]:
    """Returns new tokens (num_tokens,), int32, and what it took to get them.

    The last round may give a few tokens too many; they are cut off, but counted.

    Args:
      target: the model whose tokens are wanted.
      draft: a faster model with the same vocabulary.
      prompt_P: int32.
      num_tokens: at least 1.
      strategy: how many tokens to guess.
      key: for sampling.
      head: foresees acceptance, in place of the draft's confidence.

    Raises:
      UserError: the vocabularies differ, the request does not fit a model, or a head
        has no threshold.
    """
    if head is not None and strategy.threshold is None:
        raise UserError("a head needs a threshold; give Strategy(threshold=...)")
    help_ = Help(strategy.threshold, head)
    return run(target, draft, prompt_P, num_tokens, strategy, help_, key)


def run(
    target: Model,
    draft: Model,
    prompt_P: jax.Array,
    num_tokens: int,
    strategy: Strategy,
    help_: Help,
    key: jax.Array | None = None,
    window: int = 2,
) -> tuple[jax.Array, Counts]:
    """As `generate`, with all that may help; programs are shared by all thresholds.

    Args:
      target: the model whose tokens are wanted.
      draft: a faster model with the same vocabulary.
      prompt_P: int32.
      num_tokens: at least 1.
      strategy: how many tokens to guess.
      help_: threshold, head, lengths.
      key: for sampling.
      window: tokens that the draft reads before its first guess of a round: 2, and one
        more for each round without guesses in a row.

    Raises:
      UserError: the vocabularies differ, or the request does not fit a model.
    """
    check_pair(target.shape, draft.shape)
    if num_tokens < 1:
        raise UserError(f"an output of {num_tokens} tokens; ask for at least one")
    prompt = prompt_P.shape[0]
    beyond = num_tokens + strategy.longest
    for model in (target, draft):
        decoder.check_lengths(model.shape, prompt, beyond)
    if strategy.threshold is not None:  # its value goes into `help_`
        if help_.threshold is None:
            help_ = help_._replace(threshold=jnp.float32(strategy.threshold))
        strategy = dataclasses.replace(strategy, threshold=0.0)
    state = compiled(
        target.shape,
        draft.shape,
        target.params,
        draft.params,
        prompt_P,
        num_tokens,
        decoder.capacity_for(prompt + beyond + 1),
        strategy,
        jax.random.key(0) if key is None else key,
        help_,
        window,
    )
    counts = (state.drafted, state.verified, state.accepted, state.unused)
    return (
        state.text_S[prompt : prompt + num_tokens],
        Counts(*(int(n) for n in counts)),
    )


def check_pair(target: DecoderShape, draft: DecoderShape) -> None:
    """Raises UserError unless the two have one vocabulary."""
    if target.vocab_size != draft.vocab_size:
        raise UserError(
            f"{draft.name} has {draft.vocab_size} tokens, {target.name} has "
            f"{target.vocab_size}; a draft must have the target's vocabulary"
        )


def _generate(
    target_shape: DecoderShape,
    draft_shape: DecoderShape,
    target_params: decoder.Params,
    draft_params: decoder.Params,
    prompt_P: jax.Array,
    num_tokens: jax.Array | int,
    capacity: int,
    strategy: Strategy,
    key: jax.Array,
    help_: Help = Help(),  # noqa: B008, immutable
    window: int = 2,
) -> _State:
    """Prefills both models, then goes round by round until enough tokens are known."""
    target, draft = Model(target_shape, target_params), Model(draft_shape, draft_params)
    prompt = prompt_P.shape[0]
    logits_1V, target_cache = _prefilled(target, prompt_P, capacity)
    _, draft_cache = _prefilled(draft, prompt_P, capacity)
    first_key, key = jax.random.split(key)
    first = decoder.choose(logits_1V, first_key, strategy.temperature)[0]
    text_S = jnp.zeros(capacity, jnp.int32).at[:prompt].set(prompt_P)
    zero = jnp.int32(0)
    state = _State(
        text_S.at[prompt].set(first),
        jnp.int32(prompt + 1),
        target_cache,
        draft_cache,
        zero,
        zero,
        zero,
        zero,
        key,
    )
    if help_.threshold is None:
        help_ = help_._replace(threshold=strategy.threshold)

    def guesses(state: _State, key: jax.Array) -> Guesses:
        text = Text(state.text_S, state.known, state.verified, state.draft_cache)
        return guess(draft, strategy, help_, window, text, key)

    return jax.lax.while_loop(
        lambda state: state.known < prompt + num_tokens,
        lambda state: _round(target, guesses, strategy, state),
        state,
    )


# Compiled for each pair of shapes, prompt length, capacity, strategy and kind of help.
compiled = jax.jit(_generate, static_argnums=(0, 1, 6, 7, 10))


def _prefilled(
    model: Model, prompt_P: jax.Array, capacity: int
) -> tuple[jax.Array, decoder.Cache]:
    dtype = model.params["embedding"].dtype
    cache = decoder.empty_cache(model.shape, 1, capacity, dtype)
    return decoder.prefill(
        model.shape, model.params, prompt_P[None], prompt_P.shape[0], cache
    )


def _round(
    target: Model,
    guesses: Callable[[_State, jax.Array], Guesses],
    strategy: Strategy,
    state: _State,
) -> _State:
    """Guesses, verifies, keeps what is accepted and one token of the target's own."""
    key = guess_key = verify_key = state.key
    if strategy.temperature > 0:  # greedy tokens need no draws
        key, guess_key, verify_key = jax.random.split(state.key, 3)
    guesses_K, q_KV, count, unused, draft_cache = guesses(state, guess_key)
    last = jax.lax.dynamic_slice_in_dim(state.text_S, state.known - 1, 1)
    logits, target_cache = decoder.extend(
        target.shape,
        target.params,
        jnp.concatenate([last, guesses_K])[None],
        state.known - 1,
        state.target_cache,
    )
    kept, own = _verify(strategy, guesses_K, q_KV, count, logits[0], verify_key)
    places = jnp.arange(strategy.longest + 1)
    fresh = jnp.where(places < kept, jnp.append(guesses_K, 0), own)
    text_S = jax.lax.dynamic_update_slice_in_dim(state.text_S, fresh, state.known, 0)
    return _State(
        text_S,
        state.known + kept + 1,
        target_cache,
        draft_cache,
        state.drafted + count,
        state.verified + 1,
        state.accepted + kept,
        state.unused + unused,
        key,
    )


def _verify(
    strategy: Strategy,
    guesses_K: jax.Array,
    q_KV: jax.Array,
    count: jax.Array,
    logits_KV: jax.Array,
    key: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns how many guesses are kept, and the target's own token after them.

    A guess x is kept with probability min(1, p(x) / q(x)); the token after the first
    rejection comes from max(p - q, 0), normalised, and from p where nothing was
    rejected. At temperature 0 p and q are one-hot, and this is equality.

    Args:
      strategy: its temperature counts.
      guesses_K: of the draft.
      q_KV: probabilities that they were drawn from.
      count: guesses that were made.
      logits_KV: of the target, (K + 1, V).
      key: for the draws.
    """
    longest = strategy.longest
    places = jnp.arange(longest)
    if strategy.temperature == 0:
        likeliest_K = jnp.argmax(logits_KV, axis=-1).astype(jnp.int32)
        is_kept = (guesses_K == likeliest_K[:-1]) & (places < count)
        kept = jnp.sum(jnp.cumprod(is_kept.astype(jnp.int32)))
        return kept, likeliest_K[kept]
    accept_key, own_key = jax.random.split(key)
    p_KV = decoder.probabilities(logits_KV, strategy.temperature)
    of_guess = p_KV[places, guesses_K], q_KV[places, guesses_K]
    draws = jax.random.uniform(accept_key, (longest,))
    is_kept = (draws * of_guess[1] < of_guess[0]) & (places < count)
    kept = jnp.sum(jnp.cumprod(is_kept.astype(jnp.int32)))
    p_V = p_KV[kept]
    q_V = jnp.where(kept < count, q_KV[jnp.minimum(kept, longest - 1)], 0.0)
    left_V = jnp.maximum(p_V - q_V, 0.0)
    # Rounding can leave nothing where p and q agree.
    left_V = jnp.where(jnp.sum(left_V) > 0, left_V, p_V)
    own = decoder.choose(jnp.log(left_V)[None], own_key, 1.0)
    return kept, own[0]
