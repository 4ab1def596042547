"""Studies: their settings, and the table that is made of records."""

import json

import pytest

from algoperf import cli, records
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
    assert found[2].changes == {"rank": 4.0}
    assert found[-1].changes == {"score": "grasp", "density": 0.25}


def _record(folder, status, losses):
    folder.mkdir()
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
        return studies.result_row(setting, study, folder, "ppl", Direction.MINIMIZE)

    first = _record(tmp_path / "a", "reached", [9.0, 4.0, 5.0])
    second = _record(tmp_path / "b", "completed", [9.0, 6.0])
    rows = [row(two, 0, first), row(two, 1, second), row(dense, 0, first)]
    rows.append(row(four, 0, tmp_path / "none"))
    assert rows[0]["best"] == 4.0
    assert rows[0]["steps_to_target"] == 20
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
    assert "| lora | 2 | 5 | -7.706 to 17.71 | 1 of 2 | 20 | 7 |" in text
    assert "| lora | 4 |  |  | 0 of 1 |  |  |" in text


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
    ],
)
def test_mistakes_are_named(flags, message, capsys, tmp_path):
    flags = [*flags, "--workload=finewebedu_lm", f"--out={tmp_path}"]
    assert cli.main(["reparam", *flags]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_studies_run_and_leave_table_plot_and_records(tmp_path, capfd):
    usual = ["--workload=finewebedu_lm", "--max_steps=2", "--studies=1"]
    rank = ["--study=rank", "--values=0.25", "--series=lora,galore"]
    assert cli.main(["reparam", *rank, *usual, f"--out={tmp_path}"]) == 0
    printed = capfd.readouterr().out
    assert "| lora | 0.25 | " in printed
    rows = records.read_measurements
    assert (tmp_path / "rank.svg").exists()
    assert "trainable_parameters" in (tmp_path / "rank.csv").read_text()
    folder = records.trial_folder(tmp_path, "lora", 0, "finewebedu_lm_mini", 1)
    assert records.read_record(folder)["hyperparameters"]["rank"] == 0.25
    assert rows(folder / records.EVAL_FILE)
    expansion = ["--study=expansion", "--values=0,0.5"]
    assert cli.main(["reparam", *expansion, *usual, f"--out={tmp_path}"]) == 0
    text = (tmp_path / "expansion.md").read_text()
    assert "| maximum absolute weight | 2 | " in text
    assert "| maximum absolute weight | 1 | " in text
