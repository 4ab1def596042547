"""The embedded verses: splits, rows, vocabulary, what trivial translations score."""

import collections
import functools
import sqlite3

import jax
import numpy as np
import pytest

from algoperf.data.embedded import load_embedded
from algoperf.data.pipeline import ALL_HERE
from workloads.wmt import bible, data, make_bible
from workloads.wmt.bleu import bleu
from workloads.wmt.workload import MINI, WORKLOADS

SPLITS = {
    "train": bible.NUM_TRAIN,
    "validation": bible.NUM_VALIDATION,
    "test": bible.NUM_TEST,
}
VARIANTS = [w for w in WORKLOADS if w.scale == "mini"]


@functools.cache
def texts(split):
    """The pairs of texts of a split, German and English."""
    pairs, vocabulary = bible.pairs(split), bible.load_vocabulary()
    found = []
    for index in range(len(pairs)):
        ids = [pairs.side(np.array([index]), side).tolist() for side in (0, 1)]
        assert all(row[-1] == data.END and data.END not in row[:-1] for row in ids)
        found.append(tuple(vocabulary.decode([row[:-1] for row in ids])))
    return found


@pytest.mark.parametrize("split", SPLITS)
def test_splits_have_their_sizes_and_fit_into_rows(split):
    pairs = bible.pairs(split)
    assert pairs.lengths.shape == (SPLITS[split], 2)
    assert pairs.lengths.min() >= 2  # a subword and the end
    assert pairs.lengths.max() <= bible.MAX_LENGTH <= bible.ROW_LENGTH
    ids = pairs.side(np.arange(len(pairs)), 1)
    assert ids.dtype == np.uint16
    assert ids.max() < bible.VOCAB_SIZE


def test_no_text_is_in_two_splits():
    for side in (0, 1):
        sets = [{pair[side] for pair in texts(split)} for split in SPLITS]
        assert sum(map(len, sets)) == len(set().union(*sets))


def test_source_and_target_are_the_verses_in_german_and_english():
    assert texts("train")[0] == (
        "Im Anfang schuf Gott die Himmel und die Erde.",
        "In the beginning God created the heaven and the earth.",
    )
    for german, english in texts("validation"):
        assert german
        assert english.isascii()


def test_the_vocabulary_has_the_special_tokens_of_the_model():
    vocabulary = bible.load_vocabulary()
    assert vocabulary.vocab_size() == bible.VOCAB_SIZE == MINI.model.vocab_size
    assert (vocabulary.pad_id(), vocabulary.bos_id()) == (data.PAD, data.START)
    assert (vocabulary.eos_id(), vocabulary.unk_id()) == (data.END, data.UNKNOWN)
    german, english = texts("test")[0]
    for side, text in enumerate((german, english)):
        want = bible.pairs("test").side(np.array([0]), side)[:-1]
        assert vocabulary.encode(text) == want.tolist()


@pytest.mark.parametrize("split", ["validation", "test"])
def test_pairs_of_about_one_length_share_a_batch(split):
    lengths = bible.pairs(split).lengths[:, 1]
    assert (np.diff(lengths) >= 0).all()


def test_training_rows_are_packed_as_those_of_wmt():
    batch = MINI.dataset("train", 16, seed=1)[5]
    shape = (16, bible.ROW_LENGTH)
    assert {name: (a.shape, str(a.dtype)) for name, a in batch.items()} == {
        **{
            f"{side}{kind}": (shape, "int32")
            for side in ("inputs", "targets")
            for kind in ("", "_position", "_segmentation")
        },
        "weights": (shape, "float32"),
    }
    assert (batch["targets_segmentation"].max(axis=1) >= 1).all()
    assert (batch["targets"] > 0).mean() > 0.6
    again = bible.pipeline("train", 16, 1, ALL_HERE)[5]
    jax.tree.map(np.testing.assert_array_equal, batch, again)
    other = bible.pipeline("train", 16, 2, ALL_HERE)[5]
    assert not np.array_equal(batch["inputs"], other["inputs"])


