"""Data sets on disk: whole, missing, damaged."""

from pathlib import Path

import pytest

from algoperf.data.source import (
    MANIFEST,
    DataSource,
    data_folder,
    problems,
    write_manifest,
)
from algoperf.errors import UserError

SOURCE = DataSource(
    name="numbers",
    instructions="Count to three.",
    prepare=lambda raw, folder, say: None,
    count=lambda folder: {"train": 3},
    num_examples={"train": 3},
)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "numbers"
    (folder / "deep").mkdir(parents=True)
    (folder / "one.bin").write_bytes(b"one")
    (folder / "deep" / "two.bin").write_bytes(b"two")
    write_manifest(folder, {"train": 3})
    return folder


def test_a_whole_data_set_has_no_problems(folder):
    assert list(problems(folder)) == []
    assert SOURCE.folder(folder.parent) == folder


def test_a_missing_or_unfinished_data_set_names_the_command(folder):
    with pytest.raises(UserError, match=r"missing.*algoperf data prepare numbers"):
        SOURCE.folder(folder / "elsewhere")
    (folder / MANIFEST).unlink()
    with pytest.raises(UserError, match=r"incomplete.*algoperf data prepare numbers"):
        SOURCE.folder(folder.parent)


def test_every_damage_is_named(folder):
    (folder / "one.bin").write_bytes(b"ONE")
    (folder / "deep" / "two.bin").unlink()
    (folder / "three.bin").write_bytes(b"three")
    found = sorted(problems(folder))
    assert [Path(line.split()[0]).name for line in found] == [
        "two.bin",
        "one.bin",
        "three.bin",
    ]
    assert "missing" in found[0]
    assert "SHA-256" in found[1]
    assert "does not belong" in found[2]
    assert len(list(problems(folder, checksums=False))) == 2
    (folder / "one.bin").write_bytes(b"o")
    assert any("1 bytes, expected 3" in line for line in problems(folder, False))
    (folder / MANIFEST).write_text("{")
    assert len(list(problems(folder))) == 1


def test_the_data_directory_is_given_or_set_or_here(monkeypatch, tmp_path):
    monkeypatch.delenv("ALGOPERF_DATA_DIR", raising=False)
    assert data_folder(None) == Path("data")
    monkeypatch.setenv("ALGOPERF_DATA_DIR", str(tmp_path))
    assert data_folder(None) == tmp_path
    assert data_folder(Path("x")) == Path("x")
