"""SpecReason: a small model writes whole steps, the base model accepts or rewrites.

Pan et al. 2025 (arXiv:2504.07891): speculation on steps of reasoning, where being as
good is enough; the output is not the base model's own, token by token. The base model
reads every step, which is one pass, and a judge gives it a score of 0 to 9; steps below
a threshold the base model writes anew. `strategies.step_level` has what it costs.

The judge is an argument. The paper asks the base model for a score in words, which
takes a model that understands the question; `likelihood_judge` needs none.

One sequence at a time. Dimension key: N tokens of a step at most, S capacity.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from algoperf.errors import UserError
from algoperf.inference.decoding import speculative
from algoperf.inference.models import decoder
from algoperf.inference.models.decoder import Model
from algoperf.inference.models.shapes import DecoderShape

HIGHEST_SCORE = 9.0
DEFAULT_THRESHOLD = 7.0


@dataclasses.dataclass(frozen=True)
class Step:
    """What a judge sees.

    Attributes:
      text: (T,) tokens before the step, int32.
      tokens: (n,) of the step.
      log_probabilities: (n,) of these tokens, by the base model at temperature 1.
    """

    text: np.ndarray
    tokens: np.ndarray
    log_probabilities: np.ndarray


Judge = Callable[[Step], float]  # a score of 0 to 9


def likelihood_judge(step: Step) -> float:
    """Returns 9 times the geometric mean of the base model's probabilities."""
    return HIGHEST_SCORE * float(np.exp(np.mean(step.log_probabilities)))


@dataclasses.dataclass(frozen=True)
class Settings:
    """How an answer is put together.

    Attributes:
      threshold: steps with a lower score are written anew; 0 takes all, above 9 none.
      step_tokens: N, of a step at most.
      end_token: ends a step earlier; None: all steps have N tokens.
      first_steps_of_base: so many steps are the base model's from the start.
      temperature: of both models; 0 takes the likeliest tokens.
    """

    threshold: float = DEFAULT_THRESHOLD
    step_tokens: int = 16
    end_token: int | None = None
    first_steps_of_base: int = 0
    temperature: float = 0.0

    def __post_init__(self) -> None:
        if self.step_tokens < 1 or self.first_steps_of_base < 0:
            raise UserError(
                f"steps of {self.step_tokens} tokens, {self.first_steps_of_base} of "
                "them the base model's: give at least 1 and 0"
            )


@dataclasses.dataclass(frozen=True)
class Trace:
    """What happened, step by step.

    Attributes:
      scores: of the small model's steps; None where it was not asked.
      accepted: whether the step is the small model's.
      lengths: tokens of each step that came out.
      small_tokens: that the small model wrote, rejected ones included.
      base_tokens: that the base model wrote.
    """

    scores: tuple[float | None, ...]
    accepted: tuple[bool, ...]
    lengths: tuple[int, ...]
    small_tokens: int
    base_tokens: int

    @property
    def acceptance(self) -> float:
        """Share of judged steps that were accepted; NaN where none was judged."""
        judged = sum(score is not None for score in self.scores)
        return sum(self.accepted) / judged if judged else float("nan")


