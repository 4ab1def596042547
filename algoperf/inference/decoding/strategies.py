"""What ways to get an answer cost, on one axis: seconds, device-seconds, tokens.

Every strategy is put together from requests to one or two models, whose seconds are
T(p, o) = F(p) + g (o - 1) of their idealized runtimes, so that all of them can be
compared on one pair of profiles. What a strategy gains in quality is no part of this:
see `scaling` and `quality`. No JAX here.

Time is counted twice: `seconds` along the longest path, where what can be done side by
side is, each on a device of its own; `device_seconds` in all, which is also the time on
one device, one after the other. Tokens are counted in the same two ways (`Budget`;
PDR, arXiv:2510.01123, section 2).
"""

import dataclasses
from collections.abc import Callable, Sequence

from algoperf.errors import UserError
from algoperf.inference.decoding import speculation
from algoperf.inference.models.shapes import DecoderShape
from algoperf.inference.timing.runtime import RuntimeModel
from algoperf.inference.tradeoffs import costs, scaling
from algoperf.inference.tradeoffs.scaling import Budget

LONGEST_DRAFT = 64


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a strategy takes. `a + b` does b after a; `a | b` both at once.

    Attributes:
      seconds: along the longest path.
      device_seconds: of all models' work together.
      budget: tokens that are written, in a row and in all.
    """

    seconds: float
    device_seconds: float
    budget: Budget

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.seconds + other.seconds,
            self.device_seconds + other.device_seconds,
            self.budget + other.budget,
        )

    def __or__(self, other: "Cost") -> "Cost":
        return Cost(
            max(self.seconds, other.seconds),
            self.device_seconds + other.device_seconds,
            self.budget | other.budget,
        )


NOTHING = Cost(0.0, 0.0, Budget(0, 0))


def request(model: RuntimeModel, prompt: int, output: int) -> Cost:
    """Returns the cost of one answer of the model: T(p, o)."""
    seconds = model.predict(prompt, output)
    return Cost(seconds, seconds, scaling.one_pass(output))


def side_by_side(parts: Sequence[Cost]) -> Cost:
    """Returns the cost of all parts at once."""
    total = NOTHING
    for part in parts:
        total = total | part
    return total


def speculative(
    draft: RuntimeModel,
    target: RuntimeModel,
    prompt: int,
    output: int,
    acceptance: float,
    length: int | None = None,
) -> Cost:
    """Returns the cost of guessing ahead: both prefills, then rounds.

    F_d(p) + F_t(p) + E[rounds for o - 1 tokens] x (K draft steps + a target pass of
    K + 1), all rounds at the mean context, so that K = 0 is plain decoding and F_d(p).

    Args:
      draft: its runtime.
      target: its runtime.
      prompt: p.
      output: o.
      acceptance: of a guess, independently.
      length: K guesses a round; None: the one that costs least.

    Raises:
      UserError: a model does not hold p + o + K tokens.
    """
    if length is None:
        length = best_length(draft, target, acceptance, prompt, output)
    for model in (draft, target):  # the last round may begin before the last token
        model.check(prompt, output + length)
    decoding = _decoding_seconds(draft, target, prompt, output, acceptance, length)
    seconds = decoding + draft.predict(prompt, 1) + target.predict(prompt, 1)
    return Cost(seconds, seconds, scaling.one_pass(output))


def _decoding_seconds(
    draft: RuntimeModel,
    target: RuntimeModel,
    prompt: int,
    output: int,
    acceptance: float,
    length: int,
) -> float:
    """Returns the expected seconds of all tokens after the first."""
    context = mean_context(prompt, output)
    rounds = speculation.expected_rounds(output - 1, acceptance, length)
    return rounds * speculation.round_seconds(draft, target, length, context)


def mean_context(prompt: int, output: int) -> float:
    """Returns the mean of p + 1, ..., p + o - 1: tokens before each after the first."""
    return prompt + output / 2


def best_length(
    draft: RuntimeModel,
    target: RuntimeModel,
    acceptance: float,
    prompt: int,
    output: int,
) -> int:
    """Returns the K of the least expected seconds, 0 to 64, for which there is room."""
    rooms = [
        model.max_length - prompt - output
        for model in (draft, target)
        if model.max_length is not None
    ]
    longest = max(0, min([LONGEST_DRAFT, *rooms]))

    def seconds(length: int) -> float:
        return _decoding_seconds(draft, target, prompt, output, acceptance, length)

    return min(range(longest + 1), key=seconds)


def step_level(
    small: RuntimeModel,
    base: RuntimeModel,
    prompt: int,
    output: int,
    step_tokens: int,
    judge_tokens: int,
    acceptance: float,
) -> Cost:
    """Returns the cost of SpecReason: steps by the small model, judged by the base.

    Both read the prompt; the small model writes each step; the base reads it with a
    question and answers with one token; rejected steps it writes anew
    (arXiv:2504.07891). The last step may be shorter.

    Args:
      small: its runtime.
      base: its runtime.
      prompt: p.
      output: o, of the answer.
      step_tokens: of a step.
      judge_tokens: of the question.
      acceptance: of steps, 0 to 1.

    Raises:
      UserError: no steps, no share of them, or a model does not hold the answer and a
        step more.
    """
    if not (step_tokens >= 1 and 0 <= acceptance <= 1):
        raise UserError(
            f"steps of {step_tokens} tokens, accepted at {acceptance}: they need a "
            "token, and a share within [0, 1]"
        )
    for model in (small, base):  # a whole last step, before it is cut off
        model.check(prompt, output + step_tokens)
    both = small.predict(prompt, 1) + base.predict(prompt, 1)
    seconds, written, at = both, 0.0, 0
    while at < output:
        step = min(step_tokens, output - at)
        seconds += speculation.step_level_seconds(
            small, base, prompt + at, step, judge_tokens, acceptance
        )
        written += step + 1 + (1 - acceptance) * step
        at += step
    return Cost(seconds, seconds, scaling.one_pass(round(written)))


def predicted_cache(
    auxiliary: RuntimeModel,
    base: RuntimeModel,
    prompt: int,
    output: int,
    map_seconds: float = 0.0,
) -> Cost:
    """Returns the cost with KV prediction: F_aux(p) + maps + g, then as the base model.

    The auxiliary model reads the prompt, the base model only its last token
    (arXiv:2410.08391). F_aux also counts the auxiliary model's output layer, which is
    not needed, so that this is a little too much.

    Args:
      auxiliary: its runtime.
      base: its runtime.
      prompt: p.
      output: o, at least 1.
      map_seconds: of the linear maps.

    Raises:
      UserError: a request that does not fit the models.
    """
    base.check(prompt, output)
    first = auxiliary.predict(prompt, 1) + map_seconds + base.token_seconds(prompt)
    seconds = base.overhead + first + base.decode_seconds(prompt, output)
    return Cost(seconds, seconds, scaling.one_pass(output))


def best_of(
    base: RuntimeModel,
    prompt: int,
    output: int,
    samples: int,
    judge: RuntimeModel | None = None,
) -> Cost:
    """Returns the cost of N answers side by side, each read by a judge, if any.

    Args:
      base: writes the answers, with nothing shared between them.
      prompt: p.
      output: o, of each.
      samples: N, at least 1.
      judge: reads prompt and answer, and scores with one token.

    Raises:
      UserError: no samples.
    """
    if samples < 1:
        raise UserError(f"the best of {samples} answers: there must be one")
    one = request(base, prompt, output)
    if judge is not None:
        one = one + request(judge, prompt + output, 1)
    return side_by_side([one] * samples)


def sequential_refinement(
    base: RuntimeModel, prompt: int, output: int, revisions: int
) -> Cost:
    """Returns the cost of an answer, written anew R times from the one before.

    T(p, o) + R T(p + o, o): what parallel-distill-refine is with one draft and the
    draft itself as the summary.

    Args:
      base: its runtime.
      prompt: p.
      output: o, of each answer.
      revisions: R, at least 0.
    """
    total = request(base, prompt, output)
    for _ in range(revisions):
        total = total + request(base, prompt + output, output)
    return total


def parallel_distill_refine(
    base: RuntimeModel,
    prompt: int,
    output: int,
    drafts: Sequence[int],
    summary: int,
) -> Cost:
    """Returns the cost of rounds of drafts, each distilled, and a last answer.

    A round's M drafts read the prompt and the last summary and are written side by
    side; they are then read at once and distilled; the answer is written from the last
    summary (PDR, arXiv:2510.01123, section 2).

    Args:
      base: its runtime.
      prompt: p.
      output: o, of each draft and of the answer.
      drafts: M of each round; no rounds are one plain answer.
      summary: tokens, at least 1.
    """
    total, known = NOTHING, 0
    for number in drafts:
        total = total + side_by_side([request(base, prompt + known, output)] * number)
        total = total + request(base, prompt + number * output, summary)
        known = summary
    return total + request(base, prompt + known, output)


def first_token_flops(
    auxiliary: DecoderShape, base: DecoderShape, prompt: int, capacity: int
) -> float:
    """Returns FLOPs to the first token with a predicted cache, term by term.

    The auxiliary model reads p - 1 tokens, of its last layer keys and values alone; two
    maps for each base layer; one decoding step of the base model. Unlike
    `speculation.kv_prediction_flops`, it counts attention, and no output layer where
    there is none.

    Args:
      auxiliary: its shape.
      base: its shape.
      prompt: p, at least 2.
      capacity: of the base model's cache, all of which a step reads.
    """
    read = prompt - 1
    inside, outside = (s.kv_heads * s.head_width for s in (auxiliary, base))
    whole = auxiliary.num_layers - 1
    products = whole * costs.block_products(auxiliary) + 2 * auxiliary.width * inside
    attended = whole * 4 * read**2 * auxiliary.num_heads * auxiliary.head_width
    maps = base.num_layers * 2 * (2 * inside * outside)
    small = 2 * read * products + attended + read * maps
    return small + costs.token_flops(base, capacity)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes:
      prompt: p.
      output: o, of one answer.
      acceptance: of a guess, and of a step.
      step_tokens: of a step of SpecReason.
      judge_tokens: of its question.
      samples: answers side by side.
      revisions: answers in a row after the first.
      summary: tokens of a summary of drafts.
    """

    prompt: int
    output: int
    acceptance: float = 0.8
    step_tokens: int = 16
    judge_tokens: int = 8
    samples: int = 4
    revisions: int = 3
    summary: int = 16


