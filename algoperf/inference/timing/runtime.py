"""The idealized runtime of a model: T(p, o) = F(p) + g (o - 1).

'Cheaply Estimating Inference Efficiency Metrics for Autoregressive Transformer Models'
(Narayanan et al. 2023, arXiv:2305.02440), in the form of its released code: F(p) is
the time to read p prompt tokens and give the first output token, g the time of each
further one, and T(p, 0) = F(p). Fitted on one machine with nothing else to do, it says
what a model costs apart from who serves it. No JAX here.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from algoperf.errors import UserError, unknown_name
from algoperf.inference.timing.prompt_time import (
    FITTED,
    RULES,
    PromptTime,
    hinge_candidates,
    prompt_columns,
)

Sample = tuple[int, int, float]  # prompt tokens, output tokens, seconds
_STATISTICS: dict[str, Callable[[list[float]], Any]] = {
    "median": np.median,
    "minimum": np.min,
    "mean": np.mean,
}


@dataclasses.dataclass(frozen=True)
class RuntimeModel:
    """Seconds of a request, by its prompt and output tokens.

    Attributes:
      prompt_seconds: F; callable for any length, a mapping of the measured ones.
      seconds_per_token: g, of each output token after the first.
      seconds_per_token_slope: what g grows by for each token of context; a token with
        c tokens before it takes g + slope c. 0: attention to the past is not counted.
      overhead: constant seconds of each request (a network, say).
      r2: share of the variance of the measured seconds that the model explains; None
        where it was not fitted.
      mean_relative_error: of the fitted times, mean of |predicted / measured - 1|.
      seconds_per_token_error: standard error of g.
      max_length: the most tokens of prompt and output; None: unknown.
    """

    prompt_seconds: PromptTime
    seconds_per_token: float
    seconds_per_token_slope: float = 0.0
    overhead: float = 0.0
    r2: float | None = None
    mean_relative_error: float | None = None
    seconds_per_token_error: float | None = None
    max_length: int | None = None

    def predict(self, prompt: int, output: int) -> float:
        """Returns T(p, o) in seconds.

        Args:
          prompt: p >= 1 tokens (0 is taken by HELM's rule alone, which gives no time).
          output: o >= 0 tokens. With a slope m, the tokens after the first have p + 1,
            ..., p + o - 1 before them and add m times the sum of that.

        Raises:
          UserError: a negative number, or more than the model holds.
        """
        self.check(prompt, output)
        decoding = self.decode_seconds(prompt, output)
        return self.overhead + self.prompt_seconds(prompt) + decoding

    def check(self, prompt: int, output: int) -> None:
        """Raises UserError for a request that `predict` has no seconds for."""
        least = 0 if self.prompt_seconds.rule == "proportional" else 1
        if not prompt >= least:
            raise UserError(f"a prompt of {prompt} tokens; it needs at least {least}")
        if not output >= 0:
            raise UserError(f"an output of {output} tokens; it cannot be negative")
        if self.max_length is not None and prompt + output > self.max_length:
            raise UserError(
                f"{prompt} tokens of prompt and {output} of output are more than the "
                f"{self.max_length} that the model holds; shorten one of them"
            )

    def token_seconds(self, context: float) -> float:
        """Returns the seconds of one output token with so many tokens before it."""
        return self.seconds_per_token + self.seconds_per_token_slope * context

    def decode_seconds(self, prompt: int, output: int) -> float:
        """Returns the seconds of all output tokens after the first."""
        further = max(output - 1, 0)
        context = float(_context(prompt, output))
        return self.seconds_per_token * further + self.seconds_per_token_slope * context

    def to_json(self) -> dict[str, Any]:
        """Returns a dict that JSON can hold."""
        facts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return facts | {"prompt_seconds": self.prompt_seconds.to_json()}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "RuntimeModel":
        """Returns what `to_json` was called on.

        Raises:
          ValueError, TypeError, KeyError: it was another value.
        """
        prompt_seconds = PromptTime.from_json(value["prompt_seconds"])
        model = RuntimeModel(**{**value, "prompt_seconds": prompt_seconds})
        for name in ("seconds_per_token", "seconds_per_token_slope", "overhead"):
            if not math.isfinite(getattr(model, name)):
                raise ValueError(f"{name} is {getattr(model, name)}")
        if not isinstance(model.max_length, int | None):
            raise ValueError(f"max_length is {model.max_length!r}")
        return model

    @staticmethod
    def from_helm(
        entry: Mapping[str, Any], rule: str = "proportional"
    ) -> "RuntimeModel":
        """Returns the model of one entry of HELM's idealized or denoised runtimes.

        Args:
          entry: {"runtime_per_output_token": s, "runtime_for_prompt_tokens":
            {"<p>": s, ...}} and, denoised, "overhead": s.
          rule: proportional repeats HELM's published numbers; table interpolates, which
            is nearer to measured times.

        Raises:
          UserError: the entry has other fields or values.
        """
        try:
            knots = sorted(
                (int(p), float(seconds))
                for p, seconds in entry["runtime_for_prompt_tokens"].items()
            )
            return RuntimeModel(
                prompt_seconds=PromptTime(rule, tuple(knots)),
                seconds_per_token=float(entry["runtime_per_output_token"]),
                overhead=float(entry.get("overhead", 0.0)),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                "this is no entry of HELM's runtimes: it needs "
                "runtime_per_output_token and runtime_for_prompt_tokens, a table of "
                f"seconds by tokens ({type(error).__name__}: {error})"
            ) from error


@dataclasses.dataclass(frozen=True)
class DecodeRegression:
    """Least squares of T(p, o) - T(p, 1) on o, as in the paper's released code.

    Attributes:
      slope: g in seconds.
      intercept: -g where the model holds.
      r2: of this regression.
    """

    slope: float
    intercept: float
    r2: float


def decode_regression(
    samples: Iterable[Sample], statistic: str = "mean"
) -> DecodeRegression:
    """Returns the paper's estimate of g; every prompt length needs a sample with o = 1.

    Raises:
      UserError: there is none, or only one output length.
    """
    cells = cell_seconds(samples, statistic)
    pairs = [
        (o, seconds - cells[p, 1])
        for (p, o), seconds in cells.items()
        if (p, 1) in cells
    ]
    outputs, rises = np.array(pairs, float).reshape(-1, 2).T
    if len(np.unique(outputs)) < 2:
        raise UserError("g needs at least two output lengths, and one of them is 1")
    slope, intercept = np.polyfit(outputs, rises, 1)
    r2 = r_squared(rises, slope * outputs + intercept)
    return DecodeRegression(float(slope), float(intercept), r2)


def fit_runtime(
    samples: Iterable[Sample],
    rule: str = "auto",
    context_slope: bool | None = False,
    statistic: str = "median",
    pad: int = 1,
    max_length: int | None = None,
) -> RuntimeModel:
    """Returns F and g that fit measured requests best.

    All cells (p, o) are fitted together by least squares of relative errors, F in the
    columns of its rule, g and its slope in theirs. o = 0 counts as o = 1.

    Args:
      samples: (prompt tokens, output tokens, seconds); repeats of a cell are welcome.
      rule: of F, see `PromptTime`; auto takes the one that predicts prompt lengths
        best that it was not fitted on (leaving out one inner length at a time).
      context_slope: whether g grows with the context; None: where that predicts
        lengths that were left out better.
      statistic: what stands for the repeats of a cell: median, mean or minimum. The
        minimum gives a denoised runtime where noise only adds (section 4 of the
        paper); on a shared machine the median of interleaved repeats is steadier.
      pad: of the rule quadratic.
      max_length: kept in the model.

    Raises:
      UserError: too few samples to tell F from g, or seconds that are not positive.
    """
    cells = cell_seconds(samples, statistic)
    prompts, outputs = np.array(list(cells), int).reshape(-1, 2).T
    seconds = np.array(list(cells.values()))
    if not len(cells) or len(np.unique(np.maximum(outputs, 1))) < 2:
        raise UserError("g needs samples of at least two output lengths, 1 among them")
    candidates = _candidates(rule, prompts, context_slope)
    data = (prompts, outputs, seconds)
    errors = [math.inf] * len(candidates)
    if len(candidates) > 1:
        errors = [_error_left_out(*candidate, data, pad) for candidate in candidates]
    chosen, has_slope = candidates[errors.index(min(errors))]
    fitted = _fit(chosen, has_slope, data, pad)
    quality: dict[str, Any] = fit_quality(fitted, *data)
    return dataclasses.replace(fitted, max_length=max_length, **quality)


def cell_seconds(
    samples: Iterable[Sample], statistic: str = "median"
) -> dict[tuple[int, int], float]:
    """Returns one time for each (prompt, output), ascending.

    Raises:
      UserError: an unknown statistic, or a sample that is none.
    """
    if statistic not in _STATISTICS:
        raise unknown_name("statistic", statistic, _STATISTICS)
    cells: dict[tuple[int, int], list[float]] = {}
    for prompt, output, seconds in samples:
        if not (prompt >= 1 and output >= 0 and 0 < seconds < math.inf):
            raise UserError(
                f"sample {(prompt, output, seconds)}: it needs a prompt of at least "
                "one token, an output of at least none, and seconds above 0"
            )
        cells.setdefault((int(prompt), int(output)), []).append(float(seconds))
    summary = _STATISTICS[statistic]
    return {cell: float(summary(times)) for cell, times in sorted(cells.items())}


def fit_quality(
    model: RuntimeModel, prompts: np.ndarray, outputs: np.ndarray, seconds: np.ndarray
) -> dict[str, float]:
    """Returns `r2` and `mean_relative_error` of a model on cells, arrays (cells,)."""
    cells = zip(prompts, outputs, strict=True)
    predicted = np.array([model.predict(int(p), int(o)) for p, o in cells])
    return {
        "r2": r_squared(seconds, predicted),
        "mean_relative_error": float(np.mean(np.abs(predicted / seconds - 1))),
    }


def r_squared(measured: np.ndarray, predicted: np.ndarray) -> float:
    """Returns 1 - squared errors / squared distances from the mean."""
    spread = float(np.sum((measured - np.mean(measured)) ** 2))
    errors = float(np.sum((measured - predicted) ** 2))
    if spread == 0:
        return 1.0 if errors == 0 else -math.inf
    return 1 - errors / spread


def _context(prompt: Any, output: Any) -> Any:
    """Sum of the tokens before each output token after the first; takes arrays too."""
    further = np.maximum(output - 1, 0)
    return further * prompt + further * (further + 1) / 2


def check_enough(
    cells: Sequence[tuple[int, int]], rule: str, context_slope: bool | None
) -> None:
    """Raises UserError where `fit_runtime` would, for too few cells."""
    _candidates(rule, np.array([prompt for prompt, _ in cells]), context_slope)


def _candidates(
    rule: str, prompts: np.ndarray, context_slope: bool | None
) -> list[tuple[str, bool]]:
    """Returns the rules that these cells can be fitted with, with a slope or not."""
    slopes = (False, True) if context_slope is None else (context_slope,)
    return [(name, slope) for slope in slopes for name in _rules(rule, prompts, slope)]


def _rules(rule: str, prompts: np.ndarray, context_slope: bool) -> list[str]:
    if rule != "auto" and rule not in FITTED:
        raise unknown_name("rule for prompts", rule, ("auto", *FITTED))
    lengths = len(np.unique(prompts))
    spare = len(prompts) - 1 - context_slope
    possible = [
        name
        for name in FITTED
        if lengths >= RULES[name] and spare >= (lengths if name == "table" else 3)
    ]
    if rule == "auto":
        if not possible and lengths >= 2 and spare >= 2:
            return ["affine"]
        if possible:
            return possible
    elif lengths >= RULES[rule] and spare >= (lengths if rule == "table" else 2):
        return [rule]
    raise UserError(
        f"{len(prompts)} cells with {lengths} prompt lengths are too few to fit F and "
        f"g (rule {rule}); measure more output lengths at each prompt length"
    )


def _fit(rule: str, context_slope: bool, data: Any, pad: int) -> RuntimeModel:
    """Least squares of relative errors, by a scan over the hinge where there is one."""

    places = _places(rule, data[0])

    def at(hinge: float) -> tuple[float, float, np.ndarray, float]:
        # Beyond the last place one prompt length alone, or none, would set the slope.
        within = float(np.clip(hinge, places[0], places[-1]))
        return _linear_fit(rule, data, context_slope, pad, within)

    best = min(map(at, places), key=lambda fit: fit[0])
    step = 1.0
    while rule == "hinge" and step > 1e-3:  # nearer and nearer to the best place
        near = [at(best[1] * (1 + share * step)) for share in (-0.5, 0.5)]
        best, step = min([best, *near], key=lambda fit: fit[0]), step * 0.7
    _, hinge, solution, error = best
    num_further = 1 + context_slope
    of_prompt = [float(x) for x in solution[:-num_further]]
    further = [float(x) for x in solution[-num_further:]]
    lengths = [int(p) for p in np.unique(data[0])]
    if rule == "table":
        known = tuple(zip(lengths, of_prompt, strict=True))
        prompt_time = PromptTime("table", known)
    else:
        coefficients = (*of_prompt, hinge) if rule == "hinge" else tuple(of_prompt)
        prompt_time = PromptTime(rule, (), coefficients, pad)
        known = tuple((p, prompt_time(p)) for p in lengths)
        prompt_time = dataclasses.replace(prompt_time, knots=known)
    return RuntimeModel(
        prompt_seconds=prompt_time,
        seconds_per_token=further[0],
        seconds_per_token_slope=further[1] if context_slope else 0.0,
        seconds_per_token_error=error,
    )


def _places(rule: str, prompts: np.ndarray) -> np.ndarray:
    return hinge_candidates(prompts) if rule == "hinge" else np.zeros(1)


def _linear_fit(
    rule: str, data: Any, context_slope: bool, pad: int, hinge: float
) -> tuple[float, float, np.ndarray, float]:
    """Returns squared relative errors, the hinge, the solution, g's standard error."""
    prompts, outputs, seconds = data
    columns = [*prompt_columns(rule, prompts, hinge, pad).T, np.maximum(outputs - 1, 0)]
    if context_slope:
        columns.append(_context(prompts, outputs))
    relative = np.stack(columns, axis=1) / seconds[:, None]
    scale = np.linalg.norm(relative, axis=0)
    scale[scale == 0] = 1.0
    solution, _, rank, _ = np.linalg.lstsq(relative / scale, np.ones_like(seconds))
    if rank < relative.shape[1]:
        raise UserError(
            "the samples cannot tell F from g: measure at least two output lengths at "
            "some prompt length"
        )
    residuals = relative / scale @ solution - 1
    squared = float(residuals @ residuals)
    spare = max(len(seconds) - len(columns), 1)
    covariance = np.linalg.inv((relative / scale).T @ (relative / scale))
    at = -1 - context_slope
    error = math.sqrt(covariance[at, at] * squared / spare) / scale[at]
    return squared, hinge, solution / scale, float(error)


def _error_left_out(rule: str, context_slope: bool, data: Any, pad: int) -> float:
    """Mean relative error on prompt lengths that were left out, one at a time.

    Infinite where this form cannot be fitted without them.
    """
    prompts, outputs, seconds = data
    inner = np.unique(prompts)[1:-1]
    if not len(inner):
        return 0.0 if rule == "table" else math.inf
    errors: list[float] = []
    for length in inner:
        out = prompts == length
        kept = (prompts[~out], outputs[~out], seconds[~out])
        if len(np.unique(kept[0])) < RULES[rule]:
            return math.inf
        try:
            model = _fit(rule, context_slope, kept, pad)
        except UserError:  # what is left cannot tell F from g
            return math.inf
        if model.seconds_per_token_slope < 0:  # time does not fall with the context
            return math.inf
        left_out = (prompts[out], outputs[out], seconds[out])
        errors.append(fit_quality(model, *left_out)["mean_relative_error"])
    return float(np.mean(errors))
