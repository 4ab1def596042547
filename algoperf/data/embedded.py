"""Small real data sets that ship with the package, so nothing is downloaded.

A set is one `.npz` inside an `.xz`, with a `.json` of the same name that says source,
licence, SHA-256 and how it was split.
"""

import hashlib
import io
import json
import lzma
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from algoperf.errors import UserError


def save_embedded(
    path: Path, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]
) -> None:
    """Writes `<path>.npz.xz` and `<path>.json`; `about` needs source and licence."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    packed = lzma.compress(buffer.getvalue(), preset=9 | lzma.PRESET_EXTREME)
    _packed(path).write_bytes(packed)
    digest = hashlib.sha256(packed).hexdigest()
    shapes = {name: list(array.shape) for name, array in arrays.items()}
    facts = {**about, "sha256": digest, "bytes": len(packed), "shapes": shapes}
    path.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n")


def load_embedded(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of `<path>.npz.xz` after checking its SHA-256.

    Raises:
      UserError: the file is missing or is not the one that targets were set on.
    """
    about = read_about(path)
    try:
        packed = _packed(path).read_bytes()
    except OSError as error:
        raise UserError(
            f"{_packed(path)} cannot be read ({error.strerror}); reinstall algoperf"
        ) from error
    digest = hashlib.sha256(packed).hexdigest()
    if digest != about["sha256"]:
        raise UserError(
            f"{_packed(path)} has changed (SHA-256 {digest[:12]}..., expected "
            f"{about['sha256'][:12]}...); reinstall algoperf"
        )
    with np.load(io.BytesIO(lzma.decompress(packed)), allow_pickle=False) as arrays:
        return dict(arrays)


def read_about(path: Path) -> dict[str, Any]:
    """Reads what `<path>.json` says of the set: source, licence, split, SHA-256."""
    try:
        return json.loads(path.with_suffix(".json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path.with_suffix('.json')} cannot be read ({error}); reinstall algoperf"
        ) from error


def _packed(path: Path) -> Path:
    return path.with_suffix(".npz.xz")