@pytest.mark.parametrize("split", ["eval_train", "validation", "test"])
def test_evaluation_holds_each_pair_once(split):
    stream = MINI.dataset(split, MINI.eval_batch_size, seed=0)
    sizes = {
        "eval_train": MINI.num_eval_train_examples,
        "validation": MINI.num_validation_examples,
        "test": MINI.num_test_examples,
    }
    batches = [stream[i] for i in range(len(stream))]
    rows = np.concatenate([b["targets"][b["weights"].any(axis=1)] for b in batches])
    assert rows.shape == (sizes[split], bible.MAX_LENGTH)
    decoded = bible.load_vocabulary().decode(
        [row[: row.tolist().index(data.END)].tolist() for row in rows]
    )
    known = {english for _, english in texts(split.removeprefix("eval_"))}
    assert set(decoded) <= known


def test_trivial_translations_are_far_from_the_target():
    """No translation, the commonest verse, and the commonest words as one sentence."""
    targets = [english for _, english in texts("train")]
    words = collections.Counter(word for text in targets for word in text.split())
    commonest = " ".join(word for word, _ in words.most_common(18))
    verse = collections.Counter(targets).most_common(1)[0][0]
    for split in ("validation", "test"):
        references = [english for _, english in texts(split)]
        # The best of many constant translations, chosen on the references themselves.
        constants = ["", commonest, verse, *targets[::100]]
        best = max(bleu([c] * len(references), references) for c in constants)
        assert best < 0.3 * MINI.validation_target_value
        copied = bleu([german for german, _ in texts(split)], references)
        assert copied < 0.3 * MINI.validation_target_value


@pytest.mark.parametrize("workload", VARIANTS, ids=lambda w: w.name)
def test_variants_differ_from_the_base_as_at_full_size(workload):
    full = next(
        w for w in WORKLOADS if w.scale == "full" and w.variant == workload.variant
    )
    for field in (
        "activation",
        "gated_mlp",
        "post_layer_norm",
        "attention_temperature",
    ):
        assert getattr(workload.model, field) == getattr(full.model, field)
    params, _ = workload.init_model_fn(jax.random.PRNGKey(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == workload.num_parameters


def test_mini_has_the_parameters_that_the_targets_were_set_on():
    assert MINI.num_parameters == 564_096


def verse(number):
    """Short, but for one that is too long and one that is empty."""
    rng = np.random.default_rng(number)
    words = ["Gott", "Licht", "Erde", "Wasser", "Himmel", "Mensch", "Tag", "Nacht"]
    size = {3: 100, 7: 0}.get(number, int(rng.integers(3, 9)))
    return " ".join(rng.choice(words, size))


def test_build_script(tmp_path, monkeypatch, capsys):
    path = tmp_path / "bible.db"
    with sqlite3.connect(path) as database:
        database.execute(
            "create table bible (bbName, bNumber, cNumber, vNumber, vText)"
        )
        rows = [
            (name, 1, chapter, number, f"{verse(10 * chapter + number)}  {name}")
            for name in ("k", "e", "x")
            for chapter in range(12)
            for number in range(9, -1, -1)
        ]
        # A verse of the test chapter comes again in training.
        rows += [("e", 1, 0, 10, f"{verse(31)} e"), ("k", 1, 0, 10, "Anders k")]
        database.executemany("insert into bible values (?, ?, ?, ?, ?)", rows)
    database.close()
    monkeypatch.setattr(bible, "EMBEDDED", tmp_path / "bible")
    monkeypatch.setattr(bible, "VOCAB_SIZE", 30)
    monkeypatch.setattr(bible, "NUM_VALIDATION", 5)
    monkeypatch.setattr(bible, "NUM_TEST", 4)
    monkeypatch.setattr(make_bible, "EVERY", 4)
    monkeypatch.setattr("sys.argv", ["make_bible", str(path)])
    packed = []
    for _ in range(2):
        make_bible.main()
        packed.append((tmp_path / "bible.npz.xz").read_bytes())
    assert packed[0] == packed[1]
    made = load_embedded(tmp_path / "bible")
    assert len(made["validation_lengths"]) == 5
    assert len(made["test_lengths"]) == 4
    chapters = make_bible.read_chapters(path)
    assert len(chapters) == 12
    assert chapters[0][0] == (f"{verse(0)} e", f"{verse(0)} k")
    splits = make_bible.split_chapters(chapters)
    # Chapters 2, 6, 10 are validation and 3, 7, 11 test; three are left out: too long,
    # empty, and the verse that comes again.
    assert [len(splits[name]) for name in ("train", "validation", "test")] == [
        58,
        30,
        30,
    ]
    assert (f"{verse(31)} e", "Anders k") not in splits["train"]
