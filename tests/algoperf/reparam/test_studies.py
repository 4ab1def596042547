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
    also = Series("s", "s", "rank", {"gap": 5}, also=lambda x: {"scale": 1 / x})
    (one,) = studies.settings([also], [0.25])
    assert one.changes == {"rank": 0.25, "gap": 5, "scale": 4.0}
    assert found[-1].changes == {"score": "grasp", "density": 0.25}


def _record(folder, status, losses):
    folder.mkdir(parents=True)
    facts = {
        "schema_version": records.SCHEMA_VERSION,
        "status": status,
        "sizes": {
            "trainable_parameters": 7,
            "stored_bytes": 28,
            "compression_ratio": 1.5,
            "optimizer_state_bytes": 56,
        },
        "hyperparameters": {"learning_rate": 0.5},
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
    assert (rows[0]["best"], rows[0]["final"]) == (4.0, 5.0)
    assert rows[0]["learning_rate"] == 0.5
    assert rows[0]["steps_to_target"] == 10
    assert "steps_to_target" not in rows[1]
    assert rows[3] == {"series": "lora", "study": 0, "x": 4.0, "status": "missing"}
    lines = studies.summary(rows, "final")
    assert [line.get("x") for line in lines] == [2.0, None, 4.0]
    # The last evaluations count, 5 and 6, not the best.
    assert lines[0]["final"] == 5.5
    # Student's t with one degree of freedom: 12.706 standard errors of 1/2 each.
    assert lines[0]["low"] == pytest.approx(5.5 - 6.353, abs=1e-3)
    assert lines[0]["high"] == pytest.approx(5.5 + 6.353, abs=1e-3)
    assert "low" not in lines[1]
    text = studies.table(lines, "rank", "ppl", column="final")
    assert "| runs | parameters | stored, bytes | bytes of all over stored |" in text
    sizes = "2 | 7 | 28 | 1.50 | 56"
    assert f"| lora | 2 | 5.5 | -0.8531 to 11.85 | {sizes} | 1 of 2 | 10 |  |" in text
    assert "| lora | 4 |  |  | 0 |  |  |  |  | 0 of 1 |  | 1 missing |" in text
    short = studies.table(lines[:2], "rank", "ppl", has_target=False, column="final")
    assert f"| lora | 2 | 5.5 | -0.8531 to 11.85 | {sizes} |\n" in short
    assert [studies.summary(rows)[i]["best"] for i in (0, 1)] == [5.0, 4.0]


def test_runs_that_failed_or_collapsed_are_told(tmp_path):
    (one,) = studies.settings(SERIES[:1], [])
    statuses = ["completed", "diverged", "completed", "failed", "diverged"]
    rows = [
        studies.result_row(
            one,
            number,
            _record(tmp_path / str(number), status, [9.0, 5.0]),
            "ppl",
            Direction.MINIMIZE,
            target=1.0,
        )
        for number, status in enumerate(statuses)
    ]
    assert [("final" in row) for row in rows] == [True, False, True, False, False]
    rows[2]["collapsed"] = True
    (line,) = studies.summary(rows, "final")
    assert (line["runs"], line["final"]) == (2, 5.0)
    assert line["notes"] == "2 diverged, 1 collapsed, 1 failed"


def test_a_run_that_failed_before_its_first_evaluation_is_told(tmp_path):
    (one,) = studies.settings(SERIES[:1], [])
    folder = _record(tmp_path / "a", "failed", [9.0])
    (folder / records.EVAL_FILE).unlink()
    row = studies.result_row(one, 0, folder, "ppl", Direction.MINIMIZE, target=1.0)
    assert row["status"] == "failed"
    (line,) = studies.summary([row], "final")
    assert (line["runs"], line["notes"]) == (0, "1 failed")


def test_pruned_series_count_the_weights_that_are_kept(tmp_path, monkeypatch):
    """Their state is dense, and so is what the record counts."""
    monkeypatch.setattr(training, "announce", lambda *_, **__: None)
    monkeypatch.setattr(training, "make", lambda runs: True)
    name = "finewebedu_lm_steps_700_mini"
    for submission in ("adamw", "pruned"):
        folder = records.trial_folder(tmp_path, submission, 0, name, 1)
        _record(folder, "completed", [9.0])
    flags = ["--workload=finewebedu_lm", "--study=compression", "--studies=1"]
    flags += ["--values=4", "--series=adamw,snip", "--noplot", f"--out={tmp_path}"]
    assert cli.main(["reparam", *flags]) == 0
    # Runs of 700 steps cannot be judged by a target for 2000.
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
        {"series": "far", "x": 1.0, "best": 90.0},
        {"series": "dense", "best": 0.9},
        {"series": "failed", "x": 1.0},
    ]
    path = tmp_path / "rank.svg"
    sizes = []
    for direction in (None, Direction.MINIMIZE):
        studies.plot(lines, "rank, share of full", "ppl", path, direction=direction)
        text = path.read_text()
        assert "<svg" in text
        for name in ("lora", "far", "dense", "rank, share of full"):
            assert name in text
        assert "failed" not in text
        sizes.append("<!-- 80 -->" in text)  # a tick
    assert sizes == [True, False]


def test_a_plot_shows_what_lies_near_the_best():
    """Three times the median's distance: differences of a point stay visible."""
    values = [0.88, 0.87, 0.86, 0.85, 0.1]
    assert studies.worst_shown(values, Direction.MAXIMIZE) == pytest.approx(0.82)
    values = [2.0, 3.0, 4.0, 100.0, 2.5]
    assert studies.worst_shown(values, Direction.MINIMIZE) == pytest.approx(5.0)
    assert studies.worst_shown([0.9, 0.8, 0.7], Direction.MAXIMIZE) == 0.7
    assert studies.worst_shown([0.9, 0.9, 0.7], Direction.MAXIMIZE) == 0.7


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
