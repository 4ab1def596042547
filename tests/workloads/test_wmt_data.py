"""Translation: packing, subwords, splits, and training on what they give."""

import math
import pickle

import cloudpickle
import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from checks import each_variant, losses_on_one_batch
from tfds_files import write_tfds
from wmt_small import (
    FULL_SIZE,
)

from algoperf import cli
from algoperf.data.examples import DataError, DataOptions
from algoperf.data.mapped import Mapped
from algoperf.data.pipeline import batches
from algoperf.data.source import write_manifest
from algoperf.errors import UserError
from workloads.wmt import data

NUM = {"train": 300, "validation": 23, "test": 11}
GERMAN = ["der", "Hund", "sieht", "die", "Katze", "über", "große", "Straße", "Haus"]
ENGLISH = ["the", "dog", "sees", "a", "cat", "across", "large", "street", "house"]


def pair(number):
    """A pair of sentences; number 3 is too long for a row, number 4 empty."""
    rng = np.random.default_rng(number)
    words = rng.integers(0, 9, {3: 400, 4: 0}.get(number, rng.integers(1, 30)))
    german = " ".join(GERMAN[w] for w in words)
    return {"de": german, "en": " ".join(ENGLISH[w] for w in words)}


def write(folder, change=lambda number, pair: pair):
    features = {"de": tfds.features.Text(), "en": tfds.features.Text()}
    first = {"train": 0, "validation": 1000, "test": 2000}
    splits = {
        split: [change(n, pair(n)) for n in range(first[split], first[split] + size)]
        for split, size in NUM.items()
    }
    train = {"train": splits.pop("train")}
    write_tfds(folder, "wmt17_translate/de-en", "1.0.0", features, train)
    write_tfds(folder, "wmt14_translate/de-en", "1.0.0", features, splits)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wmt")
    write(folder / "raw")
    prepared = folder / "data/wmt"
    prepared.mkdir(parents=True)
    data.prepare(folder / "raw", prepared, print, vocab_size=40)
    write_manifest(prepared, data.count(prepared))
    return folder / "data"


def read(data_dir, split, size=8, seed=0, **options):
    return data.pipeline(split, size, seed, DataOptions(folder=data_dir, **options))


def text(vocabulary, ids):
    return vocabulary.decode([int(i) for i in ids if i not in (data.PAD, data.END)])


def pairs_of(batch, vocabulary):
    """The pairs of texts of a packed batch."""
    found = []
    for row in range(len(batch["inputs"])):
        for number in range(1, batch["inputs_segmentation"][row].max() + 1):
            texts = []
            for side in ("inputs", "targets"):
                here = batch[f"{side}_segmentation"][row] == number
                ids = batch[side][row][here]
                places = batch[f"{side}_position"][row][here]
                assert places.tolist() == list(range(len(ids)))
                assert ids[-1] == data.END
                texts.append(text(vocabulary, ids))
            found.append(tuple(texts))
    return found


def test_an_epoch_holds_every_pair_that_fits_once(data_dir):
    vocabulary = data.load_vocabulary(data_dir)
    stream = read(data_dir, "train", size=1)
    fitting = sum(pair_fits for pair_fits in (n != 3 for n in range(NUM["train"])))
    orders = []
    row = 0
    for _ in range(2):
        found = []
        while len(found) < fitting:
            found += pairs_of(stream[row], vocabulary)
            row += 1
        want = [tuple(pair(n).values()) for n in range(NUM["train"]) if n != 3]
        assert sorted(found) == sorted(want)
        orders.append(found)
    assert orders[0] != orders[1]


def test_batches_have_the_documented_shapes(data_dir):
    batch = read(data_dir, "train")[0]
    assert {name: (a.shape, str(a.dtype)) for name, a in batch.items()} == {
        "inputs": ((8, 256), "int32"),
        "inputs_position": ((8, 256), "int32"),
        "inputs_segmentation": ((8, 256), "int32"),
        "targets": ((8, 256), "int32"),
        "targets_position": ((8, 256), "int32"),
        "targets_segmentation": ((8, 256), "int32"),
        "weights": ((8, 256), "float32"),
    }
    np.testing.assert_array_equal(batch["weights"], batch["targets"] > 0)
    np.testing.assert_array_equal(batch["inputs"] > 0, batch["inputs_segmentation"] > 0)
    assert (batch["inputs"] > 0).mean() > 0.5  # rows are well filled
    evaluated = read(data_dir, "validation")[0]
    assert {name: (a.shape, str(a.dtype)) for name, a in evaluated.items()} == {
        "inputs": ((8, 256), "int32"),
        "targets": ((8, 256), "int32"),
        "weights": ((8, 256), "float32"),
    }


