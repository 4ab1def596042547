"""FineWeb-Edu: from documents to packed sequences, and back."""

import itertools
import json
import pickle
import tracemalloc

import cloudpickle
import jax
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from checks import evaluate, losses_on_one_batch
from devices import assert_agree
from tokenizers import ByteLevelBPETokenizer

from algoperf.data.examples import DataError, DataOptions
from algoperf.data.pipeline import batches
from algoperf.data.source import write_manifest
from algoperf.errors import UserError
from algoperf.workload import derive
from workloads.finewebedu_lm import data, prepare
from workloads.finewebedu_lm.workload import FULL

NUM_DOCUMENTS = 60


def _document(number):
    words = np.random.default_rng(number).integers(0, 1000, 150)
    return f"Document {number}.\n" + " ".join(f"w{word}" for word in words)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Documents in all three formats, with a vocabulary of the format of GPT-2's."""
    folder = tmp_path_factory.mktemp("raw")
    texts = [_document(i) for i in range(NUM_DOCUMENTS)]
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, vocab_size=600, show_progress=False)
    tokenizer.save_model(str(folder))
    table = pyarrow.table({"text": [*texts[:40], ""], "score": [4.0] * 41})
    (folder / "sample").mkdir()
    pyarrow.parquet.write_table(table, folder / "sample" / "000.parquet")
    lines = [json.dumps({"text": text}) for text in texts[40:58]]
    (folder / "more.jsonl").write_text("\n".join(lines))
    for i in (58, 59):
        (folder / f"{i}.txt").write_text(texts[i])
    return folder


@pytest.fixture(scope="module")
def prepared(raw, tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("data")
    folder = data_dir / "finewebedu_lm"
    folder.mkdir()
    prepare.prepare(raw, folder, print, 18, 4, validation_share=0.3)
    write_manifest(folder, prepare.count(folder))
    return data_dir


def pipeline(prepared, split, size, seed=0, **options):
    return data.fineweb_edu(split, size, seed, DataOptions(folder=prepared, **options))


def test_rows_hold_the_documents_one_after_another(raw, prepared):
    folder = prepared / "finewebedu_lm"
    assert prepare.count(folder) == {"train": 18, "validation": 4}
    tokenizer = ByteLevelBPETokenizer(
        str(raw / "vocab.json"), str(raw / "merges.txt"), add_prefix_space=False
    )
    seen = []
    for split in ("train", "validation"):
        stream = np.asarray(prepare.rows(folder, split)).ravel().tolist()
        ends = [i for i, token in enumerate(stream) if token == prepare.END_OF_TEXT]
        bounds = itertools.pairwise([-1, *ends])
        texts = [tokenizer.decode(stream[a + 1 : b]) for a, b in bounds]
        numbers = [int(t.split(".")[0].removeprefix("Document ")) for t in texts]
        assert texts == [_document(i) for i in numbers]
        assert numbers == sorted(numbers)
        seen += numbers
    assert len(set(seen)) == len(seen) > 40  # in one split each


def test_a_full_file_takes_and_keeps_no_more(tmp_path):
    writer = prepare.RowWriter(tmp_path / "rows.bin", 4, 2)
    writer.add(np.arange(11))
    tracemalloc.start()
    try:
        for _ in range(20):
            writer.add(np.arange(100_000, dtype=np.uint16))
        assert tracemalloc.get_traced_memory()[0] < 100_000
    finally:
        tracemalloc.stop()
    writer.close()
    assert np.array_equal(np.fromfile(tmp_path / "rows.bin", np.uint16), np.arange(8))


def test_nothing_is_read_once_all_rows_are_there(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "DOCUMENTS_AT_ONCE", 1)
    read = []

    def documents(file, on_corrupt):
        for number in range(NUM_DOCUMENTS):
            read.append(number)
            yield _document(number)

    monkeypatch.setattr(prepare, "documents", documents)
    prepare.prepare(raw, tmp_path, print, 2, 1, validation_share=0.3)
    assert prepare.count(tmp_path) == {"train": 2, "validation": 1}
    assert len(read) < NUM_DOCUMENTS


def test_batches_have_the_documented_shapes(prepared):
    for split in ("train", "eval_train", "validation"):
        batch = pipeline(prepared, split, 4)[0]
        for name in ("inputs", "targets"):
            assert batch[name].shape == (4, 1024)
            assert batch[name].dtype == np.int32
        assert np.array_equal(batch["inputs"][:, 1:], batch["targets"][:, :-1])
        assert ("weights" in batch) == (split != "train")


def test_an_epoch_holds_each_sequence_once_and_any_position_can_be_read(prepared):
    dataset = pipeline(prepared, "train", 4, seed=3)
    rows = np.concatenate([dataset[i]["inputs"] for i in range(9)])  # two epochs
    stored = sorted(map(bytes, prepare.rows(prepared / "finewebedu_lm", "train")))
    stored = sorted(
        bytes(np.frombuffer(row, np.uint16)[:1024].astype(np.int32)) for row in stored
    )
    assert sorted(map(bytes, rows[:18])) == stored
    assert sorted(map(bytes, rows[18:])) == stored
    assert list(map(bytes, rows[:18])) != list(map(bytes, rows[18:]))
    again = pipeline(prepared, "train", 4, seed=3)
    for position, batch in zip(range(5, 8), batches(again[5:]), strict=False):
        np.testing.assert_array_equal(batch["inputs"], dataset[position]["inputs"])
    other = pipeline(prepared, "train", 4, seed=4)[0]["inputs"]
    assert not np.array_equal(other, dataset[0]["inputs"])
    pickled = cloudpickle.dumps(again)
    assert len(pickled) < (prepared / "finewebedu_lm/train.bin").stat().st_size / 4
    moved = pickle.loads(pickled)[5]["inputs"]
    np.testing.assert_array_equal(moved, dataset[5]["inputs"])
    parts = [
        pipeline(prepared, "train", 4, 3, host=h, num_hosts=2)[2]["inputs"]
        for h in range(2)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), dataset[2]["inputs"])


