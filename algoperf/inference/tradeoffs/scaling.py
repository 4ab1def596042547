"""Test-time compute and scaling laws, as small functions with the fits they need."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from algoperf.errors import UserError
from algoperf.inference.models.shapes import DecoderShape

# FLOPs that a B200 does while it moves one byte: 4.5e15 / 8e12 (arXiv:2506.05333).
KINETICS_INTENSITY = 562.5


@dataclasses.dataclass(frozen=True)
class EquivalentFlops:
    """FLOPs of computing and, in the same currency, of moving memory."""

    compute: float
    memory: float

    @property
    def total(self) -> float:
        """eFLOPs = compute + intensity x bytes."""
        return self.compute + self.memory


def equivalent_flops(
    shape: DecoderShape,
    prompt: int,
    output: int,
    trials: int = 1,
    parameters: float | None = None,
    intensity: float = KINETICS_INTENSITY,
    attended: int | None = None,
) -> EquivalentFlops:
    """Returns eFLOPs of decoding (Kinetics, arXiv:2506.05333, section 2).

    compute = n (2 N Lo + 2 (2 Li + Lo) Lo h d), memory = 2 (2 Li + n Lo) Lo c d bytes,
    d = head width x layers, h heads, c key-value heads, two bytes each. The weights'
    reading is shared by a large batch and not counted.

    Args:
      shape: heads and layers.
      prompt: Li, tokens shared by all trials.
      output: Lo, tokens of each trial.
      trials: n.
      parameters: N; the shape's active ones where None.
      intensity: FLOPs per byte of the device.
      attended: with sparse attention, at most so many tokens are attended to; the
        search for them is not counted. None: all.
    """
    count = shape.num_active_parameters if parameters is None else parameters
    width = shape.head_width * shape.num_layers
    own = output * output / 2  # sum of the own tokens before each
    shared = float(prompt * output)
    if attended is not None:
        seen = _attended_in_all(prompt, output, attended)
        shared, own = (seen * part / (shared + own) for part in (shared, own))
    compute = trials * (
        2 * count * output + 4 * (shared + own) * shape.num_heads * width
    )
    moved = 4 * (shared + trials * own) * shape.kv_heads * width
    return EquivalentFlops(compute, intensity * moved)


def _attended_in_all(prompt: int, output: int, attended: int) -> float:
    """Sum over the output of min(attended, tokens before), as an integral."""
    full_from = min(max(attended - prompt, 0), output)
    before = prompt * full_from + full_from**2 / 2
    at_most = min(attended, prompt + output)
    return before + at_most * (output - full_from)


def coverage(total: int, correct: int, tried: int) -> float:
    """Returns the chance that `tried` of `total` samples hold a correct one.

    1 - C(T - c, n) / C(T, n), unbiased.

    Raises:
      UserError: more correct or tried than there are.
    """
    if not (0 <= correct <= total and 0 <= tried <= total):
        raise UserError(
            f"{correct} correct and {tried} tried of {total} samples: neither can be "
            "more than all"
        )
    return 1 - math.comb(total - correct, tried) / math.comb(total, tried)


@dataclasses.dataclass(frozen=True)
class Saturation:
    """F(N) = F_max (1 - (1 - p)^N): accuracy after N tries or rethinks.

    'Scaling over Scaling' (TTSPM, arXiv:2505.20522): parallel sampling and sequential
    rethinking follow one law with a p of their own.

    Attributes:
      limit: F_max.
      rate: p, in (0, 1).
    """

    limit: float
    rate: float

    def __post_init__(self) -> None:
        if not (self.limit > 0 and 0 < self.rate < 1):
            raise UserError(
                f"limit {self.limit} must be above 0 and rate {self.rate} within (0, 1)"
            )

    def accuracy(self, tries: int) -> float:
        """Returns F(N)."""
        return self.limit * (1 - (1 - self.rate) ** tries)

    def saturates_at(self, least_gain: float) -> int:
        """Returns N*: from here on one more try gains at most `least_gain`.

        N* = ceil(ln(e / (F_max p)) / ln(1 - p)).
        """
        if not least_gain > 0:
            raise UserError(f"a least gain of {least_gain} is never reached; give > 0")
        first_gain = self.limit * self.rate
        if least_gain >= first_gain:
            return 0
        tries = math.log(least_gain / first_gain) / math.log(1 - self.rate)
        return math.ceil(tries)


def fit_saturation(tries: Sequence[int], accuracies: Sequence[float]) -> Saturation:
    """Returns the law that fits accuracies at so many tries best (least squares).

    Raises:
      UserError: fewer than two numbers of tries.
    """
    counts, found = np.array(tries, float), np.array(accuracies, float)
    if len(np.unique(counts)) < 2 or not found.max() > 0:
        raise UserError("fitting a saturation needs accuracies at two numbers of tries")

    def at(rate: float) -> tuple[float, float]:
        """Squared errors of the best limit for a rate, and that limit."""
        reach = 1 - (1 - rate) ** counts
        limit = float(found @ reach / (reach @ reach))
        return float(np.sum((found - limit * reach) ** 2)), limit

    low, high = 1e-6, 1 - 1e-6
    for _ in range(12):  # ever finer grids of rates
        rates = np.geomspace(low, high, 60).tolist()
        best = min(range(len(rates)), key=lambda i: at(rates[i])[0])
        low, high = rates[max(best - 1, 0)], rates[min(best + 1, len(rates) - 1)]
    rate = float(rates[best])
    return Saturation(at(rate)[1], rate)


def matched_inference_multiplier(model_ratio: float, token_ratio: float) -> float:
    """Returns how much more a small model may infer for a larger one's total FLOPs.

    m = M + 3 (M - 1) / R: training costs 6 N D, inference 2 N D (arXiv:2408.03314,
    section 7).

    Args:
      model_ratio: M, parameters of the larger model over the smaller's.
      token_ratio: R, inference tokens over pre-training tokens.
    """
    if not (model_ratio >= 1 and token_ratio > 0):
        raise UserError(
            f"model ratio {model_ratio} must be at least 1, token ratio {token_ratio} "
            "above 0"
        )
    return model_ratio + 3 * (model_ratio - 1) / token_ratio


def context_decode_seconds(
    prompt: int, output: int, seconds_per_token: float, slope: float
) -> float:
    """Returns n O + m (I O + O (O - 1) / 2) (EdgeReasoning, arXiv:2511.01866).

    All O tokens are decoded here, the first with I tokens before it.

    Args:
      prompt: I.
      output: O.
      seconds_per_token: n.
      slope: m, seconds for each token of context.
    """
    context = prompt * output + output * (output - 1) / 2
    return seconds_per_token * output + slope * context


@dataclasses.dataclass(frozen=True)
class VisualPowerLaw:
    """Y(N, T) = A / (N^a T^b): error of a model of N parameters on T visual tokens.

    'Inference Optimal VLMs Need Fewer Visual Tokens and More Parameters'
    (arXiv:2411.03312), with the offset D = 0.

    Attributes:
      scale: A.
      size_exponent: a.
      token_exponent: b.
      r2: of the errors' logarithms; None where it was not fitted.
    """

    scale: float
    size_exponent: float
    token_exponent: float
    r2: float | None = None

    def error(self, parameters: float, visual_tokens: float) -> float:
        """Returns Y(N, T)."""
        size = parameters**self.size_exponent
        return self.scale / (size * visual_tokens**self.token_exponent)

    def best_visual_tokens(self, text_tokens: float) -> float:
        """Returns T* = b Q / (a - b), the optimum at fixed FLOPs ~ N (Q + T).

        At least 1. Infinite where b >= a: tokens are then worth more than parameters.
        """
        if self.token_exponent >= self.size_exponent:
            return math.inf
        spare = self.size_exponent - self.token_exponent
        return max(1.0, self.token_exponent * text_tokens / spare)


def fit_visual_power_law(
    parameters: Sequence[float], visual_tokens: Sequence[float], errors: Sequence[float]
) -> VisualPowerLaw:
    """Returns the law by least squares of logarithms; three sequences of one length."""
    logs = [np.log(np.asarray(x, float)) for x in (parameters, visual_tokens, errors)]
    columns = np.stack([np.ones_like(logs[0]), -logs[0], -logs[1]], axis=1)
    if np.linalg.matrix_rank(columns) < 3:
        raise UserError("the power law needs several sizes and several token counts")
    solution = np.linalg.lstsq(columns, logs[2])[0]
    errors_left = logs[2] - columns @ solution
    r2 = 1 - float(errors_left @ errors_left / np.sum((logs[2] - logs[2].mean()) ** 2))
    return VisualPowerLaw(
        float(np.exp(solution[0])), float(solution[1]), float(solution[2]), r2
    )


@dataclasses.dataclass(frozen=True)
class CompoundScaling:
    """Factors of a network that does s times the FLOPs (arXiv:2103.06877, section 4).

    Attributes:
      depth: s^((1 - a) / 2).
      width: s^(a / 2).
      resolution: s^((1 - a) / 4).
      parameters: depth x width^2.
      activations: depth x width x resolution^2 = s^(1 - a / 2), which times follow.
    """

    depth: float
    width: float
    resolution: float

    @property
    def parameters(self) -> float:
        """Factor of the parameters."""
        return self.depth * self.width**2

    @property
    def activations(self) -> float:
        """Factor of the convolutions' outputs."""
        return self.depth * self.width * self.resolution**2


