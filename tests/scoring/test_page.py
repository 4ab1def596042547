"""The page: one file, whole, and safe whatever names and messages hold."""

import base64
import dataclasses
import gzip
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from algoperf import records
from algoperf.errors import UserError
from scoring import (
    Timing,
    assess,
    load_rules,
    page_data,
    predict_runs,
    read_runs,
    score_predicted,
    score_runs,
    write_page,
)
from scoring.read import Runs
from scoring.time_to_target import TimeKind

EVIL = "<img src=x onerror=alert(1)>&\"'{}$title%{x}"
RULES = load_rules("mini_fast")


class _Elements(HTMLParser):
    """Collects elements and the text outside scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "wbr", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data


def _write(folder, path):
    runs = read_runs([folder])
    write_page(path, assess(runs, score_runs(runs, RULES), resamples=0))
    return path.read_text(encoding="utf-8")


def _unpacked(page, anchor):
    """What the page's own script makes of a block."""
    (block,) = re.findall(rf'id="{anchor}">(.*?)</script>', page)
    return gzip.decompress(base64.b64decode(block)).decode()


def _data(page, name):
    return json.loads(_unpacked(page, f"data-{name}"))


@pytest.fixture
def page(tmp_path, write_trial) -> str:
    root = tmp_path / "runs"
    folder = write_trial(
        root,
        "adamw",
        status="reached",
        devices={"device_kind": "H200 " + EVIL},
        versions={"jax": "0.10.2"},
    )
    records.write_json(
        folder / records.HPARAMS_FILE, {"learning_rate": 0.003, "n": EVIL}
    )
    write_trial(root, EVIL, times=[], values=[], status="failed", message=f"oom {EVIL}")
    write_trial(root, EVIL, f"{EVIL}_jax", trial=2)
    (root / "adamw" / "study_0" / EVIL).mkdir()
    return _write(root, tmp_path / "page.html")


def test_page_shows_everything(page):
    text = _Elements(page).text
    for part in (
        "adamw is fastest with a score of",
        str(RULES.goals["imagenet_resnet_mini"]),
        "Performance profile",
        "Training curves",
        "oom",
        "device_kind",
        "H200",
        "0.10.2",
        "finewebedu_lm_mini",
        "skipped:",
        "Failed, diverged or not finished",
    ):
        assert part in text


@pytest.mark.parametrize("budget", [None, 2e6])
def test_the_page_says_that_no_budget_applied(tmp_path, write_trial, budget):
    root = tmp_path / "runs"
    facts = {"status": "completed", "budget_sec": budget}
    write_trial(root, times=[1.0, 1e6], values=[0.1, 0.9], **facts)
    page = _write(root, tmp_path / "page.html")
    assert ("No time budget applied" in _Elements(page).text) == (budget is None)
    table = _data(page, "trials")
    (row,) = (dict(zip(table["columns"], row, strict=True)) for row in table["rows"])
    assert row["seconds to target"] == 1e6


def test_names_and_messages_are_text_everywhere(page):
    parsed = _Elements(page)
    assert parsed.open == []
    assert not any(tag == "img" for tag, _ in parsed.elements)
    assert not any(
        name.startswith("on")
        for _, attributes in parsed.elements
        for name in attributes
    )
    assert parsed.text.count(EVIL) >= 6


def test_page_needs_no_network(page):
    parsed = _Elements(page)
    assert not any("src" in found for _, found in parsed.elements)
    links = [found["href"] for _, found in parsed.elements if "href" in found]
    places = {f"#{found['id']}" for _, found in parsed.elements if "id" in found}
    assert set(links) <= places
    assert not any(tag in ("link", "iframe", "base") for tag, _ in parsed.elements)
    (policy,) = (a for _, a in parsed.elements if "http-equiv" in a)
    assert policy["content"].startswith("default-src 'none'")
    assert _unpacked(page, "plotly").count("plotly.js v") == 1


def test_every_figure_has_its_place(page):
    figures = _data(page, "figures")
    found = [a for _, a in _Elements(page).elements if a.get("class") == "figure"]
    assert all(a["aria-label"] for a in found)
    assert {a["id"] for a in found} == {*figures, "curves-0"}
    assert set(figures) == {"profile", "forest-0"}
    names = {trace["name"] for trace in figures["profile"]["data"]}
    assert not any("<" in name for name in names)
    assert not any("<" in s["label"] for s in _data(page, "curves")["submissions"])


