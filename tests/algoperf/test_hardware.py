"""What the machine says of itself can be written down."""

import json
import os
import subprocess
import sys

import pytest

from algoperf import hardware


def test_all_descriptions_are_json():
    host, devices = hardware.describe_host(), hardware.describe_devices()
    versions = hardware.describe_versions()
    json.dumps([host, devices, versions])
    assert host["cores"] >= 1
    assert host["memory_gib"] > 0
    assert host["cpu"]
    assert devices["device_count"] >= 1
    assert devices["process_count"] == 1
    assert versions["jax"]
    assert versions["algoperf"]


def test_a_package_that_is_not_there_has_no_version(monkeypatch):
    monkeypatch.setattr(hardware, "PACKAGES", ("no-such-package",))
    assert hardware.describe_versions() == {"no-such-package": None}


def test_the_revision_is_that_of_this_repository(monkeypatch, tmp_path):
    revision = hardware.git_revision()
    assert revision is None or len(revision.removesuffix("-dirty")) == 40
    monkeypatch.setattr(hardware, "__file__", str(tmp_path / "a" / "hardware.py"))
    assert hardware.git_revision() is None


def test_no_git_is_no_revision(monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(hardware.subprocess, "run", missing)
    assert hardware.git_revision() is None


def test_describing_the_host_does_not_need_jax():
    code = (
        "import sys; from algoperf import hardware; hardware.describe_host(); "
        "hardware.describe_versions(); assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_revision_of_an_image_is_the_one_it_was_built_with(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "__file__", str(tmp_path / "a" / "hardware.py"))
    monkeypatch.delenv("ALGOPERF_REVISION", raising=False)
    assert hardware.git_revision() is None
    monkeypatch.setenv("ALGOPERF_REVISION", "8034bf5")
    assert hardware.git_revision() == "8034bf5"


def test_cores_are_those_that_this_process_may_use(monkeypatch, tmp_path):
    monkeypatch.setattr(hardware, "CONTROL_GROUP", tmp_path)  # without a limit
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {7, 3}, raising=False)
    assert hardware.usable_cores() == [3, 7]
    assert hardware.describe_host()["cores"] == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    assert len(hardware.usable_cores()) == 128


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "250000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "6400000 100000\n"}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "something else\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "0\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000\n"}, 8),
    ],
)
def test_a_container_has_the_cores_of_its_limit(monkeypatch, tmp_path, files, cores):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(hardware, "CONTROL_GROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {*range(8)}, raising=False)
    assert hardware.core_count() == hardware.describe_host()["cores"] == cores
    assert hardware.usable_cores() == [*range(8)]  # it may run on each of them
