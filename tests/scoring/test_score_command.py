"""`algoperf score`: flags of time, intervals and comparisons."""

import json

import pytest

from algoperf import cli


@pytest.fixture
def runs(tmp_path, write_trial):
    """Writes two submissions with two studies of two trials on one workload."""
    root = tmp_path / "runs"
    for name, factor in (("fast", 1.0), ("slow", 3.0)):
        for study in range(2):
            for trial in (1, 2):
                time = factor * (10 + study + trial)
                write_trial(
                    root,
                    name,
                    study=study,
                    trial=trial,
                    times=[0, time],
                    values=[0.0, 1.0],
                    status="reached",
                    step_time={"seconds": 0.5},
                )
    return root


def _json(capsys, *arguments):
    assert cli.main(["score", *arguments, "--json=-"]) == 0
    return json.loads(capsys.readouterr().out)


def _workload(value, place):
    return value["submissions"][place]["workloads"]["imagenet_resnet_mini"]


def test_everything_by_default(runs, capsys):
    value = _json(capsys, str(runs), "--benchmark=mini_fast")
    assert value["unit"] == "seconds"
    assert value["uncertainty"]["is_different"]["fast"]["slow"]
    assert value["comparison"]["reference"] == "slow"
    assert "at_budget" not in value
    assert _workload(value, 0)["seconds"] == pytest.approx(11.5)


def test_flags(runs, capsys):
    flags = ["--time=idealized", "--interpolate", "--bootstrap=0", "--reference=fast"]
    flags += ["--at_budget=20", "--benchmark=mini_fast"]
    value = _json(capsys, str(runs), *flags)
    assert (value["time"], value["interpolate"]) == ("idealized", True)
    assert "uncertainty" not in value
    assert value["comparison"]["reference"] == "fast"
    assert value["at_budget"]["budget"] == 20
    assert 0 < _workload(value, 0)["seconds"] < 0.5  # one step of half a second


def test_text_and_csv(runs, tmp_path, capsys):
    flags = ["--time=steps", f"--csv={tmp_path}/csv", "--benchmark=mini_fast"]
    assert cli.main(["score", str(runs), *flags]) == 0
    text = capsys.readouterr().out
    assert "time to target in steps" in text
    assert "Speed-up over" in text
    header = (tmp_path / "csv/scores.csv").read_text().splitlines()[0]
    speedups = (tmp_path / "csv/speedups.csv").read_text().splitlines()
    assert speedups[0] == "submission,workload,speedup,low,high"
    assert header.startswith("submission,score,score_low,score_high")
    assert header.endswith("_steps")


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--bootstrap=7", "at least 100 resamples, not 7"),
        ("--bootstrap=-1", "--bootstrap"),
        ("--reference=fats", "unknown reference 'fats'; did you mean fast"),
        ("--at_budget=-1", "must be positive, not -1"),
        ("--time=wall", "--time"),
        ("--score_predicted --time=steps", "leave out --score_predicted, or --time"),
        ("--score_predicted --interpolate", "leave out --score_predicted, or --time"),
    ],
)
def test_what_cannot_be(runs, capsys, flag, words):
    arguments = ["score", str(runs), "--benchmark=mini_fast", *flag.split()]
    assert cli.main(arguments) != 0
    assert words in capsys.readouterr().err
