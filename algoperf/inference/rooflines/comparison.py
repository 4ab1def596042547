"""Multiply-adds, throughput and latency of the models of a family, side by side.

LowFormer (arXiv:2409.03460): multiply-adds alone rank models poorly. So a table has
three columns, multiply-adds, examples per second of a large batch and seconds of a
single example, with the correlation of their ranks. Activations are a fourth.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from algoperf.inference.rooflines import counts, ranks, roofline_report
from algoperf.inference.timing.profiler import Plan, silent
from algoperf.inference.timing.programs import (
    batch_shapes,
    compile_program,
    forward_of,
)
from algoperf.workload import derive

WIDTHS = ("num_filters", "channels")  # beside what is called a width
DEPTHS = ("num_steps", "stage_sizes")  # beside what is called layers
# (factor of the width, of the depth, what it is called)
SIZES = ((0.5, 1, "half_width"), (2, 1, "double_width"), (1, 2, "double_depth"))


@dataclasses.dataclass(frozen=True)
class Model:
    """What is known of one model.

    Attributes:
      name: the workload's, with its size.
      parameters: numbers that are trained.
      multiply_adds: of one example.
      activations: of one example, see `counts`.
      examples_per_second: of a batch of `batch_size`.
      latency: seconds of a batch of one.
      batch_size: examples.
    """

    name: str
    parameters: int
    multiply_adds: float
    activations: float
    examples_per_second: float
    latency: float
    batch_size: int


# What should rank models alike: name, and the two costs of a model.
PAIRS: tuple[tuple[str, Callable[[Model], float], Callable[[Model], float]], ...] = (
    ("multiply-adds, time of a batch", lambda m: m.multiply_adds,
     lambda m: 1 / m.examples_per_second),
    ("multiply-adds, latency", lambda m: m.multiply_adds, lambda m: m.latency),
    ("activations, time of a batch", lambda m: m.activations,
     lambda m: 1 / m.examples_per_second),
    ("activations, latency", lambda m: m.activations, lambda m: m.latency),
    ("time of a batch, latency", lambda m: 1 / m.examples_per_second,
     lambda m: m.latency),
)  # fmt: skip


def resized(workload: Any, width: float, depth: float, name: str) -> Any:
    """Returns a workload whose model is wider or deeper by a factor.

    All fields of the model that are widths or numbers of layers change; the number of
    heads stays.
    """
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(workload.model):
        value = getattr(workload.model, field.name)
        is_width = "width" in field.name or field.name in WIDTHS
        is_depth = field.name.endswith("layers") or field.name in DEPTHS
        if is_width or is_depth:
            fields[field.name] = _times(value, width if is_width else depth)
    return derive(workload, model=fields, variant=f"{workload.variant}_{name}")


def _times(value: Any, factor: float) -> Any:
    if isinstance(value, int):
        return max(1, round(value * factor))
    return tuple(_times(one, factor) for one in value)


def family(workloads: Sequence[Any]) -> list[Any]:
    """Returns the workloads, and the first one in other sizes.

    A size that its model does not know, such as a depth that is fixed, is left out.
    """
    sizes = [resized(workloads[0], *size) for size in SIZES]
    model = workloads[0].model
    return [*workloads, *(size for size in sizes if size.model != model)]


def compare(
    workloads: Sequence[Any],
    batch_size: int | None,
    plan: Plan,
    clock: Callable[[], float],
    say: Callable[[str], None] = silent,
) -> list[Model]:
    """Measures forward passes in turns, of a large batch and of one example.

    Args:
      workloads: to compare.
      batch_size: of the large batch; None: the workload's own.
      plan: how often.
      clock: seconds.
      say: told of progress.
    """
    sizes = [batch_size or workload.default_batch_size for workload in workloads]
    programs = []
    for workload, size in zip(workloads, sizes, strict=True):
        say(f"compiling {workload.name}")
        programs += [compile_program(workload, "forward", n) for n in (size, 1)]
    times, _ = roofline_report.measure(programs, [], plan, clock, say)
    medians = [float(np.median(seconds)) for seconds in times]
    found = []
    for number, (workload, size) in enumerate(zip(workloads, sizes, strict=True)):
        counted = count_forward(workload, size)
        found.append(
            Model(
                name=workload.name,
                parameters=workload.num_parameters,
                multiply_adds=counted.multiply_adds,
                activations=counted.activations,
                examples_per_second=size / medians[2 * number],
                latency=medians[2 * number + 1],
                batch_size=size,
            )
        )
    return found


def count_forward(workload: Any, batch_size: int = 1) -> counts.Counts:
    """Returns multiply-adds and activations of an example in a batch of this size."""
    params, state = jax.eval_shape(workload.init_model_fn, jax.random.PRNGKey(0))
    batch = batch_shapes(workload, batch_size)
    function = forward_of(workload)
    return counts.count_products(function, params, state, batch).per(batch_size)


def correlations(models: Sequence[Model]) -> dict[str, ranks.Correlation]:
    """Returns the rank correlation of each of `PAIRS`; 1: both order models alike."""
    return {
        name: ranks.spearman([one(m) for m in models], [other(m) for m in models])
        for name, one, other in PAIRS
    }


def to_json(models: Sequence[Model]) -> dict[str, Any]:
    """Returns models and correlations as JSON holds them."""
    found = correlations(models)
    return {
        "models": [dataclasses.asdict(model) for model in models],
        "rank_correlations": {
            name: dataclasses.asdict(value) for name, value in found.items()
        },
    }


COLUMNS = (
    *("model", "parameters", "MMACs", "activations"),
    *("examples/s", "batch", "latency ms"),
)


def table_row(model: Model) -> list[str]:
    """Returns a model as text, in the order of `COLUMNS`."""
    return [
        model.name,
        f"{model.parameters:,}",
        f"{model.multiply_adds / 1e6:.3g}",
        f"{model.activations:.3g}",
        f"{model.examples_per_second:.4g}",
        str(model.batch_size),
        f"{1e3 * model.latency:.3g}",
    ]
