"""Molecules of ogbg-molpcba, batched into packs of a fixed number of nodes and edges.

Hu et al. 2020, arXiv:2005.00687, from TensorFlow Datasets (ogbg_molpcba 0.1.3), kept in
a few flat arrays that are mapped from disk. A batch of b molecules consists of
gcd(b, 8) packs, whatever the number of devices (up to 8), so that the same seed gives
the same batches everywhere. A pack for m molecules has room for 26 m nodes and 56 m
edges, and takes molecules, at most m of them, as long as they fit: an average molecule
has 26 nodes and 56 edges, each bond counted in both directions.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grain
import numpy as np

from algoperf.data import tfds
from algoperf.data.examples import DataError, DataOptions, OnCorrupt, end
from algoperf.data.mapped import mapped
from algoperf.data.packing import Packing, ranges
from algoperf.data.pipeline import ENDLESS, Batch
from algoperf.data.source import DataSource
from algoperf.errors import UserError
from workloads.ogbg.model import GraphsTuple

NODE_FEATURES = 9
EDGE_FEATURES = 3
NUM_TASKS = 128
NODES_PER_MOLECULE = 26
EDGES_PER_MOLECULE = 56
MAX_PACKS = 8
NUM_TRAIN = 350_343
NUM_VALIDATION = NUM_TEST = NUM_EVAL_TRAIN = 43_793
SPLITS = {"train": "train", "validation": "validation", "test": "test"}
MISSING = -1  # a label that is not known

INSTRUCTIONS = """
ogbg-molpcba (MIT licence) as tensorflow-datasets stores it, 40 MB:
  python -c "import tensorflow_datasets as tfds; tfds.builder('ogbg_molpcba:0.1.3',
  data_dir='DIR', file_format='array_record').download_and_prepare()"
which downloads it from https://snap.stanford.edu/ogb (needs TensorFlow, once: pip
install 'algoperf[prepare]'). Give DIR as --raw: it then holds ogbg_molpcba/0.1.3. The
prepared set takes 270 MB.
"""


class Molecules:
    """Molecules in flat arrays, in memory or mapped from disk.

    Attributes:
      nodes: (nodes of all molecules, 9) uint8.
      bonds: (bonds of all molecules, 3) uint8.
      ends: (bonds of all molecules, 2) uint16, nodes of the molecule.
      labels: (molecules, tasks) int8, MISSING where not known.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], name: str):
        """Takes those four and 'sizes' (molecules, 2) int64: nodes, bonds.

        Raises:
          DataError: they do not belong together; says the name.
        """
        self.nodes, self.bonds = arrays["nodes"], arrays["bonds"]
        self.ends, self.labels = arrays["ends"], arrays["labels"]
        sizes = arrays["sizes"]
        self.num_nodes, self.num_bonds = sizes.T
        self.first_node = np.cumsum(self.num_nodes) - self.num_nodes
        self.first_bond = np.cumsum(self.num_bonds) - self.num_bonds
        rows = (len(self.nodes), len(self.bonds), len(self.ends), len(self.labels))
        wanted = (self.num_nodes.sum(), *[self.num_bonds.sum()] * 2, len(sizes))
        if rows != wanted:
            raise DataError(f"{name}: the arrays do not belong together")

    def __len__(self) -> int:
        return len(self.num_nodes)


COLUMNS: Mapping[str, tuple[Any, int]] = {  # of ogbg-molpcba: dtype, width
    "nodes": (np.uint8, NODE_FEATURES),
    "bonds": (np.uint8, EDGE_FEATURES),
    "ends": (np.uint16, 2),
    "labels": (np.int8, NUM_TASKS),
    "sizes": (np.int64, 2),
}


def open_molecules(folder: Path, split: str) -> Molecules:
    """Returns the molecules of a split of the prepared set, mapped from disk."""
    arrays = {
        name: _load(folder / split / f"{name}.npy", dtype, width)
        for name, (dtype, width) in COLUMNS.items()
    }
    return Molecules(arrays, str(folder / split))


def _load(path: Path, dtype: Any, width: int) -> np.ndarray:
    try:
        array = mapped(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error})") from error
    if array.dtype != dtype or array.ndim != 2 or array.shape[1] != width:
        raise DataError(f"{path} holds {array.dtype} {array.shape}")
    return array