def test_every_download_has_its_table(page):
    asked = {a["data-csv"] for _, a in _Elements(page).elements if "data-csv" in a}
    assert asked - {"trials", "curves"} == set(_data(page, "tables"))


def test_trials_have_their_hyperparameters_and_messages(page):
    table = _data(page, "trials")
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    (adamw,) = (row for row in rows if row["submission"] == "adamw")
    assert (adamw["learning_rate"], adamw["n"]) == (0.003, EVIL)
    assert (adamw["seconds to target"], adamw["steps to target"]) == (2, 1)
    assert (adamw["best"], adamw["last"], adamw["status"]) == (0.9, 0.9, "reached")
    (failed,) = (row for row in rows if row["status"] == "failed")
    assert failed["message"] == f"oom {EVIL}"
    assert failed["seconds to target"] == "inf"


def test_curves_are_exact_and_know_the_best_trial(tmp_path, write_trial):
    root = tmp_path / "runs"
    times, values = [1 / 3, 2 / 3, 1e5 / 7], [0.1, float("nan"), 0.9123456789012345]
    own = {"status": "reached", "budget_sec": 2e4}
    write_trial(root, times=times, values=values, **own)
    write_trial(root, trial=2, times=[5, 6], values=[0.2, 0.95])
    write_trial(root, study=1, times=[5, 6], values=[0.2, 0.3])
    write_trial(root, study=1, trial=2, times=[5, 6], values=[0.4, 0.1])
    curves = _data(_write(root, tmp_path / "page.html"), "curves")
    (workload,) = curves["workloads"]
    first, *others = workload["trials"]
    assert first["seconds"] == times
    assert first["values"] == [0.1, None, 0.9123456789012345]
    assert (first["steps"], first["hit"]) == ([0, 1, 2], 2)
    assert not first["best"]
    assert [trial["best"] for trial in others] == [True, False, True]
    assert [trial["hit"] for trial in others] == [1, -1, -1]


STEPS = Timing(kind=TimeKind.STEPS)


@pytest.mark.parametrize(
    ("mode", "timing", "seconds"),
    [
        ("documented", Timing(), 10),
        ("official", Timing(), 15),
        ("documented", STEPS, 15),
    ],
)
def test_the_curve_of_a_study_is_of_the_trial_that_the_score_counts(
    tmp_path, make_trial, mode, timing, seconds
):
    # The second has fewer evaluations and steps, and takes longer.
    goal = RULES.goals["imagenet_resnet_mini"]
    trials = (
        make_trial(times=[1, 2, 9, 10], values=[0.1, 0.1, 0.1, goal.target]),
        make_trial(trial=2, times=[1, 2, 15], values=[0.1, 0.1, goal.target]),
        # As early as the first two in their own ways, and in the end better than both.
        make_trial(trial=3, times=[1, 2, 15, 16], values=[0.1, 0.1, 0.9, 0.95]),
        make_trial(trial=4, times=[1, 2, 9, 10], values=[0.1, 0.1, 0.1, 0.95]),
        make_trial(framework="pytorch", times=[1], values=[0.99]),  # is not judged
    )
    runs = Runs(trials=trials, skipped=())
    rules = dataclasses.replace(RULES, protocols=load_rules("v0.5").protocols)
    result = score_runs(runs, rules, mode=mode, timing=timing)
    assert result.times[0, 0] == (2 if timing is STEPS else seconds)
    page, _ = _page_of(tmp_path, assess(runs, result, resamples=0))
    drawn = [t for t in _data(page, "curves")["workloads"][0]["trials"] if t["best"]]
    assert [curve["seconds"][-1] for curve in drawn] == [seconds]
    assert drawn[0]["trial"] == (1 if seconds == 10 else 2)


def test_very_many_evaluations_are_rounded(make_trial):
    count = page_data.EXACT_UP_TO + 1
    times = (np.arange(count) / 3).tolist()
    trial = make_trial(times=times, values=[0.123456789] * count)
    result = score_runs(Runs(trials=(trial,), skipped=()), RULES)
    text = page_data.curves_json(
        {"imagenet_resnet_mini": [trial]}, result, {"adamw": {"color": "", "dash": ""}}
    )
    (curve,) = json.loads(text)["workloads"][0]["trials"]
    assert curve["values"][0] == 0.1234568
    assert curve["seconds"] == pytest.approx(times, rel=1e-6)
    assert curve["steps"][-1] == count - 1


