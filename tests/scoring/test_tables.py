"""Results as words, tables, CSV and JSON."""

import csv
import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from scoring import tables
from scoring.read import Runs, Skipped
from scoring.rules import load_rules
from scoring.score import Result, score_runs
from scoring.tables import (
    format_number,
    headline,
    print_report,
    skipped_lines,
    to_json,
    write_profile_csv,
    write_scores_csv,
)
from scoring.time_to_target import TimeKind, Timing
from scoring.uncertainty import estimate_uncertainty


def _score(runs: Runs) -> Result:
    return score_runs(runs, load_rules("mini_fast"))


def _printed(runs: Runs, result: Result, **options) -> str:
    file = io.StringIO()
    print_report(runs, result, Console(file=file, color_system=None, **options))
    return file.getvalue()


@pytest.mark.parametrize(
    ("times", "sentence"),
    [
        (
            {"a": (10, 40), "b": (20, 80)},
            "a is fastest with a score of 1.0000, ahead of b (0.6667); on the 2 "
            "workloads that count for both it takes 50.0 % less time (geometric mean).",
        ),
        (
            {"a": (30, 10), "b": (10, None)},
            "a ranks first with a score of 0.6667, ahead of b (0.5000); on the one "
            "workload that counts for both it takes 200.0 % more time.",
        ),
        (
            {"a": (10, None), "b": (None, 10)},
            "a and b are equally fast: both score 0.5000.",
        ),
        (
            {"a": (None, 10), "b": (10, 45)},
            "a and b are equally fast: both score 0.5000.",
        ),
        (
            {"a": (10, 10), "b": (None, None)},
            "a is fastest with a score of 1.0000: it alone has times that count, on "
            "2 of 2 workloads.",
        ),
        ({"a": (None, None)}, "No score: no target of mini_fast was reached."),
        (
            {"a": (10, None)},
            "a reached the target on 1 of 2 workloads; its score says nothing yet, "
            "there is no other submission to compare it with.",
        ),
    ],
)
def test_headline(mini_runs, times, sentence):
    assert headline(_score(mini_runs(times))) == sentence


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.26, "1.3"), (999.94, "999.9"), (48151.2, "48,151"), (np.inf, "miss")],
)
def test_seconds(seconds, text):
    assert format_number(seconds) == text


@pytest.mark.parametrize(
    ("steps", "text"), [(12.0, "12"), (12.5, "12.5"), (4000.0, "4,000")]
)
def test_steps(steps, text):
    assert format_number(steps, "steps") == text


def test_report_has_everything_a_reader_needs(mini_runs, make_trial):
    runs = mini_runs({"[bold]a[/bold]": (10, 90), "b": (45, None)})
    failed = make_trial(
        "b", trial=2, record={"status": "failed", "message": "[red] oom"}
    )
    skipped = Skipped(path=Path("some where/trial_2"), reason="is empty")
    runs = Runs(trials=(*runs.trials, failed), skipped=(skipped,))
    result = dataclasses.replace(_score(runs), warnings=("look out",))
    text = _printed(runs, result)
    for part in (
        "[bold]a[/bold]",
        "1.0000",
        "90.0",
        "45.0 †",
        "miss",
        "† reached, but does not count: more than 4 times",
        "study_0/imagenet_resnet_mini/trial_2",
        "failed",
        "[red] oom",
        "warning: look out",
        "skipped: some where/trial_2: is empty",
    ):
        assert part in text
    assert text.count("[bold]a[/bold]") == 2  # in the headline and in the table


def test_wide_tables_are_split_on_a_terminal_and_whole_in_a_file(make_trial):
    trial = make_trial("a" * 30, "ogbg")
    runs = Runs(trials=(trial,), skipped=())
    result = score_runs(runs, load_rules("v0.5"))
    narrow = _printed(runs, result, width=80, force_terminal=True, soft_wrap=False)
    table = [line for line in narrow.splitlines() if line.startswith(" ")]
    assert max(map(len, table)) <= 80
    assert "…" not in narrow
    assert narrow.count("a" * 30 + "   ") > 1
    assert "…" not in _printed(runs, result)