class Batches:
    """`self[i]`: batch number i; 'inputs' GraphsTuple, 'targets', 'weights'."""

    def __init__(
        self,
        molecules: Molecules,
        chosen: np.ndarray | None,
        batch_size: int,
        seed: int | None,
        options: DataOptions,
    ):
        """Takes the chosen molecules (None: all); shuffled endlessly if seeded."""
        self._molecules = molecules
        self._chosen = np.arange(len(molecules)) if chosen is None else chosen
        self._num_packs = math.gcd(batch_size, MAX_PACKS)
        if self._num_packs % options.num_hosts:
            raise UserError(
                f"a batch of {batch_size} has {self._num_packs} packs, which do not "
                f"divide over {options.num_hosts} hosts"
            )
        per_host = self._num_packs // options.num_hosts
        self._packs = range(options.host * per_host, (options.host + 1) * per_host)
        self._pack_size = batch_size // self._num_packs
        limits = self._pack_size * np.array([NODES_PER_MOLECULE, EDGES_PER_MOLECULE, 1])
        sizes = np.stack(
            [
                molecules.num_nodes[self._chosen],
                2 * molecules.num_bonds[self._chosen],
                np.ones(len(self._chosen), np.int64),
            ],
            axis=1,
        )
        self._is_endless = seed is not None
        try:
            self._packing = Packing(sizes, limits, seed)
            self._num_rows = self._packing.num_rows()
        except ValueError as error:
            raise UserError(
                f"a molecule has more atoms or bonds than fit into a pack for "
                f"{self._pack_size} molecules; use a larger batch than {batch_size}"
            ) from error

    def __len__(self) -> int:
        if self._is_endless:
            return ENDLESS
        return -(-self._num_rows // self._num_packs)

    def __getitem__(self, position: int) -> Batch:
        packs = [self._pack(position * self._num_packs + p) for p in self._packs]
        graphs, targets, weights = zip(*packs, strict=True)
        return {
            "inputs": GraphsTuple(*map(np.stack, zip(*graphs, strict=True))),
            "targets": np.concatenate(targets),
            "weights": np.concatenate(weights),
        }

    def _pack(self, row: int) -> tuple[GraphsTuple, np.ndarray, np.ndarray]:
        if not self._is_endless and row >= self._num_rows:
            members = np.zeros(0, np.int64)  # the last batch is filled up
        else:
            members = self._chosen[self._packing.row(row)]
        graph = pack(self._molecules, members, self._pack_size)
        stored = self._molecules.labels[members]
        labels = np.zeros((self._pack_size + 1, stored.shape[1]), np.float32)
        weights = np.zeros_like(labels)
        labels[: len(members)] = stored == 1
        weights[: len(members)] = stored != MISSING
        return graph, labels, weights


def pack(molecules: Molecules, members: np.ndarray, pack_size: int) -> GraphsTuple:
    """Returns the members as one padded graph, without the axis of packs.

    One node more than fits stands for padding: padded edges lead from it to itself.
    """
    num_nodes = NODES_PER_MOLECULE * pack_size + 1
    num_edges = EDGES_PER_MOLECULE * pack_size
    n_node = np.zeros(pack_size + 1, np.int32)
    n_edge = np.zeros(pack_size + 1, np.int32)
    atoms, bonds = molecules.num_nodes[members], molecules.num_bonds[members]
    n_node[: len(members)], n_edge[: len(members)] = atoms, 2 * bonds
    n_node[-1] = num_nodes - n_node.sum()
    n_edge[-1] = num_edges - n_edge.sum()

    nodes = np.zeros((num_nodes, NODE_FEATURES), np.float32)
    nodes[: atoms.sum()] = molecules.nodes[ranges(molecules.first_node[members], atoms)]
    at = ranges(molecules.first_bond[members], bonds)
    first_in_pack = np.repeat(np.cumsum(atoms) - atoms, bonds)
    ends = molecules.ends[at].astype(np.int32) + first_in_pack[:, None]
    # Both directions, molecule by molecule: first all bonds, then all turned round.
    starts = np.cumsum(2 * bonds) - 2 * bonds
    forth = ranges(starts, bonds)
    back = ranges(starts + bonds, bonds)
    edges = np.zeros((num_edges, EDGE_FEATURES), np.float32)
    senders = np.full(num_edges, num_nodes - 1, np.int32)
    receivers = np.full(num_edges, num_nodes - 1, np.int32)
    edges[forth] = edges[back] = molecules.bonds[at]
    senders[forth], receivers[forth] = ends.T
    receivers[back], senders[back] = ends.T
    no_globals = np.zeros((pack_size + 1, 0), np.float32)
    return GraphsTuple(nodes, edges, receivers, senders, no_globals, n_node, n_edge)


def pipeline(
    split: str, batch_size: int, seed: int, options: DataOptions
) -> grain.MapDataset:
    """Returns the batches of 'train' (endless) or of an evaluation split.

    'eval_train' is 43,793 training molecules, spread over the set.
    """
    folder = DATA_SOURCE.folder(options.folder)
    molecules = open_molecules(folder, "train" if split == "eval_train" else split)
    return batched(molecules, split, NUM_EVAL_TRAIN, batch_size, seed, options)


def batched(
    molecules: Molecules,
    split: str,
    num_eval_train: int,
    batch_size: int,
    seed: int,
    options: DataOptions,
) -> grain.MapDataset:
    """Returns the batches of a split made of its molecules, see `Batches`.

    'eval_train' is so many of the training molecules, spread over the set.
    """
    chosen = None
    if split == "eval_train":
        wanted = min(num_eval_train, len(molecules))
        chosen = np.arange(wanted) * len(molecules) // wanted
    stream = seed if split == "train" else None
    return grain.MapDataset.source(
        Batches(molecules, chosen, batch_size, stream, options)
    )


def prepare(
    raw: Path,
    folder: Path,
    say: Callable[[str], None],
    on_corrupt: OnCorrupt = end,
) -> None:
    """Converts the three splits to flat arrays.

    Raises:
      UserError: the data set is missing, or a molecule is broken.
    """
    built = raw / "ogbg_molpcba" / "0.1.3"
    if not built.is_dir():
        raise UserError(
            f"{raw} holds no ogbg_molpcba/0.1.3; algoperf data prepare ogbg says how "
            "to get it"
        )
    for split, name in SPLITS.items():
        source = tfds.open_split(built, name)
        say(f"{split}: {len(source):,} molecules")
        (folder / split).mkdir()
        _convert(source, f"{built} {name}", folder / split, on_corrupt)


def _convert(source: Any, name: str, folder: Path, on_corrupt: OnCorrupt) -> None:
    columns: dict[str, list[np.ndarray]] = {
        column: [] for column in ("nodes", "bonds", "ends", "labels")
    }
    sizes = []
    for index in range(len(source)):
        record = source[index]
        try:
            checked = check(record, f"{name}, record {index}")
        except DataError as error:
            on_corrupt(error)
            continue
        for column, array in checked.items():
            columns[column].append(array)
        sizes.append((len(checked["nodes"]), len(checked["bonds"])))
    for column, arrays in columns.items():
        np.save(folder / f"{column}.npy", np.concatenate(arrays))
    np.save(folder / "sizes.npy", np.array(sizes, np.int64))


def check(record: Any, name: str) -> dict[str, np.ndarray]:
    """Returns the arrays of a molecule as they are stored.

    A molecule of one atom has no bond, which is fine.

    Raises:
      DataError: features that are no small integers, or bonds to atoms that are not.
    """
    nodes = np.asarray(record["node_feat"], np.float32)
    bonds = np.asarray(record["edge_feat"], np.float32).reshape(-1, EDGE_FEATURES)
    ends = np.asarray(record["edge_index"], np.int64).reshape(-1, 2)
    labels = np.asarray(record["labels"], np.float32).reshape(1, -1)
    if nodes.ndim != 2 or nodes.shape[1] != NODE_FEATURES or not len(nodes):
        raise DataError(f"{name}: node features of shape {nodes.shape}")
    if len(bonds) != len(ends):
        raise DataError(f"{name}: {len(ends)} bonds with {len(bonds)} features")
    if len(ends) and (ends.min() < 0 or ends.max() >= len(nodes)):
        raise DataError(f"{name}: a bond to an atom that is not there")
    known = labels[~np.isnan(labels)]
    if labels.shape[1] != NUM_TASKS or not np.isin(known, (0, 1)).all():
        raise DataError(f"{name}: labels that are not 0, 1 or missing")
    for what, features in (("node", nodes), ("edge", bonds)):
        if not (np.isin(features, np.arange(256))).all():
            raise DataError(f"{name}: {what} features that are no small integers")
    return {
        "nodes": nodes.astype(np.uint8),
        "bonds": bonds.astype(np.uint8),
        "ends": ends.astype(np.uint16),
        "labels": np.where(np.isnan(labels), MISSING, labels).astype(np.int8),
    }


def count(folder: Path) -> dict[str, int]:
    """Returns the number of molecules of each split."""
    return {split: len(open_molecules(folder, split)) for split in SPLITS}


DATA_SOURCE = DataSource(
    name="ogbg",
    instructions=INSTRUCTIONS,
    prepare=prepare,
    count=count,
    num_examples={
        "train": NUM_TRAIN,
        "validation": NUM_VALIDATION,
        "test": NUM_TEST,
    },
)
