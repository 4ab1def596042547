"""What is asked of each molecule of the mini scale; needs rdkit, to rebuild only.

Like the assays of ogbg-molpcba, most tasks have few positives, and most depend on more
than the neighbours of an atom: rings, distances between groups, partial charges, how
the whole molecule is branched. Values of descriptors become tasks as 'among the highest
8 %' and as 'in the middle tenth', which a threshold on one sum does not tell.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from rdkit import Chem
from rdkit.Chem import Descriptors, rdMolDescriptors
from rdkit.Chem import Mol as Molecule

HIGH = (0.92, 1.0)  # quantiles
MIDDLE = (0.45, 0.55)
DESCRIPTORS = (
    *("MolLogP", "TPSA", "MolMR", "BertzCT", "Kappa3", "qed"),
    *("MaxPartialCharge", "MinPartialCharge", "MaxEStateIndex", "MinEStateIndex"),
    *("BCUT2D_MRHI", "BCUT2D_LOGPLOW"),
)
GROUPS = {
    "nitrogen": "[#7]",
    "oxygen": "[#8]",
    "sulphur": "[#16]",
    "halogen": "[F,Cl,Br,I]",
    "hydroxyl": "[OX2H]",
    "carbonyl": "[CX3]=[OX1]",
    "amine": "[NX3;H0,H1,H2;!$(N-[C,S]=[O,S,N]);!$(N-a)]",
    "aromatic nitrogen": "n",
}
# The two nearest atoms of these groups are so many bonds apart.
DISTANCES = (
    *(("nitrogen", "oxygen", bonds) for bonds in (3, 4, 5)),
    *(("halogen", "nitrogen", bonds) for bonds in (4, 5, 6)),
    *(("halogen", "oxygen", bonds) for bonds in (5, 6)),
    *(("aromatic nitrogen", "oxygen", bonds) for bonds in (3, 4)),
    *(("hydroxyl", "nitrogen", bonds) for bonds in (4, 5)),
    ("hydroxyl", "amine", 3),
    ("carbonyl", "amine", 4),
    ("amine", "oxygen", 5),
    ("sulphur", "oxygen", 4),
)
FRAGMENTS = (
    *("fr_piperdine", "fr_piperzine", "fr_imidazole", "fr_sulfonamd", "fr_ester"),
    *("fr_aniline", "fr_para_hydroxylation", "fr_ketone_Topliss"),
    *("fr_allylic_oxid", "fr_Ndealkylation2", "fr_urea"),
)


def _ring_systems(molecule: Molecule) -> list[int]:
    """Returns how many rings each system of rings has that share atoms."""
    systems: list[tuple[set[int], int]] = []
    for ring in molecule.GetRingInfo().AtomRings():
        atoms, count, apart = set(ring), 1, []
        for other, size in systems:
            if atoms & other:
                atoms, count = atoms | other, count + size
            else:
                apart.append((other, size))
        systems = [*apart, (atoms, count)]
    return [size for _, size in systems]


def _rings_of(molecule: Molecule, *sizes: int) -> int:
    return sum(len(r) in sizes for r in molecule.GetRingInfo().AtomRings())


RINGS: Mapping[str, Callable[[Molecule], bool]] = {
    "two rings": lambda m: m.GetRingInfo().NumRings() == 2,
    "five rings": lambda m: m.GetRingInfo().NumRings() == 5,
    "three aromatic rings": lambda m: rdMolDescriptors.CalcNumAromaticRings(m) == 3,
    "two saturated rings": lambda m: rdMolDescriptors.CalcNumSaturatedRings(m) == 2,
    "ring of seven or more": lambda m: any(
        len(ring) > 6 for ring in m.GetRingInfo().AtomRings()
    ),
    "ring of three or four": lambda m: _rings_of(m, 3, 4) > 0,
    "two rings of five": lambda m: _rings_of(m, 5) == 2,
    "spiro atom": lambda m: rdMolDescriptors.CalcNumSpiroAtoms(m) > 0,
    "bridgehead atom": lambda m: rdMolDescriptors.CalcNumBridgeheadAtoms(m) > 0,
    "three rings in one system": lambda m: 3 in _ring_systems(m),
    "four or more rings in one system": lambda m: max(_ring_systems(m), default=0) > 3,
    "three systems of rings": lambda m: len(_ring_systems(m)) == 3,
}
_PATTERNS = {name: Chem.MolFromSmarts(smarts) for name, smarts in GROUPS.items()}


def _nearest(molecule: Molecule, one: str, other: str) -> float:
    """Returns the bonds between the nearest atoms of two groups, infinity if none."""
    here, there = (
        [match[0] for match in molecule.GetSubstructMatches(_PATTERNS[name])]
        for name in (one, other)
    )
    if not here or not there:
        return float("inf")
    return Chem.GetDistanceMatrix(molecule)[np.ix_(here, there)].min()


def names() -> list[str]:
    """Returns the tasks in the order of the columns of `labels`."""
    return [
        "does not pass the blood-brain barrier",
        *(f"{name} high" for name in DESCRIPTORS),
        *(f"{name} middling" for name in DESCRIPTORS),
        *(f"{one} and {other} {d} bonds apart" for one, other, d in DISTANCES),
        *RINGS,
        *FRAGMENTS,
    ]


def labels(
    molecules: Sequence[Molecule], barrier: np.ndarray, reference: np.ndarray
) -> np.ndarray:
    """Returns (molecules, tasks) int8.

    Args:
      molecules: as read from SMILES.
      barrier: (molecules,) int8, the measured column.
      reference: indices of the molecules that quantiles are taken over.
    """
    functions = dict(Descriptors.descList)
    values = np.array(
        [[functions[name](m) for name in DESCRIPTORS] for m in molecules], np.float64
    )
    bands = []
    for low, high in (HIGH, MIDDLE):
        first, last = np.nanquantile(values[reference], (low, high), axis=0)
        bands.append((values >= first) & ((values < last) | (high == 1.0)))
    rest = [
        [
            *(_nearest(m, one, other) == d for one, other, d in DISTANCES),
            *(has(m) for has in RINGS.values()),
            *(functions[name](m) > 0 for name in FRAGMENTS),
        ]
        for m in molecules
    ]
    return np.concatenate([barrier[:, None], *bands, rest], axis=1).astype(np.int8)
