"""Click prediction: the model's arithmetic, hashing, conversion, batches."""

import gzip
import itertools
import pickle

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checks import count_types, evaluate, losses_on_one_batch
from devices import assert_agree
from hypothesis import given
from hypothesis import strategies as st

from algoperf import cli, spec
from algoperf.data.examples import DataError, DataOptions
from algoperf.data.pipeline import batches
from algoperf.data.source import write_manifest
from algoperf.errors import UserError
from algoperf.workload import derive
from workloads.criteo1tb import data, prepare
from workloads.criteo1tb.data import EvalRows, TrainRows
from workloads.criteo1tb.model import DLRM, ResidualDLRM, interactions
from workloads.criteo1tb.workload import FULL, WORKLOADS

KEY = jax.random.PRNGKey(0)
BY_NAME = {w.variant: w for w in WORKLOADS if w.scale == "full"}
SMALL = {
    "vocab_size": 100,
    "embedding_width": 8,
    "bottom_widths": (16, 8),
    "top_widths": (16, 8),
}


def rows_of(number, rng=None):
    """Rows as they are stored, with numbers in the first integer."""
    rng = rng or np.random.default_rng(0)
    rows = rng.integers(0, 1000, (number, 40)).astype(np.int32)
    rows[:, 0] = rng.random(number) < 0.25
    rows[:, 1] = np.arange(number)
    return rows


def small_evaluation():
    """For `devices`: a small model on 100 rows, the last batch padded."""
    rows = EvalRows(rows_of(100), 48, DataOptions())
    return derive(FULL, model=SMALL), [rows[i] for i in range(len(rows))]


# Model.


def _random(params):
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: (rng.standard_normal(leaf.shape) * 0.5).astype(np.float32), params
    )


def _layer(x, p):
    return x @ p["kernel"] + p["bias"]


def _norm(x, p):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * p["scale"] + p["bias"]


def test_interactions_are_the_products_of_all_pairs():
    stack = np.random.default_rng(0).standard_normal((3, 5, 4)).astype(np.float32)
    pairs = [(i, j) for i in range(5) for j in range(i, 5)]
    want = [[row[i] @ row[j] for i, j in pairs] for row in stack]
    np.testing.assert_allclose(interactions(jnp.array(stack)), want, atol=1e-5)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_the_model_agrees_with_the_definition(layer_norm):
    batch = data.as_batch(rows_of(4))
    model = DLRM(**SMALL, layer_norm=layer_norm)
    p = _random(model.init(KEY, batch["inputs"], train=False)["params"])
    got = model.apply({"params": p}, batch["inputs"], train=False)

    def block(x, name, norm):
        x = np.maximum(_layer(x, p[name]), 0)
        return _norm(x, p[norm]) if layer_norm else x

    x = batch["inputs"]["dense"]
    for i in range(2):
        x = block(x, f"bottom_{i}", f"bottom_norm_{i}")
    vectors = p["embedding"][batch["inputs"]["ids"] % 100]
    if layer_norm:
        vectors = _norm(vectors, p["embedding_norm"])
    stack = np.concatenate([x[:, None], vectors], axis=1)
    products = [
        np.einsum("be,be->b", stack[:, i], stack[:, j])
        for i, j in itertools.combinations_with_replacement(range(27), 2)
    ]
    x = np.concatenate([x, np.stack(products, 1)], axis=1)
    for i in range(2):
        x = block(x, f"top_{i}", f"top_norm_{i}")
    want = _layer(x, p["head"])
    assert got.shape == (4, 1)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_the_residual_model_agrees_with_the_definition():
    batch = data.as_batch(rows_of(4))
    fields = {**SMALL, "bottom_widths": (8, 8), "top_widths": (6, 6, 6)}
    model = ResidualDLRM(**fields)
    p = _random(model.init(KEY, batch["inputs"], train=False)["params"])
    got = model.apply({"params": p}, batch["inputs"], train=False)
    x = np.maximum(_layer(batch["inputs"]["dense"], p["bottom_0"]), 0)
    x = x + np.maximum(_layer(x, p["bottom_1"]), 0)
    vectors = p["embedding"][batch["inputs"]["ids"] % 100].reshape(4, -1)
    x = np.maximum(_layer(np.concatenate([x, vectors], 1), p["top_0"]), 0)
    for i in (1, 2):
        x = x + np.maximum(_layer(x, p[f"top_{i}"]), 0)
    np.testing.assert_allclose(got, _layer(x, p["head"]), rtol=1e-4, atol=1e-4)


def test_large_ids_are_told_apart():
    table = DLRM(**{**SMALL, "vocab_size": 64})
    dense = np.zeros((2, 13), np.float32)
    ids = np.full((2, 26), 39_979_768, np.int32)
    ids[1] += 1  # the same number in float32
    params = table.init(KEY, {"dense": dense, "ids": ids}, train=False)
    one, other = table.apply(params, {"dense": dense, "ids": ids}, train=False)
    assert one != other


