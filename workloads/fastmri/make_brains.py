"""Rebuilds the embedded template of the brain.

    python -m workloads.fastmri.make_brains FILE

FILE is `nilearn/datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz` of the
PyPI package nilearn 0.14.1. The same input gives the same bytes.
"""

import argparse
import gzip
import struct
from pathlib import Path

import numpy as np

from algoperf.data.embedded import read_about, save_embedded
from algoperf.errors import UserError
from workloads.fastmri import brains

HEADER_BYTES = 348
UINT8 = 2  # the format's number of the type
# Published with the template; it has to stay with it.
NOTICE = (
    "Copyright (C) 1993-2004 Louis Collins, McConnell Brain Imaging Centre, "
    "Montreal Neurological Institute, McGill University. Permission to use, copy, "
    "modify, and distribute this software and its documentation for any purpose and"
    " without fee is hereby granted, provided that the above copyright notice "
    "appear in all copies. The authors and McGill University make no "
    "representations about the suitability of this software for any purpose. It is "
    'provided "as is" without express or implied warranty. The authors are not '
    "responsible for any data loss, equipment damage, property loss, or injury to "
    "subjects or patients resulting from the use or misuse of this software "
    "package."
)


def read_nifti(path: Path) -> np.ndarray:
    """Reads a volume of bytes in the format NIfTI-1, compressed: (x, y, z) uint8.

    Raises:
      UserError: the file is of another kind.
    """
    content = gzip.decompress(path.read_bytes())
    (length,) = struct.unpack_from("<i", content)
    axes, *shape = struct.unpack_from("<4h", content, 40)
    (kind,) = struct.unpack_from("<h", content, 70)
    (offset,) = struct.unpack_from("<f", content, 108)
    if (length, axes, kind) != (HEADER_BYTES, 3, UINT8):
        raise UserError(f"{path} is no NIfTI-1 volume of bytes")
    count = int(np.prod(shape))
    values = np.frombuffer(content, np.uint8, count, int(offset))
    return values.reshape(shape, order="F")


def half_brain(volume: np.ndarray) -> np.ndarray:
    """Cuts off what is empty around the brain and beyond its plane of symmetry.

    Returns:
      (x, y, z) uint8; the last x is the plane of symmetry.

    Raises:
      UserError: the halves differ.
    """
    axes = range(volume.ndim)
    filled = [
        np.flatnonzero(volume.any(tuple(i for i in axes if i != axis))) for axis in axes
    ]
    brain = volume[tuple(slice(i[0], i[-1] + 1) for i in filled)]
    if len(brain) % 2 == 0 or not np.array_equal(brain, brain[::-1]):
        raise UserError("the halves of the brain are not mirror images")
    return np.ascontiguousarray(brain[: len(brain) // 2 + 1])


def main() -> None:
    """Builds, saves, and prints what was written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    half = half_brain(read_nifti(parser.parse_args().file))
    file = "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
    about = {
        "name": "MNI ICBM-152 2009a, nonlinear symmetric: T1 template of the brain",
        "source": f"PyPI package nilearn 0.14.1, nilearn/datasets/data/{file}",
        "origin": "http://www.bic.mni.mcgill.ca/ServicesAtlases/ICBM152NLin2009",
        "licence": NOTICE,
        "changes": "empty borders and one of two mirror-symmetric halves are left out",
        "rebuild": f"python -m workloads.fastmri.make_brains {file}",
        "split": (
            f"by plane along each axis: of {brains.PERIOD} mm the planes "
            + ", ".join(
                f"{first} to {stop - 1} are {split}"
                for split, (first, stop) in brains.BLOCKS.items()
            )
            + "; planes along different axes cross, of whatever splits"
        ),
    }
    brains.EMBEDDED.parent.mkdir(exist_ok=True)
    save_embedded(brains.EMBEDDED, {"half": half}, about)
    written = read_about(brains.EMBEDDED)
    print(f"{written['bytes']} bytes, SHA-256 {written['sha256']}; {written['shapes']}")


if __name__ == "__main__":
    main()
