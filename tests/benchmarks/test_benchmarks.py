"""The benchmarks still run; what they measure is for people to read."""

import json
import runpy
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from algoperf import cli, records, registry
from scoring.rules import load_rules

HERE = Path(__file__).resolve().parent


@pytest.mark.slow
def test_loop_overhead(tmp_path):
    file = tmp_path / "result.json"
    command = [sys.executable, HERE / "loop_overhead.py", "--rounds=1", "--case=5 ms"]
    subprocess.run([*command, f"--json={file}"], check=True)
    result = json.loads(file.read_text())
    assert result["5 ms"]["ratio_of_medians"] > 0
    assert result["host"]["cores"] >= 1


def test_score_archive(tmp_path):
    file = tmp_path / "result.json"
    command = [sys.executable, HERE / "score_archive.py", "--submissions=1"]
    subprocess.run([*command, "--scales=1", f"--json={file}"], check=True)
    (costs,) = json.loads(file.read_text())["costs"].values()
    assert costs["first call"]["seconds"] > 0
    assert costs["second call"]["peak_mib"] > 1


@pytest.mark.slow
def test_curve_prediction(tmp_path):
    file = tmp_path / "result.json"
    command = [sys.executable, HERE / "curve_prediction.py", "--curves=2"]
    subprocess.run([*command, f"--json={file}"], check=True)
    rows = json.loads(file.read_text())["planted"]
    assert [row["noise"] for row in rows] == [0, 0.1, 0.25, 0.5, 1]
    assert rows[0]["within_tau"] == 1


def test_bootstrap_coverage():
    command = [sys.executable, HERE / "bootstrap_coverage.py", "--repetitions=40"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    rows = [line for line in done.stdout.splitlines() if line.count("%") >= 2]
    assert len(rows) > 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("submission", "workload"),
    [("muon", "imagenet_resnet"), ("infinite_compute", "finewebedu_lm")],
)
def test_submissions_train(tmp_path, submission, workload):
    """A sample; the script takes all submissions and workloads by default."""
    file = tmp_path / "results.json"
    command = [sys.executable, HERE / "submissions_train.py", f"--json={file}"]
    names = [f"--submissions={submission}", f"--workloads={workload}"]
    subprocess.run([*command, *names], check=True)
    (result,) = json.loads(file.read_text())
    assert result["last_loss"] < result["first_loss"]


@pytest.mark.parametrize(("refused", "status"), [("ab", 1), ("a", 0)])
def test_a_submission_that_refuses_everything_has_not_trained(
    monkeypatch, capsys, refused, status
):
    main = runpy.run_path(str(HERE / "submissions_train.py"))["main"]

    def train(name, workload, *unused):
        found = {"submission": name, "workload": workload, "status": "refused"}
        if workload in refused:
            return found
        return {**found, "status": "completed", "first_loss": 2.0, "last_loss": 1.0}

    chosen = [types.SimpleNamespace(variant=name) for name in "ab"]
    monkeypatch.setattr(registry, "select_workloads", lambda *_: chosen)
    monkeypatch.setitem(main.__globals__, "train", train)
    monkeypatch.setattr(sys, "argv", ["submissions_train.py", "--submissions=sgd"])
    assert main() == status
    assert ("sgd refused all workloads" in capsys.readouterr().out) == bool(status)


def test_early_stopping(tmp_path):
    """One curve that reaches its target, one that levels off: only that is stopped."""
    goal = load_rules("v0.5").goals["ogbg"]
    for trial, level in ((1, 1.3), (2, 0.5)):
        folder = tmp_path / "adam" / "study_0" / "ogbg_jax" / f"trial_{trial}"
        folder.mkdir(parents=True)
        times = np.linspace(0, goal.budget_sec, 41)
        values = level * goal.target * (1 - np.exp(-4 * times / goal.budget_sec))
        rows = [
            {
                records.GLOBAL_STEP: step,
                records.SUBMISSION_TIME: time,
                goal.column: value,
            }
            for step, (time, value) in enumerate(zip(times, values, strict=True))
        ]
        records.write_measurements(folder / records.EVAL_FILE, rows)
    command = [sys.executable, HERE / "early_stopping.py", tmp_path]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    cells = done.stdout.splitlines()[-1].strip("| ").split(" | ")
    assert cells[:5] == ["all", "1", "0", "1", "1"]
    assert 0 < int(cells[5].rstrip("%")) <= 50


@pytest.mark.slow
def test_numerics_batch_statistics(tmp_path):
    arguments = ["--submission=quantized_adamw", "--workload=imagenet_resnet"]
    arguments += ["--max_steps=2", f"--out={tmp_path}"]
    assert cli.main(["run", *arguments]) == 0
    (trial,) = (path.parent for path in tmp_path.rglob(records.RECORD_FILE))
    command = [sys.executable, HERE / "numerics_batch_statistics.py", "--batches=2"]
    done = subprocess.run([*command, trial], check=True, capture_output=True, text=True)
    recipe = records.read_record(trial)["hyperparameters"]["recipe"]
    *_, plain, quantised = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in done.stdout.splitlines()
    )
    assert plain[2] == "unquantised"
    assert quantised[2] == f"of {recipe}"
    assert all(0 < float(row[3]) < 10 for row in (plain, quantised))


@pytest.mark.slow
def test_numerics_native(tmp_path):
    file = tmp_path / "result.json"
    command = [sys.executable, HERE / "numerics_native.py", "int8", "--emulated"]
    command += ["--scale=mini", "--workload=finewebedu_lm", "--batch_size=4"]
    subprocess.run([*command, "--rounds=1", f"--json={file}"], check=True)
    rows = json.loads(file.read_text())
    assert [row["name"] for row in rows] == ["float32", "int8", "int8 emulated"]
    assert rows[2]["units"] == ["float32"]
    assert all(row["ratio"] > 0 for row in rows)


@pytest.mark.slow
def test_inference_decoder(tmp_path):
    file = tmp_path / "result.json"
    command = [sys.executable, HERE / "inference_decoder.py", "--shapes=tiny-4m"]
    options = ["--prompt=16", "--tokens=9", "--rounds=1", f"--json={file}"]
    subprocess.run([*command, *options], check=True)
    assert json.loads(file.read_text())["tiny-4m"]["ours"] > 0


@pytest.mark.slow
def test_inference_recipes(tmp_path):
    file = tmp_path / "result.json"
    command = [sys.executable, HERE / "inference_recipes.py", "--rounds=1"]
    options = ["--recipes=float32,rank 0.25", "--tokens=9", f"--json={file}"]
    subprocess.run([*command, *options], check=True)
    found = json.loads(file.read_text())
    assert found["float32"]["ms_per_token"] > 0
    assert found["rank 0.25"]["weight_bytes"] < found["float32"]["weight_bytes"]
