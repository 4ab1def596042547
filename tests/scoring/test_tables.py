"""The report on a terminal: everything is there, and nothing is cut."""

import dataclasses
import io
from pathlib import Path

from rich.console import Console

from scoring.assessment import assess
from scoring.read import Runs, Skipped
from scoring.rules import load_rules
from scoring.score import score_runs
from scoring.tables import print_report
from scoring.time_to_target import TimeKind, Timing

RULES = load_rules("mini_fast")


def _printed(assessment, **options) -> str:
    file = io.StringIO()
    print_report(assessment, Console(file=file, color_system=None, **options))
    return file.getvalue()


def test_report_has_everything_a_reader_needs(mini_runs, make_trial):
    runs = mini_runs({"[bold]a[/bold]": (10, 50), "b": (45, None)})
    failed = make_trial(
        "b", trial=2, record={"status": "failed", "message": "[red] oom"}
    )
    skipped = Skipped(path=Path("some where/trial_2"), reason="is empty")
    runs = Runs(trials=(*runs.trials, failed), skipped=(skipped,))
    result = dataclasses.replace(score_runs(runs, RULES), warnings=("look out",))
    text = _printed(assess(runs, result, resamples=0))
    for part in (
        "[bold]a[/bold]",
        "1.0000",
        "50.0",
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
    # It may have reached its target before.
    assert "Trials that failed, diverged or are not finished" in " ".join(text.split())
    # In the headline, the scores, and both the title and a row of the speed-ups.
    assert text.count("[bold]a[/bold]") == 4


def test_wide_tables_are_split_on_a_terminal_and_whole_in_a_file(make_trial):
    trial = make_trial("a" * 30, "ogbg")
    runs = Runs(trials=(trial,), skipped=())
    result = score_runs(runs, load_rules("v0.5"))
    found = assess(runs, result, resamples=0)
    narrow = _printed(found, width=80, force_terminal=True, soft_wrap=False)
    table = [line for line in narrow.splitlines() if line.startswith(" ")]
    assert max(map(len, table)) <= 80
    assert "…" not in narrow
    assert narrow.count("a" * 30 + "   ") > 1
    assert "…" not in _printed(found)


def test_held_out_variants_have_a_table(make_trial):
    rules = load_rules("v0.5")
    variant, base = next(iter(rules.held_out.items()))
    goal = rules.goals[base]
    trial = make_trial("a", base, metric=goal.metric, values=[goal.target])
    runs = Runs(trials=(trial,), skipped=())
    text = _printed(assess(runs, score_runs(runs, rules)))
    table = text[text.index("Held-out variants") :]
    for part in variant.split("_"):
        assert part in table
    assert table.count(" miss") >= len(rules.held_out)
    assert "Held-out" not in _printed(
        assess(runs, score_runs(runs, load_rules("v0.6")))
    )


def test_intervals_stand_alone_where_the_table_is_too_wide(make_trial):
    runs = Runs(trials=(make_trial("a" * 30, "ogbg"),), skipped=())
    found = assess(runs, score_runs(runs, load_rules("v0.5")))
    text = _printed(found, width=80, force_terminal=True, soft_wrap=False)
    lines = text.splitlines()
    assert max(len(line) for line in lines if line.startswith(" ")) <= 80
    assert "…" not in text
    assert text.count("unknown") == 2  # of score and rank, once


def test_report_has_intervals_and_speed_ups(study_runs):
    runs = study_runs({"a": 1, "[b]": 3})
    text = _printed(assess(runs, score_runs(runs, RULES), reference="[b]"))
    for part in (
        "1.000 to 1.000",
        "Speed-up over [b]",
        "3.000",
        "reference",
        "2/0/0",
        "a stays first",
    ):
        assert part in text


def test_report_says_unknown_and_why(mini_runs):
    runs = mini_runs({"a": (10, 10), "b": (20, 20)})
    text = _printed(assess(runs, score_runs(runs, RULES)))
    assert text.count("unknown") == 5  # of two scores, two ranks, one speed-up
    assert "warning: No interval for a, b: with one trial" in text


def test_report_at_a_budget(mini_runs):
    runs = mini_runs({"a": (10, 30), "b": (20, None)})
    text = _printed(assess(runs, score_runs(runs, RULES), budget=20))
    assert "best validation metric, within 20 seconds of each trial" in text
    assert text.count("50%") == 2


def test_the_unit_is_named(mini_runs):
    runs = mini_runs({"a": (10, 20)})
    timing = Timing(kind=TimeKind.STEPS, interpolate=True)
    found = assess(runs, score_runs(runs, RULES, timing=timing))
    assert "time to target in steps, interpolated" in _printed(found)
