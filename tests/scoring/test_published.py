"""The published field: its scores, and where runs of one's own stand in it."""

import base64
import csv
import dataclasses
import gzip
import json
import re

import numpy as np
import pytest

from algoperf import cli
from algoperf.errors import UserError
from scoring import make_published
from scoring.assessment import assess
from scoring.export import to_json
from scoring.page import write_page
from scoring.published import FOLDER, known_published, load_published
from scoring.read import Runs, read_runs
from scoring.rules import load_rules
from scoring.score import score_runs
from scoring.words import label, standings

# Scores of the external ruleset as published with the competition, best first.
PUBLISHED = {
    "shampoo_submission": 0.7784,
    "schedule_free_adamw": 0.7077,
    "generalized_adam": 0.6383,
    "cyclic_lr": 0.6301,
    "nadamp": 0.5909,
    "baseline": 0.5707,
    "amos": 0.4918,
    "caspr_adaptive": 0.4722,
    "lawa_queue": 0.3699,
    "lawa_ema": 0.3384,
    "schedule_free_prodigy": 0.0,
}
NOTHING = Runs(trials=(), skipped=())
RULES = load_rules("v0.5")
FIELD = load_published("v0.5")


def _complete(make_trial, name="mine", seconds=5.0, study=0, record=None):
    """Makes runs that reach every target of v0.5 at one time."""
    trials = []
    for workload in RULES.workloads:
        goal = RULES.goals[workload]
        trials.append(
            make_trial(
                name,
                workload,
                study=study,
                times=[seconds],
                metric=goal.metric,
                values=[goal.target],
                record=record,
            )
        )
    return Runs(trials=tuple(trials), skipped=())


def test_the_table_alone_gives_the_published_scores():
    result = score_runs(NOTHING, RULES, mode="official", published=FIELD)
    found = dict(zip(result.submissions, result.scores.round(4).tolist(), strict=True))
    assert found == PUBLISHED
    assert result.published == result.submissions
    assert result.warnings == ()
    assert standings(result) == []


def test_the_table_is_what_the_script_makes(archive, tmp_path):
    make_published.main([str(archive), f"--out={tmp_path}/v0.5.json"])
    assert (tmp_path / "v0.5.json").read_text() == (FOLDER / "v0.5.json").read_text()


@pytest.mark.parametrize("mode", ["documented", "official"])
def test_a_published_submission_under_another_name_stands_where_it_stood(archive, mode):
    runs = read_runs([archive])
    alone = score_runs(NOTHING, RULES, mode=mode, published=FIELD)
    for name in ("nadamp", "shampoo_submission", "schedule_free_prodigy"):
        mine = Runs(
            trials=tuple(
                dataclasses.replace(trial, submission="mine")
                for trial in runs.trials
                if trial.submission == name
            ),
            skipped=(),
        )
        result = score_runs(mine, RULES, mode=mode, published=FIELD)
        s, twin = result.submissions.index("mine"), result.submissions.index(name)
        np.testing.assert_array_equal(result.times[s], result.times[twin])
        np.testing.assert_array_equal(result.ratios[s], result.ratios[twin])
        assert result.scores[s] == alone.scores[alone.submissions.index(name)]
        place = 1 + list(PUBLISHED).index(name)
        assert standings(result) == [
            f"mine stands in place {place} of 12, with a score of "
            f"{result.scores[s]:.4f}."
        ]


def test_the_whole_archive_beside_its_table_changes_no_score(archive):
    runs = read_runs([archive])
    result = score_runs(runs, RULES, mode="official", published=FIELD)
    found = dict(zip(result.submissions, result.scores.round(4).tolist(), strict=True))
    assert found == PUBLISHED | {f"{k} (v0.5)": v for k, v in PUBLISHED.items()}
    (warning,) = [w for w in result.warnings if "equal hardware" in w]
    assert "measured on 8 x NVIDIA V100, yours on hardware that the rec" in warning


