"""Beam search for the most probable sequence, with a length penalty.

Wu et al. 2016, arXiv:1609.08144, section 7: a finished sequence of n tokens, its end
counted, scores log P / ((5 + n) / 6)^alpha.

Dimension key: B batch, K beams, V vocabulary, T tokens.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

State = TypeVar("State")


class _Search(NamedTuple):
    position: jax.Array  # () tokens found so far
    live_BK: jax.Array  # log-probabilities of the unfinished sequences, best first
    tokens_BKT: jax.Array
    state: Any  # of the model, leaves (B K, ...)
    best_B: jax.Array  # score of the best finished sequence
    best_tokens_BT: jax.Array


def length_penalty(length: jax.Array | int, alpha: float) -> jax.Array:
    """Returns what the log-probability of a sequence is divided by."""
    return ((5.0 + jnp.asarray(length, jnp.float32)) / 6.0) ** alpha


def beam_search(
    next_logits: Callable[[jax.Array, jax.Array, State], tuple[jax.Array, State]],
    state: State,
    is_wanted_B: jax.Array,
    *,
    num_beams: int,
    alpha: float,
    end: int,
    max_length: int,
    pad: int = 0,
) -> jax.Array:
    """Returns the best sequence that was found for each row, (B, max_length) int32.

    Every step extends the K unfinished sequences of a row, and goes on with the K best
    unfinished ones of the 2 K best candidates: at most K of those have ended. The
    search stops when no unfinished sequence can score more than the best finished one.
    A row where none has ended by `max_length` gets its most probable unfinished one.

    Args:
      next_logits: from the last tokens (B K,), their position () and the state to
        logits (B K, V) and the next state; the first tokens are `pad`.
      state: the model's, leaves (B K, ...), equal for the beams of a row.
      is_wanted_B: rows that are not (padding) do not keep the search going.
      num_beams: K.
      alpha: of the length penalty.
      end: the token that ends a sequence; kept at its end.
      max_length: of a sequence, its end counted.
      pad: what fills up a sequence behind its end.
    """
    batch_size = len(is_wanted_B)
    tokens_BKT = jnp.full((batch_size, num_beams, max_length), pad, jnp.int32)
    # All beams are equal at first, so only one may be extended.
    live_K = jnp.where(jnp.arange(num_beams) == 0, 0.0, -jnp.inf)
    start = _Search(
        position=jnp.int32(0),
        live_BK=jnp.tile(live_K, (batch_size, 1)),
        tokens_BKT=tokens_BKT,
        state=state,
        best_B=jnp.full(batch_size, -jnp.inf),
        best_tokens_BT=tokens_BKT[:, 0],
    )
    most = length_penalty(max_length, alpha)

    def goes_on(search: _Search) -> jax.Array:
        # Log-probabilities only fall, and are divided by `most` at most.
        can_win_B = search.live_BK[:, 0] / most > search.best_B
        return (search.position < max_length) & (can_win_B & is_wanted_B).any()

    def step(search: _Search) -> _Search:
        last_BK = search.tokens_BKT[:, :, search.position - 1]
        last_BK = jnp.where(search.position == 0, pad, last_BK)
        logits, state = next_logits(last_BK.reshape(-1), search.position, search.state)
        log_probs_BKV = jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(
            batch_size, num_beams, -1
        )
        totals_BKV = search.live_BK[:, :, None] + log_probs_BKV
        vocab_size = totals_BKV.shape[-1]
        candidates, places = jax.lax.top_k(
            totals_BKV.reshape(batch_size, -1), min(2, vocab_size) * num_beams
        )
        beams, tokens = places // vocab_size, places % vocab_size
        sequences = (
            _take(search.tokens_BKT, beams).at[:, :, search.position].set(tokens)
        )
        ended = tokens == end

        scores = candidates / length_penalty(search.position + 1, alpha)
        scores = jnp.where(ended, scores, -jnp.inf)
        winner = scores.argmax(axis=1)[:, None]
        score_B = jnp.take_along_axis(scores, winner, axis=1)[:, 0]
        is_better_B = score_B > search.best_B

        live_BK, kept = jax.lax.top_k(jnp.where(ended, -jnp.inf, candidates), num_beams)
        origins_BK = jnp.take_along_axis(beams, kept, axis=1)
        return _Search(
            position=search.position + 1,
            live_BK=live_BK,
            tokens_BKT=_take(sequences, kept),
            state=jax.tree.map(lambda leaf: _reorder(leaf, origins_BK), state),
            best_B=jnp.maximum(score_B, search.best_B),
            best_tokens_BT=jnp.where(
                is_better_B[:, None],
                _take(sequences, winner)[:, 0],
                search.best_tokens_BT,
            ),
        )

    found = jax.lax.while_loop(goes_on, step, start)
    return jnp.where(
        jnp.isneginf(found.best_B)[:, None],
        found.tokens_BKT[:, 0],
        found.best_tokens_BT,
    )


def _take(sequences: jax.Array, beams: jax.Array) -> jax.Array:
    """Returns (B, chosen, T) of (B, K, T)."""
    return jnp.take_along_axis(sequences, beams[:, :, None], axis=1)


def _reorder(leaf: jax.Array, origins_BK: jax.Array) -> jax.Array:
    """Gives each beam the state (B K, ...) of the beam that it came from."""
    by_row = leaf.reshape(*origins_BK.shape, *leaf.shape[1:])
    index = origins_BK.reshape(*origins_BK.shape, *[1] * (leaf.ndim - 1))
    return jnp.take_along_axis(by_row, index, axis=1).reshape(leaf.shape)
