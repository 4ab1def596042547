"""The page: one file, whole, and safe whatever names and messages hold."""

import base64
import gzip
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from algoperf import records
from algoperf.errors import UserError
from scoring import Runs, load_rules, page_data, read_runs, score_runs, write_page
from scoring.page_evidence import (
    Comparison,
    Evidence,
    Intervals,
    LeftOut,
    Prediction,
    Sensitivity,
)

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
    write_page(path, runs, RULES, score_runs(runs, RULES))
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
        "failed",
    ):
        assert part in text


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
    assert {a["id"] for a in found} == {*figures, "curves-0"} == {"profile", "curves-0"}
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
    write_trial(root, times=times, values=values)
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


def test_very_many_evaluations_are_rounded(make_trial):
    count = page_data.EXACT_UP_TO + 1
    times = (np.arange(count) / 3).tolist()
    trial = make_trial(times=times, values=[0.123456789] * count)
    text = page_data.curves_json(
        {"imagenet_resnet_mini": [trial]}, RULES, {"adamw": {"color": "", "dash": ""}}
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


def _evidence() -> Evidence:
    """Of two submissions on two workloads; the second misses one of them."""
    speedups = np.array([[1, 1], [0.5, np.nan]])
    return Evidence(
        intervals=Intervals(
            level=0.9,
            score_low=np.array([0.8, 0.0]),
            score_high=np.array([1.0, 0.25]),
            rank_low=np.array([1, 2]),
            rank_high=np.array([1, 2]),
            method="Studies are drawn again.",
        ),
        left_out=LeftOut(
            workloads=("imagenet_resnet_mini", "finewebedu_lm_mini"),
            scores=np.array([[1.0, 1.0], [0.0, 0.5]]),
        ),
        sensitivity=Sensitivity(
            r_max=np.array([2.0, 4.0]), scores=np.array([[1, 1], [0, 0.33]])
        ),
        comparison=Comparison(
            reference="a",
            level=0.9,
            speedups=speedups,
            low=speedups - 0.1,
            high=speedups + 0.2,
            overall=np.array([1, 0.5]),
            verdicts=("", "slower on 1"),
        ),
        predictions=(
            Prediction(
                submission="b<i>",
                workload="finewebedu_lm_mini",
                study=0,
                trial=1,
                seconds=120.0,
                low=100.0,
                high=float("inf"),
                note="power law",
            ),
        ),
        notes=("something to know",),
        trial_notes={("a", "study_0/finewebedu_lm_mini/trial_1"): "machine busy"},
    )


def test_evidence_has_sections_figures_and_downloads(tmp_path, mini_runs):
    runs: Runs = mini_runs({"a": (10, 10), "b<i>": (20, None)})
    result = score_runs(runs, RULES)
    write_page(tmp_path / "page.html", runs, RULES, result, _evidence())
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    parsed = _Elements(page)
    assert parsed.open == []
    for part in (
        "How sure",
        "Comparison with a",
        "Predictions",
        "90 % interval",
        "0.800 to 1.000",
        "Studies are drawn again.",
        "slower on 1",
        "100.0 to miss",
        "0.5000 (rank 2)",
        "something to know",
    ):
        assert part in parsed.text
    drawings = _data(page, "figures")
    assert drawings["forest-1"]["data"][0]["x"] == [0.5, None, 0.5]
    assert set(drawings) == {"profile", "left-out", "sensitivity", "forest-1"}
    trials = _data(page, "trials")
    busy = [row for row in trials["rows"] if row[-1] == "machine busy"]
    assert [row[:4] for row in busy] == [["a", "finewebedu_lm_mini", 0, 1]]
    tables = _data(page, "tables")
    assert tables["scores"]["rows"][0][:5] == [1, "a", 1.0, 0.8, 1.0]
    assert ["b<i>", "geometric mean", 0.5, None, None] in tables["comparison"]["rows"]
    assert tables["predictions"]["rows"][0][4:7] == [120.0, 100.0, "inf"]


def test_page_into_a_missing_folder_is_a_user_error(tmp_path, write_trial):
    write_trial(tmp_path / "runs")
    with pytest.raises(UserError, match="cannot write"):
        _write(tmp_path / "runs", tmp_path / "none" / "page.html")