def test_mine_is_marked_and_the_field_is_not(make_trial):
    runs = _complete(make_trial, "baseline")
    result = score_runs(runs, RULES, published=FIELD)
    assert result.submissions == tuple(sorted(result.submissions))
    s = result.ranking[0]
    assert label(result, s) == "baseline (yours)"
    assert result.scores[s] == 1
    assert "baseline (v0.5)" in result.published
    assert standings(result) == [
        "baseline stands in place 1 of 12, with a score of 1.0000."
    ]
    marks = [
        row["is_published"] for row in to_json(assess(runs, result))["submissions"]
    ]
    assert marks == [False, *[True] * 11]
    alone = score_runs(runs, RULES)
    assert label(alone, 0) == "baseline"
    assert standings(alone) == []


def test_a_miss_everywhere_shares_the_last_place(make_trial):
    runs = _complete(make_trial, seconds=1e9)
    result = score_runs(runs, RULES, published=FIELD)
    assert standings(result) == [
        "mine stands in place 11 of 12, with a score of 0.0000."
    ]


@pytest.mark.parametrize(
    ("kind", "count", "says"),
    [
        ("Tesla V100-SXM2-16GB", 8, None),
        ("Tesla V100-SXM2-16GB", 4, "yours on 4 x Tesla V100-SXM2-16GB"),
        ("NVIDIA H100 80GB HBM3", 8, "yours on 8 x NVIDIA H100 80GB HBM3"),
        (None, 8, "yours on hardware that the records do not name"),
    ],
)
def test_a_difference_in_hardware_is_warned_of(make_trial, kind, count, says):
    devices = {"device_kind": kind, "device_count": count}
    record = {"status": "reached", "devices": devices}
    runs = _complete(make_trial, record=record)
    warnings = score_runs(runs, RULES, published=FIELD).warnings
    found = [w for w in warnings if "equal hardware" in w]
    assert len(found) == (says is not None)
    assert all(says in warning for warning in found)


def test_an_earlier_part_on_other_hardware_is_warned_of(make_trial):
    same = {"devices": {"device_kind": "Tesla V100-SXM2-16GB", "device_count": 8}}
    other = {"devices": {"device_kind": "NVIDIA H100 80GB HBM3", "device_count": 8}}
    record = {"status": "reached", **same, "earlier_environments": [other]}
    warnings = score_runs(
        _complete(make_trial, record=record), RULES, published=FIELD
    ).warnings
    (found,) = [w for w in warnings if "equal hardware" in w]
    assert "yours on 8 x NVIDIA H100 80GB HBM3 and on 8 x Tesla V100" in found


@pytest.mark.parametrize("budget", [None, 7e4])
def test_runs_without_a_budget_are_warned_of(make_trial, budget):
    record = {"status": "completed", "budget_sec": budget}
    runs = _complete(make_trial, seconds=6e4, record=record)
    result = score_runs(runs, RULES, published=FIELD)
    assert not result.no_budget  # the field had one
    mine = result.submissions.index("mine")
    assert (result.times[mine] == 6e4).all()
    found = [w for w in result.warnings if "those of mine without any" in w]
    assert bool(found) == (budget is None)


def test_mini_runs_are_no_match(mini_runs):
    with pytest.raises(UserError, match="mini runs cannot be compared with the full"):
        score_runs(mini_runs({"a": (1, 1)}), RULES, published=FIELD)


def test_other_targets_rulesets_and_workloads_are_refused(make_trial):
    runs = _complete(make_trial)
    goals = dict(RULES.goals)
    goals["wmt"] = dataclasses.replace(goals["wmt"], target=20.0)
    other = dataclasses.replace(RULES, goals=goals)
    with pytest.raises(UserError, match=r"no times for wmt \(bleu >= 20\)"):
        score_runs(runs, other, published=FIELD)
    with pytest.raises(UserError, match="is of external tuning"):
        score_runs(runs, RULES, ruleset="self", published=FIELD)
    stray = Runs(trials=(make_trial("a", "mnist"),), skipped=())
    with pytest.raises(UserError, match=r"no run is of a workload of v0\.5"):
        score_runs(stray, RULES, published=FIELD)


