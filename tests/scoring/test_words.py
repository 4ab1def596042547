"""Results in words and numbers for a reader."""

import base64
import dataclasses
import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest

from scoring import words
from scoring.assessment import assess
from scoring.page import write_page
from scoring.read import Runs, Skipped
from scoring.rules import load_rules
from scoring.score import score_runs
from scoring.uncertainty import estimate_uncertainty
from scoring.words import format_number, headline, skipped_lines

RULES = load_rules("mini_fast")


@pytest.mark.parametrize(
    ("times", "sentence"),
    [
        (
            {"a": (10, 20), "b": (20, 40)},
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
    assert headline(score_runs(mini_runs(times), RULES)) == sentence


def test_scores_that_differ_by_rounding_are_equal(tmp_path, make_trial):
    benchmark = load_rules("mini")
    times = {"b": (38, 11, 14), "a": (14, 11, 38), "c": (39, 39, 39)}
    names = benchmark.base_workloads[:3]
    rules = dataclasses.replace(benchmark, base_workloads=names)
    trials = [
        make_trial(
            submission,
            name,
            times=[time],
            metric=rules.goals[name].metric,
            values=[rules.goals[name].target],
        )
        for submission, own in times.items()
        for name, time in zip(names, own, strict=True)
    ]
    result = score_runs(Runs(trials=tuple(trials), skipped=()), rules)
    assert result.scores[0] == pytest.approx(result.scores[1], abs=1e-14)
    assert [result.submissions[s] for s in result.ranking] == ["a", "b", "c"]
    assert headline(result) == "a and b are equally fast: both score 0.8095."
    page = tmp_path / "page.html"
    write_page(page, assess(Runs(trials=tuple(trials), skipped=()), result))
    (block,) = re.findall(r'id="data-tables">(.*?)</script>', page.read_text())
    tables = json.loads(gzip.decompress(base64.b64decode(block)))
    assert [row[0] for row in tables["scores"]["rows"]] == [1, 1, 3]


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


def _headline(runs):
    result = score_runs(runs, RULES)
    return headline(result, estimate_uncertainty(result))


def test_headline_says_fastest_only_where_it_differs(study_runs):
    assert _headline(study_runs({"a": 1, "b": 3})).startswith(
        "a is fastest with a score of 1.0000, ahead of b (0.3333); on"
    )
    unsure = _headline(study_runs({"a": 1, "b": 1.01}))
    assert unsure.startswith(
        "a ranks first with a score of 1.0000, not distinguishable from b (0.9967); on "
        "the 2 workloads that count for both it takes 1.0 % less time"
    )
    many = {"a": 1, "b": 1.01, "c": 1.011, "d": 1.012, "e": 1.013, "f": 1.014}
    crowded = _headline(study_runs(many))
    assert "from b (0.9967) nor from c, d, e and 1 more; on the 2" in crowded
    assert "that count for it and b it takes" in crowded


def test_headline_of_one_trial_admits_it(mini_runs):
    sentence = _headline(mini_runs({"a": (10, 10), "b": (20, 20)}))
    assert sentence.startswith("a ranks first with a score of 1.0000, ahead of b")
    assert sentence.endswith("How sure that is, so few trials cannot say.")


def test_headline_admits_that_the_second_had_one_trial(study_runs):
    runs = study_runs({"a": 1, "b": 3, "c": 3.5})
    alone = [
        t for t in runs.trials if t.submission != "b" or (t.study, t.trial) == (0, 1)
    ]
    result = score_runs(dataclasses.replace(runs, trials=tuple(alone)), RULES)
    found = estimate_uncertainty(result)
    assert words.is_known(found, 0)
    assert np.isnan(found.difference_low_SS[0, 1])
    sentence = headline(result, found)
    assert sentence.startswith("a ranks first with a score of 1.0000, ahead of b")
    assert sentence.endswith("How sure that is, so few trials cannot say.")
    # Nobody but the second is in question: without it, the first is sure to be faster.
    rest = [t for t in alone if t.submission != "b"]
    sure = _headline(dataclasses.replace(runs, trials=tuple(rest)))
    assert sure.startswith("a is fastest with a score of 1.0000, ahead of c")
    assert sure.endswith("(geometric mean).")


def test_the_second_may_differ_where_the_third_does_not(study_runs):
    result = score_runs(study_runs({"a": 1, "b": 2, "c": 2.01}), RULES)
    found = estimate_uncertainty(result)
    is_different = np.array([[False, True, False], [True, False, False], [False] * 3])
    low = np.zeros((3, 3))
    odd = dataclasses.replace(
        found, is_different_SS=is_different, difference_low_SS=low
    )
    said = "ahead of b (0.6667), but not distinguishable from c"
    assert said in headline(result, odd)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["a"], "a"),
        (["a", "b"], "a and b"),
        (["a", "b", "c"], "a, b and c"),
        (["a", "b", "c", "d", "e"], "a, b, c and 2 more"),
    ],
)
def test_some_names(names, text):
    assert words.some_names(names) == text


def test_sensitivity_in_words(study_runs, mini_runs):
    def lines(runs):
        result = score_runs(runs, RULES)
        return words.sensitivity_lines(result, estimate_uncertainty(result))

    assert lines(study_runs({"a": 1, "b": 3})) == [
        "a stays first whichever workload is left out",
        "a stays first with every r_max from 1.5 to 16",
    ]
    # a is 5 times as fast on one workload, b 1.4 times on the other.
    resnet, lm = RULES.base_workloads
    mixed = lines(mini_runs({"a": (10, 14), "b": (50, 10), "c": (60, 99)}))
    assert mixed[0] == f"a is not first without {resnet}"
    # Without the one workload that anyone reached, all are at zero.
    alone = lines(mini_runs({"a": (10, None), "b": (50, None)}))
    assert alone[0] == f"a is not first without {resnet}"
    assert lines(study_runs({"a": 1})) == []
    del lm


def test_many_skips_of_one_kind_are_counted():
    paths = [Skipped(path=Path(f"trial_{i}"), reason="is empty") for i in range(9)]
    lines = skipped_lines(Runs(trials=(), skipped=tuple(paths)))
    assert lines[0] == "skipped: trial_0: is empty"
    assert lines[3:] == ["skipped: 6 more: is empty"]


def test_what_was_read_but_for_a_part_is_a_note():
    item = Skipped(path=Path("trial_1"), reason="the last line was cut", is_read=True)
    lines = skipped_lines(Runs(trials=(), skipped=(item,)))
    assert lines == ["note: trial_1: the last line was cut"]


def test_a_message_is_one_line_without_control_characters(make_trial):
    record = {"status": "failed", "message": "a\x1b[2J\n\tb  c" + 999 * "d"}
    text = words.message(make_trial(record=record))
    assert text.startswith("a [2J b cddd")
    assert text.endswith("d...")
    assert len(text) == 503
