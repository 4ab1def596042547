"""The graph network and its batches: definitions, padding, every molecule once."""

import pickle

import cloudpickle
import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from checks import count_types, each_variant, evaluate, losses_on_one_batch
from devices import assert_agree
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from tfds_files import write_tfds

from algoperf import cli, spec
from algoperf.data.examples import DataError, DataOptions
from algoperf.data.mapped import Mapped
from algoperf.data.pipeline import batches
from algoperf.errors import UserError
from algoperf.workload import derive
from workloads.ogbg import data
from workloads.ogbg.average_precision import average_precision, mean_average_precision
from workloads.ogbg.data import Batches, Molecules, open_molecules
from workloads.ogbg.model import GraphsTuple, MessagePassing
from workloads.ogbg.workload import FULL, WORKLOADS

KEY = jax.random.PRNGKey(0)
NUM = {"train": 60, "validation": 21, "test": 17}


def molecule(number):
    """One record as tensorflow-datasets gives it; number 5 is a single atom."""
    rng = np.random.default_rng(number)
    atoms = 1 if number == 5 else int(rng.integers(2, 30))
    bonds = [] if atoms == 1 else [(i, rng.integers(i)) for i in range(1, atoms)]
    labels = rng.integers(0, 2, 128).astype(np.float32)
    labels[rng.random(128) < 0.3] = np.nan
    labels[0] = number % 2
    return {
        "edge_feat": rng.integers(0, 4, (len(bonds), 3)).astype(np.float32),
        "edge_index": np.array(bonds, np.int64).reshape(-1, 2),
        "labels": labels,
        "node_feat": rng.integers(0, 9, (atoms, 9)).astype(np.float32),
        "num_edges": np.array([len(bonds)], np.int64),
        "num_nodes": np.array([atoms], np.int64),
    }


def records(split, change=lambda number, record: record):
    first = {"train": 0, "validation": 1000, "test": 2000}[split]
    return [change(n, molecule(n)) for n in range(first, first + NUM[split])]


def write(folder, change=lambda number, record: record):
    features = {
        "edge_feat": tfds.features.Tensor(shape=(None, 3), dtype=np.float32),
        "edge_index": tfds.features.Tensor(shape=(None, 2), dtype=np.int64),
        "labels": tfds.features.Tensor(shape=(128,), dtype=np.float32),
        "node_feat": tfds.features.Tensor(shape=(None, 9), dtype=np.float32),
        "num_edges": tfds.features.Tensor(shape=(None,), dtype=np.int64),
        "num_nodes": tfds.features.Tensor(shape=(None,), dtype=np.int64),
    }
    splits = {split: records(split, change) for split in NUM}
    write_tfds(folder, "ogbg_molpcba", "0.1.3", features, splits)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ogbg")
    write(folder / "raw")
    arguments = [f"--raw={folder}/raw", f"--data_dir={folder}/data", "--any_size"]
    assert cli.main(["data", "prepare", "ogbg", *arguments]) == 0
    return folder / "data"


def read(data_dir, split, size=16, seed=0, **options):
    return data.pipeline(split, size, seed, DataOptions(folder=data_dir, **options))


def in_memory(split):
    """The molecules of a split without a disk."""
    checked = [data.check(record, "x") for record in records(split)]
    arrays = {
        name: np.concatenate([c[name] for c in checked])
        for name in ("nodes", "bonds", "ends", "labels")
    }
    sizes = np.array([(len(c["nodes"]), len(c["bonds"])) for c in checked])
    return Molecules({**arrays, "sizes": sizes}, split)


def small_evaluation():
    """For `devices`: a small model on all validation molecules."""
    model = {"latent_width": 16, "hidden_widths": (16,), "num_steps": 2}
    rows = Batches(in_memory("validation"), None, 16, None, DataOptions())
    return derive(FULL, model=model), [rows[i] for i in range(len(rows))]


# Metrics.


def test_scores_that_are_no_numbers_have_no_precision():
    scores, labels = np.array([[0.1], [np.nan], [0.3]]), np.array([[1.0], [0.0], [1.0]])
    assert np.isnan(mean_average_precision(scores, labels, np.ones_like(labels)))
    known = np.array([[1.0], [0.0], [1.0]])  # what has no label is not looked at
    labels = np.array([[1.0], [0.0], [0.0]])
    assert mean_average_precision(scores, labels, known) == 0.5


@given(
    st.lists(
        st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=40
    ).filter(lambda pairs: any(label for _, label in pairs))
)
def test_average_precision_is_that_of_scikit_learn_also_with_ties(pairs):
    scores, labels = map(np.array, zip(*pairs, strict=True))
    want = average_precision_score(labels, scores)
    assert average_precision(scores, labels) == pytest.approx(want, abs=1e-12)


