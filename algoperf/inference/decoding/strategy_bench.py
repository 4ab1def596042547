"""Decoding strategies of one pair of models, measured in turns.

Every cell (a strategy with a draft) answers the same prompts once in a round, in an
order drawn anew; a slow spell touches all cells alike. Intervals are by bootstrap over
rounds, and a speed-up is taken within the same rounds. No JAX: what is measured is an
argument.
"""

import dataclasses
import random
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from algoperf.errors import UserError
from algoperf.inference.decoding.speculation import Counts

RESAMPLES = 1000
CONFIDENCE = 0.95
LEAST_ROUNDS = 3


@dataclasses.dataclass(frozen=True)
class Cell:
    """What is measured.

    Attributes:
      kind: plain (the target alone), alone (the draft alone), length, threshold, head
        or oracle.
      value: guesses a round, or the threshold; None where there is none.
      draft: which draft guesses; '' for plain.
    """

    kind: str
    value: float | None = None
    draft: str = ""

    @property
    def name(self) -> str:
        """For tables and files."""
        parts = (self.draft, self.kind, "" if self.value is None else f"{self.value:g}")
        return " ".join(part for part in parts if part)


PLAIN = Cell("plain")


def cells(
    drafts: Sequence[str],
    lengths: Sequence[int],
    thresholds: Sequence[float],
    has_heads: bool,
    has_oracle: bool,
) -> list[Cell]:
    """Returns every strategy with every draft, the target alone, each draft alone."""
    found = [PLAIN]
    for draft in drafts:
        found.append(Cell("alone", None, draft))
        found += [Cell("length", float(k), draft) for k in lengths]
        found += [Cell("threshold", h, draft) for h in thresholds]
        found += [Cell("head", h, draft) for h in thresholds if has_heads]
        found += [Cell("oracle", None, draft)] if has_oracle else []
    return found


Rounds = list[dict[str, float]]  # of each round: seconds by cell name


def measure(
    ask: Callable[[Cell], Counts | None],
    wanted: Sequence[Cell],
    num_rounds: int,
    seconds: float,
    clock: Callable[[], float],
    done: Rounds,
    save: Callable[[Rounds], None],
) -> tuple[Rounds, dict[str, Counts | None]]:
    """Returns seconds of each round and the counts of each cell.

    Args:
      ask: answers all prompts once with a cell's strategy; compiles when first called.
      wanted: the cells.
      num_rounds: in all, those that are done included.
      seconds: no further round begins after so many, once there are 3.
      clock: seconds.
      done: rounds of an earlier run.
      save: called with all rounds after each.

    Raises:
      UserError: fewer than 3 rounds, or earlier ones of other cells.
    """
    if num_rounds < LEAST_ROUNDS:
        raise UserError(f"{num_rounds} rounds give no interval; take {LEAST_ROUNDS}")
    names = {cell.name for cell in wanted}
    if any(set(earlier) != names for earlier in done):
        raise UserError(
            "the folder holds rounds of other strategies; take another --out"
        )
    counts = {cell.name: ask(cell) for cell in wanted}  # compiles
    rounds, began = [dict(earlier) for earlier in done], time.monotonic()
    while len(rounds) < num_rounds:
        if len(rounds) >= LEAST_ROUNDS and time.monotonic() - began > seconds:
            break
        order = list(wanted)
        random.Random(len(rounds)).shuffle(order)
        fresh = {}
        for cell in order:
            start = clock()
            ask(cell)
            fresh[cell.name] = clock() - start
        rounds.append(fresh)
        save(rounds)
    return rounds, counts


@dataclasses.dataclass(frozen=True)
class Row:
    """One cell in figures; `low` and `high` bound 95 %.

    Attributes:
      cell: which.
      tokens_per_second: median of the rounds.
      tokens_per_second_low: by bootstrap.
      tokens_per_second_high: by bootstrap.
      speed_up: over the target alone, within the same rounds.
      speed_up_low: by bootstrap.
      speed_up_high: by bootstrap.
      acceptance: guesses kept, of all; NaN where there are none.
      tokens_per_round: tokens for each pass of the target.
      discard_rate: guesses thrown away for each token.
      verification_rate: passes of the target for each token.
      modelled_speed_up: by counts and the measured time of a token of each model.
      speed_up_at_ratio: by counts and a given ratio of these times.
    """

    cell: Cell
    tokens_per_second: float
    tokens_per_second_low: float
    tokens_per_second_high: float
    speed_up: float
    speed_up_low: float
    speed_up_high: float
    acceptance: float
    tokens_per_round: float
    discard_rate: float
    verification_rate: float
    modelled_speed_up: float
    speed_up_at_ratio: float


def summarise(
    wanted: Sequence[Cell],
    rounds: Rounds,
    counts: Mapping[str, Counts | None],
    tokens: int,
    cost_ratio: float,
    seed: int = 0,
) -> list[Row]:
    """Returns a row for each cell.

    Args:
      wanted: the cells, with PLAIN.
      rounds: from `measure`.
      counts: from `measure`.
      tokens: of a round, of all prompts together.
      cost_ratio: a draft pass over a target pass on the hardware that is meant.
      seed: of the bootstrap.
    """
    seconds = {c.name: np.array([r[c.name] for r in rounds]) for c in wanted}
    chosen = np.random.default_rng(seed).integers(
        len(rounds), size=(RESAMPLES, len(rounds))
    )
    medians = {
        name: np.concatenate([[np.median(x)], np.median(x[chosen], axis=1)])
        for name, x in seconds.items()
    }  # (1 + RESAMPLES,), the first without resampling
    plain = medians[PLAIN.name]
    rows = []
    for cell in wanted:
        mine = medians[cell.name]
        draft_seconds = medians.get(Cell("alone", None, cell.draft).name, plain)[0]
        measured = draft_seconds / tokens, plain[0] / tokens
        rates = _rates(counts[cell.name], measured, cost_ratio)
        rows.append(
            Row(cell, *_interval(tokens / mine), *_interval(plain / mine), *rates)
        )
    return rows


def _interval(values: np.ndarray) -> tuple[float, float, float]:
    """The first value, and the bounds of the others."""
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(values[1:], [tail, 100 - tail])
    return float(values[0]), float(low), float(high)


def _rates(
    counts: Counts | None, seconds: tuple[float, float], cost_ratio: float
) -> tuple[float, ...]:
    """Acceptance, tokens per round, both rates, modelled speed-ups."""
    if counts is None:
        return (float("nan"),) * 6
    kept = counts.accepted / counts.drafted if counts.drafted else float("nan")
    modelled = seconds[1] * counts.tokens / counts.seconds(*seconds)
    at_ratio = counts.tokens / counts.seconds(cost_ratio, 1.0)
    return (
        kept,
        counts.tokens / counts.verified,
        counts.discard_rate,
        counts.verification_rate,
        modelled,
        at_ratio,
    )
