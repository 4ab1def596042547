"""F(p): seconds to read a prompt of p tokens and give the first token of the answer.

Five rules. A straight line is rarely one: short prompts cost what reading the weights
costs, long ones what their arithmetic costs, so the curve is flat, then linear, and
bends up with attention. A table of measured lengths with lines between them assumes
none of that.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from algoperf.errors import UserError, unknown_name

# How many prompt lengths each rule needs; `auto` tries all but the last.
RULES = {"table": 1, "affine": 2, "hinge": 4, "quadratic": 4, "proportional": 1}
FITTED = ("table", "affine", "hinge", "quadratic")


@dataclasses.dataclass(frozen=True)
class PromptTime(Mapping[int, float]):
    """Seconds by prompt length: a mapping of the known lengths, callable for any.

    Attributes:
      rule: how other lengths follow.
        table: lines between known lengths, the last line goes on; below the first
          length, its seconds.
        affine: a + b p.
        hinge: a + b max(0, p - p0).
        quadratic: a + b P + c P^2 with P = p padded up to a multiple of `pad`
          (EdgeReasoning, arXiv:2511.01866).
        proportional: the seconds of the next known length times p over that length
          (the rule of HELM's released code; it gives too little between lengths).
      knots: known (prompt tokens, seconds), lengths ascending.
      coefficients: (a, b), (a, b, p0) or (a, b, c); none for table and proportional.
      pad: tokens.
    """

    rule: str
    knots: tuple[tuple[int, float], ...]
    coefficients: tuple[float, ...] = ()
    pad: int = 1

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise unknown_name("rule for prompts", self.rule, RULES)
        if not self.knots and self.rule in ("table", "proportional"):
            raise UserError("a table of prompt times needs at least one length")

    def __call__(self, tokens: float) -> float:
        """Returns seconds for a prompt of so many tokens."""
        if self.rule == "table":
            return self._interpolated(tokens)
        if self.rule == "proportional":
            lengths = [length for length, _ in self.knots]
            at = min(int(np.searchsorted(lengths, tokens)), len(lengths) - 1)
            length, seconds = self.knots[at]
            return seconds * tokens / length
        hinge = self.coefficients[2] if self.rule == "hinge" else 0.0
        columns = prompt_columns(self.rule, np.array([tokens]), hinge, self.pad)
        linear = self.coefficients[:2] if self.rule == "hinge" else self.coefficients
        return float(columns[0] @ np.array(linear))

    def _interpolated(self, tokens: float) -> float:
        lengths, seconds = zip(*self.knots, strict=True)
        if tokens <= lengths[-1] or len(lengths) == 1:
            return float(np.interp(tokens, lengths, seconds))
        slope = (seconds[-1] - seconds[-2]) / (lengths[-1] - lengths[-2])
        return seconds[-1] + max(slope, 0.0) * (tokens - lengths[-1])

    def __getitem__(self, tokens: int) -> float:
        return dict(self.knots)[tokens]

    def __iter__(self) -> Iterator[int]:
        return (length for length, _ in self.knots)

    def __len__(self) -> int:
        return len(self.knots)

    def to_json(self) -> dict[str, Any]:
        """Returns a dict that JSON can hold."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> "PromptTime":
        """Returns what `to_json` was called on."""
        return PromptTime(
            rule=value["rule"],
            knots=tuple((int(p), float(s)) for p, s in value["knots"]),
            coefficients=tuple(value["coefficients"]),
            pad=int(value["pad"]),
        )


def prompt_columns(
    rule: str, prompts: np.ndarray, hinge: float = 0.0, pad: int = 1
) -> np.ndarray:
    """Returns what F is linear in.

    Args:
      rule: table, affine, hinge or quadratic.
      prompts: (cells,) tokens.
      hinge: p0 of the rule hinge.
      pad: of the rule quadratic.

    Returns:
      (cells, coefficients), float64; for a table, one column per distinct length, in
      ascending order.
    """
    prompts = np.asarray(prompts, float)
    ones = np.ones_like(prompts)
    if rule == "table":
        return (prompts[:, None] == np.unique(prompts)).astype(float)
    if rule == "affine":
        return np.stack([ones, prompts], axis=1)
    if rule == "hinge":
        return np.stack([ones, np.maximum(0.0, prompts - hinge)], axis=1)
    if rule == "quadratic":
        padded = np.ceil(prompts / pad) * pad
        return np.stack([ones, padded, padded**2], axis=1)
    raise unknown_name("rule for prompts", rule, FITTED)


def hinge_candidates(prompts: np.ndarray, per_gap: int = 8) -> np.ndarray:
    """Returns places p0 to try: between the known lengths, evenly in each gap.

    The last gap is left out, where one length alone would set the slope.
    """
    lengths = np.unique(prompts).astype(float)
    gaps = [
        np.linspace(low, high, per_gap, endpoint=False)
        for low, high in itertools.pairwise(lengths[:-1])
    ]
    return np.concatenate([*gaps, lengths[-2:-1]])