def test_what_trials_ran_on_is_told_once_where_it_is_the_same(tmp_path, write_trial):
    root = tmp_path / "runs"
    for trial, revision in enumerate(("abc", "abc", "def"), start=1):
        machine = {"devices": {"device_kind": "H200"}, "git_revision": revision}
        write_trial(root, trial=trial, status="reached", **machine)
    write_trial(root, trial=4)
    text = _Elements(_write(root, tmp_path / "page.html")).text
    assert text.count("device_kind") == text.count("H200") == 1
    assert "Of the 3 of 4 trials that say what they ran on" in text
    assert "2 trials of adamwgit_revisionabc" in text
    assert "1 trial of adamwgit_revisiondef" in text


def test_the_same_records_give_the_same_page(tmp_path, write_trial):
    write_trial(tmp_path / "runs")
    pages = [_write(tmp_path / "runs", tmp_path / f"{k}.html") for k in (1, 2)]
    assert pages[0] == pages[1]


def test_page_of_many_submissions_folds_its_trials(tmp_path, write_trial):
    for trial in range(1, 42):
        write_trial(tmp_path / "runs", trial=trial)
    parsed = _Elements(_write(tmp_path / "runs", tmp_path / "page.html"))
    assert ("details", {"data-trials": "adamw"}) in parsed.elements


def test_page_without_any_evaluation(tmp_path, write_trial):
    write_trial(tmp_path / "runs", times=[], values=[], status="failed", message="oom")
    parsed = _Elements(_write(tmp_path / "runs", tmp_path / "page.html"))
    assert "No score: no target of mini_fast was reached." in parsed.text
    assert "oom" in parsed.text


def _page_of(tmp_path, assessment):
    write_page(tmp_path / "page.html", assessment)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    parsed = _Elements(page)
    assert parsed.open == []
    return page, parsed.text


def test_how_sure_has_figures_and_downloads(tmp_path, study_runs):
    runs = study_runs({"a": 1, "b<i>": 2})
    found = assess(runs, score_runs(runs, RULES))
    page, text = _page_of(tmp_path, found)
    sure, beside = found.uncertainty, found.comparison
    for part in (
        "a is fastest with a score of 1.0000, ahead of b<i>",
        "a stays first whichever workload is left out.",
        "95 % interval",
        f"{sure.score_low_S[1]:.3f} to {sure.score_high_S[1]:.3f}",
        "Intervals hold 95 % of 1,000 resamples of studies, and trials within them.",
        f"{sure.leave_one_out_scores_BS[0, 1]:.4f} (rank 2)",
        "Comparison with b<i>",
        f"2.00 times as fast (interval {beside.mean_speedup_low_S[0]:.2f} to",
        "faster on 2, tied on 0, slower on 0",
    ):
        assert part in text
    assert "unknown;" not in text
    drawings = _data(page, "figures")
    assert set(drawings) == {"profile", "left-out", "sensitivity", "forest-0"}
    assert drawings["forest-0"]["data"][0]["x"] == [2.0, 2.0, 2.0]
    tables = _data(page, "tables")
    ends = (sure.score_low_S[0], sure.score_high_S[0], 1, 1)
    assert tables["scores"]["rows"][0][:7] == [1, "a", 1.0, *ends]
    mean = tables["comparison"]["rows"][-1]
    assert mean[:2] == ["a", "geometric mean"]
    assert mean[2] == pytest.approx(2)
    assert tables["sensitivity"]["columns"] == ["r_max", "a", "b<i>"]