def test_the_mean_leaves_missing_labels_and_one_sided_tasks_out():
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((50, 4))
    labels = rng.integers(0, 2, (50, 4))
    labels[:, 2] = 1
    mask = rng.random((50, 4)) < 0.7
    mask[:, 3] = labels[:, 3] == 0  # only negatives are known
    want = [
        average_precision_score(labels[mask[:, t], t], scores[mask[:, t], t])
        for t in (0, 1)
    ]
    got = mean_average_precision(scores, labels, mask)
    assert got == pytest.approx(np.mean(want), abs=1e-12)
    assert np.isnan(mean_average_precision(scores, labels, np.zeros_like(mask)))


# Model.


def mlp(x, p):
    for i in range(len(p) // 2):
        dense, norm = p[f"dense_{i}"], p[f"norm_{i}"]
        x = x @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"])
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        x = np.maximum(x * np.asarray(norm["scale"]) + np.asarray(norm["bias"]), 0)
    return x


def test_message_passing_agrees_with_the_definition():
    rng = np.random.default_rng(0)
    n_node, n_edge = np.array([3, 2, 1]), np.array([4, 2, 0])
    graph = GraphsTuple(
        nodes=rng.standard_normal((6, 4)).astype(np.float32),
        edges=rng.standard_normal((6, 3)).astype(np.float32),
        senders=np.array([0, 1, 2, 0, 3, 4]),
        receivers=np.array([1, 0, 1, 2, 4, 3]),
        globals=rng.standard_normal((3, 5)).astype(np.float32),
        n_node=n_node,
        n_edge=n_edge,
    )
    module = MessagePassing((7, 6), jax.nn.relu)
    variables = module.init(KEY, graph, False, 0.0)
    leaves, tree = jax.tree.flatten(variables["params"])
    noise = [rng.standard_normal(leaf.shape).astype(np.float32) for leaf in leaves]
    p = jax.tree.unflatten(tree, noise)
    got = module.apply({"params": p}, graph, False, 0.0)

    of_node, of_edge = np.repeat(range(3), n_node), np.repeat(range(3), n_edge)
    edges = np.zeros((6, 6))
    for e in range(6):
        s, r = graph.senders[e], graph.receivers[e]
        parts = (graph.edges[e], graph.nodes[s], graph.nodes[r])
        edges[e] = mlp(
            np.concatenate([*parts, graph.globals[of_edge[e]]]), p["edge_mlp"]
        )
    nodes = np.zeros((6, 6))
    for n in range(6):
        sent = edges[graph.senders == n].sum(0)
        received = edges[graph.receivers == n].sum(0)
        parts = (graph.nodes[n], sent, received, graph.globals[of_node[n]])
        nodes[n] = mlp(np.concatenate(parts), p["node_mlp"])
    for g in range(3):
        parts = (nodes[of_node == g].sum(0), edges[of_edge == g].sum(0))
        want = mlp(np.concatenate([*parts, graph.globals[g]]), p["global_mlp"])
        np.testing.assert_allclose(got.globals[g], want, atol=1e-5)
    np.testing.assert_allclose(got.edges, edges, atol=1e-5)
    np.testing.assert_allclose(got.nodes, nodes, atol=1e-5)


@pytest.fixture(scope="module")
def small():
    workload, rows = small_evaluation()
    params, state = workload.init_model_fn(KEY)
    return workload, params, state, rows


def test_what_padding_holds_changes_nothing(small):
    workload, params, state, rows = small
    batch = rows[0]
    graph = batch["inputs"]
    rng = np.random.default_rng(0)
    real_nodes = graph.n_node[:, :-1].sum(1)
    real_edges = graph.n_edge[:, :-1].sum(1)
    nodes, edges = graph.nodes.copy(), graph.edges.copy()
    for p in range(len(nodes)):
        nodes[p, real_nodes[p] :] = rng.standard_normal(9)
        edges[p, real_edges[p] :] = rng.standard_normal(3)
    changed = {**batch, "inputs": graph._replace(nodes=nodes, edges=edges)}
    want = evaluate(workload, params, state, [batch])
    assert evaluate(workload, params, state, [changed]) == pytest.approx(want, rel=1e-6)


def test_metrics_do_not_depend_on_the_batch_size(small):
    workload, params, state, rows = small
    whole = Batches(in_memory("validation"), None, 64, None, DataOptions())
    assert len(whole) < len(rows)
    want = evaluate(workload, params, state, rows)
    got = evaluate(workload, params, state, [whole[i] for i in range(len(whole))])
    assert got == pytest.approx(want, rel=1e-5)
    assert 0.6 < want["loss"] < 0.9


def test_permuting_packs_permutes_logits(small):
    workload, params, _, rows = small
    graph = rows[0]["inputs"]
    order = np.random.default_rng(0).permutation(len(graph.nodes))
    apply = jax.jit(lambda g: workload.model.apply({"params": params}, g, False))
    permuted = GraphsTuple(*(part[order] for part in graph))
    logits = apply(graph).reshape(len(order), -1, 128)
    np.testing.assert_allclose(
        apply(permuted).reshape(logits.shape), logits[order], atol=1e-5
    )


def test_dropout_acts_in_training_with_the_rate_that_is_given(small):
    workload, params, state, rows = small

    def logits(mode, rate, key=KEY):
        return workload.model_fn(
            params, rows[0], state, mode, key, False, dropout_rate=rate
        )[0]

    train, evaluation = spec.ForwardPassMode.TRAIN, spec.ForwardPassMode.EVAL
    plain = logits(evaluation, 0.5)
    np.testing.assert_allclose(logits(train, 0.0), plain, atol=1e-5)
    assert not np.allclose(logits(train, 0.5), plain, atol=1e-3)
    other = logits(train, 0.5, jax.random.PRNGKey(1))
    assert not np.allclose(logits(train, 0.5), other, atol=1e-3)


@pytest.mark.slow
def test_one_and_eight_devices_agree():
    assert_agree(__file__)


def test_types_of_the_parameters():
    types = spec.ParameterType
    dense = 2 + 5 * 3 + 1
    assert count_types(FULL) == {
        types.WEIGHT: dense,
        types.BIAS: dense,
        types.LAYER_NORM_SCALE: 15,
        types.LAYER_NORM_BIAS: 15,
    }


# Data.


def bonds_of(graph, p):
    """The directed bonds of a pack, as (molecule, from, to, features), sorted."""
    found, edge, node = [], 0, 0
    for g in range(len(graph.n_node[p]) - 1):
        for _ in range(graph.n_edge[p, g]):
            s, r = graph.senders[p, edge] - node, graph.receivers[p, edge] - node
            assert 0 <= s < graph.n_node[p, g]
            assert 0 <= r < graph.n_node[p, g]
            found.append((g, s, r, *graph.edges[p, edge]))
            edge += 1
        node += graph.n_node[p, g]
    return sorted(found)


def test_a_pack_holds_the_molecules_with_bonds_in_both_directions(data_dir):
    batch = read(data_dir, "validation", 16)[0]
    graph = batch["inputs"]
    assert graph.nodes.shape == (8, 26 * 2 + 1, 9)
    assert graph.edges.shape == (8, 56 * 2, 3)
    assert batch["targets"].shape == batch["weights"].shape == (8 * 3, 128)
    assert {a.dtype for a in (graph.nodes, graph.edges, batch["targets"])} == {
        np.dtype(np.float32)
    }
    number = 1000
    for p in range(8):
        want, node = [], 0
        for g in range(2):
            row = p * 3 + g
            if not batch["weights"][row].any():
                continue
            record = molecule(number)
            number += 1
            atoms = len(record["node_feat"])
            assert graph.n_node[p, g] == atoms
            np.testing.assert_array_equal(
                graph.nodes[p, node : node + atoms], record["node_feat"]
            )
            node += atoms
            ends_and_kinds = zip(record["edge_index"], record["edge_feat"], strict=True)
            for (a, b), kind in ends_and_kinds:
                want += [(g, a, b, *kind), (g, b, a, *kind)]
            known = ~np.isnan(record["labels"])
            np.testing.assert_array_equal(batch["weights"][row], known)
            np.testing.assert_array_equal(
                batch["targets"][row], np.nan_to_num(record["labels"])
            )
        assert bonds_of(graph, p) == sorted(want)
        assert graph.n_node[p].sum() == graph.nodes.shape[1]
        assert graph.n_edge[p].sum() == graph.edges.shape[1]
    assert number > 1008


@pytest.mark.parametrize("split", ["eval_train", "validation", "test"])
def test_evaluation_holds_every_molecule_once(data_dir, split):
    dataset = read(data_dir, split)
    sizes = []
    for i in range(len(dataset)):
        n_node = dataset[i]["inputs"].n_node[:, :-1]
        sizes += n_node[n_node > 0].tolist()
    name = "train" if split == "eval_train" else split
    assert sizes == [len(record["node_feat"]) for record in records(name)]


def _labels(dataset, count):
    rows = []
    for i in range(count):
        batch = dataset[i]
        real = batch["weights"].any(-1)
        labels = np.where(batch["weights"] > 0, batch["targets"], np.nan)[real]
        rows += [row.tobytes() for row in labels.astype(np.float32)]
    return rows


def test_an_epoch_holds_every_molecule_once(data_dir):
    wanted = sorted(record["labels"].tobytes() for record in records("train"))
    dataset = read(data_dir, "train", 16, seed=3)
    seen = _labels(dataset, 16)
    first, second = seen[:60], seen[60:120]
    assert sorted(first) == sorted(second) == wanted
    assert first != second


def test_a_batch_depends_on_seed_and_position_alone_and_hosts_share_it(data_dir):
    dataset = read(data_dir, "train", 16, seed=3)
    later = next(batches(read(data_dir, "train", 16, seed=3)[7:]))
    jax.tree.map(np.testing.assert_array_equal, dataset[7], later)
    assert isinstance(open_molecules(data_dir / "ogbg", "train").nodes, Mapped)
    moved = pickle.loads(cloudpickle.dumps(dataset))[7]
    jax.tree.map(np.testing.assert_array_equal, moved, later)
    other = read(data_dir, "train", 16, seed=4)[7]
    assert not np.array_equal(other["targets"], later["targets"])
    parts = [
        read(data_dir, "train", 16, seed=3, host=host, num_hosts=4)[7]
        for host in range(4)
    ]
    joined = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    jax.tree.map(np.testing.assert_array_equal, joined, later)
    with pytest.raises(UserError, match="8 packs"):
        read(data_dir, "train", 16, host=0, num_hosts=3)


def test_a_molecule_that_fits_no_pack_is_named(data_dir):
    with pytest.raises(UserError, match="use a larger batch than 8"):
        read(data_dir, "train", 8)


def test_a_molecule_of_one_atom_is_fine():
    checked = data.check(molecule(5), "x")
    assert checked["ends"].shape == (0, 2)
    assert checked["nodes"].shape == (1, 9)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("node_feat", np.zeros((2, 8), np.float32), "node features of shape"),
        ("node_feat", np.zeros((0, 9), np.float32), "node features of shape"),
        ("edge_index", np.full((4, 2), 99), "atom that is not there"),
        ("edge_feat", np.zeros((1, 3), np.float32), "bonds with 1 features"),
        ("labels", np.full(128, 0.5, np.float32), "labels"),
        ("node_feat", np.full((30, 9), 0.5, np.float32), "no small integers"),
    ],
)
def test_a_broken_molecule_is_named(field, value, says):
    record = molecule(4)
    if field == "edge_index":
        record["edge_feat"] = np.zeros((4, 3), np.float32)
    record[field] = value
    with pytest.raises(DataError, match=f"train, record 4.*{says}"):
        data.check(record, "train, record 4")


