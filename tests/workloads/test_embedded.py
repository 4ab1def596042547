"""All embedded sets: what they must say of themselves, and how large they are."""

import importlib.util
from pathlib import Path

import pytest

import workloads
from algoperf.data.embedded import load_embedded, read_about

FOLDER = Path(workloads.__file__).parent
SETS = sorted(path.with_suffix("") for path in FOLDER.rglob("embedded/*.json"))
MAX_BYTES = 25e6  # of all together


@pytest.mark.parametrize("path", SETS, ids=lambda path: path.name)
def test_a_set_says_where_it_is_from(path):
    about = read_about(path)
    for name in ("name", "source", "licence", "split"):
        assert about[name], name
    python, _, module, *_ = about["rebuild"].split()
    assert python == "python"
    assert importlib.util.find_spec(module) is not None
    arrays = load_embedded(path)  # checks the SHA-256
    assert {k: list(a.shape) for k, a in arrays.items()} == about["shapes"]


def test_every_set_has_its_licence_if_that_must_come_with_it():
    for path in SETS:
        licence = read_about(path)["licence"]
        is_free = licence.startswith(("CC0", "public domain"))
        is_ours = licence.startswith("Apache-2.0, as this package")
        assert is_free or is_ours or "Permission" in licence, path


def test_they_are_small_together():
    assert len(SETS) == 7
    assert sum(read_about(path)["bytes"] for path in SETS) < MAX_BYTES
