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
    with pytest.raises(
        UserError, match="`algoperf submissions` lists those that there"
    ):
        registry.find_submission("xyzzy")
    for path in (tmp_path, tmp_path / "none.py", tmp_path / "none"):
        with pytest.raises(UserError, match="no submission at"):
            registry.find_submission(str(path))


def test_folders_here_are_among_the_near_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "yogi").mkdir()
    (tmp_path / "yogi" / "submission.py").touch()
    with pytest.raises(UserError, match="'yogii'; did you mean yogi"):
        registry.find_submission("yogii")


def test_a_folder_here_is_not_mistaken_for_a_submission_of_its_name(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "muon").mkdir()
    (tmp_path / "muon" / "submission.py").touch()
    with pytest.raises(UserError, match=r"muon is a folder here, .*: give \./muon for"):
        registry.find_submission("muon")
    assert registry.find_submission("./muon").samefile("muon/submission.py")
    bundled = registry.submission_paths()["muon"]
    assert registry.find_submission(str(bundled)) == bundled
    monkeypatch.chdir(bundled.parent.parent)
    assert registry.find_submission("muon") == bundled


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


@pytest.mark.parametrize("name", sorted(registry.suites()))
def test_the_workloads_of_a_suite_are_there(name):
    names, scale = registry.find_suite(name)
    found = registry.select_workloads(names, scale)
    assert [workload.variant for workload in found] == names
    assert all(workload.scale == scale for workload in found)


def test_an_unknown_suite_names_the_nearest():
    with pytest.raises(UserError, match="unknown suite 'min'; did you mean mini"):
        registry.find_suite("min")


@pytest.mark.parametrize("scale", ["mini", "full"])
def test_the_held_out_draw_takes_one_variant_of_every_family_with_any(scale):
    drawn = registry.select_workloads(registry.held_out(7, scale), scale)
    families = [workload.base_workload for workload in drawn]
    with_variants = {
        workload.base_workload
        for workload in registry.all_workloads()
        if workload.scale == scale and workload.variant != workload.base_workload
    }
    assert families == sorted(with_variants)
    assert all(workload.variant != workload.base_workload for workload in drawn)
    assert not any(workload.for_development for workload in drawn)
    assert registry.held_out(7, scale) == registry.held_out(7, scale)


def test_over_many_seeds_every_variant_is_held_out_about_as_often():
    draws = [set(registry.held_out(seed, "full")) for seed in range(400)]
    variants = ["ogbg_gelu", "ogbg_silu", "ogbg_model_size"]
    shares = [sum(name in draw for draw in draws) / 400 for name in variants]
    assert sum(shares) == pytest.approx(1)
    assert all(0.25 < share < 0.42 for share in shares)  # 3.5 standard deviations
