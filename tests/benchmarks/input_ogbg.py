"""ogbg: molecules per second beside tf.data on the same molecules.

    python tests/benchmarks/input_ogbg.py

Molecules of 26 atoms on average. Ours packs from flat arrays; tf.data parses TFRecord
files, shuffles and adds the opposite direction of each bond, and NumPy fills packs of
the same room, as the MLCommons pipeline does with jraph.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from throughput import arguments, compare, import_tensorflow, write

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))

from algoperf.data.pipeline import DataOptions, batches
from algoperf.data.source import write_manifest
from workloads.ogbg import data

MOLECULES = 20_000
BATCH = 512
PACKS = 8
FIELDS = {"node_feat": 9, "edge_feat": 3, "edge_index": 2}


def molecule(number: int) -> dict[str, np.ndarray]:
    """Returns the arrays of a molecule: a random tree and a few rings."""
    rng = np.random.default_rng(number)
    atoms = int(np.clip(rng.normal(25, 6), 2, 60))
    bonds = [(i, int(rng.integers(i))) for i in range(1, atoms)]
    bonds += [tuple(rng.integers(0, atoms, 2)) for _ in range(2)]
    labels = rng.integers(0, 2, 128).astype(np.float32)
    labels[rng.random(128) < 0.3] = np.nan
    return {
        "node_feat": rng.integers(0, 9, (atoms, 9)).astype(np.float32),
        "edge_feat": rng.integers(0, 4, (len(bonds), 3)).astype(np.float32),
        "edge_index": np.array(bonds, np.int64),
        "labels": labels,
    }


def write_arrays(molecules: list[dict[str, np.ndarray]], folder: Path) -> None:
    """Writes what `data.prepare` does."""
    checked = [data.check(record, "molecule") for record in molecules]
    for split in data.SPLITS:
        (folder / split).mkdir(parents=True)
        for name in ("nodes", "bonds", "ends", "labels"):
            joined = np.concatenate([arrays[name] for arrays in checked])
            np.save(folder / split / f"{name}.npy", joined)
        sizes = [(len(a["nodes"]), len(a["bonds"])) for a in checked]
        np.save(folder / split / "sizes.npy", np.array(sizes, np.int64))
    write_manifest(folder, {})


def write_records(tf, molecules: list[dict[str, np.ndarray]], path: Path) -> None:
    """Writes the molecules to a TFRecord file."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in molecules:
            feature = {
                name: tf.train.Feature(
                    float_list=tf.train.FloatList(value=array.ravel())
                )
                if array.dtype == np.float32
                else tf.train.Feature(
                    int64_list=tf.train.Int64List(value=array.ravel())
                )
                for name, array in record.items()
            }
            example = tf.train.Example(features=tf.train.Features(feature=feature))
            writer.write(example.SerializeToString())


def tf_batches(tf, path: Path):
    """Yields batches of packs made of what tf.data gives."""
    auto = tf.data.AUTOTUNE
    ragged = {
        "node_feat": tf.io.VarLenFeature(tf.float32),
        "edge_feat": tf.io.VarLenFeature(tf.float32),
        "edge_index": tf.io.VarLenFeature(tf.int64),
        "labels": tf.io.FixedLenFeature([128], tf.float32),
    }

    def parse(serialized):
        record = tf.io.parse_single_example(serialized, ragged)
        arrays = {
            name: tf.reshape(tf.sparse.to_dense(record[name]), [-1, width])
            for name, width in FIELDS.items()
        }
        ends = arrays["edge_index"]
        return {
            "nodes": arrays["node_feat"],
            "edges": tf.concat([arrays["edge_feat"]] * 2, axis=0),
            "senders": tf.concat([ends[:, 0], ends[:, 1]], axis=0),
            "receivers": tf.concat([ends[:, 1], ends[:, 0]], axis=0),
            "labels": record["labels"],
        }

    stream = tf.data.TFRecordDataset(str(path)).shuffle(2**15).repeat()
    stream = stream.map(parse, num_parallel_calls=auto).prefetch(auto)
    graphs = stream.as_numpy_iterator()
    size = BATCH // PACKS
    pack, nodes, edges, packs = [], 0, 0, []
    for graph in graphs:
        more_nodes, more_edges = len(graph["nodes"]), len(graph["senders"])
        if (
            len(pack) == size
            or nodes + more_nodes > data.NODES_PER_MOLECULE * size
            or edges + more_edges > data.EDGES_PER_MOLECULE * size
        ):
            packs.append(_pad(pack, size))
            pack, nodes, edges = [], 0, 0
            if len(packs) == PACKS:
                yield {k: np.stack([p[k] for p in packs]) for k in packs[0]}
                packs = []
        pack.append(graph)
        nodes, edges = nodes + more_nodes, edges + more_edges


def _pad(graphs: list[dict[str, np.ndarray]], size: int) -> dict[str, np.ndarray]:
    """Joins graphs and fills them up with one graph of padding."""
    num_nodes = data.NODES_PER_MOLECULE * size + 1
    num_edges = data.EDGES_PER_MOLECULE * size
    counts = np.array([len(g["nodes"]) for g in graphs])
    offsets = np.cumsum(counts) - counts
    joined = {
        "nodes": np.concatenate([g["nodes"] for g in graphs]),
        "edges": np.concatenate([g["edges"] for g in graphs]),
        "senders": np.concatenate(
            [g["senders"] + o for g, o in zip(graphs, offsets, strict=True)]
        ),
        "receivers": np.concatenate(
            [g["receivers"] + o for g, o in zip(graphs, offsets, strict=True)]
        ),
    }
    rooms = {"nodes": num_nodes, "edges": num_edges}
    out = {}
    for name, array in joined.items():
        room = rooms.get(name, num_edges) - len(array)
        value = num_nodes - 1 if name in ("senders", "receivers") else 0
        widths = [(0, room)] + [(0, 0)] * (array.ndim - 1)
        out[name] = np.pad(array, widths, constant_values=value)
    labels = np.full((size + 1, 128), np.nan, np.float32)
    labels[: len(graphs)] = [g["labels"] for g in graphs]
    out["weights"] = (~np.isnan(labels)).astype(np.float32)
    out["targets"] = np.nan_to_num(labels)
    n_node = np.zeros(size + 1, np.int32)
    n_node[: len(graphs)] = counts
    return {**out, "n_node": n_node}


def main() -> None:
    """Measures and prints."""
    options = arguments(__doc__ or "")
    tf = import_tensorflow()
    with tempfile.TemporaryDirectory() as name:
        molecules = [molecule(number) for number in range(MOLECULES)]
        write_arrays(molecules, Path(name, "ogbg"))
        path = Path(name, "train.tfrecord")
        write_records(tf, molecules, path)

        def ours():
            read = DataOptions(folder=Path(name))
            return batches(
                data.pipeline("train", BATCH, 0, read), options.workers, options.threads
            )

        theirs = lambda: tf_batches(tf, path)  # noqa: E731
        write(options, [compare(options, "ogbg", BATCH, ours, theirs)])


if __name__ == "__main__":
    main()
