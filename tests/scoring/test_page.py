"""The page: one file, whole, and safe whatever names and messages hold."""

import json
import re
from html.parser import HTMLParser

import pytest

from algoperf import records
from algoperf.errors import UserError
from scoring import (
    TimeKind,
    Timing,
    load_rules,
    read_runs,
    score_runs,
    write_page,
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
        if tag not in ("meta", "wbr"):
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
        "learning_rate 0.003",
        "device_kind",
        "H200",
        "0.10.2",
        "finewebedu_lm_mini",
        "skipped:",
        "reached",
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
    assert not any({"src", "href"} & set(found) for _, found in parsed.elements)
    assert not any(tag in ("link", "iframe", "base") for tag, _ in parsed.elements)
    (policy,) = (a for _, a in parsed.elements if "http-equiv" in a)
    assert policy["content"].startswith("default-src 'none'")
    assert page.count("plotly.js v") == 1


def test_every_figure_has_its_place(page):
    data = re.search(r'id="figures">(.*?)</script>', page, re.DOTALL)
    figures = json.loads(data[1])
    places = {
        a["id"] for _, a in _Elements(page).elements if a.get("class") == "figure"
    }
    assert places == set(figures) == {"profile", "curves-0"}
    names = {trace["name"] for trace in figures["profile"]["data"]}
    assert not any("<" in name for name in names)


def test_page_of_many_submissions_folds_its_trials(tmp_path, write_trial):
    for trial in range(1, 42):
        write_trial(tmp_path / "runs", trial=trial)
    parsed = _Elements(_write(tmp_path / "runs", tmp_path / "page.html"))
    assert ("details", {}) in parsed.elements


def test_page_without_any_evaluation(tmp_path, write_trial):
    write_trial(tmp_path / "runs", times=[], values=[], status="failed", message="oom")
    parsed = _Elements(_write(tmp_path / "runs", tmp_path / "page.html"))
    assert "No score: no target of mini_fast was reached." in parsed.text
    assert "oom" in parsed.text


def test_page_into_a_missing_folder_is_a_user_error(tmp_path, write_trial):
    write_trial(tmp_path / "runs")
    with pytest.raises(UserError, match="cannot write"):
        _write(tmp_path / "runs", tmp_path / "none" / "page.html")


def test_page_names_the_unit_of_time(tmp_path, write_trial):
    write_trial(tmp_path / "runs")
    runs = read_runs([tmp_path / "runs"])
    result = score_runs(runs, RULES, timing=Timing(kind=TimeKind.STEPS))
    write_page(tmp_path / "page.html", runs, RULES, result)
    text = _Elements((tmp_path / "page.html").read_text(encoding="utf-8")).text
    assert "Time to target in steps" in text
    assert "seconds" not in text
