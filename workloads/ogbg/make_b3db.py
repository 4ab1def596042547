"""Rebuilds the embedded molecules of the blood-brain barrier database.

    pip install rdkit==2026.9.1
    python -m workloads.ogbg.make_b3db B3DB/B3DB_classification.tsv

The table is in the PyPI package qc-b3db 1.1.1 (CC0). The same input and the same rdkit
give the same bytes.
"""

import argparse
import csv
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from rdkit import Chem, RDLogger, rdBase
from rdkit.Chem import BRICS
from rdkit.Chem import Mol as Molecule

from algoperf.data.embedded import read_about, save_embedded
from algoperf.errors import UserError
from workloads.ogbg import b3db, b3db_tasks, data

MAX_ATOMS = 60
SEED = 2021
# Of the labels of each split so many are left out; few where the metric is computed.
LEFT_OUT = {"train": 0.4, "validation": 0.1, "test": 0.1}
RECOMBINED_ATOMS = range(10, 46)
MAX_TRIES = 100  # for each recombined molecule

# Indices of the features are those of the Open Graph Benchmark (Hu et al. 2020).
_HYBRIDS = {"SP": 0, "SP2": 1, "SP3": 2, "SP3D": 3, "SP3D2": 4}
_CHIRALITIES = {"CHI_UNSPECIFIED": 0, "CHI_TETRAHEDRAL_CW": 1, "CHI_TETRAHEDRAL_CCW": 2}
_BOND_TYPES = {"SINGLE": 0, "DOUBLE": 1, "TRIPLE": 2, "AROMATIC": 3}
_STEREO = {"STEREONONE": 0, "STEREOZ": 1, "STEREOE": 2, "STEREOCIS": 3}
_STEREO |= {"STEREOTRANS": 4, "STEREOANY": 5}


def read_molecules(lines: Iterable[str]) -> tuple[list[Molecule], np.ndarray]:
    """Reads the different structures of a table, and their measured label.

    Of stereoisomers the first is taken, since their graphs are equal but for stereo
    marks. Structures of more than MAX_ATOMS heavy atoms are left out.

    Returns:
      Molecules with atoms in canonical order, and (molecules,) int8: 1 for BBB-.
    """
    found: dict[str, tuple[Molecule, int]] = {}
    for row in csv.DictReader(lines, delimiter="\t"):
        molecule = Chem.MolFromSmiles(row["SMILES"])
        if molecule is not None and 0 < molecule.GetNumAtoms() <= MAX_ATOMS:
            label = int(row["BBB+/BBB-"] == "BBB-")
            found.setdefault(structure(molecule), (canonical(molecule), label))
    molecules, labels = zip(*found.values(), strict=True)
    return list(molecules), np.array(labels, np.int8)


def structure(molecule: Molecule) -> str:
    """Returns the canonical SMILES without stereo marks."""
    return Chem.MolToSmiles(molecule, isomericSmiles=False)


def canonical(molecule: Molecule) -> Molecule:
    """Returns the molecule with its atoms in canonical order."""
    return Chem.MolFromSmiles(Chem.MolToSmiles(molecule))


def framework(molecule: Molecule) -> str:
    """Returns rings and what links them as SMILES, '' without a ring.

    All bonds are written as single ones, without hydrogen and charges, so that
    tautomers and salts of a molecule are in one split.
    """
    frame = Chem.RWMol()
    for atom in molecule.GetAtoms():
        bare = Chem.Atom(atom.GetAtomicNum())
        bare.SetNoImplicit(True)
        frame.AddAtom(bare)
    for bond in molecule.GetBonds():
        ends = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        frame.AddBond(*ends, Chem.BondType.SINGLE)
    while sides := [a.GetIdx() for a in frame.GetAtoms() if a.GetDegree() < 2]:
        for index in reversed(sides):
            frame.RemoveAtom(index)
    return Chem.MolToSmiles(frame)


def halves(molecule: Molecule) -> list[tuple[tuple[str, str], Molecule]]:
    """Returns both sides of each bond that BRICS cuts (Degen et al. 2008).

    Each comes with its environment and that of the side cut off, and has a dummy atom
    at the cut.
    """
    found = []
    for (a, b), (side, other) in BRICS.FindBRICSBonds(molecule):
        bond = molecule.GetBondBetweenAtoms(a, b)
        if bond.GetBondType() != Chem.BondType.SINGLE:
            continue
        cut = Chem.FragmentOnBonds(molecule, [bond.GetIdx()], dummyLabels=[(1, 1)])
        places: list[tuple[int, ...]] = []
        parts = Chem.GetMolFrags(cut, asMols=True, fragsMolAtomMapping=places)
        if len(parts) != 2:
            continue
        if a in places[1]:
            parts = parts[::-1]
        found += [((side, other), parts[0]), ((other, side), parts[1])]
    return found


