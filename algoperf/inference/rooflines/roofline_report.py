"""Ideal and measured time of the programs of workloads, side by side, on this machine.

'On the Efficiency of Convolutional Neural Networks' (arXiv:2404.03617): computational
efficiency = ideal / measured time, and the ideal time is the sum over a program's
kernels of max(FLOPs / peak, bytes / bandwidth).

Programs and the loops that give the peak rates are measured in turns, round after
round, so that other work on the machine touches all of them alike.
"""

import csv
import dataclasses
import io
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from algoperf.errors import UserError
from algoperf.inference.rooflines import peak_rates, roofline
from algoperf.inference.rooflines.roofline import Peak
from algoperf.inference.timing import profiler
from algoperf.inference.timing.programs import Program
from algoperf.inference.timing.spread import spread_of


@dataclasses.dataclass(frozen=True)
class Row:
    """What is known of one program.

    Attributes:
      workload: its name in records.
      program: 'forward' or 'step'.
      batch_size: examples.
      kernels: how many are run, repeats included.
      flops: of all of them.
      bytes: that all of them move.
      compute_bound_share: of the ideal time, spent in kernels whose FLOPs take longer
        than their bytes.
      ideal_seconds: at the peak rates, kernel by kernel.
      one_roofline_seconds: what one roofline over all kernels gives, the greater of
        all FLOPs' and all bytes' time. Less than the ideal time where some kernels
        wait for FLOPs and others for bytes.
      measured_seconds: median of the rounds; None where it was not run.
      spread: relative deviation of one measurement.
      efficiency: ideal / measured.
    """

    workload: str
    program: str
    batch_size: int
    kernels: int
    flops: float
    bytes: float
    compute_bound_share: float
    ideal_seconds: float
    one_roofline_seconds: float
    measured_seconds: float | None = None
    spread: float | None = None
    efficiency: float | None = None


def measure(
    programs: Sequence[Program],
    benchmarks: Sequence[peak_rates.Benchmark],
    plan: profiler.Plan,
    clock: Callable[[], float] = time.perf_counter,
    say: Callable[[str], None] = profiler.silent,
) -> tuple[list[tuple[float, ...]], list[tuple[float, ...]]]:
    """Times programs and benchmarks in turns.

    Returns:
      seconds by round, of each program and of each benchmark.
    """
    runs = [program.runner() for program in programs]
    runs += [benchmark.run for benchmark in benchmarks]
    cells = [(number, 0) for number in range(len(runs))]
    if not cells:
        return [], []
    seconds = profiler.repeated(lambda number, _: runs[number], clock)
    times = profiler.measure_rounds(seconds, cells, plan, math.inf, say=say)
    found = [times[cell] for cell in cells]
    return found[: len(programs)], found[len(programs) :]


def row(program: Program, peak: Peak, seconds: Sequence[float] = ()) -> Row:
    """Returns what is known of a program, at these peak rates.

    Args:
      program: compiled.
      peak: of the machine.
      seconds: by round; none where it was not run.
    """
    kernels = program.kernels
    totals = roofline.totals(kernels)
    ideal = roofline.ideal_seconds(kernels, peak)
    moving = sum(kernel.repeats * peak.memory_seconds(kernel) for kernel in kernels)
    bound = roofline.ideal_seconds(filter(peak.is_compute_bound, kernels), peak)
    found = Row(
        workload=program.workload,
        program=program.name,
        batch_size=program.batch_size,
        kernels=sum(kernel.repeats for kernel in kernels),
        flops=totals.flops,
        bytes=totals.bytes,
        compute_bound_share=bound / ideal if ideal else 0.0,
        ideal_seconds=ideal,
        one_roofline_seconds=max(totals.flops / peak.flops, moving),
    )
    if not seconds:
        return found
    measured = float(np.median(seconds))
    return dataclasses.replace(
        found,
        measured_seconds=measured,
        spread=spread_of([seconds]),
        efficiency=ideal / measured,
    )


def check(rows: Sequence[Row]) -> None:
    """Raises UserError where a program is faster than its ideal time."""
    wrong = [
        f"{row.workload} {row.program} ({row.efficiency:.2f})"
        for row in rows
        if row.efficiency is not None and row.efficiency > 1
    ]
    if wrong:
        raise UserError(
            f"faster than at the peak rates: {', '.join(wrong)}; those rates are too "
            "low, as on a machine that is busy while they are measured: measure again, "
            "with more --rounds; or products are of a faster type than float32: give "
            "--peak_flops for it"
        )


def to_csv(rows: Sequence[Row]) -> str:
    """Returns the rows as CSV, one column for each field."""
    text = io.StringIO()
    names = [field.name for field in dataclasses.fields(Row)]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(dataclasses.asdict(row) for row in rows)
    return text.getvalue()


COLUMNS = (
    *("workload", "program", "batch", "GFLOP", "MB", "FLOP/byte", "compute bound"),
    *("ideal ms", "measured ms", "efficiency"),
)


def table_row(row: Row) -> list[str]:
    """Returns a row as text, in the order of `COLUMNS`."""
    is_measured = row.measured_seconds is not None and row.efficiency is not None
    return [
        row.workload,
        row.program,
        str(row.batch_size),
        f"{row.flops / 1e9:.3g}",
        f"{row.bytes / 1e6:.3g}",
        f"{row.flops / row.bytes:.2g}",
        f"{100 * row.compute_bound_share:.0f} %",
        f"{1e3 * row.ideal_seconds:.3g}",
        f"{1e3 * row.measured_seconds:.3g}" if row.measured_seconds else "-",
        f"{row.efficiency:.2f}" if is_measured and row.efficiency else "-",
    ]


def to_markdown(rows: Sequence[Row], peak: Peak, facts: Mapping[str, Any]) -> str:
    """Returns a page: the machine's peak rates, then a table.

    Args:
      rows: of programs.
      peak: rates that the ideal times are of.
      facts: of the machine, name and text.
    """
    lines = ["# Ideal and measured time", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    lines += [f"- products: {peak.flops / 1e9:.4g} GFLOP/s"]
    lines += [f"- memory: {peak.bytes_per_second / 1e9:.3g} GB/s"]
    if peak.levels:  # less than the smallest has the smallest's rate
        lines += ["", "| a kernel that moves | GB/s at best |", "|---|---|"]
        lines += [
            f"| {_size(size)} or more | {rate / 1e9:.3g} |"
            for size, rate in peak.levels
        ]
    lines += ["", f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    lines += [f"| {' | '.join(table_row(row))} |" for row in rows]
    lines += [
        "",
        "Ideal: the sum over kernels of max(FLOPs / peak, bytes / bandwidth). "
        "Efficiency: ideal / measured. Measured: the median of interleaved rounds.",
    ]
    return "\n".join(lines) + "\n"


def _size(size: float) -> str:
    for unit, one in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= one:
            return f"{size / one:g} {unit}"
    return f"{size:g} bytes"
