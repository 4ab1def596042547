"""`algoperf infer compare`: multiply-adds, throughput and latency of a family."""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from algoperf import records
from algoperf.cli import common, printing
from algoperf.cli.infer import machine


def run(values: flags.FlagValues, names: Sequence[str]) -> None:
    """Measures the models of one family, and writes a table as JSON.

    Args:
      values: of the flags.
      names: of one family.
    """
    cores = machine.pin(values.cores)
    from algoperf import registry

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
        machine.say,
    )
    found = {
        "machine": machine.describe(),
        "clock": clock,
        **comparison.to_json(models),
    }
    file = Path(values.out) / f"{base.name}_models.json"
    records.make_folder(file.parent)
    records.write_json(file, found)

    def print_text() -> None:
        rows = [comparison.table_row(model) for model in models]
        printing.print_table(comparison.COLUMNS, rows)
        ranks = [
            [pair, f"{c.rho:.2f}", f"{c.low:.2f} to {c.high:.2f}"]
            for pair, c in comparison.correlations(models).items()
        ]
        printing.print_table(("ranks of", "Spearman", "95 % interval"), ranks)
        print(f"Written: {file}")

    printing.show(values.json, found, print_text)