def recombine(
    molecules: Sequence[Molecule],
    count: int,
    wanted: Callable[[Molecule], bool],
    generator: np.random.Generator,
) -> list[Molecule]:
    """Returns so many new molecules, each of two halves that fit each other.

    Raises:
      UserError: the molecules do not give so many.
    """
    every = [half for molecule in molecules for half in halves(molecule)]
    by_environment: dict[tuple[str, str], list[Molecule]] = {}
    for environment, half in every:
        by_environment.setdefault(environment, []).append(half)
    label = Chem.MolzipParams()
    label.label = Chem.MolzipLabel.Isotope
    known = {structure(molecule) for molecule in molecules}
    made: list[Molecule] = []
    tries = 0
    while len(made) < count:
        tries += 1
        if tries > MAX_TRIES * count:
            raise UserError(f"{len(molecules)} molecules do not give {count} others")
        (side, other), half = every[generator.integers(len(every))]
        partners = by_environment[(other, side)]
        partner = partners[generator.integers(len(partners))]
        if half.GetNumAtoms() + partner.GetNumAtoms() - 2 not in RECOMBINED_ATOMS:
            continue
        joined = Chem.MolFromSmiles(Chem.MolToSmiles(Chem.molzip(half, partner, label)))
        if joined is None or structure(joined) in known or not wanted(joined):
            continue
        known.add(structure(joined))
        made.append(joined)
    return made


def graph(molecule: Molecule) -> dict[str, np.ndarray]:
    """Returns 'nodes', 'bonds' and 'ends' as at full scale, but all uint8."""
    nodes = [
        (
            atom.GetAtomicNum() - 1,
            _CHIRALITIES.get(str(atom.GetChiralTag()), 3),
            atom.GetTotalDegree(),
            atom.GetFormalCharge() + 5,
            atom.GetTotalNumHs(),
            atom.GetNumRadicalElectrons(),
            _HYBRIDS.get(str(atom.GetHybridization()), 5),
            atom.GetIsAromatic(),
            atom.IsInRing(),
        )
        for atom in molecule.GetAtoms()
    ]
    bonds = [
        (
            _BOND_TYPES.get(str(bond.GetBondType()), 4),
            _STEREO[str(bond.GetStereo())],
            bond.GetIsConjugated(),
        )
        for bond in molecule.GetBonds()
    ]
    ends = [(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in molecule.GetBonds()]
    return {
        "nodes": np.array(nodes, np.uint8),
        "bonds": np.array(bonds, np.uint8).reshape(-1, data.EDGE_FEATURES),
        "ends": np.array(ends, np.uint8).reshape(-1, 2),
    }


def columns(molecules: Sequence[Molecule]) -> dict[str, np.ndarray]:
    """Returns the graphs of all molecules end to end, features first, and sizes."""
    graphs = [graph(molecule) for molecule in molecules]
    sizes = [(len(g["nodes"]), len(g["bonds"])) for g in graphs]
    # An array that lists one feature of all atoms, then the next, compresses better.
    flat = {
        name: np.ascontiguousarray(np.concatenate([g[name] for g in graphs]).T)
        for name in ("nodes", "bonds", "ends")
    }
    return {**flat, "sizes": np.array(sizes, np.uint8)}


def build(lines: Iterable[str], num_train: int) -> dict[str, np.ndarray]:
    """Returns the arrays to embed, molecules of train, validation, test in order."""
    real, barrier = read_molecules(lines)
    frameworks = [framework(molecule) for molecule in real]
    parts = b3db.split(frameworks)
    held_out = {frameworks[i] for n in ("validation", "test") for i in parts[n]}
    generator = np.random.default_rng(SEED)
    training = [real[i] for i in parts["train"]]
    made = recombine(
        training,
        num_train - len(training),
        lambda molecule: framework(molecule) not in held_out,
        generator,
    )
    ordered = [*training, *made]
    ordered += [real[i] for n in ("validation", "test") for i in parts[n]]
    sizes = [num_train, len(parts["validation"]), len(parts["test"])]
    unknown = np.full(len(made), data.MISSING, np.int8)
    held_out_labels = [barrier[parts[n]] for n in ("validation", "test")]
    labels = b3db_tasks.labels(
        ordered,
        np.concatenate([barrier[parts["train"]], unknown, *held_out_labels]),
        np.arange(len(training)),
    )
    rates = np.repeat([LEFT_OUT[name] for name in parts], sizes)
    labels[generator.random(labels.shape) < rates[:, None]] = data.MISSING
    names = [framework(molecule) for molecule in ordered]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return {
        **columns(ordered),
        "labels": labels,
        "frameworks": np.array([numbers[name] for name in names], np.int16),
    }


def main() -> None:
    """Builds, saves, and prints what was written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    table = parser.parse_args().table
    RDLogger.DisableLog("rdApp.*")  # type: ignore[attr-defined]
    arrays = build(table.read_text().splitlines(), b3db.NUM_TRAIN)
    about = {
        "name": "B3DB, molecules and the blood-brain barrier (Meng et al. 2021)",
        "source": "PyPI package qc-b3db 1.1.1, B3DB/B3DB_classification.tsv",
        "licence": "CC0 1.0",
        "rebuild": "python -m workloads.ogbg.make_b3db B3DB_classification.tsv",
        "rdkit": rdBase.rdkitVersion,
        "split": "by Bemis-Murcko framework; training also has recombined molecules",
        "molecules": b3db.SIZES,
        "tasks": b3db_tasks.names(),
    }
    save_embedded(b3db.EMBEDDED, arrays, about)
    written = read_about(b3db.EMBEDDED)
    print(f"{written['bytes']} bytes, SHA-256 {written['sha256']}")


if __name__ == "__main__":
    main()
