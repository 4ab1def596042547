"""Speculative decoding, the real loop: a draft guesses, the target verifies.

Greedy, it gives the target's own tokens; sampling, tokens with the target's own
distribution (Leviathan et al. 2023, arXiv:2211.17192, appendix A.1). The whole
generation is one loop on the device. `algoperf.inference.speculation` has the
arithmetic of what it costs.

Dimension key: P prompt, S capacity, K guesses a round at most, V vocabulary. One
sequence at a time.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from algoperf.errors import UserError
from algoperf.inference import decoder
from algoperf.inference.shapes import DecoderShape
from algoperf.inference.speculation import Counts


@dataclasses.dataclass(frozen=True)
class Strategy:
    """How many tokens to guess before the target is asked.

    Attributes:
      longest: K, guesses a round at most.
      threshold: h; guessing ends once 1 - (product of the draft's probabilities of its
        guesses) exceeds it (SpecDec++, arXiv:2405.19715, section 3.3, with the draft's
        confidence in place of a trained head). None: always K guesses.
      shortest: guesses a round at least.
      temperature: 0 for the likeliest tokens; else both models' logits are divided by
        it.
    """

    longest: int = 4
    threshold: float | None = None
    shortest: int = 1
    temperature: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.shortest <= self.longest:
            raise UserError(
                f"guesses a round: at least {self.shortest}, at most {self.longest}; "
                "they must be 1 or more, and in order"
            )


class Model(NamedTuple):
    """A decoder: its shape and its weights."""

    shape: DecoderShape
    params: decoder.Params


class _State(NamedTuple):
    """Between two rounds.

    The text's first `known` tokens are fixed. The target's cache holds all of them but
    the last, the draft's at least all but the last two.
    """

    text_S: jax.Array
    known: jax.Array
    target_cache: decoder.Cache
    draft_cache: decoder.Cache
    drafted: jax.Array
    verified: jax.Array
    accepted: jax.Array
    key: jax.Array


def generate(
    target: Model,
    draft: Model,
    prompt_P: jax.Array,
    num_tokens: int,
    strategy: Strategy,
    key: jax.Array | None = None,
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

    Raises:
      UserError: the vocabularies differ, or the request does not fit a model.
    """
    if target.shape.vocab_size != draft.shape.vocab_size:
        raise UserError(
            f"{draft.shape.name} has {draft.shape.vocab_size} tokens, "
            f"{target.shape.name} has {target.shape.vocab_size}; a draft must have the "
            "target's vocabulary"
        )
    if num_tokens < 1:
        raise UserError(f"an output of {num_tokens} tokens; ask for at least one")
    prompt = prompt_P.shape[0]
    beyond = num_tokens + strategy.longest
    for model in (target, draft):
        decoder.check_lengths(model.shape, prompt, beyond)
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
    )
    counts = Counts(*(int(n) for n in (state.drafted, state.verified, state.accepted)))
    return state.text_S[prompt : prompt + num_tokens], counts


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
        key,
    )
    return jax.lax.while_loop(
        lambda state: state.known < prompt + num_tokens,
        lambda state: _round(target, draft, strategy, state),
        state,
    )


# Compiled for each pair of shapes, prompt length, capacity and strategy.
compiled = jax.jit(_generate, static_argnums=(0, 1, 6, 7))


def _prefilled(
    model: Model, prompt_P: jax.Array, capacity: int
) -> tuple[jax.Array, decoder.Cache]:
    dtype = model.params["embedding"].dtype
    cache = decoder.empty_cache(model.shape, 1, capacity, dtype)
    return decoder.prefill(
        model.shape, model.params, prompt_P[None], prompt_P.shape[0], cache
    )


def _round(target: Model, draft: Model, strategy: Strategy, state: _State) -> _State:
    """Guesses, verifies, keeps what is accepted and one token of the target's own."""
    key, guess_key, verify_key = jax.random.split(state.key, 3)
    guesses_K, q_KV, count, draft_cache = _guess(draft, strategy, state, guess_key)
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
        key,
    )


def _guess(
    draft: Model, strategy: Strategy, state: _State, key: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, decoder.Cache]:
    """Returns guesses (K,), the draft's probabilities (K, V), their count, the cache.

    The first pass reads two tokens, since after a round in which all was accepted the
    draft has not seen the last guess; reading the other again changes nothing.
    """
    longest, vocab_size = strategy.longest, draft.shape.vocab_size

    def one(
        logits_V: jax.Array, i: Any, guesses_K: jax.Array, q_KV: jax.Array, sure: Any
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """Makes guess number i, 0 first."""
        q_V = _probabilities(logits_V, strategy.temperature)
        guess = decoder.choose(
            logits_V[None], jax.random.fold_in(key, i), strategy.temperature
        )[0]
        confidence = jax.nn.softmax(logits_V)[guess]
        return guess, guesses_K.at[i].set(guess), q_KV.at[i].set(q_V), sure * confidence

    two = jax.lax.dynamic_slice_in_dim(state.text_S, state.known - 2, 2)
    logits, cache = decoder.extend(
        draft.shape, draft.params, two[None], state.known - 2, state.draft_cache
    )
    empty = (jnp.zeros(longest, jnp.int32), jnp.zeros((longest, vocab_size)))
    made = one(logits[0, -1], 0, *empty, 1.0)

    def goes_on(carry: Any) -> jax.Array:
        count, (_, _, _, sure), _ = carry
        if strategy.threshold is None:
            return count < longest
        is_sure = 1 - sure <= strategy.threshold
        return (count < longest) & (is_sure | (count < strategy.shortest))

    def one_more(carry: Any) -> Any:
        count, (last, guesses_K, q_KV, sure), cache = carry
        position = state.known - 1 + count
        logits, cache = decoder.extend(
            draft.shape, draft.params, last[None, None], position, cache
        )
        return count + 1, one(logits[0, 0], count, guesses_K, q_KV, sure), cache

    count, (_, guesses_K, q_KV, _), cache = jax.lax.while_loop(
        goes_on, one_more, (jnp.int32(1), made, cache)
    )
    return guesses_K, q_KV, count, cache


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
    accept_key, own_key = jax.random.split(key)
    p_KV = _probabilities(logits_KV, strategy.temperature)
    places = jnp.arange(longest)
    of_guess = p_KV[places, guesses_K], q_KV[places, guesses_K]
    draws = jax.random.uniform(accept_key, (longest,))
    is_kept = (draws * of_guess[1] < of_guess[0]) & (places < count)
    kept = jnp.sum(jnp.cumprod(is_kept.astype(jnp.int32)))
    p_V = p_KV[kept]
    q_V = jnp.where(kept < count, q_KV[jnp.minimum(kept, longest - 1)], 0.0)
    left_V = jnp.maximum(p_V - q_V, 0.0)
    # Rounding can leave nothing where p and q agree.
    left_V = jnp.where(jnp.sum(left_V) > 0, left_V, p_V)
    own = decoder.choose(
        jnp.log(left_V)[None], own_key, float(strategy.temperature > 0)
    )
    return kept, own[0]


def _probabilities(logits: jax.Array, temperature: float) -> jax.Array:
    """Returns (..., V): softmax at a temperature; one-hot of the likeliest at 0."""
    if temperature == 0:
        return jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1])
    return jax.nn.softmax(logits / temperature, axis=-1)
