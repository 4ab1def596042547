"""Guessing ahead, the draft's part of speculative decoding: how far, and what.

A round's guessing ends at a fixed length; where the draft is no longer confident; where
a trained head fears a rejection (SpecDec++, Huang et al. 2024, arXiv:2405.19715); or
where an oracle knows of one. `decoding.speculative` has the rest of a round.

Dimension key: S capacity, K guesses a round at most, V vocabulary, D width of the
draft, R rounds.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from algoperf.errors import UserError
from algoperf.inference.decoding import acceptance_head
from algoperf.inference.models import decoder
from algoperf.inference.models.decoder import Model


@dataclasses.dataclass(frozen=True)
class Strategy:
    """How many tokens to guess before the target is asked.

    Attributes:
      longest: K, guesses a round at most.
      threshold: h; guessing ends once the probability that some guess of the round is
        rejected, 1 - (product of the guesses' acceptances), exceeds it (SpecDec++,
        arXiv:2405.19715, section 3.3). The acceptances are a trained head's; where
        there is none, the draft's own probabilities. None: always K guesses.
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


class Help(NamedTuple):
    """What a strategy may use beside the two models; arrays, so nothing is recompiled.

    Attributes:
      threshold: in place of the strategy's, where that has one.
      head: of the draft, see `acceptance_head`; it reads a guess before it judges it,
        so a round that it ends takes one pass of the draft more than guesses.
      lengths_R: guesses of each round, int32, 0 allowed; see `oracle`.
    """

    threshold: Any = None
    head: acceptance_head.Head | None = None
    lengths_R: jax.Array | None = None


class Text(NamedTuple):
    """What is fixed before a round.

    Attributes:
      tokens_S: int32, of which the first `known` count.
      known: how many.
      round: number of the round, 0 first.
      cache: the draft's, which lacks the last `window` tokens at most.
    """

    tokens_S: jax.Array
    known: jax.Array
    round: jax.Array
    cache: decoder.Cache


class Guesses(NamedTuple):
    """Of one round: guesses (K,), the draft's probabilities (K, V), what it took.

    The first `number` of them count; `unused` passes of the draft gave none. Greedy
    guesses need no probabilities: (K, 0).
    """

    guesses_K: jax.Array
    q_KV: jax.Array
    number: jax.Array
    unused: jax.Array
    cache: decoder.Cache


def guess(
    draft: Model,
    strategy: Strategy,
    help_: Help,
    window: int,
    text: Text,
    key: jax.Array,
) -> Guesses:
    """Makes the guesses of a round.

    The first pass reads two tokens, since after a round in which all was accepted the
    draft has not seen the last guess; reading the other again changes nothing.
    """
    longest, vocab_size = strategy.longest, draft.shape.vocab_size
    zero = jnp.int32(0)
    none = Guesses(
        jnp.zeros(longest, jnp.int32),
        jnp.zeros((longest, vocab_size if strategy.temperature else 0)),
        zero,
        zero,
        text.cache,
    )
    most = jnp.int32(longest)
    if help_.lengths_R is not None:
        most = jnp.minimum(help_.lengths_R[text.round], longest)

    def one(x_D: jax.Array, made: Guesses) -> tuple[Guesses, jax.Array]:
        return _one_more(draft, strategy.temperature, key, x_D, made)

    def first() -> tuple[Guesses, jax.Array]:
        start = jnp.maximum(text.known - window, 0)
        read = jax.lax.dynamic_slice_in_dim(text.tokens_S, start, window)
        x_1TD, cache = decoder.extend_hidden(
            draft.shape, draft.params, read[None], start, text.cache
        )
        return one(x_1TD[0, text.known - 1 - start], none._replace(cache=cache))

    def goes_on(carry: Any) -> jax.Array:
        made, sure, is_feared = carry
        more = (made.number < most) & ~is_feared
        if help_.head is not None or strategy.threshold is None:
            return more
        return more & (
            (1 - sure <= help_.threshold) | (made.number < strategy.shortest)
        )

    def one_more(carry: Any) -> Any:
        made, sure, is_feared = carry
        last = made.guesses_K[made.number - 1]
        x_11D, cache = decoder.extend_hidden(
            draft.shape,
            draft.params,
            last[None, None],
            text.known - 1 + made.number,
            made.cache,
        )
        made = made._replace(cache=cache)
        further, confidence = one(x_11D[0, 0], made)
        if help_.head is None:
            if strategy.threshold is not None:
                sure = sure * confidence
            return further, sure, is_feared
        h_D = decoder.final_hidden(draft.shape, draft.params, x_11D[0, 0])
        sure = sure * acceptance_head.probability(help_.head, h_D)
        is_feared = (1 - sure > help_.threshold) & (made.number >= strategy.shortest)
        # The pass has told that guessing should have ended before it: what it guesses
        # does not count.
        further = further._replace(
            number=further.number - is_feared, unused=made.unused + is_feared
        )
        return further, sure, is_feared

    if help_.lengths_R is None:
        made, confidence = first()
    else:
        made, confidence = jax.lax.cond(
            most > 0, first, lambda: (none, jnp.float32(1.0))
        )
    if help_.head is not None or strategy.threshold is None:
        confidence = jnp.float32(1.0)
    made, _, _ = jax.lax.while_loop(
        goes_on, one_more, (made, confidence, jnp.bool(False))
    )
    return made


def _one_more(
    draft: Model, temperature: float, key: jax.Array, x_D: jax.Array, made: Guesses
) -> tuple[Guesses, jax.Array]:
    """Makes one guess more; returns the draft's probability of it too."""
    logits_V = decoder.output_logits(draft.shape, draft.params, x_D)
    i = made.number
    token = decoder.choose(logits_V[None], jax.random.fold_in(key, i), temperature)[0]
    made = made._replace(guesses_K=made.guesses_K.at[i].set(token), number=i + 1)
    if temperature > 0:
        q_V = decoder.probabilities(logits_V, temperature)
        made = made._replace(q_KV=made.q_KV.at[i].set(q_V))
    return made, jax.nn.softmax(logits_V)[token]
