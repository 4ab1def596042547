"""The embedded molecules: splits, no leak, labels, batches, and the script."""

import dataclasses

import jax
import numpy as np
import pytest
from checks import losses_on_one_batch

from algoperf.data.embedded import load_embedded, read_about
from algoperf.errors import UserError
from algoperf.workload import Evaluator
from workloads.ogbg import b3db, data
from workloads.ogbg.average_precision import mean_average_precision
from workloads.ogbg.workload import MINI, WORKLOADS

SPLITS = ("train", "validation", "test")
VARIANTS = [w for w in WORKLOADS if w.scale == "mini"]


def mixed(keys):
    """Spreads 64-bit keys (a finaliser of MurmurHash3)."""
    keys = (keys ^ (keys >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    return keys ^ (keys >> np.uint64(33))


def structures(molecules, frameworks_only=False):
    """Hashes of all graphs by Weisfeiler and Lehman's refinement.

    Independent of the order of atoms and of stereo marks. Of frameworks: the elements
    of rings and of what links them.
    """
    first_atom = np.repeat(molecules.first_node, molecules.num_bonds)
    ends = molecules.ends.astype(np.int64) + first_atom[:, None]
    kinds = molecules.bonds[:, 0].astype(np.uint64)
    # Element, charge, hydrogen.
    atoms = molecules.nodes[:, [0, 3, 4]].astype(np.uint64)
    kept = np.ones(len(atoms), bool)
    if frameworks_only:
        kinds[:], atoms[:, 1:] = 0, 0
        degree = None
        while degree is None or (kept != (degree > 1)).any():
            kept = kept if degree is None else degree > 1
            inner = kept[ends].all(axis=1)
            degree = np.bincount(ends[inner].ravel(), minlength=len(kept))
        ends, kinds = ends[inner], kinds[inner]
    keys = mixed(atoms @ np.array([1, 1_000, 1_000_000], np.uint64) + np.uint64(1))
    for _ in range(16):
        gathered = np.zeros_like(keys)
        for here, there in (ends.T, ends.T[::-1]):
            sent = mixed(keys[there] + kinds * np.uint64(0x9E3779B97F4A7C15))
            np.add.at(gathered, here, sent)
        keys = mixed(keys * np.uint64(3) + gathered)
    return np.add.reduceat(np.where(kept, mixed(keys), 0), molecules.first_node)


def test_the_file_is_small_and_says_where_it_is_from():
    about = read_about(b3db.EMBEDDED)
    assert about["bytes"] <= 2_000_000
    assert about["licence"] == "CC0 1.0"
    assert len(set(about["tasks"])) == b3db.NUM_TASKS
    load_embedded(b3db.EMBEDDED)  # checks the SHA-256


@pytest.mark.parametrize("split", SPLITS)
def test_shapes_and_dtypes_are_those_of_the_full_scale(split):
    molecules = b3db.molecules(split)
    assert len(molecules) == b3db.SIZES[split]
    assert molecules.num_nodes.min() > 0
    assert molecules.labels.shape == (b3db.SIZES[split], b3db.NUM_TASKS)
    for name in ("nodes", "bonds", "ends", "labels"):
        dtype, width = data.COLUMNS[name]
        array = getattr(molecules, name)
        assert array.dtype == dtype
        assert name == "labels" or array.shape[1] == width
    atoms = np.repeat(molecules.num_nodes, molecules.num_bonds)
    assert (molecules.ends < atoms[:, None]).all()
    assert set(np.unique(molecules.labels)) == {data.MISSING, 0, 1}


def test_no_molecule_is_there_twice():
    found = [structures(b3db.molecules(split)) for split in SPLITS]
    sets = [set(keys.tolist()) for keys in found]
    assert sum(map(len, sets)) == len(set().union(*sets))
    for keys, distinct in zip(found, sets, strict=True):
        # The refinement cannot tell a few different graphs apart.
        assert len(distinct) > 0.999 * len(keys)


def test_no_framework_is_in_two_splits():
    ends = np.cumsum([b3db.SIZES[split] for split in SPLITS])
    numbers = np.split(load_embedded(b3db.EMBEDDED)["frameworks"], ends[:-1])
    stored = [set(part.tolist()) for part in numbers]
    assert sum(map(len, stored)) == len(set().union(*stored))
    found = [set(structures(b3db.molecules(split), True).tolist()) for split in SPLITS]
    assert sum(map(len, found)) == len(set().union(*found))


def test_splitting_keeps_groups_together_and_large_ones_in_training():
    names = [f"framework {i % 900}" for i in range(2_000)] + ["large"] * 30
    parts = b3db.split(names)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(2_030))
    groups = [{names[i] for i in parts[split]} for split in SPLITS]
    assert sum(map(len, groups)) == len(set().union(*groups)) == 901
    assert "large" in groups[0]
    assert len(parts["validation"]) == len(parts["test"]) == b3db.NUM_TEST
    again = b3db.split(names)
    assert all(np.array_equal(parts[split], again[split]) for split in SPLITS)


@pytest.mark.parametrize("split", SPLITS)
def test_each_task_has_positives_and_negatives_and_some_labels_are_missing(split):
    labels = b3db.molecules(split).labels
    assert (labels == 1).sum(axis=0).min() >= 8
    assert (labels == 0).sum(axis=0).min() >= 100
    missing = (labels == data.MISSING).mean(axis=0)
    wanted = 0.4 if split == "train" else 0.1
    assert missing[1:] == pytest.approx(wanted, abs=0.06)
    # Nobody measured the molecules that were recombined.
    assert missing[0] > 0.8 if split == "train" else missing[0] < 0.2


def prior_score(split):
    """The metric of a model that knows how frequent each task is, and no molecule."""
    labels = b3db.molecules(split).labels
    return mean_average_precision(
        np.zeros(labels.shape), labels == 1, labels != data.MISSING
    )


@pytest.mark.parametrize(
    ("split", "target"),
    [
        ("validation", MINI.validation_target_value),
        ("test", MINI.test_target_value),
    ],
)
def test_the_prior_of_each_task_is_far_from_the_target(split, target):
    labels = b3db.molecules(split).labels
    known = labels != data.MISSING
    rates = (labels == 1).sum(axis=0) / known.sum(axis=0)
    assert prior_score(split) == pytest.approx(rates.mean())
    assert 0.08 < prior_score(split) < 0.11
    assert target > 2 * prior_score(split)


def test_batches_are_those_of_the_full_scale_and_hold_little_padding():
    dataset = MINI.dataset("train", MINI.default_batch_size, seed=1)
    batch = dataset[5]
    graph, size = batch["inputs"], MINI.default_batch_size // data.MAX_PACKS
    assert graph.nodes.shape == (8, 26 * size + 1, data.NODE_FEATURES)
    assert graph.edges.shape == (8, 56 * size, data.EDGE_FEATURES)
    assert batch["targets"].shape == (8 * (size + 1), b3db.NUM_TASKS)
    assert batch["targets"].shape == batch["weights"].shape
    assert batch["targets"].dtype == batch["weights"].dtype == np.float32
    used = [dataset[i]["inputs"].n_node[:, :-1].sum() for i in range(100)]
    assert np.mean(used) > 0.8 * 8 * graph.nodes.shape[1]
    again = MINI.dataset("train", MINI.default_batch_size, seed=1)[5]
    jax.tree.map(np.testing.assert_array_equal, batch, again)
    other = MINI.dataset("train", MINI.default_batch_size, seed=2)[5]
    assert not np.array_equal(batch["targets"], other["targets"])


@pytest.mark.parametrize(
    ("split", "size", "batches"),
    [
        ("eval_train", MINI.num_eval_train_examples, 1),
        ("validation", MINI.num_validation_examples, 3),
        ("test", MINI.num_test_examples, 3),
    ],
)
def test_evaluation_holds_each_molecule_once(split, size, batches):
    dataset = MINI.dataset(split, MINI.eval_batch_size, seed=0)
    assert len(dataset) == batches
    counts = [dataset[i]["inputs"].n_node[:, :-1] for i in range(batches)]
    found = np.concatenate([count[count > 0] for count in counts])
    assert len(found) == size
    if split != "eval_train":
        assert found.tolist() == b3db.molecules(split).num_nodes.tolist()


def test_variants_have_the_shapes_of_their_models():
    sizes = {w.variant: w.num_parameters for w in VARIANTS}
    assert sizes.keys() == {w.variant for w in WORKLOADS if w.scale == "full"}
    assert sizes["ogbg"] == sizes["ogbg_gelu"] == sizes["ogbg_silu"] == 141_952
    assert sizes["ogbg_model_size"] != sizes["ogbg"]


@pytest.mark.slow
@pytest.mark.parametrize("workload", VARIANTS, ids=lambda w: w.variant)
def test_mini_models_learn_one_batch(workload):
    losses = losses_on_one_batch(workload, workload.dataset("train", 32, seed=0)[0])
    assert 0.5 < losses[0] < 1.1
    assert losses[5] < losses[0] - 0.02


@pytest.mark.slow
def test_an_untrained_model_is_hardly_better_than_the_prior():
    results = Evaluator(MINI)(*MINI.init_model_fn(jax.random.PRNGKey(0)))
    for split in ("validation", "test"):
        score = results[f"{split}/mean_average_precision"]
        assert score == pytest.approx(prior_score(split), abs=0.04)
    assert not MINI.has_reached_validation_target(results)


# The script that rebuilds the file; it needs rdkit.

SMILES = {
    "CC(=O)Oc1ccccc1C(=O)O": "BBB-",
    "CN1C=NC2=C1C(=O)N(C(=O)N2C)C": "BBB+",
    "C[C@H](N)Cc1ccccc1": "BBB+",
    "C[C@@H](N)Cc1ccccc1": "BBB-",  # a stereoisomer of the last
    "CCOC(=O)c1ccc(N)cc1": "BBB+",
    "CC(C)NCC(O)COc1cccc2ccccc12": "BBB+",
    "CN(C)CCOC(c1ccccc1)c1ccccc1": "BBB+",
    "OCC1CCCCC1": "BBB-",
    "no molecule": "BBB-",
    "C" * 61: "BBB-",
}
TABLE = ["SMILES\tBBB+/BBB-", *("\t".join(row) for row in SMILES.items())]


@pytest.fixture
def make():
    pytest.importorskip("rdkit")
    from rdkit import RDLogger

    from workloads.ogbg import make_b3db

    RDLogger.DisableLog("rdApp.*")
    return make_b3db


def test_reading_drops_what_repeats_is_broken_or_too_large(make):
    molecules, labels = make.read_molecules(TABLE)
    assert [m.GetNumAtoms() for m in molecules] == [13, 14, 10, 12, 19, 19, 8]
    assert labels.tolist() == [1, 0, 0, 0, 0, 0, 1]


def test_a_framework_is_that_of_all_tautomers(make):
    from rdkit import Chem

    def framework(smiles):
        return make.framework(Chem.MolFromSmiles(smiles))

    assert framework("CCC(=O)C") == framework("C") == ""
    assert framework("O=C1CCCCC1") == framework("c1ccccc1C[NH3+]") != ""
    assert framework("Cc1cn[nH]n1") == framework("Cc1cnn[nH]1")
    assert framework("c1ccccc1CCc1ccccc1") != framework("c1ccccc1CNc1ccccc1")


def test_features_of_a_molecule(make):
    from rdkit import Chem

    found = make.graph(Chem.MolFromSmiles("C[NH2+]C=O"))
    assert found["nodes"].tolist() == [
        [5, 0, 4, 5, 3, 0, 2, 0, 0],
        [6, 0, 4, 6, 2, 0, 2, 0, 0],
        [5, 0, 3, 5, 1, 0, 1, 0, 0],
        [7, 0, 1, 5, 0, 0, 1, 0, 0],
    ]
    assert found["ends"].tolist() == [[0, 1], [1, 2], [2, 3]]
    assert found["bonds"][:, 0].tolist() == [0, 0, 1]


def test_tasks_of_a_molecule(make):
    from rdkit import Chem

    tasks = make.b3db_tasks
    smiles = ["NCCCO", "C1CC1CC1CC12CC2", "c1ccc2ccccc2c1"]
    molecules = [Chem.MolFromSmiles(text) for text in smiles]
    labels = tasks.labels(molecules, np.array([1, 0, -1]), np.arange(3))
    assert labels.shape == (3, len(tasks.names())) == (3, b3db.NUM_TASKS)
    found = dict(zip(tasks.names(), labels.T.tolist(), strict=True))
    assert found["does not pass the blood-brain barrier"] == [1, 0, -1]
    assert found["nitrogen and oxygen 4 bonds apart"] == [1, 0, 0]
    assert found["ring of three or four"] == [0, 1, 0]
    assert found["spiro atom"] == [0, 1, 0]
    assert found["two rings"] == [0, 0, 1]


@pytest.mark.slow
def test_build_makes_new_molecules_that_leave_held_out_frameworks_alone(
    make, monkeypatch
):
    sizes = {"train": 7, "validation": 1, "test": 1}
    monkeypatch.setattr(b3db, "SIZES", sizes)
    arrays = make.build(TABLE, 7)
    assert len(arrays["labels"]) == len(arrays["frameworks"]) == 9
    train, held_out = arrays["frameworks"][:7], arrays["frameworks"][7:]
    assert not set(train.tolist()) & set(held_out.tolist())
    assert (arrays["labels"][5:7, 0] == data.MISSING).all()  # 5 of train are real
    again = make.build(TABLE, 7)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, again[name])
    with pytest.raises(UserError, match="do not give"):
        make.build(TABLE, 500)


def test_mini_facts_agree_with_the_file():
    facts = dataclasses.asdict(dataclasses.replace(MINI, model=None))
    about = read_about(b3db.EMBEDDED)["molecules"]
    assert facts["num_train_examples"] == about["train"]
    assert facts["num_validation_examples"] == about["validation"]
    assert facts["num_test_examples"] == about["test"]
