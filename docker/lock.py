"""Writes the lock files of the images: python docker/lock.py, with uv on the path.

Versions are those of the environment that runs this script, so that an image holds what
the tests ran with; what it lacks (CUDA, TPU) is resolved beside them. Hashes are those
of the package index. `requirements.txt` serves all images, `requirements-cuda.txt` and
`requirements-tpu.txt` hold what these two add, `requirements-build.txt` what builds the
package itself.
"""

import importlib.metadata
import re
import subprocess
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent / "pyproject.toml"
PYTHON = "3.11"  # of the Dockerfile
PLATFORM = "x86_64-manylinux_2_31"  # the oldest that libtpu runs on
EXTRAS = ("full",)


def main() -> None:
    """Resolves all and writes the four files."""
    project = PROJECT.read_text()
    base = _resolve(project, EXTRAS)
    _write("requirements.txt", base)
    for extra in ("cuda", "tpu"):
        more = _resolve(project, (*EXTRAS, extra))
        changed = [name for name in base if _pin(more[name]) != _pin(base[name])]
        if changed:
            raise SystemExit(f"{extra} needs other versions of {', '.join(changed)}")
        added = {name: entry for name, entry in more.items() if name not in base}
        _write(f"requirements-{extra}.txt", added)
    requires = tomllib.loads(project)["build-system"]["requires"]
    lines = [
        "[project]",
        "name = 'build'",
        "version = '0'",
        f"dependencies = {requires}",
    ]
    _write("requirements-build.txt", _resolve("\n".join(lines), ()))


def _pin(entry: str) -> str:
    return entry.split()[0]


def _resolve(project: str, extras: Sequence[str]) -> dict[str, str]:
    """Returns name to `name==version` with hashes, of a project and its extras."""
    installed = "".join(
        f"{found.name}=={found.version}\n"
        for found in importlib.metadata.distributions()
        if found.name != "algoperf"
    )
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text(installed)
        given = Path(folder) / "pyproject.toml"
        given.write_text(project)
        command = [
            *("uv", "pip", "compile", str(given), "--quiet", "--generate-hashes"),
            *("--no-annotate", "--no-header", f"--constraint={constraints}"),
            *(f"--python-version={PYTHON}", f"--python-platform={PLATFORM}"),
            *(f"--extra={extra}" for extra in extras),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    entries = re.split(r"\n(?=\S)", done.stdout.strip())
    return {re.split(r"[=\[ ]", entry)[0]: entry for entry in entries}


def _write(name: str, entries: dict[str, str]) -> None:
    text = "".join(f"{entry}\n" for _, entry in sorted(entries.items()))
    (HERE / name).write_text(text)


if __name__ == "__main__":
    main()
