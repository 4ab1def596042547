"""Studies: their settings, and the table that is made of records."""

import csv
import json
import math

import numpy as np
import pytest
from flax import traverse_util

from algoperf import cli, records, registry
from algoperf.cli.reparam import training
from algoperf.errors import OtherRunError
from algoperf.records import Direction
from algoperf.reparam import studies
from algoperf.reparam.studies import Series

SERIES = [
    Series("dense", "adamw", None),
    Series("lora", "lora", "rank"),
    Series("snip", "pruned", "density", {"score": "snip"}, inverse=True),
    Series("grasp", "pruned", "density", {"score": "grasp"}, inverse=True),
]


def test_settings_number_the_trials_of_each_submission():
    found = studies.settings(SERIES, [2.0, 4.0])
    assert [(s.series, s.submission, s.x, s.trial) for s in found] == [
        ("dense", "adamw", None, 1),
        ("lora", "lora", 2.0, 1),
        ("lora", "lora", 4.0, 2),
        ("snip", "pruned", 2.0, 1),
        ("snip", "pruned", 4.0, 2),
        ("grasp", "pruned", 2.0, 3),
        ("grasp", "pruned", 4.0, 4),
    ]
    one, two = studies.settings([studies.Series("s", "s", "c", above=1.0)], [1, 2, 4])
    assert (one.x, two.x) == (2, 4)  # the baseline itself is left out
    assert found[2].changes == {"rank": 4.0}
    assert found[-1].changes == {"score": "grasp", "density": 0.25}


def _record(folder, status, losses):
    folder.mkdir(parents=True)
    facts = {
        "schema_version": records.SCHEMA_VERSION,
        "status": status,
        "sizes": {"trainable_parameters": 7, "stored_bytes": 28},
    }
    (folder / records.RECORD_FILE).write_text(json.dumps(facts))
    rows = [
        {"global_step": 10 * i, "accumulated_submission_time": i, "validation/ppl": x}
        for i, x in enumerate(losses)
    ]
    records.write_measurements(folder / records.EVAL_FILE, rows)
    return folder


def test_rows_and_their_summary(tmp_path):
    dense, two, four = studies.settings(SERIES[:2], [2.0, 4.0])

    def row(setting, study, folder):
        return studies.result_row(
            setting, study, folder, "ppl", Direction.MINIMIZE, target=4.5
        )

    first = _record(tmp_path / "a", "completed", [9.0, 4.0, 5.0])
    second = _record(tmp_path / "b", "completed", [9.0, 6.0])
    rows = [row(two, 0, first), row(two, 1, second), row(dense, 0, first)]
    rows.append(row(four, 0, tmp_path / "none"))
    assert rows[0]["best"] == 4.0
    assert rows[0]["steps_to_target"] == 10
    assert "steps_to_target" not in rows[1]
    assert rows[3] == {"series": "lora", "study": 0, "x": 4.0, "status": "missing"}
    lines = studies.summary(rows)
    assert [line.get("x") for line in lines] == [2.0, None, 4.0]
    assert lines[0]["best"] == 5.0
    # Student's t with one degree of freedom: 12.706 standard errors of 1 each.
    assert lines[0]["low"] == pytest.approx(5 - 12.706, abs=1e-3)
    assert lines[0]["high"] == pytest.approx(5 + 12.706, abs=1e-3)
    assert "low" not in lines[1]
    text = studies.table(lines, "rank", "ppl")
    assert "| lora | 2 | 5 | -7.706 to 17.71 | 7 | 1 of 2 | 10 |" in text
    assert "| lora | 4 |  |  |  | 0 of 1 |  |" in text
    short = studies.table(lines, "rank", "ppl", has_target=False)
    assert "| lora | 2 | 5 | -7.706 to 17.71 | 7 |\n" in short


def test_pruned_series_count_the_weights_that_are_kept(tmp_path, monkeypatch):
    """Their state is dense, and so is what the record counts."""
    monkeypatch.setattr(training, "announce", lambda runs: None)
    monkeypatch.setattr(training, "make", lambda runs: True)
    name = "finewebedu_lm_steps_800_mini"
    for submission in ("adamw", "pruned"):
        folder = records.trial_folder(tmp_path, submission, 0, name, 1)
        _record(folder, "completed", [9.0])
    flags = ["--workload=finewebedu_lm", "--study=compression", "--studies=1"]
    flags += ["--values=4", "--series=adamw,snip", "--noplot", f"--out={tmp_path}"]
    assert cli.main(["reparam", *flags]) == 0
    # Runs of 800 steps cannot be judged by a target for 2000.
    assert "reached" not in (tmp_path / "compression.md").read_text()
    with (tmp_path / "compression.csv").open() as file:
        dense, snip = csv.DictReader(file)
    assert dense["trainable_parameters"] == "7"
    workload = registry.find_workload("finewebedu_lm", "mini")
    shapes = {
        name: math.prod(shape.shape_tuple)
        for name, shape in traverse_util.flatten_dict(workload.param_shapes).items()
    }
    kernels = sum(size for name, size in shapes.items() if name[-1] == "kernel")
    others = sum(shapes.values()) - kernels
    assert int(snip["trainable_parameters"]) == kernels // 4 + others
    assert int(snip["stored_bytes"]) == kernels + 4 * others + kernels // 8