def test_intervals_stand_alone_where_the_table_is_too_wide(make_trial):
    runs = Runs(trials=(make_trial("a" * 30, "ogbg"),), skipped=())
    result = score_runs(runs, load_rules("v0.5"))
    found = estimate_uncertainty(result)
    options = {"width": 80, "force_terminal": True, "soft_wrap": False}
    file = io.StringIO()
    console = Console(file=file, color_system=None, **options)
    print_report(runs, result, console, uncertainty=found)
    lines = file.getvalue().splitlines()
    assert max(len(line) for line in lines if line.startswith(" ")) <= 80
    assert "…" not in file.getvalue()
    assert file.getvalue().count("unknown") == 2  # of score and rank, once


def test_many_skips_of_one_kind_are_counted():
    paths = [Skipped(path=Path(f"trial_{i}"), reason="is empty") for i in range(9)]
    lines = skipped_lines(Runs(trials=(), skipped=tuple(paths)))
    assert lines[0] == "skipped: trial_0: is empty"
    assert lines[3:] == ["skipped: 6 more: is empty"]


def test_scores_csv(tmp_path, mini_runs):
    result = _score(mini_runs({"slow, but steady": (20, None), "fast": (10, 0.1)}))
    write_scores_csv(tmp_path / "scores.csv", result)
    rows = list(csv.DictReader((tmp_path / "scores.csv").read_text().splitlines()))
    assert [row["submission"] for row in rows] == ["fast", "slow, but steady"]
    assert float(rows[0]["score"]) == 1
    assert float(rows[1]["imagenet_resnet_mini_seconds"]) == 20
    assert float(rows[1]["finewebedu_lm_mini_seconds"]) == np.inf


def test_profile_csv_has_every_step(tmp_path, mini_runs):
    result = _score(mini_runs({"a": (10, 10), "b": (20, 30)}))
    write_profile_csv(tmp_path / "profile.csv", result)
    rows = list(csv.reader((tmp_path / "profile.csv").read_text().splitlines()))
    assert rows == [
        ["tau", "a", "b"],
        ["1.0", "1.0", "0.0"],
        ["2.0", "1.0", "0.5"],
        ["3.0", "1.0", "1.0"],
        ["4.0", "1.0", "1.0"],
    ]


def test_units_are_named(mini_runs):
    runs = mini_runs({"a": (10, 20)})
    timing = Timing(kind=TimeKind.STEPS, interpolate=True)
    result = score_runs(runs, load_rules("mini_fast"), timing=timing)
    assert "time to target in steps, interpolated" in _printed(runs, result)
    value = to_json(result)
    facts = [value[key] for key in ("time", "unit", "interpolate")]
    assert facts == ["steps", "steps", True]
    (submission,) = value["submissions"]
    assert submission["workloads"]["imagenet_resnet_mini"]["steps"] == 0
    assert "held_out_steps" in submission


def test_json_has_no_infinities(mini_runs):
    value = to_json(_score(mini_runs({"a": (10, None), "b": (50, None)})))
    assert json.loads(json.dumps(value, allow_nan=False)) == value
    first, second = value["submissions"]
    assert first["submission"] == "a"
    assert first["workloads"]["imagenet_resnet_mini"] == {
        "seconds": 10.0,
        "ratio": 1.0,
        "counts": True,
    }
    assert second["workloads"]["imagenet_resnet_mini"] == {
        "seconds": 50.0,
        "ratio": 5.0,
        "counts": False,
    }
    assert second["workloads"]["finewebedu_lm_mini"]["seconds"] is None


def test_a_message_is_one_line_without_control_characters(make_trial):
    record = {"status": "failed", "message": "a\x1b[2J\n\tb  c" + 999 * "d"}
    text = tables.message(make_trial(record=record))
    assert text.startswith("a [2J b cddd")
    assert text.endswith("d...")
    assert len(text) == 503