def test_records_of_another_ruleset_are_refused_by_any_flag(
    tmp_path, make_trial, write_trial, capsys
):
    runs = _complete(make_trial, record={"status": "reached", "ruleset": "self"})
    with pytest.raises(UserError, match="of external tuning; records of self tuning"):
        score_runs(runs, RULES, published=FIELD)
    told = _complete(make_trial, record={"status": "reached", "ruleset": "external"})
    score_runs(told, RULES, published=FIELD)
    facts = {"status": "reached", "ruleset": "self"}
    write_trial(tmp_path, "mine", "wmt_jax", metric="bleu", values=(1, 31), **facts)
    for flags in ([], ["--allow_mixed"]):
        assert cli.main(["score", str(tmp_path), "--against=v0.5", *flags]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err == (
            "algoperf: the published field v0.5 is of external tuning; records of self "
            "tuning cannot be compared with it: mine; leave them out, or score them "
            "without --against\n"
        )


def test_a_subset_is_compared_on_its_workloads(make_trial):
    rules = load_rules("v0.5_qualification")
    result = score_runs(_complete(make_trial), rules, published=FIELD)
    assert result.times.shape == (12, 3)
    assert result.held_out_times.shape == (12, 0)


def test_what_mine_did_not_run_is_not_missed_by_the_field(make_trial):
    runs = Runs(
        trials=(make_trial("mine", "ogbg", times=[9.0], values=[0]),), skipped=()
    )
    warnings = score_runs(runs, RULES, published=FIELD).warnings
    (line,) = [line for line in warnings if line.startswith("no submission")]
    assert line.startswith("no submission of yours ran criteo1tb, fastmri, ")
    assert ": counted as missed by yours" in line


def test_known_names_are_in_the_error():
    assert known_published() == ["v0.5"]
    with pytest.raises(UserError, match=r"published field 'x'; known: v0\.5"):
        load_published("x")


def test_page_has_the_field_and_curves_of_mine_alone(tmp_path, make_trial):
    runs = _complete(make_trial)
    result = score_runs(runs, RULES, published=FIELD)
    write_page(tmp_path / "page.html", assess(runs, result))
    text = (tmp_path / "page.html").read_text()
    assert "mine (yours)" in text
    assert "shampoo_<wbr>submission" in text
    (block,) = re.findall(r'id="data-curves">(.*?)</script>', text)
    curves = json.loads(gzip.decompress(base64.b64decode(block)))
    names = [submission["name"] for submission in curves["submissions"]]
    trials = [t for workload in curves["workloads"] for t in workload["trials"]]
    assert {names[trial["rank"]] for trial in trials} == {"mine"}


def test_score_against_a_field(tmp_path, write_trial, capsys):
    write_trial(
        tmp_path, "mine", "wmt_jax", metric="bleu", values=(0.1, 31.0), times=(1, 9000)
    )
    file = tmp_path / "scores.json"
    arguments = ["score", str(tmp_path), "--against=v0.5"]
    assert cli.main([*arguments, f"--json={file}", f"--csv={tmp_path}/csv"]) == 0
    text = capsys.readouterr().out
    assert "mine (yours)" in text
    assert "rules v0.5" in text
    assert "warning: the times of v0.5 were measured on 8 x NVIDIA V100" in text
    value = json.loads(file.read_text())
    assert len(value["submissions"]) == 12
    rows = csv.DictReader((tmp_path / "csv/scores.csv").read_text().splitlines())
    published = {row["submission"]: row["is_published"] for row in rows}
    assert published == dict.fromkeys(PUBLISHED, "true") | {"mine": "false"}
    page = f"--report={tmp_path}/page.html"
    assert cli.main(["score", "--against=v0.5", "--rules=official", page]) == 0
    assert "0.7784" in capsys.readouterr().out
    assert cli.main(["score", "--against=v9"]) == 1
    assert "v0.5" in capsys.readouterr().err
