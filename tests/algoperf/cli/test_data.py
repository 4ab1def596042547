"""`algoperf data`: what to download, preparing, checking."""

import dataclasses
import errno
import os

import numpy as np
import pytest

from algoperf import cli, locks, registry
from algoperf.cli import data
from algoperf.data.examples import DataError, end
from algoperf.data.source import MANIFEST, DataSource
from algoperf.errors import OtherWriterError


def _prepare(raw, folder, say, on_corrupt=end):
    say("copying")
    good = bytearray()
    for _ in range(2):  # as a vocabulary is learned before it is used
        good.clear()
        for place, byte in enumerate((raw / "train.bin").read_bytes()):
            if byte == 0:
                on_corrupt(DataError(f"train.bin, byte {place}: it is 0"))
            else:
                good.append(byte)
    (folder / "train.bin").write_bytes(good)


SOURCE = DataSource(
    name="numbers",
    instructions="Get train.bin from a friend.",
    prepare=_prepare,
    count=lambda folder: {"train": np.fromfile(folder / "train.bin", np.uint8).size},
    num_examples={"train": 5},
)


class _Workload:
    variant = "counting"
    data_source = SOURCE


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(registry, "all_workloads", lambda: [_Workload])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "train.bin").write_bytes(b"12345")

    def run(*arguments):
        code = cli.main(["data", *arguments, "--data_dir=sets"])
        return code, *capsys.readouterr()

    return run


def test_without_raw_it_says_what_to_download(run):
    code, out, _ = run("prepare", "counting")
    assert code == 1
    assert out.startswith("Get train.bin from a friend.")
    assert "algoperf data prepare numbers --raw FOLDER" in out


def test_prepare_then_check(run, tmp_path):
    code, out, _ = run("prepare", "counting", "--raw=raw")
    assert code == 0
    assert "copying" in out
    assert "5 train" in out
    assert run("prepare", "numbers", "--raw=raw")[0] == 0  # nothing to do
    assert run("check", "numbers")[0] == 0
    (tmp_path / "sets" / "numbers" / "train.bin").write_bytes(b"12x45")
    code, out, err = run("check", "numbers")
    assert code == 1
    assert "SHA-256" in out
    assert "damaged in 1 places" in err
    assert run("check", "numbers", "--nochecksums")[0] == 0


def test_another_number_of_examples_is_refused_unless_asked_for(run, tmp_path):
    (tmp_path / "raw" / "train.bin").write_bytes(b"123")
    code, _, err = run("prepare", "numbers", "--raw=raw")
    assert code == 1
    assert "has 3 examples in train, expected 5" in err
    assert not (tmp_path / "sets" / "numbers" / MANIFEST).exists()
    assert run("prepare", "numbers", "--raw=raw", "--any_size")[0] == 0
    assert run("check", "numbers")[0] == 1
    assert run("check", "numbers", "--any_size")[0] == 0


def test_corrupt_records_end_it_or_are_passed_over_and_counted(run, tmp_path):
    (tmp_path / "raw" / "train.bin").write_bytes(b"1\x0034\x00")
    code, _, err = run("prepare", "numbers", "--raw=raw")
    assert code == 1
    assert "train.bin, byte 1: it is 0" in err
    code, out, _ = run("prepare", "numbers", "--raw=raw", "--skip_corrupt")
    assert code == 0
    assert out.count("skipped: train.bin, byte 4: it is 0") == 1
    assert "3 train, 2 skipped" in out
    code, out, _ = run("check", "numbers")
    assert code == 0
    assert "3 train, 2 skipped" in out
    assert SOURCE.num_skipped(tmp_path / "sets") == 2


def test_skipping_does_not_hide_what_is_missing(run, tmp_path):
    (tmp_path / "raw" / "train.bin").write_bytes(b"1\x0034")
    code, _, err = run("prepare", "numbers", "--raw=raw", "--skip_corrupt")
    assert code == 1
    assert "has 3 examples in train, expected 5" in err


def test_a_skipped_record_may_stand_for_many_examples(run, tmp_path, monkeypatch):
    volumes = dataclasses.replace(SOURCE, max_examples_skipped=None)
    monkeypatch.setattr(_Workload, "data_source", volumes)
    (tmp_path / "raw" / "train.bin").write_bytes(b"1\x0034")
    code, out, _ = run("prepare", "numbers", "--raw=raw", "--skip_corrupt")
    assert code == 0
    assert "3 train, 1 skipped" in out
    assert run("check", "numbers")[0] == 0


def test_where_nothing_was_skipped_nothing_may_be_missing(run, tmp_path, monkeypatch):
    volumes = dataclasses.replace(SOURCE, max_examples_skipped=None)
    monkeypatch.setattr(_Workload, "data_source", volumes)
    (tmp_path / "raw" / "train.bin").write_bytes(b"134")
    code, _, err = run("prepare", "numbers", "--raw=raw", "--skip_corrupt")
    assert code == 1
    assert "has 3 examples in train, expected 5" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give prepare or check and one name"),
        (["fetch", "numbers"], "give prepare or check and one name"),
        (["prepare", "numbres"], "did you mean numbers"),
        (["prepare", "numbers", "--raw=nowhere"], "there is no folder nowhere"),
        (["check", "numbers"], "algoperf data prepare numbers"),
    ],
)
def test_mistakes_are_named(run, arguments, says):
    code, _, err = run(*arguments)
    assert code == 1
    assert says in err
    assert err.startswith("algoperf: ")


