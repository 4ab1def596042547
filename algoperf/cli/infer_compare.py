"""`algoperf infer compare`: multiply-adds, throughput and latency of a family."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from algoperf.cli import common
from algoperf.errors import UserError


def run(
    values: flags.FlagValues,
    names: Sequence[str],
    cores: int | None,
    facts: Callable[[], dict[str, Any]],
    say: Callable[[str], None],
) -> None:
    """Measures the models of one family, and writes a table as JSON.

    Args:
      values: of the flags.
      names: of one family.
      cores: that the process keeps to; None: unknown.
      facts: host and devices, as records have them.
      say: told of progress.
    """
    from algoperf import records, registry

    name = common.one_argument(names, "WORKLOAD whose models to compare", "infer")
    base = registry.find_workload(name, values.scale)
    workloads = [
        workload
        for workload in registry.all_workloads()
        if workload.base_workload == base.base_workload
        and workload.scale == base.scale
        and not workload.for_development
    ]
    from algoperf.inference.rooflines import comparison
    from algoperf.inference.timing import measure, profiler

    clock = measure.clock_name(cores)
    models = comparison.compare(
        comparison.family(workloads),
        values.batch,
        profiler.Plan(values.rounds, values.rounds, values.seconds),
        measure.CLOCKS[clock],
        say,
    )
    found = {"machine": facts(), "clock": clock, **comparison.to_json(models)}
    file = Path(values.out) / f"{base.name}_models.json"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        records.write_json(file, found)
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}") from error

    def print_text() -> None:
        rows = [comparison.table_row(model) for model in models]
        common.print_table(comparison.COLUMNS, rows)
        ranks = [
            [pair, f"{c.rho:.2f}", f"{c.low:.2f} to {c.high:.2f}"]
            for pair, c in comparison.correlations(models).items()
        ]
        common.print_table(("ranks of", "Spearman", "95 % interval"), ranks)
        print(f"Written: {file}")

    common.show(values.json, found, print_text)
