"""Training something smaller than the workload's parameters.

Low-rank factors, shared memories, masks: a `Reparametrisation` says what is trained and
how the full parameters follow. GaLore, Fira and APOLLO keep the parameters and shrink
the optimizer's state. See docs/reparam.md.
"""

from algoperf.reparam.base import (
    Reparametrisation,
    Rule,
    State,
    Training,
    begin_step,
    count,
    finish_step,
    num_bytes,
    per_matrix,
    rank_of,
    select,
    sizes,
    start,
)

__all__ = [
    "Reparametrisation",
    "Rule",
    "State",
    "Training",
    "begin_step",
    "count",
    "finish_step",
    "num_bytes",
    "per_matrix",
    "rank_of",
    "select",
    "sizes",
    "start",
]