def test_broken_molecules_are_passed_over_if_asked_for(tmp_path):
    def broken(number, record):
        if number in (7, 1003):
            record["labels"] = np.full(128, 0.5, np.float32)
        return record

    write(tmp_path / "raw", broken)
    arguments = ["data", "prepare", "ogbg", f"--raw={tmp_path}/raw", "--any_size"]
    arguments.append(f"--data_dir={tmp_path}/data")
    assert cli.main(arguments) == 1
    assert cli.main([*arguments, "--skip_corrupt"]) == 0
    assert data.DATA_SOURCE.num_skipped(tmp_path / "data") == 2
    counts = data.count(tmp_path / "data" / "ogbg")
    assert counts == {**NUM, "train": 59, "validation": 20}


def test_damaged_arrays_are_named(data_dir, tmp_path):
    import shutil

    shutil.copytree(data_dir / "ogbg", tmp_path / "ogbg")
    path = tmp_path / "ogbg" / "train" / "labels.npy"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"labels\.npy cannot be read"):
        read(tmp_path, "train")
    np.save(path, np.zeros((3, 128), np.int8))
    with pytest.raises(DataError, match="do not belong together"):
        read(tmp_path, "train")
    with pytest.raises(UserError, match="algoperf data prepare ogbg"):
        read(tmp_path / "elsewhere", "train")
    with pytest.raises(UserError, match="ogbg_molpcba"):
        data.prepare(tmp_path, tmp_path, print)


def test_a_run_knows_how_many_packs_there_are():
    assert {workload.max_packs for workload in WORKLOADS} == {data.MAX_PACKS}


@pytest.mark.slow
@pytest.mark.parametrize("workload", each_variant(WORKLOADS))
def test_the_full_model_learns_one_batch(workload):
    rows = Batches(in_memory("train"), None, 16, 0, DataOptions())
    losses = losses_on_one_batch(workload, rows[0])
    assert 0.6 < losses[0] < 0.9
    assert losses[5] < losses[0] - 0.02