def test_a_missing_data_set_names_the_command(tmp_path):
    with pytest.raises(UserError, match="algoperf data prepare finewebedu_lm"):
        pipeline(tmp_path, "train", 4)


def test_a_cut_file_is_named(prepared, tmp_path):
    path = tmp_path / "train.bin"
    path.write_bytes((prepared / "finewebedu_lm" / "train.bin").read_bytes()[:-1])
    with pytest.raises(DataError, match=r"train\.bin has 36,899 bytes"):
        prepare.rows(tmp_path, "train")
    with pytest.raises(DataError, match=r"validation\.bin has 0 bytes"):
        prepare.rows(tmp_path, "validation")


def test_broken_documents_are_named(tmp_path):
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"cut\.parquet cannot be read"):
        list(prepare.documents(tmp_path / "cut.parquet"))
    pyarrow.parquet.write_table(pyarrow.table({"txt": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x\.parquet has no column 'text'"):
        list(prepare.documents(tmp_path / "x.parquet"))
    (tmp_path / "y.jsonl").write_text('{"text": "fine"}\n{"txt": 1}\n')
    with pytest.raises(DataError, match=r"y\.jsonl, line 2"):
        list(prepare.documents(tmp_path / "y.jsonl"))
    skipped = []
    (tmp_path / "y.jsonl").write_text('{"text": "fine"}\n{"txt": 1}\n{"text": "b"}')
    found = [
        list(prepare.documents(tmp_path / name, skipped.append))
        for name in ("cut.parquet", "x.parquet", "y.jsonl")
    ]
    assert found == [[], [], ["fine", "b"]]
    assert len(skipped) == 3
    (tmp_path / "z.txt").write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(DataError, match=r"z\.txt cannot be read"):
        list(prepare.documents(tmp_path / "z.txt"))


def test_missing_downloads_are_named(raw, tmp_path):
    with pytest.raises(UserError, match=r"vocab\.json"):
        prepare.prepare(tmp_path, tmp_path, print)
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((raw / name).read_bytes())
    with pytest.raises(UserError, match=r"no \.parquet"):
        prepare.prepare(tmp_path, tmp_path, print)
    (tmp_path / "vocab.json").write_text("[]")
    with pytest.raises(DataError, match="no vocabulary"):
        prepare.prepare(tmp_path, tmp_path, print)


@pytest.mark.slow
def test_evaluation_needs_no_test_split(prepared):
    model = {"num_layers": 1, "width": 16, "num_heads": 2, "mlp_width": 16}
    small = derive(FULL, model=model)
    params, state = small.init_model_fn(jax.random.PRNGKey(0))
    dataset = pipeline(prepared, "validation", 3)
    padded = [dataset[i] for i in range(len(dataset))]
    dataset = pipeline(prepared, "validation", 4)
    exact = evaluate(small, params, state, [dataset[0]])
    assert evaluate(small, params, state, padded) == pytest.approx(exact, rel=1e-4)
    assert small.has_reached_test_target({})
    assert exact["loss"] == pytest.approx(np.log(50_257), rel=0.02)


def small_evaluation():
    """For `devices`: a small model on two batches, padding among them."""
    model = {"vocab_size": 50, "num_layers": 1, "width": 16, "num_heads": 2}
    rng = np.random.default_rng(0)
    batches = [
        {
            "inputs": rng.integers(0, 50, (16, 12)),
            "targets": rng.integers(0, 50, (16, 12)),
            "weights": np.repeat((np.arange(16) < valid)[:, None], 12, 1).astype("f4"),
        }
        for valid in (16, 11)
    ]
    small = derive(FULL, model={**model, "mlp_width": 24, "max_length": 12})
    return small, batches


@pytest.mark.slow
def test_one_and_eight_devices_agree():
    assert_agree(__file__)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_full_model_learns_one_batch_at_the_published_length():
    ids = np.random.default_rng(0).integers(0, 50_257, (1, 1025))
    batch = data.shift({"tokens": np.tile(ids, (1, 1))})
    losses = losses_on_one_batch(FULL, batch, learning_rate=3e-4)
    assert losses[0] == pytest.approx(np.log(50_257), rel=0.05)
    assert losses[5] < losses[0] - 0.5