def fast_compound_scaling(flops: float, alpha: float = 0.8) -> CompoundScaling:
    """Returns the factors for s = `flops` times the FLOPs; alpha 0.8 is the fast one.

    alpha = 1 scales width alone, 1/3 all three alike.
    """
    if not (flops > 0 and 0 <= alpha <= 1):
        raise UserError(
            f"flops {flops} must be above 0 and alpha {alpha} within [0, 1]"
        )
    return CompoundScaling(
        depth=flops ** ((1 - alpha) / 2),
        width=flops ** (alpha / 2),
        resolution=flops ** ((1 - alpha) / 4),
    )


@dataclasses.dataclass(frozen=True)
class Budget:
    """Tokens of a strategy: `sequential` on its longest path, `total` in all.

    Latency follows the first, cost the second (PDR, arXiv:2510.01123, section 2).
    `a + b` does b after a; `a | b` does both at once.
    """

    sequential: int
    total: int

    def __post_init__(self) -> None:
        if not 0 <= self.sequential <= self.total:
            raise UserError(
                f"{self.sequential} tokens in a row cannot be more than all "
                f"{self.total}"
            )

    def __add__(self, other: "Budget") -> "Budget":
        return Budget(self.sequential + other.sequential, self.total + other.total)

    def __or__(self, other: "Budget") -> "Budget":
        longest = max(self.sequential, other.sequential)
        return Budget(longest, self.total + other.total)


def one_pass(tokens: int) -> Budget:
    """Returns the budget of one generation."""
    return Budget(tokens, tokens)


def best_of(lengths: Sequence[int]) -> Budget:
    """Returns the budget of generations side by side."""
    budget = Budget(0, 0)
    for tokens in lengths:
        budget = budget | one_pass(tokens)
    return budget


def parallel_distill_refine(
    rounds: Sequence[tuple[Sequence[int], int]], answer: int
) -> Budget:
    """Returns the budget of rounds of drafts, each distilled, and a last answer.

    Args:
      rounds: for each, the tokens of its drafts and of the summary made of them.
      answer: tokens of the last pass.
    """
    budget = Budget(0, 0)
    for drafts, summary in rounds:
        budget = budget + best_of(drafts) + one_pass(summary)
    return budget + one_pass(answer)