def test_initial_embeddings_are_uniform_from_0():
    for name, top in (("criteo1tb_test", 1 / 256), ("criteo1tb_embed_init", 1.0)):
        model = BY_NAME[name].model.clone(vocab_size=65_536, embedding_width=128)
        batch = BY_NAME[name].example_batch()
        table = model.init(KEY, batch["inputs"], train=False)["params"]["embedding"]
        assert table.min() >= 0
        assert table.max() == pytest.approx(top, rel=1e-3)
        assert table.mean() == pytest.approx(top / 2, rel=1e-2)


def test_dropout_acts_before_the_last_layer_in_training_only():
    workload, rows = small_evaluation()
    params, state = workload.init_model_fn(KEY)

    def logits(mode, rate):
        return workload.model_fn(
            params, rows[0], state, mode, KEY, False, dropout_rate=rate
        )[0]

    train, evaluation = spec.ForwardPassMode.TRAIN, spec.ForwardPassMode.EVAL
    np.testing.assert_allclose(logits(train, 0.0), logits(evaluation, 0.9), rtol=1e-5)
    # With everything dropped, the bias of the last layer is left.
    dropped = logits(train, 0.999)
    bias = float(params["head"]["bias"][0])
    assert np.median(np.abs(dropped - bias)) < 1e-6


def test_padding_and_batch_size_do_not_change_the_loss():
    workload, padded = small_evaluation()
    params, state = workload.init_model_fn(KEY)
    exact = EvalRows(rows_of(100), 50, DataOptions())
    want = evaluate(workload, params, state, [exact[0], exact[1]])
    assert evaluate(workload, params, state, padded) == pytest.approx(want, rel=1e-6)
    batch = padded[0]
    order = np.random.default_rng(0).permutation(48)
    apply = jax.jit(lambda x: workload.model.apply({"params": params}, x, train=False))
    permuted = jax.tree.map(lambda array: array[order], batch["inputs"])
    np.testing.assert_allclose(
        apply(permuted), apply(batch["inputs"])[order], atol=1e-5
    )


@pytest.mark.slow
def test_label_smoothing_does_not_change_the_rate_that_is_predicted():
    clicks, logits = jnp.array([[0.0], [1.0], [0.0]]), jnp.array([[-3.0], [1.0], [0.2]])
    plain = FULL.loss_fn(clicks, logits)
    smoothed = FULL.loss_fn(clicks, logits, label_smoothing=0.2)
    assert smoothed["summed"] == plain["summed"]


def test_one_and_eight_devices_agree():
    assert_agree(__file__)


def test_types_of_the_parameters():
    types = spec.ParameterType
    assert count_types(FULL) == {types.WEIGHT: 8, types.BIAS: 8, types.EMBEDDING: 1}
    normed = count_types(BY_NAME["criteo1tb_layernorm"])
    assert normed[types.LAYER_NORM_SCALE] == normed[types.LAYER_NORM_BIAS] == 8


# Conversion.


def test_hashing_is_that_of_tensorflow():
    """Computed with tf.strings.to_hash_bucket_fast of TensorFlow 2.21."""
    digits = np.array(["68fd1e64", "80e26c9b", "00000000"], "S8")
    digits = digits.view(np.uint8).reshape(-1, 8)
    known = {
        0: [6734129, 27830602, 16124033],
        9: [759600, 21759015, 27691836],
        19: [7637784, 13053586, 13392961],
    }
    for column, want in known.items():
        assert prepare.buckets(digits, column).tolist() == want


@given(st.lists(st.binary(min_size=9, max_size=9), min_size=1, max_size=20))
def test_hashing_is_that_of_the_algorithm_string_by_string(strings):
    def rotate(x, bits):
        return (x >> bits | x << (64 - bits)) % 2**64

    def fingerprint(text):
        k2 = 0x9AE16A3B2F90404F
        mul = k2 + 2 * len(text)
        a = int.from_bytes(text[:8], "little") + k2
        b = int.from_bytes(text[-8:], "little")
        c = (rotate(b, 37) * mul + a) % 2**64
        d = ((rotate(a % 2**64, 25) + b) * mul) % 2**64
        x = ((c ^ d) * mul) % 2**64
        x ^= x >> 47
        y = ((d ^ x) * mul) % 2**64
        y ^= y >> 47
        return (y * mul) % 2**64

    text = np.frombuffer(b"".join(strings), np.uint8).reshape(-1, 9)
    assert prepare.fingerprint64(text).tolist() == [fingerprint(s) for s in strings]


