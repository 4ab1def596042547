"""The split of the embedded Bible, on a small one of the same form."""

import sqlite3

import pytest

pytest.importorskip("tokenizers")  # which only rebuilding needs
from workloads.finewebedu_lm import make_king_james


def _bible(path, chapters):
    with sqlite3.connect(path) as database:
        database.execute(
            "create table bible (bbName text, bNumber int, cNumber int, vNumber int, "
            "vText text)"
        )
        rows = [
            ("k", number // 50, number % 50, verse, text)
            for number, chapter in enumerate(chapters)
            for verse, text in enumerate(chapter)
        ]
        other = [("e", 0, 0, 0, "Im Anfang")]
        database.executemany("insert into bible values (?, ?, ?, ?, ?)", rows + other)
    return path


def test_chapters_are_split_and_no_verse_is_in_two_splits(tmp_path):
    chapters = [[f"chapter {n}", f"  verse {n} "] for n in range(120)]
    chapters[30].append("chapter 7")  # of validation, and in train
    chapters[31].append("verse 30")  # of test, and in validation
    found = make_king_james.read_chapters(_bible(tmp_path / "bible.db", chapters))
    assert len(found) == 120
    assert found[0] == ["chapter 0", "verse 0"]
    splits, dropped = make_king_james.split_chapters(found)
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 116,
        "validation": 2,
        "test": 2,
    }
    assert dropped == {"validation": 1, "test": 1}
    assert splits["validation"][0] == ["chapter 30", "verse 30"]
    assert splits["test"][1] == ["chapter 91", "verse 91"]
