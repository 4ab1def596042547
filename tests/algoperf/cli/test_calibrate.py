"""`calibrate` on a real workload, for a few steps; it goes on where it was."""

import pytest

from algoperf import calibration, cli
from algoperf.cli import calibrate


def test_every_search_space_of_the_four_algorithms_is_found():
    names = [space.name for space in calibrate.find_spaces()]
    assert names == ["adamw", "heavy_ball", "nadamw", "nesterov"]


@pytest.mark.slow
def test_search_and_repeats(tmp_path, capfd):
    arguments = [
        *("calibrate", "--workload=imagenet_resnet", "--points=1", "--repeats=2"),
        *("--max_steps=3", "--side_by_side=2", f"--out={tmp_path}/runs"),
        f"--save={tmp_path}/saved",
    ]
    assert cli.main(arguments) == 0
    assert "search: 0 of 4 runs are done" in capfd.readouterr().out
    found = calibration.load(tmp_path / "saved" / "imagenet_resnet_mini.json.xz")
    assert [run["space"] for run in found["search"]] == [
        *("adamw", "heavy_ball", "nadamw", "nesterov")
    ]
    best = max(
        found["search"],
        key=lambda run: max(row["validation"] for row in run["evaluations"]),
    )
    assert found["best"]["space"] == best["space"]
    assert len(found["repeats"]) == 2
    for run in found["repeats"]:
        assert run["hyperparameters"] == best["hyperparameters"]
        assert [row["step"] for row in run["evaluations"]] == [0, 3]
    first, second = (run["evaluations"][0] for run in found["repeats"])
    assert first["validation"] != second["validation"]  # seeds of their own

    before = (tmp_path / "saved" / "imagenet_resnet_mini.json.xz").read_bytes()
    assert cli.main(arguments) == 0
    assert "search: 4 of 4 runs are done" in capfd.readouterr().out
    after = (tmp_path / "saved" / "imagenet_resnet_mini.json.xz").read_bytes()
    assert after == before
