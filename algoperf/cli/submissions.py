"""List the installed submissions: what each is, and where."""

import ast
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from algoperf.cli import common, printing

USAGE = "algoperf submissions [--json FILE]"


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of `algoperf submissions`."""
    printing.define_json_flag(values)


def main(values: flags.FlagValues, positional: Sequence[str]) -> int:
    """Lists names, first lines of the docstrings, and paths; imports none of them."""
    common.no_arguments(positional)
    from algoperf import registry

    rows = [
        {
            "name": name,
            "summary": _summary(path),
            "path": str(path),
            "search_space": path.with_name("tuning_search_space.json").is_file(),
        }
        for name, path in sorted(registry.submission_paths().items())
    ]
    printing.show(
        values.json,
        rows,
        lambda: printing.print_table(
            ("name", "summary"), [[row["name"], row["summary"]] for row in rows]
        ),
    )
    return 0


def _summary(path: Path) -> str:
    try:
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    except (OSError, SyntaxError, ValueError) as error:
        return f"cannot be read: {error}"
    return (docstring or "").split("\n")[0]
