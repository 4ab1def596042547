"""`calibrate` on a real workload, for a few steps; it goes on where it was."""

import json

import pytest
from absl import flags

from algoperf import calibration, cli, registry
from algoperf.calibration import Phase, Store, best_run, ranked
from algoperf.cli import calibrate
from algoperf.records import RECORD_FILE, read_record
from algoperf.run_store import Run


def test_every_search_space_of_the_four_algorithms_is_found():
    names = [space.name for space in calibrate.find_spaces()]
    assert names == ["adamw", "heavy_ball", "nadamw", "nesterov"]


def test_an_unknown_phase_is_named(capsys):
    arguments = ["calibrate", "--workload=imagenet_resnet", "--phases=serch"]
    assert cli.main(arguments) != 0
    assert "search" in capsys.readouterr().err


def test_repeats_need_a_search(tmp_path, capsys):
    arguments = ["calibrate", "--workload=imagenet_resnet", "--phases=repeats"]
    assert cli.main([*arguments, f"--out={tmp_path}"]) != 0
    assert "--phases=search" in capsys.readouterr().err


def test_a_variant_needs_the_search_of_its_base(tmp_path, capsys):
    arguments = ["calibrate", "--workload=imagenet_resnet_silu", "--phases=repeats"]
    assert cli.main([*arguments, f"--out={tmp_path}"]) != 0
    assert "first calibrate imagenet_resnet," in capsys.readouterr().err


def test_fresh_runs_need_a_target(tmp_path, capsys):
    arguments = ["calibrate", "--workload=imagenet_resnet", "--phases=fresh"]
    assert cli.main([*arguments, f"--out={tmp_path}"]) != 0
    assert "--phases=repeats" in capsys.readouterr().err


def a_run(phase, trial, point, accuracy):
    row = {"step": 1.0, "time": 1.0, "validation": accuracy, "test": accuracy}
    return Run(phase, "adamw", trial, point, "completed", [row], 0.1, 1.0)


def test_runs_of_a_point_that_is_not_the_best_any_more_are_refused(tmp_path, capsys):
    """They would count as repeats of the best."""
    workload = registry.find_workload("imagenet_resnet", "mini")
    facts = calibration.facts_of(workload) | {"max_steps": None}
    store = Store.open(tmp_path / f"{workload.name}.json.xz", facts)
    points = {0.5: {"learning_rate": 0.1}, 0.75: {"learning_rate": 0.2}}
    for trial, (accuracy, point) in enumerate(points.items(), start=1):
        store.add(a_run(Phase.SEARCH, trial, point, accuracy), {})
        if trial == 1:  # what was the best then
            store.add(a_run(Phase.REPEATS, trial, point, accuracy), {})
    arguments = ["calibrate", "--workload=imagenet_resnet", "--phases=repeats"]
    assert cli.main([*arguments, f"--out={tmp_path}"]) == 1
    assert "adamw that is not among the best any more" in capsys.readouterr().err


@pytest.mark.parametrize(("phase", "count"), [("fresh", 2), ("timed", 1)])
def test_what_follows_the_repeats_takes_the_point_with_the_best_median(
    tmp_path, phase, count
):
    values = flags.FlagValues()
    calibrate.define_flags(values)
    values(["calibrate", "--workload=imagenet_resnet", "--repeats=2"])
    workload = registry.find_workload("imagenet_resnet", "mini")
    store = Store.open(tmp_path / "store.json.xz", {"direction": "maximize"})
    points = {0.9: {"learning_rate": 0.1}, 0.8: {"learning_rate": 0.2}}
    repeats = {0.9: [0.6, 0.5], 0.8: [0.7, 0.7]}  # the first was lucky
    for trial, (found, point) in enumerate(points.items(), start=1):
        store.add(a_run(Phase.SEARCH, trial, point, found), {})
        for again, accuracy in enumerate(repeats[found], start=2 * trial - 1):
            store.add(a_run(Phase.REPEATS, again, point, accuracy), {})
    task = calibrate.Calibration(values, workload, store, tmp_path / "out")
    (space,) = calibrate.planned_spaces(phase, task)
    assert space.name == "adamw"
    assert json.loads(space.path.read_text()) == [points[0.8]] * count


