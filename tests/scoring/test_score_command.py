"""`algoperf score`: flags of time, intervals and comparisons."""

import json

import pytest
from absl import flags

from algoperf import cli
from algoperf.cli import score


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
    assert header.startswith("submission,rank,score,score_low,score_high")
    assert header.endswith("_steps,finewebedu_lm_mini_counts")


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--bootstrap=7", "at least 100 resamples, not 7"),
        ("--bootstrap=-1", "--bootstrap"),
        ("--bootstrap=100001", "--bootstrap"),
        ("--report=", "--report is empty"),
        ("--json=", "--json is empty"),
        ("--csv=", "--csv is empty"),
        ("--against=", "--against is empty"),
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


def test_an_empty_benchmark(runs, capsys):
    assert cli.main(["score", str(runs), "--benchmark="]) == 1
    assert "--benchmark is empty" in capsys.readouterr().err


def test_what_cannot_be_written_costs_nothing_else(runs, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    flags = [f"--csv={tmp_path}/file", f"--json={tmp_path}", "--bootstrap=0"]
    flags += [f"--report={tmp_path}/x/y/report.html", "--benchmark=mini_fast"]
    assert cli.main(["score", str(runs), *flags]) == 1
    out, err = capsys.readouterr()
    assert out.index("fast is fastest") < out.index("written: ")
    written = [line for line in out.splitlines() if line.startswith("written: ")]
    assert written == [f"written: {tmp_path}/x/y/report.html"]
    assert (tmp_path / "x/y/report.html").exists()
    lines = err.splitlines()
    assert lines[0] == f"algoperf: cannot write {tmp_path}: Is a directory"
    assert lines[1] == (
        f"algoperf: cannot make {tmp_path}/file: File exists; choose another --csv"
    )
    assert len(lines) == 2
    assert (tmp_path / "file").read_text() == "mine"


def test_json_on_standard_output_stands_alone(runs, tmp_path, capsys):
    value = _json(capsys, str(runs), "--benchmark=mini_fast", f"--csv={tmp_path}/csv")
    assert value["submissions"]
    assert (tmp_path / "csv/scores.csv").exists()


@pytest.mark.parametrize(
    ("workload", "benchmarks", "best"),
    [("wmt", "v0.5, v0.6", "v0.5"), ("finewebedu_lm", "v0.6", "v0.6")],
)
def test_runs_of_another_benchmark_are_told_which(
    tmp_path, write_trial, capsys, workload, benchmarks, best
):
    write_trial(tmp_path, workload=f"{workload}_jax")
    assert cli.main(["score", str(tmp_path)]) == 1
    says = f"these are workloads of {benchmarks}: give --benchmark {best}"
    assert says in capsys.readouterr().err


def test_runs_of_no_benchmark(tmp_path, write_trial, capsys):
    write_trial(tmp_path, workload="mnist_jax")
    assert cli.main(["score", str(tmp_path)]) == 1
    assert "with the package: mnist; give --benchmark FILE" in capsys.readouterr().err


def test_what_is_left_out_is_named(runs, capsys):
    folder = runs / "slow/study_0/imagenet_resnet_mini_jax"
    (folder / "trial_1/eval_measurements.csv").write_text("")
    (folder / "trial_7").write_text("no folder")
    assert cli.main(["score", str(runs), "--benchmark=mini_fast"]) == 1
    lines = capsys.readouterr().err.splitlines()
    start = f"algoperf: left out of the score: {folder}"
    says = "not a folder, nor a link that leads to one"
    assert f"{start}/trial_7: {says}" in lines
    assert f"{start}/trial_1: eval_measurements.csv is empty" in lines


def test_a_field_alone_has_nothing_within_a_budget(capsys):
    assert cli.main(["score", "--against=v0.5", "--at_budget=100"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("algoperf: --at_budget needs a DIR")
    assert err.count("\n") == 1


def test_flags_may_be_written_with_dashes(runs, tmp_path, capsys):
    flags = ["--allow-mixed", "--noresample-trials", "--at-budget", "20"]
    flags += [f"--csv={tmp_path}/my-csv", "--benchmark=mini_fast", "--bootstrap=100"]
    assert cli.main(["score", *flags, "--json=-", "--", str(runs)]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["at_budget"]["budget"] == 20
    assert not value["uncertainty"]["with_trials"]
    assert (tmp_path / "my-csv/scores.csv").exists()


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (["--allow-mixed=a-b"], ["--allow_mixed=a-b"]),
        (
            ["--reference", "--a-b", "--at-budget"],
            ["--reference", "--a-b", "--at_budget"],
        ),
        (["--allow-mixed", "--x-y", "my-runs"], ["--allow_mixed", "--x_y", "my-runs"]),
        (["--at-budget", "-1-2", "-"], ["--at_budget", "-1-2", "-"]),
        (["--no-such=", "--", "--a-b"], ["--no_such=", "--", "--a-b"]),
        (["-", "-a-b", "a--b"], ["-", "-a-b", "a--b"]),
    ],
)
def test_only_names_of_flags_are_changed(given, taken):
    values = flags.FlagValues()
    score.define_flags(values)
    assert cli._with_underscores(given, values) == taken