def line(number, rng):
    integers = [
        "" if rng.random() < 0.3 else str(rng.integers(-2, 9)) for _ in range(12)
    ]
    digits = [
        "" if rng.random() < 0.2 else f"{rng.integers(2**32):08x}" for _ in range(26)
    ]
    return "\t".join([str(number % 2), str(number), *integers, *digits])


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Logs of 24 days, 7 lines each; some compressed, one in parts."""
    folder = tmp_path_factory.mktemp("raw")
    rng = np.random.default_rng(0)
    for day in range(24):
        lines = [line(day * 7 + i, rng) for i in range(7)]
        if day == 1:
            text = ("\n".join(lines) + "\n").encode()
            (folder / "day_1.gz").write_bytes(gzip.compress(text))
        elif day == 23:
            (folder / "day_23_00").write_text("\n".join(lines[:4]) + "\n")
            (folder / "day_23_01").write_text("\n".join(lines[4:]) + "\n")
        else:
            (folder / f"day_{day}").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def data_dir(raw, tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("data")
    folder = data_dir / "criteo1tb"
    folder.mkdir()
    prepare.prepare(raw, folder, print, num_test=4, bucket_bytes=5_000)
    write_manifest(folder, data.count(folder))
    return data_dir


def test_conversion_keeps_every_line_and_shuffles_the_training_days(raw, data_dir):
    folder = data_dir / "criteo1tb"
    assert data.count(folder) == {"train": 161, "validation": 3, "test": 4}
    train = data.open_rows(folder, "train")
    assert sorted(train[:, 1]) == list(range(161))
    assert list(train[:, 1]) != list(range(161))
    assert np.abs(np.diff(train[:, 1])).mean() > 25  # across days
    assert data.open_rows(folder, "test")[:, 1].tolist() == [161, 162, 163, 164]
    assert data.open_rows(folder, "validation")[:, 1].tolist() == [165, 166, 167]
    assert not list(folder.glob("*.tmp"))
    fields = (raw / "day_0").read_text().splitlines()[3].split("\t")
    row = train[list(train[:, 1]).index(3)]
    assert row[0] == 1
    assert row[2:14].tolist() == [int(f) if f else -1 for f in fields[2:14]]
    digits = np.array([f or "00000000" for f in fields[14:]], "S8")
    digits = digits.view(np.uint8).reshape(-1, 8)
    want = [prepare.buckets(digits[c : c + 1], c)[0] for c in range(26)]
    assert row[14:].tolist() == want


def test_a_batch_holds_logarithms_ids_and_clicks():
    rows = rows_of(3)
    rows[0, 2], rows[1, 2], rows[2, 2] = -1, 0, 7
    batch = data.as_batch(rows)
    assert batch["inputs"]["dense"].dtype == np.float32
    np.testing.assert_allclose(batch["inputs"]["dense"][:, 1], [0, 0, np.log(8)])
    assert batch["inputs"]["ids"].dtype == np.int32
    np.testing.assert_array_equal(batch["inputs"]["ids"], rows[:, 14:])
    assert batch["targets"].shape == (3, 1)
    assert batch["targets"].dtype == np.float32


@pytest.mark.parametrize("num_rows", [100, 4096, 9000, 12_288])
def test_an_epoch_holds_each_row_once_and_hosts_share_it(num_rows):
    rows = rows_of(num_rows)
    dataset = TrainRows(rows, 60, 3, DataOptions())
    count = -(-2 * num_rows // 60)
    seen = [np.expm1(dataset[i]["inputs"]["dense"][:, 0]) for i in range(count)]
    numbers = np.concatenate(seen).round().astype(int)
    first, second = numbers[:num_rows], numbers[num_rows : 2 * num_rows]
    assert np.array_equal(np.sort(first), np.arange(num_rows))
    assert np.array_equal(np.sort(second), np.arange(num_rows))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first[:20], np.sort(first[:20]))
    parts = [
        TrainRows(rows, 60, 3, DataOptions(host=host, num_hosts=3))[7]
        for host in range(3)
    ]
    joined = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    jax.tree.map(np.testing.assert_array_equal, joined, dataset[7])
    other = TrainRows(rows, 60, 4, DataOptions())[7]
    assert not np.array_equal(other["targets"], dataset[7]["targets"])


def test_batches_of_the_prepared_set(data_dir):
    def read(split, size=8, seed=0):
        return data.read(split, size, seed, DataOptions(folder=data_dir))

    later = next(batches(read("train")[5:]))
    jax.tree.map(np.testing.assert_array_equal, later, read("train")[5])
    validation = read("validation")
    assert len(validation) == 1
    assert validation[0]["weights"].ravel().tolist() == [1] * 3 + [0] * 5
    assert len(read("eval_train")) == 21
    pickled = cloudpickle.dumps(read("train"))
    assert len(pickled) < (data_dir / "criteo1tb" / "train.bin").stat().st_size / 4
    jax.tree.map(np.testing.assert_array_equal, pickle.loads(pickled)[5], later)
    with pytest.raises(UserError, match="algoperf data prepare criteo1tb"):
        data.read("train", 8, 0, DataOptions(folder=data_dir / "elsewhere"))


BROKEN = [
    (lambda f: f[:-1], "Expected 40 columns, got 39", "39 columns, not 40"),
    (lambda f: [""], *["line 4: the label is not 0 or 1: None"] * 2),
    (lambda f: ["0", "x", *f[2:]], "invalid value 'x'", "field 1 is no number: x"),
    (lambda f: ["2", *f[1:]], *["line 4: the label is not 0 or 1: 2"] * 2),
    (lambda f: [*f[:-1], "abc"], *["line 4: category 25 is not of 8 digits: abc"] * 2),
]


def broken_day(path, changes):
    """Writes lines 0, 1, ..., changed where `changes` says."""
    lines = [line(i, np.random.default_rng(i)).split("\t") for i in range(20)]
    for number, change in changes.items():
        lines[number] = change(lines[number])
    path.write_text("\n".join("\t".join(x) for x in lines) + "\n")


@pytest.mark.parametrize(("change", "says"), [b[:2] for b in BROKEN])
def test_a_broken_line_is_named(tmp_path, change, says):
    broken_day(tmp_path / "day_0", {3: change})
    with pytest.raises(DataError, match=f"day_0.*{says}"):
        list(prepare.read_rows(tmp_path / "day_0"))


def test_broken_lines_are_passed_over_and_named_if_asked_for(tmp_path):
    changes = {3 * (i + 1): change for i, (change, *_) in enumerate(BROKEN)}
    broken_day(tmp_path / "day_0", changes)
    seen = []
    found = list(prepare.read_rows(tmp_path / "day_0", seen.append))
    numbers = np.concatenate(found)[:, 1]
    assert numbers.tolist() == [i for i in range(20) if i not in changes]
    messages = sorted(map(str, seen))
    for number, (_, _, says) in zip(changes, BROKEN, strict=True):
        says = says.removeprefix("line 4: ")
        wanted = f"day_0, line {number + 1}: {says}"
        assert sum(wanted in message for message in messages) == 1, messages
    assert len(seen) == len(changes)


def test_lines_that_are_passed_over_move_no_other_from_validation_to_test(tmp_path):
    raw, folder = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    folder.mkdir()
    for day in range(23):
        (raw / f"day_{day}").write_text(line(0, np.random.default_rng(0)) + "\n")
    short, no_label = BROKEN[0][0], BROKEN[1][0]
    # 20 lines in each part; the last of the first is one of those without a row.
    broken_day(raw / "day_23_00", {0: no_label, 3: short, 19: short})
    broken_day(raw / "day_23_01", {1: short, 4: no_label, 7: no_label})
    skipped = []
    prepare.prepare(raw, folder, print, num_test=25, on_corrupt=skipped.append)
    assert len(skipped) == 6
    test = data.open_rows(folder, "test")[:, 1].tolist()
    assert test == [*(i for i in range(1, 19) if i != 3), 0, 2, 3]
    validation = data.open_rows(folder, "validation")[:, 1].tolist()
    assert validation == [5, 6, *range(8, 20)]


def test_damaged_files_and_missing_days_are_named(data_dir, raw, tmp_path):
    (tmp_path / "train.bin").write_bytes(b"123")
    with pytest.raises(DataError, match=r"train\.bin has 3 bytes"):
        data.open_rows(tmp_path, "train")
    with pytest.raises(UserError, match="no day_0 or"):
        prepare.prepare(tmp_path, tmp_path, print)
    text = (raw / "day_1.gz").read_bytes()
    (tmp_path / "day_1.gz").write_bytes(text[: len(text) // 2])
    with pytest.raises(DataError, match=r"day_1\.gz"):
        list(prepare.read_rows(tmp_path / "day_1.gz"))


def test_without_downloads_the_command_says_what_to_get(capsys, tmp_path):
    arguments = ["data", "prepare", "criteo1tb", f"--data_dir={tmp_path}"]
    assert cli.main(arguments) == 1
    assert "day_23.gz" in capsys.readouterr().out


# Full size.


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "name", ["criteo1tb_test", "criteo1tb_layernorm", "criteo1tb_resnet"]
)
def test_wide_models_with_a_small_table_learn_one_batch(name):
    workload = derive(BY_NAME[name], model={"vocab_size": 65_536})
    losses = losses_on_one_batch(workload, data.as_batch(rows_of(64)))
    assert losses[5] < losses[0]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_full_model_learns_one_batch():
    losses = losses_on_one_batch(FULL, data.as_batch(rows_of(64)))
    assert 0.5 < losses[0] < 0.95
    assert losses[5] < losses[0]