@pytest.fixture
def weak(tmp_path):
    """A submission with a list of one point."""
    folder = tmp_path / "weak"
    folder.mkdir()
    path = registry.find_submission("sgd")
    (folder / "submission.py").write_text(path.read_text())
    (folder / "tuning_search_space.json").write_text('[{"learning_rate": 0.01}]')
    return folder


@pytest.mark.slow
def test_phases_and_a_variant(tmp_path, capfd, weak):
    few = ("--max_steps=3", "--side_by_side=2", f"--out={tmp_path}")
    arguments = ["calibrate", "--workload=imagenet_resnet", "--points=1", *few]
    arguments += [
        "--phases=search,repeats,fresh,weak,timed",
        "--repeats=2",
        f"--weak={weak}",
    ]
    assert cli.main(arguments) == 0
    printed = capfd.readouterr().out
    assert "search: 0 of 4 runs are done" in printed
    assert "timed: 0 of 1 runs are done" in printed
    assert "runs, ended after 3 steps" in printed

    path = tmp_path / "imagenet_resnet_mini.json.xz"
    store = Store.read(path)
    search = store.of(Phase.SEARCH)
    assert [run.space for run in search] == [
        *("adamw", "heavy_ball", "nadamw", "nesterov")
    ]
    best = best_run(search, store.direction)
    repeats = store.of(Phase.REPEATS)
    assert [run.hyperparameters for run in repeats] == [best.hyperparameters] * 2
    first, second = (run.evaluations[0]["validation"] for run in repeats)
    assert first != second  # seeds of their own
    assert [row["step"] for row in repeats[0].evaluations] == [0, 3]
    off = [run for run in store.of(Phase.WEAK) if run.space == "adamw_off"]
    rate = search[0].hyperparameters["learning_rate"]
    rates = [run.hyperparameters["learning_rate"] for run in off]
    assert rates == [pytest.approx(0.1 * rate), pytest.approx(10 * rate)]
    assert [run.space for run in store.of(Phase.WEAK)] == [*["adamw_off"] * 2, "weak"]

    folders = [path.parent for path in tmp_path.rglob(f"fresh/**/{RECORD_FILE}")]
    records_of_fresh = [read_record(folder) for folder in folders]
    assert [record["target"]["validation"] for record in records_of_fresh] == [
        store.targets().validation
    ] * 2

    before = path.read_bytes()
    assert cli.main(arguments) == 0
    assert "search: 4 of 4 runs are done" in capfd.readouterr().out
    assert path.read_bytes() == before

    again = ["calibrate", "--workload=imagenet_resnet", "--phases=repeats", *few]
    assert cli.main([*again, "--repeats=2", "--finalists=2"]) == 0
    repeats = Store.read(path).of(Phase.REPEATS)
    first, second = ranked(search, store.direction)[:2]
    assert [(run.space, run.hyperparameters) for run in repeats] == [
        (run.space, run.hyperparameters)
        for run in sorted([first, second], key=lambda run: run.space)
        for _ in range(2)
    ]

    arguments = ["calibrate", "--workload=imagenet_resnet_silu", *few]
    assert cli.main([*arguments, "--phases=search", "--points=2"]) == 0
    silu = Store.read(tmp_path / "imagenet_resnet_silu_mini.json.xz")
    wanted = sorted(search, key=lambda run: -run.best(store.direction)["validation"])
    assert {run.space for run in silu.of(Phase.SEARCH)} == {
        run.space for run in wanted[:2]
    }

    # Without a search of its own, a variant repeats the best point of its base.
    arguments = ["calibrate", "--workload=imagenet_resnet_gelu", *few]
    assert cli.main([*arguments, "--phases=repeats", "--repeats=1"]) == 0
    best = Store.read(path).repeats()[0]
    gelu = Store.read(tmp_path / "imagenet_resnet_gelu_mini.json.xz")
    (repeat,) = gelu.runs.values()
    assert repeat.space == best.space
    assert repeat.hyperparameters == best.hyperparameters

    # Its weak runs are off the rate of its base, whichever points were its best.
    assert cli.main([*arguments, "--phases=weak", f"--weak={weak}"]) == 0
    gelu = Store.read(tmp_path / "imagenet_resnet_gelu_mini.json.xz")
    off = [run for run in gelu.of(Phase.WEAK) if run.space == "adamw_off"]
    assert [run.hyperparameters["learning_rate"] for run in off] == rates