def generate(
    small: Model,
    base: Model,
    prompt_P: jax.Array,
    num_tokens: int,
    settings: Settings,
    judge: Judge = likelihood_judge,
    key: jax.Array | None = None,
) -> tuple[np.ndarray, Trace]:
    """Returns num_tokens new tokens, int32, and how they came about.

    Both caches hold all of the text but its last token before each step; a model reads
    what the other has written in one pass.

    Args:
      small: writes steps.
      base: judges them, and writes those that are rejected; same vocabulary.
      prompt_P: int32, P at least 1.
      num_tokens: at least 1; the last step is cut off there.
      settings: of the steps.
      judge: gives a step its score; called on the host.
      key: for sampling.

    Raises:
      UserError: the vocabularies differ, or the request does not fit a model.
    """
    speculative.check_pair(base.shape, small.shape)
    if num_tokens < 1:
        raise UserError(f"an output of {num_tokens} tokens; ask for at least one")
    prompt = prompt_P.shape[0]
    for model in (small, base):
        decoder.check_lengths(model.shape, prompt, num_tokens + settings.step_tokens)
    capacity = decoder.capacity_for(prompt + num_tokens + settings.step_tokens)
    caches = {
        name: _read(model, prompt_P[:-1], capacity)
        for name, model in (("small", small), ("base", base))
    }
    text = [int(token) for token in prompt_P]
    key = jax.random.key(0) if key is None else key
    scores: list[float | None] = []
    accepted: list[bool] = []
    lengths: list[int] = []
    wrote = {"small": 0, "base": 0}

    def write(name: str, model: Model) -> np.ndarray:
        """A step by one of the models; both of its caches then hold it."""
        step_key = jax.random.fold_in(key, 2 * len(lengths) + (name == "base"))
        tokens_N, caches[name] = _write(
            *model, _last(text), len(text) - 1, caches[name], step_key,
            settings.step_tokens, settings.temperature,
        )  # fmt: skip
        step = _cut(np.asarray(tokens_N), settings.end_token)
        wrote[name] += len(step)
        return step

    def read(name: str, model: Model, step: np.ndarray) -> np.ndarray:
        """The log-probabilities of a step that the other model has written."""
        padded = np.zeros(settings.step_tokens, np.int32)
        padded[: len(step)] = step
        logs_N, caches[name] = _scored(
            *model, _last(text), jnp.asarray(padded), len(text) - 1, caches[name]
        )
        return np.asarray(logs_N)[: len(step)]

    while len(text) - prompt < num_tokens:
        score, is_kept = None, False
        if len(lengths) >= settings.first_steps_of_base:
            step = write("small", small)
            logs = read("base", base, step)
            score = judge(Step(np.array(text, np.int32), step, logs))
            is_kept = score >= settings.threshold
        if not is_kept:
            step = write("base", base)
            read("small", small, step)
        text += [int(token) for token in step]
        scores.append(score)
        accepted.append(is_kept)
        lengths.append(len(step))
    trace = Trace(
        tuple(scores), tuple(accepted), tuple(lengths), wrote["small"], wrote["base"]
    )
    return np.array(text[prompt : prompt + num_tokens], np.int32), trace


def _last(text: list[int]) -> jax.Array:
    return jnp.asarray(text[-1:], jnp.int32)


def _cut(tokens: np.ndarray, end_token: int | None) -> np.ndarray:
    """The tokens up to the end token, it included."""
    is_end = tokens == end_token
    return tokens[: int(np.argmax(is_end)) + 1] if np.any(is_end) else tokens


def _read(model: Model, tokens_T: jax.Array, capacity: int) -> decoder.Cache:
    """A cache that holds these tokens; none are taken too."""
    dtype = model.params["embedding"].dtype
    cache = decoder.empty_cache(model.shape, 1, capacity, dtype)
    if not len(tokens_T):
        return cache
    return decoder.compiled_prefill(*model, tokens_T[None], len(tokens_T), cache)[1]


@functools.partial(jax.jit, static_argnums=(0, 6, 7), donate_argnums=4)
def _write(
    shape: DecoderShape,
    params: decoder.Params,
    last_1: jax.Array,
    position: Any,
    cache: decoder.Cache,
    key: jax.Array,
    step_tokens: int,
    temperature: float,
) -> tuple[jax.Array, decoder.Cache]:
    """Writes N tokens after the last one, which stands at `position`."""
    logits_11V, cache = decoder.extend(shape, params, last_1[None], position, cache)
    tokens_1S, _, cache = decoder.decode(
        shape,
        params,
        logits_11V[:, 0],
        position + 1,
        cache,
        step_tokens,
        key,
        temperature,
    )
    return tokens_1S[0, :step_tokens], cache


@functools.partial(jax.jit, static_argnums=0, donate_argnums=5)
def _scored(
    shape: DecoderShape,
    params: decoder.Params,
    last_1: jax.Array,
    step_N: jax.Array,
    position: Any,
    cache: decoder.Cache,
) -> tuple[jax.Array, decoder.Cache]:
    """Reads a step and returns the log-probability of each of its tokens."""
    read = jnp.concatenate([last_1, step_N[:-1]])
    logits_1NV, cache = decoder.extend(shape, params, read[None], position, cache)
    logs_NV = jax.nn.log_softmax(logits_1NV[0], axis=-1)
    return jnp.take_along_axis(logs_NV, step_N[:, None], axis=-1)[:, 0], cache