def test_what_is_unknown_is_called_so_and_has_no_whisker(tmp_path, mini_runs):
    runs = mini_runs({"a": (10, 10), "b": (20, None)})
    page, text = _page_of(tmp_path, assess(runs, score_runs(runs, RULES)))
    table = text.index("rank, 95 % interval")
    scores = text[table : text.index("Performance profile", table)]
    assert scores.count("unknown") == 4  # of two scores and two ranks
    assert "1.000 to 1.000" not in text
    assert '<b style="left' not in page
    assert "nan" not in text
    assert "0.50 times as fast (interval unknown)" not in text
    assert "2.00 times as fast (interval unknown)" in text
    assert "No interval for a, b: with one trial" in text
    forest = _data(page, "figures")["forest-0"]["data"][0]
    assert forest["error_x"]["array"] == [None, None, None]
    row = _data(page, "tables")["scores"]["rows"][0]
    assert row[3:7] == [None] * 4


def test_one_workload_cannot_be_left_out(tmp_path, study_runs):
    alone = dataclasses.replace(RULES, base_workloads=("finewebedu_lm_mini",))
    runs = study_runs({"a": 1, "b": 2})
    page, text = _page_of(tmp_path, assess(runs, score_runs(runs, alone)))
    assert "One workload left out" not in text
    assert "left-out" not in _data(page, "figures")


def test_contended_trials_are_marked(tmp_path, make_trial):
    busy = {"windows": 10, "contended_windows": 5, "seconds": 1.0}
    record = {"status": "reached", "step_time": {**busy, "slowest_window": 1.7}}
    trials = (
        make_trial("a", times=[10.0], values=[0.9], record=record),
        make_trial("a", trial=2, times=[10.0], values=[0.9]),
    )
    runs = Runs(trials=trials, skipped=())
    page, text = _page_of(tmp_path, assess(runs, score_runs(runs, RULES)))
    notes = [row[-1] for row in _data(page, "trials")["rows"]]
    assert notes == ["contended: up to 35 % of its time", None]
    assert "other load may have slowed a" in text


def test_the_unit_of_times_is_named(tmp_path, mini_runs):
    runs = mini_runs({"a": (10, 10), "b": (20, 20)})
    timing = Timing(kind=TimeKind.STEPS, interpolate=True)
    result = score_runs(runs, RULES, timing=timing)
    page, text = _page_of(tmp_path, assess(runs, result))
    assert "Times to target, steps" in text
    assert "Steps, interpolated; below, how many times the best" in text
    assert _data(page, "tables")["times"]["columns"][3] == "steps"
    assert 'value="step" checked' in page


def test_metrics_at_a_budget(tmp_path, mini_runs):
    runs = mini_runs({"a": (10, 30), "b": (20, None)})
    found = assess(runs, score_runs(runs, RULES), budget=20)
    page, text = _page_of(tmp_path, found)
    assert "within 20 seconds of each trial" in text
    rows = _data(page, "tables")["budget"]["rows"]
    assert rows[0] == ["a", 0.5, 0.9, None]


@pytest.mark.parametrize("is_scored", [False, True])
def test_predictions_are_marked(tmp_path, make_trial, is_scored):
    goal, times = RULES.goals["imagenet_resnet_mini"], np.linspace(1.0, 35.0, 40)
    rising = goal.target * (times / 70.0) ** 0.5
    trials = (
        make_trial("b<i>", times=times.tolist(), values=rising),
        make_trial("b<i>", trial=2, times=[1.0], values=[0.1]),
    )
    runs = Runs(trials=trials, skipped=())
    result, forecasts = score_runs(runs, RULES), predict_runs(runs, RULES)
    if is_scored:
        result = score_predicted(runs, RULES, forecasts, result)
    found = assess(runs, result, resamples=0, forecasts=forecasts)
    page, text = _page_of(tmp_path, found)
    for part in ("Predictions", "~70.0", "no prediction: too few evaluations"):
        assert part in text
    assert ("They change no score." in text) != is_scored
    assert ("Settled ones count in the score" in text) == is_scored
    tables = _data(page, "tables")
    rows = [
        dict(zip(tables["predictions"]["columns"], row, strict=True))
        for row in tables["predictions"]["rows"]
    ]
    assert rows[0]["predicted_seconds"] == pytest.approx(70.0, rel=1e-3)
    assert rows[1]["predicted_seconds"] is None
    assert tables["times"]["rows"][0][-1] == str(is_scored).lower()


def test_page_into_a_missing_folder_is_a_user_error(tmp_path, write_trial):
    write_trial(tmp_path / "runs")
    with pytest.raises(UserError, match="cannot write"):
        _write(tmp_path / "runs", tmp_path / "none" / "page.html")
