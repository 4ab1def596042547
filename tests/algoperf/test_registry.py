"""Names to workloads and submissions, with the nearest name for a wrong one."""

import subprocess
import sys

import pytest

from algoperf import registry
from algoperf.errors import UserError, unknown_name


def test_a_workload_is_found_by_name_and_scale():
    workload = registry.find_workload("imagenet_resnet_silu", "mini")
    assert workload.variant == "imagenet_resnet_silu"
    assert registry.find_workload("imagenet_resnet_silu_mini", "full") is workload


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("imagenet_resnt", "imagenet_resnet"),
        ("imagenet_resnet_relu", "imagenet_resnet_gelu"),
        ("finewebedu", "finewebedu_lm"),
    ],
)
def test_an_unknown_workload_names_the_nearest(name, near):
    with pytest.raises(UserError, match=f"unknown workload '{name}'.*{near}"):
        registry.find_workload(name, "mini")


def test_a_scale_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"has no scale 'huge'; it has: .*mini"):
        registry.find_workload("imagenet_resnet", "huge")
    with pytest.raises(UserError, match="no workload at scale huge"):
        registry.select_workloads(["all"], "huge")


def test_all_means_every_base():
    found = {w.name for w in registry.select_workloads(["all"], "mini")}
    assert {"imagenet_resnet_mini", "finewebedu_lm_mini"} <= found
    assert not any("silu" in name for name in found)
    names = ["imagenet_resnet_silu", "finewebedu_lm"]
    chosen = registry.select_workloads(names, "mini")
    assert [workload.variant for workload in chosen] == names


def test_a_submission_is_found_by_name_file_and_folder(tmp_path):
    adamw = registry.submission_paths()["adamw"]
    assert registry.find_submission("adamw") == adamw
    assert registry.find_submission(str(adamw)) == adamw
    assert registry.find_submission(str(adamw.parent)) == adamw


def test_an_unknown_submission_names_the_nearest(tmp_path):
    with pytest.raises(UserError, match=r"unknown submission 'adam'.*adamw"):
        registry.find_submission("adam")
    for path in (tmp_path, tmp_path / "none.py", tmp_path / "none"):
        with pytest.raises(UserError, match="no submission at"):
            registry.find_submission(str(path))


def test_listing_names_imports_no_jax():
    code = (
        "import sys; from algoperf import registry; registry.family_names(); "
        "registry.submission_paths(); assert 'jax' not in sys.modules; "
        "assert 'workloads.imagenet_resnet.workload' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_a_near_name_all_are_listed():
    error = unknown_name("thing", "xyz", ["beta", "alpha"])
    assert str(error) == "unknown thing 'xyz'; known: alpha, beta"
    assert "known: none" in str(unknown_name("thing", "xyz", []))
