"""Speculative decoding by an oracle: guessing ends just before the first rejection.

No guess is thrown away, and no other way to end a round's guessing, with as many at
most, makes fewer passes of the target: the bound that a threshold, or a trained head,
is measured against (SpecDec++, arXiv:2405.19715, section 4). Greedy alone: a sampled
token that was rejected must be drawn anew from what the rejected guess has left, so the
guess must have been made.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from algoperf.inference.decoding import speculative
from algoperf.inference.decoding.drafting import Help, Strategy
from algoperf.inference.decoding.speculation import Counts
from algoperf.inference.models import decoder
from algoperf.inference.models.decoder import Model


class Plan(NamedTuple):
    """What the oracle says of one request.

    Attributes:
      lengths: guesses of each round, 0 allowed.
      window: tokens that the draft must read before its first guess of a round, since
        it read none in rounds without guesses.
    """

    lengths: tuple[int, ...]
    window: int


def plan(is_match: Sequence[bool], num_tokens: int, longest: int) -> Plan:
    """Returns how many guesses each round should make.

    Args:
      is_match: for the tokens of the answer after the first, whether the draft, having
        read all before it, guesses it.
      num_tokens: of the answer that are wanted.
      longest: guesses a round at most.
    """
    lengths, at = [], 0
    while at < num_tokens - 1:
        run = itertools.takewhile(bool, is_match[at : at + longest])
        lengths.append(len(list(run)))
        at += lengths[-1] + 1
    without = [len(list(g)) for zero, g in itertools.groupby(lengths, bool) if not zero]
    return Plan(tuple(lengths), 2 + max(without, default=0))


def ask(
    target: Model, draft: Model, prompt_P: jax.Array, num_tokens: int, longest: int
) -> Plan:
    """Returns the plan of a request: the answer is made first, and the draft reads it.

    Args:
      target: the model whose tokens are wanted.
      draft: with the same vocabulary.
      prompt_P: int32.
      num_tokens: at least 1.
      longest: guesses a round at most.

    Raises:
      UserError: the request does not fit a model.
    """
    speculative.check_pair(target.shape, draft.shape)
    prompt, beyond = prompt_P.shape[0], num_tokens + longest
    decoder.check_lengths(draft.shape, prompt, beyond)
    answer_1T = decoder.generate(*target, prompt_P[None], beyond)
    text_1T = jnp.concatenate([prompt_P[None], answer_1T], axis=1)
    logits_1TV = decoder.compiled_forward(*draft, text_1T)
    guesses_T = np.argmax(np.asarray(logits_1TV[0]), axis=-1)[prompt:-1]
    is_match = guesses_T == np.asarray(answer_1T[0, 1:])
    return plan(is_match.tolist(), num_tokens, longest)


def generate(
    target: Model, draft: Model, prompt_P: jax.Array, num_tokens: int, longest: int = 8
) -> tuple[jax.Array, Counts]:
    """Returns the target's greedy tokens and what it took; see `speculative.generate`.

    Raises:
      UserError: the vocabularies differ, or the request does not fit a model.
    """
    found = ask(target, draft, prompt_P, num_tokens, longest)
    lengths_R = padded(found, num_tokens)
    return speculative.run(
        target,
        draft,
        prompt_P,
        num_tokens,
        Strategy(longest),
        Help(lengths_R=lengths_R),
        window=found.window,
    )


def padded(found: Plan, rounds: int) -> jax.Array:
    """Returns the lengths, (rounds,) int32, so that all requests share a program."""
    lengths = np.zeros(rounds, np.int32)
    lengths[: len(found.lengths)] = found.lengths
    return jnp.asarray(lengths)
