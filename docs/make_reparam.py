"""Writes the table of docs/reparam.md: what each method trains, stores and remembers.

    python docs/make_reparam.py

Counted on the full-size language model with `jax.eval_shape`, which allocates nothing,
and computed from closed forms beside it.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from algoperf import registry, reparam, tuning
from algoperf.loading import load_submission
from algoperf.reparam.base import matrices_of

PAGE = Path(__file__).resolve().parent / "reparam.md"
START, END = "<!-- table: make_reparam.py -->\n", "<!-- end -->\n"
WORKLOAD = ("finewebedu_lm", "full")
COLUMNS = """| Method | Trained, M | Stored, MB | Compression | State, MB | by formula |
|---|---|---|---|---|---|
"""


class Sizes(NamedTuple):
    """Of all kernels (m, n) with s <= l their sides and r their rank, and all else."""

    kernels: int  # sum of m n
    others: int  # parameters that are no kernels
    factors: int  # sum of r (m + n)
    projectors: int  # sum of s r
    moments: int  # sum of r l
    matrices: int


def kernel_sizes(rank: float | int) -> Sizes:
    """Returns the sums over the language model's kernels."""
    workload = registry.find_workload(*WORKLOAD)
    chosen = reparam.select(workload)
    shapes = [m for _, m, is_chosen in matrices_of(workload, chosen) if is_chosen]
    ranks = [reparam.rank_of(rank, shape) for shape in shapes]
    kernels = sum(math.prod(shape) for shape in shapes)
    return Sizes(
        kernels,
        workload.num_parameters - kernels,
        sum(r * sum(shape) for r, shape in zip(ranks, shapes, strict=True)),
        sum(r * min(shape) for r, shape in zip(ranks, shapes, strict=True)),
        sum(r * max(shape) for r, shape in zip(ranks, shapes, strict=True)),
        len(shapes),
    )


Formula = Callable[[Sizes], tuple[float, float]]  # -> numbers trained, bytes of state


def dense(state: Callable[[Sizes], float]) -> Formula:
    """All parameters are trained; Adam's moments for what is no kernel."""
    return lambda s: (s.kernels + s.others, 8 * s.others + 4 * state(s))


def small(trained: Callable[[Sizes], float], more: float = 0.0) -> Formula:
    """Adam's moments for what is trained, and `more` numbers for each kernel weight."""
    return lambda s: (
        s.others + trained(s),
        8 * (s.others + trained(s)) + 4 * more * s.kernels,
    )


# Name, submission, trial (from 1), closed form.
METHODS: tuple[tuple[str, str, int, Formula], ...] = (
    ("AdamW", "adamw", 2, dense(lambda s: 2 * s.kernels)),
    ("GaLore", "galore", 1, dense(lambda s: s.projectors + 2 * s.moments)),
    (
        "Fira",
        "fira",
        1,
        dense(lambda s: s.projectors + 2 * s.moments + s.matrices),
    ),
    ("APOLLO", "apollo", 1, dense(lambda s: 2 * s.moments + s.matrices)),
    ("APOLLO-Mini", "apollo", 3, dense(lambda s: 2 * s.moments + s.matrices)),
    ("LoRA", "lora", 1, small(lambda s: s.factors)),
    ("ReLoRA", "relora", 1, small(lambda s: s.factors)),
    ("LoRA on NVFP4", "quantized_lora", 1, small(lambda s: s.factors)),
    ("factorised", "factorised", 1, small(lambda s: s.factors)),
    ("STABLE-RPS", "stable_rps", 1, small(lambda s: s.kernels / 4, more=1 / 4)),
)


def point_of(name: str, trial: int) -> dict[str, Any]:
    """Returns the hyperparameters of a trial."""
    submission = load_submission(registry.find_submission(name))
    space = tuning.load_search_space(submission.default_search_space)
    return tuning.trial_point(space, 0, trial)


def measured(name: str, trial: int) -> dict[str, float]:
    """Returns `reparam.sizes` of a submission on the workload; allocates nothing."""
    workload = registry.find_workload(*WORKLOAD)
    functions = load_submission(registry.find_submission(name)).functions
    point = tuning.as_namedtuple(point_of(name, trial))
    params = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape.shape_tuple, jnp.float32),
        workload.param_shapes,
    )
    key = jax.random.PRNGKey(0)

    def state(params: Any) -> Any:
        return functions.init_optimizer_state(workload, params, {}, point, key)[0]

    return reparam.sizes(params, jax.eval_shape(state, params))


def closed_form(name: str, trial: int, formula: Formula) -> tuple[float, float]:
    """Returns the numbers trained and the bytes of the optimizer's state."""
    rank = point_of(name, trial).get("rank", 1)
    return formula(kernel_sizes(rank))


def row(method: str, name: str, trial: int, formula: Formula) -> str:
    """Returns the line of one method."""
    found = measured(name, trial)
    _, state = closed_form(name, trial, formula)
    cells = (
        f"{method}",
        f"{found['trainable_parameters'] / 1e6:.2f}",
        f"{found['stored_bytes'] / 1e6:.1f}",
        f"{found['compression_ratio']:.2f}",
        f"{found['optimizer_state_bytes'] / 1e6:.1f}",
        f"{state / 1e6:.1f}",
    )
    return f"| {' | '.join(cells)} |\n"


def main() -> None:
    """Writes the table into the page."""
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    _, _, tail = rest.partition(END)
    table = COLUMNS + "".join(row(*method) for method in METHODS)
    PAGE.write_text(head + START + table + END + tail, encoding="utf-8")


if __name__ == "__main__":
    main()
