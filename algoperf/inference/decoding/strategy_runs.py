"""What a strategy bench measures: a pair of models that answers prompts."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from algoperf.inference.decoding import oracle, speculative
from algoperf.inference.decoding.drafting import Help, Strategy
from algoperf.inference.decoding.pair import Pair
from algoperf.inference.decoding.speculation import Counts
from algoperf.inference.decoding.strategy_bench import Cell
from algoperf.inference.models import decoder


def asker(
    pair: Pair,
    prompts: np.ndarray,
    num_tokens: int,
    longest: int,
    temperature: float = 0.0,
) -> Callable[[Cell], Counts | None]:
    """Returns what answers all prompts with a cell's strategy, one after the other.

    Thresholds share a program. An oracle's plans are made when it is first asked.

    Args:
      pair: target, drafts, heads.
      prompts: (N, P), int32.
      num_tokens: of each answer.
      longest: guesses a round at most, of all but fixed lengths.
      temperature: of both models; an oracle needs 0.
    """
    rows = [jnp.asarray(row, jnp.int32) for row in prompts]
    keys = [jax.random.fold_in(jax.random.key(5), i) for i in range(len(rows))]
    plans: dict[str, tuple[list[Help], int]] = {}

    def alone(model: decoder.Model) -> None:
        for row, key in zip(rows, keys, strict=True):
            decoder.generate(
                *model, row[None], num_tokens, temperature, key
            ).block_until_ready()

    def planned(name: str) -> tuple[list[Help], int]:
        if name not in plans:
            found = [
                oracle.ask(pair.target, pair.drafts[name], row, num_tokens, longest)
                for row in rows
            ]
            helps = [Help(lengths_R=oracle.padded(p, num_tokens)) for p in found]
            plans[name] = helps, max(p.window for p in found)
        return plans[name]

    def ask(cell: Cell) -> Counts | None:
        if cell.kind in ("plain", "alone"):
            alone(pair.drafts[cell.draft] if cell.draft else pair.target)
            return None
        helps, window = [Help()] * len(rows), 2
        most, threshold = longest, None
        if cell.kind == "length":
            most = int(cell.value or 0)
        elif cell.kind == "oracle":
            helps, window = planned(cell.draft)
        else:
            threshold = cell.value
            head = pair.heads[cell.draft] if cell.kind == "head" else None
            helps = [Help(threshold, head)] * len(rows)
        strategy = Strategy(most, threshold, temperature=temperature)
        total = Counts(0, 0, 0)
        for row, help_, key in zip(rows, helps, keys, strict=True):
            _, counts = speculative.run(
                pair.target,
                pair.drafts[cell.draft],
                row,
                num_tokens,
                strategy,
                help_,
                key,
                window,
            )
            total += counts
        return total

    return ask