def table(
    base: RuntimeModel, plan: Plan, draft: RuntimeModel | None = None
) -> tuple[dict[str, Cost], dict[str, str]]:
    """Returns the cost of every strategy by name, and why others are left out.

    Strategies of two models need a draft. Left out is what a model cannot hold: the
    drafts that are read at once, say.

    Raises:
      UserError: the models do not hold even one plain answer.
    """
    p, o, many = plan.prompt, plan.output, plan.samples
    ways: dict[str, Callable[[], Cost]] = {}
    if draft is not None:
        small = draft
        length = best_length(small, base, plan.acceptance, p, o)
        ways["the draft alone"] = lambda: request(small, p, o)
        ways[f"speculative, {length} guesses"] = lambda: speculative(
            small, base, p, o, plan.acceptance, length
        )
        ways["SpecReason"] = lambda: step_level(
            small, base, p, o, plan.step_tokens, plan.judge_tokens, plan.acceptance
        )
        ways["KV prediction"] = lambda: predicted_cache(small, base, p, o)
    ways[f"best of {many}"] = lambda: best_of(base, p, o, many)
    ways[f"best of {many}, judged"] = lambda: best_of(base, p, o, many, draft or base)
    ways[f"sequential refinement, {plan.revisions}"] = lambda: sequential_refinement(
        base, p, o, plan.revisions
    )
    ways[f"parallel-distill-refine, {many}"] = lambda: parallel_distill_refine(
        base, p, o, [many], plan.summary
    )
    found, left_out = {"plain": request(base, p, o)}, {}
    for name, way in ways.items():
        try:
            found[name] = way()
        except UserError as error:
            left_out[name] = str(error)
    return found, left_out
