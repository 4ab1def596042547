"""The page of quality against cost: whole, escaped, alone."""

from html.parser import HTMLParser

import pytest

from scoring.serving_page import Group, write_serving_page

GROUP = Group(
    workload="lm <1>",
    headline="At a ppl of 20 & better <a> is cheapest.",
    svg='<svg xmlns="http://www.w3.org/2000/svg"></svg>',
    points=(["submission", "ppl"], [["<b>adamw</b>", "18"], ["muon", "24"]]),
    frontiers=[("training & more", "adamw, float32")],
    views=(["cost", "budget"], [["training", "10 s"]]),
)
VOID = {"meta", "wbr", "br"}


class Reader(HTMLParser):
    """Keeps the tags that are open, and counts all."""

    def __init__(self):
        super().__init__()
        self.open, self.count, self.text = [], {}, []

    def handle_starttag(self, tag, attrs):
        self.count[tag] = self.count.get(tag, 0) + 1
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.mark.parametrize("number", [1, 2])
def test_the_page(number, tmp_path):
    path = tmp_path / "pareto.html"
    write_serving_page(path, [GROUP] * number, ["a fact"], ["a <note>"])
    reader = Reader()
    reader.feed(path.read_text())
    assert reader.open == []
    assert reader.count["section"] == number + 1
    assert reader.count["table"] == 2 * number
    assert reader.count["svg"] == number
    assert not {"b", "a", "note", "script", "link", "img"} & set(reader.count)
    text = "".join(reader.text)
    assert text.count("At a ppl of 20 & better <a> is cheapest.") == number
    assert "<b>adamw</b>" in text
    assert "training & more: adamw, float32" in text
    assert "a <note>" in text


def test_without_notes_there_is_no_section_for_them(tmp_path):
    path = tmp_path / "pareto.html"
    write_serving_page(path, [GROUP], [], [])
    assert 'id="notes"' not in path.read_text()
