"""What a long work has made so far, in a folder, so that it goes on where it was."""

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from algoperf import records
from algoperf.errors import UserError

Say = Callable[[str], None]


class Keep:
    """Trees of arrays in a folder, one file for each stage of a longer work."""

    def __init__(self, folder: Path, say: Say):
        self._folder, self._say = folder, say

    def check_is_of(self, what: dict[str, Any]) -> None:
        """Raises UserError where the folder holds the stages of something else."""
        file = self._folder / "pair.json"
        wanted = json.loads(json.dumps(what))
        if file.is_file():
            if json.loads(file.read_text()) != wanted:
                raise UserError(
                    f"{self._folder} holds a pair of other settings; take another "
                    "--out, or delete it"
                )
            return
        records.write_json(file, wanted)

    def stage(self, name: str, make: Callable[[], Any]) -> Any:
        """Returns what was saved under a name, else makes and saves it."""
        file = self._folder / f"{name}.npz"
        if file.is_file():
            return load_tree(file)
        self._say(f"training: {name}")
        tree = make()
        save_tree(file, tree)
        return tree


def fingerprint(tree: Any) -> str:
    """Returns what tells one tree of arrays from another."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def save_tree(file: Path, tree: Any) -> None:
    """Writes a tree of dicts, lists and arrays as one npz file, whole."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    named: dict[str, Any] = {
        "/".join(str(getattr(p, "key", getattr(p, "idx", p))) for p in path): leaf
        for path, leaf in leaves
    }
    buffer = io.BytesIO()
    np.savez(buffer, **named)
    records.write_bytes(file, buffer.getvalue())


def load_tree(file: Path) -> Any:
    """Returns what `save_tree` wrote; a dict with keys 0, 1, ... is a list.

    Raises:
      UserError: the file cannot be read.
    """
    try:
        with np.load(file, allow_pickle=False) as stored:
            named = {name: jnp.asarray(stored[name]) for name in stored.files}
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}); delete it") from error
    tree: dict[str, Any] = {}
    for name, leaf in named.items():
        *branches, last = name.split("/")
        at = tree
        for branch in branches:
            at = at.setdefault(branch, {})
        at[last] = leaf
    return _with_lists(tree)


def _with_lists(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    inner = {key: _with_lists(branch) for key, branch in tree.items()}
    if inner and all(key.isdigit() for key in inner):
        return [inner[str(i)] for i in range(len(inner))]
    return inner
