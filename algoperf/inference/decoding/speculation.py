"""Speculative decoding as arithmetic: what guessing ahead costs and gives.

A small draft model guesses K tokens one by one; the target verifies them in one pass
and keeps those up to the first rejection, then one of its own (Leviathan et al. 2023,
arXiv:2211.17192). No models here: acceptance and seconds are numbers.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np

from algoperf.errors import UserError
from algoperf.inference.timing.runtime import RuntimeModel
from algoperf.inference.tradeoffs import scaling


def acceptance(target: np.ndarray, draft: np.ndarray) -> np.ndarray:
    """Returns the probability that a guess is accepted: sum_x min(p(x), q(x)).

    That is one minus their total variation distance (DistillSpec, arXiv:2310.08461,
    section 3).

    Args:
      target: p (..., V), probabilities of the target.
      draft: q (..., V), of the draft.
    """
    return np.minimum(target, draft).sum(axis=-1)


def residual(target: np.ndarray, draft: np.ndarray) -> np.ndarray:
    """Returns what a rejected token is drawn from instead: max(p - q, 0), normalised.

    With it the output has the target's distribution. Where p = q no guess is ever
    rejected, and p is returned.

    Args:
      target: p (..., V).
      draft: q (..., V).
    """
    left = np.maximum(np.asarray(target) - draft, 0.0)
    total = left.sum(axis=-1, keepdims=True)
    return np.where(total > 0, left / np.where(total > 0, total, 1.0), target)


def tokens_per_round(accepted: float, length: int) -> float:
    """Returns E[tokens] of a round: (1 - a^(K + 1)) / (1 - a) (arXiv:2211.17192, 1).

    Args:
      accepted: a, the probability that a guess is accepted, independently.
      length: K >= 0 guesses a round.

    Raises:
      UserError: no probability, or a negative length.
    """
    if not (0 <= accepted <= 1 and length >= 0):
        raise UserError(
            f"acceptance {accepted} must be a probability, length {length} at least 0"
        )
    if accepted == 1:
        return length + 1.0
    return (1 - accepted ** (length + 1)) / (1 - accepted)


def expected_rounds(tokens: int, accepted: float, length: int) -> float:
    """Returns E[rounds] until there are so many tokens.

    r(n) = 1 + sum over k of P(k guesses are kept) r(n - k - 1), and 0 for n <= 0: the
    last round may bring more than are wanted, so that it is more than
    n / `tokens_per_round`, for few tokens much more.

    Args:
      tokens: n.
      accepted: a, the probability that a guess is accepted, independently.
      length: K >= 0 guesses a round.

    Raises:
      UserError: no probability, or a negative length.
    """
    tokens_per_round(accepted, length)  # checks them
    all_kept = accepted**length
    rounds_N = [0.0] * (max(tokens, 0) + 1)
    some_kept = 0.0  # sum of a^k r(n - k - 1) for k < K
    for n in range(1, len(rounds_N)):
        after_all = rounds_N[n - 1 - length] if n > length else 0.0
        some_kept = rounds_N[n - 1] + accepted * some_kept - all_kept * after_all
        rounds_N[n] = 1 + (1 - accepted) * some_kept + all_kept * after_all
    return rounds_N[-1]


def speed_up(accepted: float, length: int, draft_cost: float) -> float:
    """Returns tokens per second over those of the target alone.

    Args:
      accepted: a.
      length: K guesses a round.
      draft_cost: c, a draft pass over a target pass. A round takes K c + 1.
    """
    return tokens_per_round(accepted, length) / (length * draft_cost + 1)


def best_length(accepted: float, draft_cost: float, longest: int = 256) -> int:
    """Returns the K, 0 to `longest`, of the greatest speed-up, the least of equals."""
    return max(
        range(longest + 1),
        key=lambda k: (speed_up(accepted, k, draft_cost), -k),
    )


@dataclasses.dataclass(frozen=True)
class Counts:
    """What a run of speculative decoding did; hardware does not matter to it.

    Attributes:
      drafted: guesses made.
      verified: passes of the target.
      accepted: guesses kept. Every pass of the target adds one token of its own.
      unused: passes of the draft that gave no guess: a head reads a guess before it
        says to stop after it.
    """

    drafted: int
    verified: int
    accepted: int
    unused: int = 0

    @property
    def tokens(self) -> int:
        """Tokens that came out: drafted - discarded + verified."""
        return self.accepted + self.verified

    @property
    def discard_rate(self) -> float:
        """Guesses thrown away for each token."""
        return (self.drafted - self.accepted) / self.tokens

    @property
    def verification_rate(self) -> float:
        """Passes of the target for each token."""
        return self.verified / self.tokens

    def seconds(self, draft_seconds: float, target_seconds: float) -> float:
        """Returns the modelled time: t_d (drafted + unused) + t_t verified.

        Without unused passes it equals t_d tokens + t_d discarded + (t_t - t_d)
        verified (SpecDec++, arXiv:2405.19715, section 3), so that the two rates decide.
        """
        passes = self.drafted + self.unused
        return draft_seconds * passes + target_seconds * self.verified

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.drafted + other.drafted,
            self.verified + other.verified,
            self.accepted + other.accepted,
            self.unused + other.unused,
        )


def round_seconds(
    draft: RuntimeModel, target: RuntimeModel, length: int, context: float
) -> float:
    """Returns the modelled seconds of a round: K draft steps, a target pass of K + 1.

    A verification of few tokens reads all weights and the cache once, like a decoding
    step; it is charged as one, plus what F says that K more tokens cost.

    Args:
      draft: its runtime.
      target: its runtime.
      length: K.
      context: tokens before the round; the few that it adds itself are not counted.
    """
    knots = target.prompt_seconds
    more = max(knots(length + 1) - knots(1), 0.0)
    steps = length * draft.token_seconds(context)
    return steps + target.token_seconds(context) + more


@dataclasses.dataclass(frozen=True)
class DynamicStop:
    """When to stop guessing, at the least cost; see `optimal_stopping`.

    Attributes:
      seconds_per_token: of the best policy.
      goes_on_up_to: the highest probability that some guess of the round is rejected
        at which it still guesses on. Every threshold between this and the next is
        as good.
      stops_from: the lowest at which it has the target verify.
      longest: most guesses that it makes in a round.
    """

    seconds_per_token: float
    goes_on_up_to: float
    stops_from: float
    longest: int


def optimal_stopping(
    acceptances: Sequence[float],
    shares: Sequence[float],
    draft_seconds: float,
    target_seconds: float,
    longest: int = 20,
) -> DynamicStop:
    """Solves when to stop guessing, where each guess's acceptance is known.

    Guesses' acceptances are drawn independently, a_i with probability w_i, and seen
    before the next guess is made. Exact dynamic programming over (guesses made,
    probability that all are accepted), the cost per token by bisection on the value of
    a token (SpecDec++, arXiv:2405.19715, section 3: the decision process).

    Args:
      acceptances: a_i.
      shares: w_i, which sum to 1.
      draft_seconds: t_d.
      target_seconds: t_t.
      longest: most guesses a round.

    Raises:
      UserError: the shares do not sum to 1.
    """
    if not math.isclose(sum(shares), 1.0, abs_tol=1e-9):
        raise UserError(f"shares {list(shares)} must sum to 1")
    kinds = list(zip(acceptances, shares, strict=True))

    def solve(price: float) -> tuple[float, dict[tuple[int, float], bool]]:
        """Least cost of a round less its tokens at a price; where it goes on."""
        goes_on: dict[tuple[int, float], bool] = {}

        # `kept` is the probability that all guesses so far are accepted.
        @functools.cache
        def cost(made: int, kept: float) -> float:
            stop = target_seconds - price  # the target's own token
            if made == longest:
                return stop
            further = draft_seconds
            for a, share in kinds:
                still = round(kept * a, 12)
                further += share * (cost(made + 1, still) - price * still)
            goes_on[made, kept] = further < stop
            return min(stop, further)

        return cost(0, 1.0), goes_on

    low, high = 0.0, target_seconds
    for _ in range(50):
        price = (low + high) / 2
        value, goes_on = solve(price)
        low, high = (price, high) if value > 0 else (low, price)
    _, goes_on = solve(high)
    reached = _reached(kinds, goes_on)
    going = [1 - kept for made, kept in reached if goes_on.get((made, kept), False)]
    stops = [1 - kept for made, kept in reached if not goes_on.get((made, kept), False)]
    return DynamicStop(
        seconds_per_token=high,
        goes_on_up_to=max(going, default=0.0),
        stops_from=min(stops),
        longest=max(made for made, _ in reached),
    )


def _reached(
    kinds: Sequence[tuple[float, float]], goes_on: dict[tuple[int, float], bool]
) -> set[tuple[int, float]]:
    """Returns the states that the policy comes to."""
    waiting, seen = [(0, 1.0)], set()
    while waiting:
        state = waiting.pop()
        if state in seen:
            continue
        seen.add(state)
        if goes_on.get(state, False):
            made, kept = state
            waiting += [(made + 1, round(kept * a, 12)) for a, _ in kinds]
    return seen


def fixed_length_seconds(
    acceptances: Sequence[float],
    shares: Sequence[float],
    draft_seconds: float,
    target_seconds: float,
    length: int,
) -> float:
    """Returns seconds per token with K guesses every round, acceptances as above."""
    mean = float(np.dot(acceptances, shares))
    tokens = tokens_per_round(mean, length)
    return (length * draft_seconds + target_seconds) / tokens


def step_level_seconds(
    small: RuntimeModel,
    base: RuntimeModel,
    context: int,
    step_tokens: int,
    judge_tokens: int,
    acceptance_rate: float,
) -> float:
    """Returns the modelled seconds of one reasoning step (SpecReason, 2504.07891).

    The small model writes the step, the base model reads it with a short question and
    gives a score (one token), and writes the step anew where it rejects it.

    Args:
      small: of the small model.
      base: of the base model.
      context: tokens before the step, cached by both.
      step_tokens: of the step.
      judge_tokens: of the question.
      acceptance_rate: of steps, 0 to 1.
    """

    def writing(model: RuntimeModel) -> float:
        g, slope = model.seconds_per_token, model.seconds_per_token_slope
        return scaling.context_decode_seconds(context, step_tokens, g, slope)

    # One pass, which reads the cache of all tokens before the step once.
    judging = base.prompt_seconds(step_tokens + judge_tokens)
    judging += base.seconds_per_token_slope * context
    return writing(small) + judging + (1 - acceptance_rate) * writing(base)


def kv_prediction_flops(
    auxiliary_parameters: float,
    base_parameters: float,
    prompt: int,
    auxiliary_kv_width: int,
    base_kv_width: int,
    base_layers: int,
) -> float:
    """Returns FLOPs to the first token with a predicted cache (arXiv:2410.08391).

    2 N_aux p for the small model's prefill, 2 p d_aux d_base for each of the base
    model's layers, keys and values, and 2 N_base for the first token; attention's own
    products are left out.

    Args:
      auxiliary_parameters: N_aux.
      base_parameters: N_base.
      prompt: p tokens.
      auxiliary_kv_width: d_aux, features of keys of one auxiliary layer.
      base_kv_width: d_base, features of keys of one base layer.
      base_layers: of the base model.
    """
    maps = base_layers * 2 * (2 * auxiliary_kv_width * base_kv_width)
    return 2 * auxiliary_parameters * prompt + maps * prompt + 2 * base_parameters
