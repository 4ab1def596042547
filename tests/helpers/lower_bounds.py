"""Prints the oldest packages that pyproject.toml allows, as constraints for pip.

    python tests/helpers/lower_bounds.py core figures full > oldest.txt

CORE are the packages that everything needs, other names are extras.
"""

import re
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


def constraints(project: Mapping[str, Any], extras: Iterable[str]) -> list[str]:
    """Returns such as 'jax==0.10'; an extra that is one of the project's is left out.

    Raises:
      ValueError: a requirement has no lower bound.
    """
    found = {}
    for name in extras:
        others = project["optional-dependencies"]
        wanted = project["dependencies"] if name == "core" else others[name]
        for requirement in wanted:
            if requirement.startswith(f"{project['name']}["):
                continue
            match = re.match(r"([\w.-]+)(?:\[.*\])?>=([\d.]+)", requirement)
            if match is None:
                raise ValueError(
                    f"{requirement} has no lower bound: give NAME>=VERSION"
                )
            found[match[1]] = match[2]
    return [f"{package}=={version}" for package, version in found.items()]


if __name__ == "__main__":
    text = PROJECT.read_text(encoding="utf-8")
    print(*constraints(tomllib.loads(text)["project"], sys.argv[1:]), sep="\n")
