"""What commands print and write: tables, JSON, CSV."""

import csv
import io
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from algoperf import records

if TYPE_CHECKING:
    from rich.table import Table


def define_json_flag(values: flags.FlagValues) -> None:
    """Defines `--json FILE`."""
    flags.DEFINE_string(
        "json",
        None,
        "Write JSON to this file; - is standard output.",
        flag_values=values,
    )


def write_json(path: str, value: Any) -> None:
    """Writes what `--json` asks for."""
    if path == "-":
        json.dump(records.finite(value), sys.stdout, indent=1)
        print()
    else:
        records.write_json(Path(path), value)


def show(json_path: str | None, value: Any, print_text: Callable[[], None]) -> None:
    """Prints text, unless JSON takes its place on standard output."""
    if json_path is not None:
        write_json(json_path, value)
    if json_path != "-":
        print_text()


def shown(value: Any) -> str:
    """Returns a value as tables show it: a fraction with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns a table in Markdown, a line for each row, without a last newline."""
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    lines += [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join(lines)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints a table, numbers to the right; wraps lines only on a terminal."""
    from rich.console import Console
    from rich.measure import Measurement

    made = table(columns, rows)
    console = Console(highlight=False)
    if not console.is_terminal:
        wide = console.options.update(max_width=10_000)
        console.width = Measurement.get(console, wide, made).maximum
    console.print(made)


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> "Table":
    """Returns a table, numbers to the right."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD)
    for number, column in enumerate(columns):
        is_number = bool(rows) and isinstance(rows[0][number], int | float)
        made.add_column(
            column, justify="right" if is_number else "left", no_wrap=number == 0
        )
    for row in rows:
        made.add_row(*(f"{x:,}" if isinstance(x, int | float) else x for x in row))
    return made


def write_csv(
    path: Path, heading: Sequence[str], rows: Sequence[Sequence[Any]]
) -> None:
    """Writes a table whole; what is not known is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(heading)
    for row in rows:
        writer.writerow(
            ["" if isinstance(x, float) and math.isnan(x) else x for x in row]
        )
    records.make_folder(path.parent)
    records.write_text(path, text.getvalue())
