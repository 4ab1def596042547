"""Where a data set comes from, and whether what lies on the disk is whole.

A data set lies in one folder of the data directory. Its manifest, written last, lists
every file with size and SHA-256: without it, the set counts as not prepared. Until it
is whole, the set lies in a folder beside, see `partial_folder`.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from algoperf.errors import UserError

MANIFEST = "manifest.json"
DATA_DIR_VARIABLE = "ALGOPERF_DATA_DIR"


@dataclasses.dataclass(frozen=True)
class DataSource:
    """A published data set.

    Attributes:
      name: its folder in the data directory; workloads may share one.
      instructions: what to download by hand, from where, and what `--raw` must hold.
      prepare: converts, from the folder of downloads to the empty folder of the set,
        calling its third argument with a line now and then, and `on_corrupt` with a
        DataError for each record that cannot be used (by default it is raised); raises
        UserError if something is missing. Files must be whole when it returns.
      count: returns the number of examples per split of a prepared folder.
      num_examples: how many there must be, per split.
      max_examples_skipped: how many examples a record that `prepare` passes over may
        stand for; None where that is not known, as of a volume of slices.
    """

    name: str
    instructions: str
    prepare: Callable[..., None]
    count: Callable[[Path], Mapping[str, int]]
    num_examples: Mapping[str, int]
    max_examples_skipped: int | None = 1

    def fewest_examples(self, split: str, skipped: int) -> int:
        """Returns how many examples there must be with so many records passed over."""
        if self.max_examples_skipped is None:
            return 0 if skipped else self.num_examples[split]
        return self.num_examples[split] - skipped * self.max_examples_skipped

    def folder(self, data_dir: Path | None) -> Path:
        """Returns the prepared folder.

        Raises:
          UserError: there is none, or it was not prepared to its end.
        """
        folder = data_folder(data_dir) / self.name
        if not (folder / MANIFEST).is_file():
            begun = folder.is_dir() or partial_folder(folder).is_dir()
            state = "incomplete" if begun else "missing"
            raise UserError(
                f"the data set {self.name} is {state} in {folder.parent}: "
                f"run `algoperf data prepare {self.name} --data_dir {folder.parent}`, "
                "which says what to download"
            )
        return folder

    def num_skipped(self, data_dir: Path | None) -> int:
        """Returns how many corrupt records were passed over when it was prepared.

        Raises:
          UserError: as of `folder`.
        """
        manifest = json.loads((self.folder(data_dir) / MANIFEST).read_text())
        return manifest.get("skipped", 0)


def data_folder(given: Path | None) -> Path:
    """Returns the data directory: as given, else $ALGOPERF_DATA_DIR, else ./data."""
    return given or Path(os.environ.get(DATA_DIR_VARIABLE, "data"))


def partial_folder(folder: Path) -> Path:
    """Returns where a data set lies while it is prepared, before it gets its name.

    So what a broken attempt has left is told from anything else that lies in `folder`.
    """
    return folder.with_name(f"{folder.name}.partial")


def write_manifest(folder: Path, counts: Mapping[str, int], skipped: int = 0) -> None:
    """Lists all files of a finished data set, with the number of examples per split.

    `skipped` is how many corrupt records were passed over.
    """
    files = {
        name: {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for name, path in _files(folder)
    }
    temporary = folder / f"{MANIFEST}.tmp"
    temporary.write_text(
        json.dumps(
            {"num_examples": dict(counts), "skipped": skipped, "files": files}, indent=1
        )
    )
    temporary.rename(folder / MANIFEST)


def problems(folder: Path, checksums: bool = True) -> Iterator[str]:
    """Yields what differs from the manifest, a line each; sizes before checksums."""
    try:
        listed = json.loads((folder / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError) as error:
        yield f"{folder / MANIFEST} cannot be read ({error})"
        return
    present = dict(_files(folder))
    for name, facts in listed.items():
        path = present.pop(name, None)
        if path is None:
            yield f"{folder / name} is missing"
        elif path.stat().st_size != facts["bytes"]:
            yield (
                f"{path} has {path.stat().st_size:,} bytes, expected {facts['bytes']:,}"
            )
        elif checksums and sha256(path) != facts["sha256"]:
            yield f"{path} has changed: its SHA-256 is not the one of the manifest"
    for path in present.values():
        yield f"{path} does not belong there"


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in (MANIFEST, f"{MANIFEST}.tmp"):
            yield str(path.relative_to(folder)), path
