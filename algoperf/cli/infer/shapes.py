"""`algoperf infer shapes`: the named shapes."""

from collections.abc import Sequence

from absl import flags

from algoperf.cli import common, printing


def run(values: flags.FlagValues, positional: Sequence[str]) -> None:
    """Prints the shapes that can be profiled; `positional` is empty."""
    common.no_arguments(positional)
    from algoperf.inference.models.shapes import SHAPES

    rows = [
        {
            "name": shape.name,
            "parameters": shape.num_parameters,
            "layers": shape.num_layers,
            "width": shape.width,
            "heads": shape.num_heads,
            "kv heads": shape.kv_heads,
            "longest": shape.max_length,
        }
        for shape in SHAPES.values()
    ]
    printing.show(
        values.json,
        rows,
        lambda: printing.print_table(
            list(rows[0]), [list(row.values()) for row in rows]
        ),
    )