def test_the_stream_follows_from_the_seed_and_any_position_can_be_read(data_dir):
    stream = read(data_dir, "train")
    straight = [batch for batch, _ in zip(batches(stream), range(5), strict=False)]
    for i in (4, 0, 3):
        jax.tree.map(np.testing.assert_array_equal, stream[i], straight[i])
    assert isinstance(data.open_pairs(data_dir / "wmt", "train")._ids, Mapped)
    moved = pickle.loads(cloudpickle.dumps(stream))[4]
    jax.tree.map(np.testing.assert_array_equal, moved, straight[4])
    again, other = read(data_dir, "train"), read(data_dir, "train", seed=1)
    np.testing.assert_array_equal(again[2]["inputs"], straight[2]["inputs"])
    assert not np.array_equal(other[2]["inputs"], straight[2]["inputs"])


def test_hosts_share_a_batch(data_dir):
    whole = read(data_dir, "train")[1]
    parts = [read(data_dir, "train", host=h, num_hosts=2)[1] for h in (0, 1)]
    for name, array in whole.items():
        np.testing.assert_array_equal(array, np.concatenate([p[name] for p in parts]))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluation_holds_every_pair_once_in_order(data_dir, split):
    vocabulary = data.load_vocabulary(data_dir)
    stream = read(data_dir, split)
    found = []
    for i in range(len(stream)):
        real = stream[i]["weights"].any(axis=1)
        for name in ("inputs", "targets"):
            assert stream[i][name].shape == (8, 256)
        found += [
            (text(vocabulary, source), text(vocabulary, target))
            for source, target in zip(
                stream[i]["inputs"][real], stream[i]["targets"][real], strict=True
            )
        ]
    first = {"validation": 1000, "test": 2000}[split]
    assert found == [tuple(pair(first + n).values()) for n in range(NUM[split])]


def test_eval_train_is_pairs_of_the_training_set(data_dir):
    stream = read(data_dir, "eval_train")
    rows = sum(stream[i]["weights"].any(axis=1).sum() for i in range(len(stream)))
    assert rows == NUM["train"] - 1  # without the pair that is too long


def test_subwords_have_the_special_tokens_of_the_model(data_dir):
    vocabulary = data.load_vocabulary(data_dir)
    assert vocabulary.vocab_size() == 40
    assert (vocabulary.pad_id(), vocabulary.bos_id()) == (data.PAD, data.START)
    assert (vocabulary.eos_id(), vocabulary.unk_id()) == (data.END, data.UNKNOWN)
    # A letter that the training pairs do not have is unknown, not padding.
    assert data.UNKNOWN in vocabulary.encode("日")
    assert data.PAD not in vocabulary.encode("日 Hund")


def test_missing_data_and_broken_files_are_named(data_dir, tmp_path, capfd):
    with pytest.raises(UserError, match="algoperf data prepare wmt"):
        read(tmp_path, "train")
    arguments = [f"--raw={tmp_path}", f"--data_dir={tmp_path}/data"]
    assert cli.main(["data", "prepare", "wmt", *arguments]) != 0
    assert "wmt14_translate/de-en/1.0.0" in capfd.readouterr().err
    folder = data_dir / "wmt"
    whole = (folder / "test.ids").read_bytes()
    (folder / "test.ids").write_bytes(whole[:-2])
    try:
        with pytest.raises(DataError, match=r"test.ids has [\d,]+ ids, expected"):
            read(data_dir, "test")
        (folder / "test.ids").unlink()
        with pytest.raises(DataError, match=r"test.ids cannot be read"):
            read(data_dir, "test")
    finally:
        (folder / "test.ids").write_bytes(whole)


def test_a_broken_record_is_named(tmp_path):
    def broken(number, pair):
        return {**pair, "en": b"\xff\xfe" if number == 2004 else pair["en"]}

    write(tmp_path / "raw", broken)
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=r"wmt14_translate.*test, record 4"):
        data.prepare(tmp_path / "raw", tmp_path / "out", print, vocab_size=40)
    skipped = []
    data.prepare(
        tmp_path / "raw", tmp_path / "out", print, 40, on_corrupt=skipped.append
    )
    assert ["record 4" in str(error) for error in skipped] == [True]
    assert data.count(tmp_path / "out") == {**NUM, "test": NUM["test"] - 1}


def test_too_little_text_for_the_vocabulary_is_one_line(tmp_path):
    write(tmp_path / "raw")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="cannot learn a vocabulary of 32,000") as seen:
        data.prepare(tmp_path / "raw", tmp_path / "out", print)
    assert "\n" not in str(seen.value)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("workload", each_variant(FULL_SIZE))
def test_the_full_model_learns_one_batch(workload, data_dir):
    batch = read(data_dir, "train", size=2)[0]
    losses = losses_on_one_batch(workload, batch, learning_rate=1e-4)
    # The output shares the embedding N(0, 1), and the decoder ends in a layer norm: the
    # logits have about unit variance, so that the loss is about ln 32,000 + 1/2.
    assert losses[0] == pytest.approx(math.log(32_000) + 0.5, abs=0.4)
    assert losses[5] < losses[0] - 0.5