@pytest.mark.parametrize("raw", ["sets/numbers", "sets/numbers/2024", "link"])
def test_downloads_where_the_set_is_to_go_are_left_alone(run, tmp_path, raw):
    downloads = tmp_path / "sets" / "numbers" / "2024" / "train.bin"
    downloads.parent.mkdir(parents=True)
    downloads.write_bytes(b"12345")
    (tmp_path / "link").symlink_to(downloads.parent)
    code, _, err = run("prepare", "numbers", f"--raw={raw}")
    assert code == 1
    assert f"--raw {raw} lies in sets/numbers" in err
    assert "give another --data_dir" in err
    assert downloads.exists()


def test_a_folder_that_was_not_prepared_is_left_alone(run, tmp_path):
    other = tmp_path / "sets" / "numbers" / "notes.txt"
    other.parent.mkdir(parents=True)
    other.touch()
    for raw in ("raw", "sets"):
        code, _, err = run("prepare", "numbers", f"--raw={raw}")
        assert code == 1
        assert "sets/numbers has no manifest" in err
        assert other.exists()


def test_a_set_is_prepared_by_one_process_at_a_time(run, tmp_path):
    partial = tmp_path / "sets" / "numbers.partial"
    with locks.hold(tmp_path / "sets" / "numbers"):
        partial.mkdir()
        (partial / "train.bin").write_bytes(b"12")  # the work of the other one
        code, _, err = run("prepare", "numbers", "--raw=raw")
        assert code == OtherWriterError.exit_status
        assert f"numbers is being written by process {os.getpid()}" in err
        assert (partial / "train.bin").read_bytes() == b"12"
    assert run("prepare", "numbers", "--raw=raw")[0] == 0  # what is left is not kept
    assert run("check", "numbers")[0] == 0
    assert [path.name for path in (tmp_path / "sets").iterdir()] == ["numbers"]


def test_a_set_that_another_process_has_prepared_meanwhile_stays(run, monkeypatch):
    hold, codes = locks.hold, []

    def late(folder, **options):
        monkeypatch.setattr(locks, "hold", hold)
        codes.append(run("prepare", "numbers", "--raw=raw")[0])
        return hold(folder, **options)

    monkeypatch.setattr(locks, "hold", late)
    code, out, _ = run("prepare", "numbers", "--raw=raw")
    assert (code, codes) == (0, [0])
    assert "numbers is prepared" in out
    assert run("check", "numbers")[0] == 0


def test_a_disk_without_hard_links_will_do(run, tmp_path, monkeypatch):
    def link(*_):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)
    assert run("prepare", "numbers", "--raw=raw")[0] == 0
    assert run("check", "numbers")[0] == 0
    assert [path.name for path in (tmp_path / "sets").iterdir()] == ["numbers"]


def test_a_folder_that_cannot_be_made_is_of_the_flag_that_named_it(run, tmp_path):
    (tmp_path / "sets").touch()
    code, _, err = run("prepare", "numbers", "--raw=raw")
    assert code == 1
    assert "choose another --data_dir" in err


def test_a_process_that_passed_for_dead_makes_no_set(run, tmp_path, monkeypatch):
    def prepare(raw, folder, say):
        _prepare(raw, folder, say)
        locks.path_of(tmp_path / "sets" / "numbers").unlink()

    source = dataclasses.replace(SOURCE, prepare=prepare)
    monkeypatch.setattr(data, "_find", lambda name: source)
    code, _, err = run("prepare", "numbers", "--raw=raw")
    assert code == 1
    assert "sets/numbers has another writer" in err
    assert not (tmp_path / "sets" / "numbers").exists()


def test_a_broken_attempt_is_begun_anew_and_never_taken_for_a_set(run, tmp_path):
    downloads = tmp_path / "raw" / "train.bin"
    downloads.write_bytes(b"1\x00345")
    partial = tmp_path / "sets" / "numbers.partial"
    assert run("prepare", "numbers", "--raw=raw")[0] == 1
    assert partial.is_dir()
    assert not (tmp_path / "sets" / "numbers").exists()
    assert "is incomplete in sets" in run("check", "numbers")[2]
    code, _, err = run("prepare", "numbers", f"--raw={partial}")
    assert code == 1
    assert "numbers.partial, where the prepared set is to go" in err
    (partial / "old.bin").touch()
    downloads.write_bytes(b"12345")
    assert run("prepare", "numbers", "--raw=raw")[0] == 0
    assert not partial.exists()
    assert run("check", "numbers")[0] == 0
    written = (tmp_path / "sets" / "numbers" / MANIFEST).read_text()
    assert "partial" not in written
