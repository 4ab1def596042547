"""`algoperf infer roofline`: ideal and measured time of the workloads' programs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from algoperf.cli import printing
from algoperf.cli.infer import machine
from algoperf.errors import UserError

if TYPE_CHECKING:
    from algoperf.inference.rooflines.roofline import Peak
    from algoperf.inference.rooflines.roofline_report import Row
    from algoperf.inference.timing.programs import Program


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of `algoperf infer roofline` that others lack."""
    flags.DEFINE_enum(
        "program", None, ("forward", "step"), "roofline: the forward pass, or the "
        "training step with AdamW; by default both.", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "batch", None, "roofline, compare: examples; by default the workload's own.",
        lower_bound=1, flag_values=values,
    )  # fmt: skip
    flags.DEFINE_boolean(
        "no_measure", False, "roofline: compile and count, but run no workload.",
        flag_values=values,
    )  # fmt: skip
    for name, what in (
        ("peak_flops", "FLOP/s of products"),
        ("bandwidth", "bytes per second of memory"),
    ):
        flags.DEFINE_float(
            name, None, f"roofline: {what}, with --no_measure; by default measured "
            "here.", lower_bound=0.0, flag_values=values,
        )  # fmt: skip


def run(values: flags.FlagValues, names: Sequence[str]) -> None:
    """Counts, measures and writes.

    Args:
      values: of the flags.
      names: of workloads; none: every base workload of the scale.
    """
    cores = machine.pin(values.cores)
    stated = _stated_peak(values)
    out = Path(values.out)
    import jax

    from algoperf import registry
    from algoperf.inference.rooflines import peak_rates, roofline_report
    from algoperf.inference.timing import measure, profiler
    from algoperf.inference.timing.programs import NAMES, compile_program

    workloads = registry.select_workloads(list(names) or ["all"], values.scale)
    wanted = [values.program] if values.program else list(NAMES)
    is_cpu = jax.default_backend() == "cpu"
    clock_name = measure.clock_name(cores)
    programs = []
    for workload in workloads:
        for name in wanted:
            machine.say(f"compiling {workload.name} {name}")
            programs.append(compile_program(workload, name, values.batch))
    ladder = peak_rates.PROCESSOR if is_cpu else peak_rates.ACCELERATOR
    benchmarks = [] if stated else peak_rates.benchmarks(ladder)
    timed, peak_times = roofline_report.measure(
        [] if values.no_measure else programs,
        benchmarks,
        profiler.Plan(values.rounds, values.rounds, values.seconds),
        measure.CLOCKS[clock_name],
        machine.say,
    )
    peak = stated or peak_rates.peak_of(zip(benchmarks, peak_times, strict=True))
    rows = [
        roofline_report.row(program, peak, timed[number] if timed else ())
        for number, program in enumerate(programs)
    ]
    described = _described(clock_name, cores if is_cpu else None, stated)
    _write(out, programs, rows, peak, described)
    printing.show(
        values.json, _as_json(rows, peak, described), lambda: _print(rows, out)
    )
    roofline_report.check(rows)


def _stated_peak(values: flags.FlagValues) -> "Peak | None":
    """The peak rates that the flags state; None if they state none."""
    from algoperf.inference.rooflines.roofline import Peak

    given = values.peak_flops, values.bandwidth
    if given == (None, None):
        return None
    if None in given or not values.no_measure:
        raise UserError(
            "give --peak_flops and --bandwidth together, and --no_measure: they are of "
            "another machine"
        )
    return Peak(*given)


def _described(clock: str, cores: int | None, stated: "Peak | None") -> dict[str, Any]:
    facts = machine.describe()
    names = ("cpu", "platform", "device_kind")
    found = {name.replace("_", " "): facts[name] for name in names if name in facts}
    if cores is not None:
        found["cores used"] = cores
    found["clock"] = {"cpu": "process time", "wall": "wall time"}[clock]
    found["peak rates"] = "as stated" if stated else "measured here, the best of all"
    return found


def _write(
    out: Path,
    programs: "Sequence[Program]",
    rows: "Sequence[Row]",
    peak: "Peak",
    described: dict[str, Any],
) -> None:
    from algoperf import records
    from algoperf.inference.rooflines import roofline_plot, roofline_report

    texts = {
        "roofline.csv": roofline_report.to_csv(rows),
        "roofline.md": roofline_report.to_markdown(rows, peak, described),
        "efficiency_gap.svg": roofline_plot.efficiency_gap_svg(rows),
    }
    for program in programs:
        title = f"{program.workload}, {program.name}, batch size {program.batch_size}"
        texts[f"waterline_{program.workload}_{program.name}.svg"] = (
            roofline_plot.waterline_svg(title, program.kernels, peak)
        )
    records.make_folder(out)
    for name, text in texts.items():
        records.write_text(out / name, text)


def _as_json(
    rows: "Sequence[Row]", peak: "Peak", described: dict[str, Any]
) -> dict[str, Any]:
    import dataclasses

    return {
        "machine": described,
        "peak": dataclasses.asdict(peak),
        "programs": [dataclasses.asdict(row) for row in rows],
    }


def _print(rows: "Sequence[Row]", out: Path) -> None:
    from algoperf.inference.rooflines import roofline_report

    shown = [roofline_report.table_row(row) for row in rows]
    printing.print_table(roofline_report.COLUMNS, shown)
    print(f"Table: {out / 'roofline.md'}, {out / 'roofline.csv'}")
    print(f"Plots: {out / 'efficiency_gap.svg'}, {out / 'waterline_*.svg'}")
