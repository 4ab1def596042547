"""The cache gives back what was read, notices every change, and is never needed."""

import json
import logging
import os

import numpy as np
import pytest

from algoperf import cli, records
from scoring import cache, parse
from scoring.read import Runs, read_runs

HOUR = 3600 * 10**9


def _age(root, hours=1):
    """Makes all files older: those that changed just now are not kept."""
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)
            changed = os.stat(path).st_mtime_ns - hours * HOUR
            os.utime(path, ns=(changed, changed))


@pytest.fixture
def runs_folder(tmp_path, write_trial):
    root = tmp_path / "runs"
    write_trial(root, "ours", status="reached", message="ö", step_time={"seconds": 1.5})
    write_trial(root, "ours", trial=2, times=[], values=[], status="failed")
    cut = write_trial(root, "theirs", "wmt_pytorch", study=1, metric="bleu")
    with open(cut / records.EVAL_FILE, "a") as file:
        file.write("3,")
    _age(root)
    return root


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def parsed(monkeypatch):
    """The folders that are parsed, in order."""
    seen = []
    parse_trial = parse.parse_trial

    def spy(path):
        seen.append(path)
        return parse_trial(path)

    monkeypatch.setattr(parse, "parse_trial", spy)
    return seen


def _read(root, folder) -> Runs:
    return read_runs([root], cache_folder=folder)


def _assert_same(runs: Runs, other: Runs):
    assert runs.skipped == other.skipped
    for mine, theirs in zip(runs.trials, other.trials, strict=True):
        assert (mine.submission, mine.place) == (theirs.submission, theirs.place)
        assert mine.record == theirs.record
        assert mine.status is theirs.status
        assert list(mine.columns) == list(theirs.columns)
        for name, values in mine.columns.items():
            np.testing.assert_array_equal(values, theirs.columns[name], strict=True)


def test_a_second_call_parses_nothing_and_gives_the_same(runs_folder, folder, parsed):
    plain = read_runs([runs_folder])
    assert len(parsed) == 3
    _assert_same(_read(runs_folder, folder), plain)
    assert len(parsed) == 6
    (file,) = folder.iterdir()
    changed = file.stat().st_mtime_ns
    _assert_same(_read(runs_folder, folder), plain)
    assert len(parsed) == 6
    assert file.stat().st_mtime_ns == changed
    with np.load(file, allow_pickle=False) as arrays:
        assert all(not array.dtype.hasobject for array in arrays.values())


@pytest.mark.parametrize("name", [records.EVAL_FILE, records.RECORD_FILE])
def test_a_file_that_changed_is_read_again(runs_folder, folder, parsed, name):
    path = runs_folder / "ours/study_0/imagenet_resnet_mini_jax/trial_1" / name
    _read(runs_folder, folder)
    parsed.clear()
    changed = path.stat().st_mtime_ns + 1
    os.utime(path, ns=(changed, changed))
    _read(runs_folder, folder)
    assert parsed == [path.parent]
    parsed.clear()
    path.write_bytes(path.read_bytes() + b"\n" * (name == records.RECORD_FILE))
    _age(path.parent)
    _read(runs_folder, folder)
    assert parsed == [path.parent]


def test_trials_that_come_and_go(runs_folder, folder, parsed, write_trial):
    _read(runs_folder, folder)
    new = write_trial(runs_folder, "new")
    _age(new)
    parsed.clear()
    assert "new" in _read(runs_folder, folder).submissions
    assert parsed == [new]
    parsed.clear()
    (new / records.EVAL_FILE).unlink()
    assert "new" not in _read(runs_folder, folder).submissions
    _read(runs_folder, folder)
    assert parsed == [new, new]  # what cannot be read is tried every time


def test_a_file_that_changed_just_now_is_not_kept(tmp_path, write_trial, parsed):
    """It may change again and keep its size and time of change."""
    write_trial(tmp_path / "runs")
    for count in (1, 2):
        _read(tmp_path / "runs", tmp_path / "cache")
        assert len(parsed) == count


def _flip(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        _flip,
        lambda c: c[:-30],
        lambda c: c[: len(c) // 2],
        lambda c: b"",
        lambda c: b"x",
    ],
    ids=["flipped", "cut", "halved", "empty", "other"],
)
def test_a_damaged_cache_is_made_anew(runs_folder, folder, parsed, damage):
    plain = _read(runs_folder, folder)
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    parsed.clear()
    _assert_same(_read(runs_folder, folder), plain)
    assert len(parsed) == 3
    assert file.read_bytes() == whole


def test_every_single_flipped_byte_is_noticed_or_harmless(runs_folder, folder):
    plain = _read(runs_folder, folder)
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    for place in np.random.default_rng(0).integers(len(whole), size=150):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(place) % 8
        file.write_bytes(bytes(damaged))
        _assert_same(_read(runs_folder, folder), plain)


def test_a_cache_of_other_code_is_made_anew(runs_folder, folder, parsed, monkeypatch):
    _read(runs_folder, folder)
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    parsed.clear()
    for _ in range(2):
        _read(runs_folder, folder)
        assert len(parsed) == 3


def test_parts_that_do_not_fit_are_made_anew(runs_folder, folder, parsed):
    plain = _read(runs_folder, folder)
    (file,) = folder.iterdir()
    with np.load(file) as arrays:
        parts = dict(arrays)
    facts = json.loads(parts["facts"].tobytes())
    for key in ("values", "stamps", "facts"):
        np.savez(file, **{**parts, key: parts[key][:-1]})
        _assert_same(_read(runs_folder, folder), plain)
    facts["trials"][0][1] += 1
    encoded = np.frombuffer(json.dumps(facts).encode(), np.uint8)
    np.savez(file, **{**parts, "facts": encoded})
    _assert_same(_read(runs_folder, folder), plain)


def test_a_cache_that_cannot_be_written_is_done_without(runs_folder, folder, caplog):
    folder.write_text("a file in its place")
    with caplog.at_level(logging.DEBUG, "scoring.cache"):
        _assert_same(_read(runs_folder, folder), read_runs([runs_folder]))
    assert "cannot be written" in caplog.text
    assert {record.levelname for record in caplog.records} == {"DEBUG"}


def test_old_files_are_deleted(runs_folder, folder):
    folder.mkdir()
    for name, hours in (("trials-old.npz", 91 * 24), ("trials-new.npz", 1)):
        (folder / name).write_text("")
        changed = (folder / name).stat().st_mtime_ns - hours * HOUR
        os.utime(folder / name, ns=(changed, changed))
    _read(runs_folder, folder)
    assert not (folder / "trials-old.npz").exists()
    assert (folder / "trials-new.npz").exists()


def test_on_the_command_line(runs_folder, parsed):
    arguments = ["score", str(runs_folder), "--allow_mixed"]
    kept = cache.default_folder()
    for off in ("--nocache", "--cache=false"):
        assert cli.main([*arguments, off]) == 0
        assert not kept.exists()
    parsed.clear()
    for _ in range(2):
        assert cli.main(arguments) == 0
        assert len(parsed) == 3
    assert len(list(kept.iterdir())) == 1


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache.default_folder() == tmp_path / "x" / "algoperf"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache.default_folder() == tmp_path / ".cache" / "algoperf"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.default_folder() == tmp_path / ".cache" / "algoperf"