def test_the_plot_has_a_line_for_each_series(tmp_path):
    lines = [
        {"series": "lora", "x": 0.25, "best": 2.0, "low": 1.5, "high": 2.5},
        {"series": "lora", "x": 1.0, "best": 1.0},
        {"series": "dense", "best": 0.9},
        {"series": "failed", "x": 1.0},
    ]
    path = tmp_path / "rank.svg"
    studies.plot(lines, "rank, share of full", "ppl", path)
    text = path.read_text()
    assert "<svg" in text
    for name in ("lora", "dense", "rank, share of full"):
        assert name in text
    assert "failed" not in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--study=rank", "--values=a"], "--values must be numbers"),
        (["--study=rank", "--series=sora"], "no series 'sora'; there are: adamw, lora"),
        (["--study=compression", "--values=0.5"], "a compression is 1 at least"),
        (["--study=expansion", "--values=1"], "at least 0 and less than 1"),
        (["--study=expansion", "--series=adamw"], "has one series"),
        (["--study=expansion", "--workload=wmt"], "no gated MLP is there"),
        (["--study=federated", "--series=sane rank"], "did you mean same rank"),
        (["--study=federated", "--values=1.5"], "ranks: whole numbers"),
        (["--study=federated", "--workload=wmt"], "does not tell domains"),
    ],
)
def test_mistakes_are_named(flags, message, capsys, tmp_path):
    flags = ["--workload=finewebedu_lm", *flags, f"--out={tmp_path}"]
    assert cli.main(["reparam", *flags]) == 1
    assert message in capsys.readouterr().err


def test_the_correlation_over_studies_is_that_of_fishers_z():
    x = [0.0, 1.0, 2.0, 3.0]
    ys = [[1.0, 0.0, 2.0, 3.0], [0.0, 2.0, 1.0, 4.0], [2.0, 1.0, 3.0, 3.5]]
    rs = np.array([np.corrcoef(x, y)[0, 1] for y in ys])
    z = np.arctanh(rs)
    half = 4.302653 * z.std(ddof=1) / np.sqrt(3)  # t of two degrees of freedom
    mean, bounds = studies.correlation([(x, y) for y in ys])
    assert mean == pytest.approx(np.tanh(z.mean()))
    wanted = np.tanh([z.mean() - half, z.mean() + half])
    np.testing.assert_allclose(bounds, wanted, rtol=1e-5)
    assert studies.correlation([(x, ys[0])]) == (pytest.approx(rs[0]), None)
    assert studies.correlation([(x, [1.0] * 4)]) is None
    perfect, _ = studies.correlation([(x, x), (x, x)])
    assert perfect == pytest.approx(1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_studies_run_and_leave_table_plot_and_records(tmp_path, capfd):
    usual = ["--workload=finewebedu_lm", "--max_steps=2", "--studies=1"]
    rank = ["--study=rank", "--values=0.25", "--series=lora,galore"]
    assert cli.main(["reparam", *rank, *usual, f"--out={tmp_path}"]) == 0
    printed = capfd.readouterr().out
    assert "| lora | 0.25 | " in printed
    assert (tmp_path / "rank.svg").exists()
    assert "trainable_parameters" in (tmp_path / "rank.csv").read_text()
    name = "finewebedu_lm_steps_800_mini"
    folder = records.trial_folder(tmp_path, "lora", 0, name, 1)
    record = records.read_record(folder)
    assert record["hyperparameters"]["rank"] == 0.25
    assert record["global_step"] == 2
    assert records.read_measurements(folder / records.EVAL_FILE)
    # Another run in the same place is refused, not taken for this one.
    other = ["--study=rank", "--values=0.5", "--series=lora"]
    status = cli.main(["reparam", *other, *usual, f"--out={tmp_path}"])
    assert status == OtherRunError.exit_status
    assert "holds another run" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_expansion_study_leaves_abilities_and_bytes(tmp_path, capfd):
    flags = ["--workload=finewebedu_lm", "--max_steps=2", "--studies=1", "--noruntime"]
    flags += ["--study=expansion", "--values=0,0.5,0.75", f"--out={tmp_path}"]
    assert cli.main(["reparam", *flags]) == 0
    text = (tmp_path / "expansion.md").read_text()
    for line in ("maximum absolute weight | 2", "phrases | 66 | 0.5", "rule | 758 | 1"):
        assert f"| {line} |" in text
    assert "| knowledge lost, expansion ratio | " in text
    assert (tmp_path / "expansion_probes.svg").exists()
    assert text in capfd.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_compression_study_trains_small_networks(tmp_path):
    flags = ["--workload=imagenet_resnet", "--max_steps=2", "--studies=1"]
    flags += ["--study=compression", "--values=16", "--series=narrow,hashed"]
    assert cli.main(["reparam", *flags, f"--out={tmp_path}"]) == 0
    header, *rows = (tmp_path / "compression.csv").read_text().splitlines()
    places = {name: place for place, name in enumerate(header.split(","))}
    found = {row.split(",")[places["series"]]: row.split(",") for row in rows}
    assert set(found) == {"narrow", "hashed"}
    for row in found.values():
        assert row[places["status"]] == "completed"
        assert row[places["x"]] == "16.0"
        # Kernels are 16 times smaller; norms and biases are not, or less.
        assert 7 < float(row[places["compression_ratio"]]) < 18
    assert (tmp_path / "compression.svg").exists()
