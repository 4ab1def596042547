"""Save and restore a trial's state; fall back when the newest copy is broken.

A state is any pytree. Its arrays and numbers are saved with Orbax, in
`checkpoint_<step>/`, which appears whole or not at all; functions and other leaves
(an optimizer's `update_fn`) are taken from the fresh state on restore.
"""

import errno
import logging as python_logging
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from algoperf import sharding
from algoperf.errors import UserError
from algoperf.hosts import Hosts, is_exchange
from algoperf.records import CHECKPOINT_PREFIX

KEEP = 2  # the newest, and the one to fall back on
# What must be free, in bytes: the arrays, what Orbax writes about them, a margin.
SPACE_FACTOR = 1.2
SPACE_EXTRA = 2**20


class Checkpoints:
    """The checkpoints of one trial folder, which several hosts may write together."""

    def __init__(self, folder: Path, hosts: Hosts | None = None):
        self._hosts = hosts or Hosts()
        python_logging.getLogger("absl").addFilter(_is_ours)
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=KEEP,
                step_prefix=CHECKPOINT_PREFIX,
                enable_async_checkpointing=False,
                create=True,
            ),
        )

    def save(self, step: int, state: Any, facts: dict[str, Any]) -> None:
        """Saves a state and JSON facts under a step number, replacing it if there.

        Raises:
          UserError: nothing could be written; those of other steps are unharmed.
        """
        leaves = _saved_leaves(state)
        kinds = {path: _kind(leaf) for path, leaf in leaves.items()}
        arrays = {str(i): _to_array(leaf) for i, leaf in enumerate(leaves.values())}
        # One host asks for all: it sees no part that another has begun to write.
        self._hosts.call(
            lambda: self._check_space(sum(array.nbytes for array in arrays.values()))
        )
        try:
            if step in self._manager.all_steps():
                self._manager.delete(step)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    arrays=ocp.args.StandardSave(arrays),
                    facts=ocp.args.JsonSave({"facts": facts, "kinds": kinds}),
                ),
            )
        except Exception as error:  # Orbax passes on what its storage layers raise
            if is_exchange(error):  # another host knows why
                raise
            full = os.strerror(errno.ENOSPC)  # which a storage layer may say far down
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            reason = full if full in str(error) else reason
            raise UserError(
                f"cannot save a checkpoint in {self._manager.directory} ({reason}); "
                "mend that, then go on with --resume"
            ) from error

    def _check_space(self, needed: int) -> None:
        """Raises before a write that would fail half-way."""
        free = shutil.disk_usage(self._manager.directory).free
        if free < SPACE_FACTOR * needed + SPACE_EXTRA:
            raise UserError(
                f"no space for a checkpoint of {needed / 2**20:.1f} MiB in "
                f"{self._manager.directory}, {free / 2**20:.1f} MiB are free; make "
                "room, then go on with --resume"
            )

    def restore(self, fresh: Any) -> tuple[Any, dict[str, Any]] | None:
        """Returns the newest readable (state, facts); None where there is none.

        Args:
          fresh: a newly initialised state: structure, placement and functions.

        Raises:
          UserError: there are checkpoints, but none fits or can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for age, step in enumerate(steps):
            try:
                restored = self._restore_step(step, fresh)
            except UserError:
                raise
            except Exception as error:  # whatever a broken file makes Orbax raise
                if is_exchange(error):  # another host went on to an older one, or away
                    raise
                reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                logging.warning(
                    "checkpoint %d cannot be read (%s); trying the one before",
                    step,
                    reason,
                )
            else:
                for broken in steps[:age]:  # or newer steps could not be saved
                    self._manager.delete(broken)
                return restored
        if steps:
            raise UserError(
                f"none of the checkpoints in {self._manager.directory} can be read; "
                "delete the folder to start the trial again"
            )
        return None

    def _restore_step(self, step: int, fresh: Any) -> tuple[Any, dict[str, Any]]:
        about = self._manager.restore(
            step, args=ocp.args.Composite(facts=ocp.args.JsonRestore())
        )["facts"]
        leaves = _saved_leaves(fresh)
        kinds = about["kinds"]
        if list(kinds) != list(leaves):
            changed = sorted(set(kinds) ^ set(leaves)) or ["their order"]
            raise UserError(
                "cannot resume: the saved state and a fresh one differ in "
                f"{changed[0]}; an optimizer state must keep the structure that "
                "init_optimizer_state gives it"
            )
        wanted = {
            str(i): _abstract(kinds[path], leaf)
            for i, (path, leaf) in enumerate(leaves.items())
        }
        arrays = self._manager.restore(
            step, args=ocp.args.Composite(arrays=ocp.args.StandardRestore(wanted))
        )["arrays"]
        restored = {
            path: _from_array(kinds[path], arrays[str(i)])
            for i, path in enumerate(leaves)
        }
        state = jax.tree_util.tree_map_with_path(
            lambda path, leaf: restored.get(jax.tree_util.keystr(path), leaf), fresh
        )
        return state, about["facts"]

    def close(self) -> None:
        """Releases what Orbax holds."""
        self._manager.close()


def read_part(folder: Path, part: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads a part of the newest readable checkpoint of a trial, without its state.

    For whoever uses what a trial has trained; nothing in the folder is changed.

    Args:
      folder: of the trial.
      part: the first name of the leaves' paths, 'params' or 'optimizer_state'.

    Returns:
      the arrays by their paths in the part, such as "['embed']['embedding']", on the
      host; and the facts that were saved with them.

    Raises:
      UserError: there is no checkpoint, or none can be read.
    """
    python_logging.getLogger("absl").addFilter(_is_ours)
    options = ocp.CheckpointManagerOptions(
        step_prefix=CHECKPOINT_PREFIX, create=False, read_only=True
    )
    reason = "it has none"
    if folder.is_dir():
        with ocp.CheckpointManager(folder.absolute(), options=options) as manager:
            for step in sorted(manager.all_steps(), reverse=True):
                try:
                    return _read_step(manager, step, f".{part}")
                except Exception as error:  # as in `Checkpoints.restore`
                    reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    raise UserError(
        f"no checkpoint in {folder} can be read ({reason}); train again with "
        "--checkpoint_period_sec 0, which saves one after every evaluation"
    )


def _read_step(
    manager: ocp.CheckpointManager, step: int, prefix: str
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    about = manager.restore(
        step, args=ocp.args.Composite(facts=ocp.args.JsonRestore())
    )["facts"]
    # Arrays of the host, whatever devices they were saved from. Zeros take no memory
    # before they are written to.
    wanted = {
        str(i): np.zeros(kind["shape"], jnp.dtype(kind["dtype"]))
        for i, kind in enumerate(about["kinds"].values())
    }
    arrays = manager.restore(
        step, args=ocp.args.Composite(arrays=ocp.args.StandardRestore(wanted))
    )["arrays"]
    found = {
        path.removeprefix(prefix): np.asarray(arrays[str(i)])
        for i, path in enumerate(about["kinds"])
        if path.startswith(f"{prefix}[")
    }
    return found, about["facts"]


def _is_ours(record: python_logging.LogRecord) -> bool:
    """Keeps Orbax's own chatter out of a run's log; what it raises is passed on."""
    return "orbax" not in record.pathname


def _saved_leaves(state: Any) -> dict[str, Any]:
    """Returns path -> leaf for the leaves that can be saved, sorted by path."""
    leaves = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float)
    }
    return dict(sorted(leaves.items()))


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    )


def _to_array(leaf: Any) -> Any:
    if _is_key(leaf):
        return jax.random.key_data(leaf)
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)


def _kind(leaf: Any) -> dict[str, Any]:
    """What a leaf was, beside the numbers that stand for it on disk."""
    array = _to_array(leaf)
    about = {"shape": list(array.shape), "dtype": str(array.dtype)}
    if _is_key(leaf):
        return {**about, "kind": "key", "impl": str(jax.random.key_impl(leaf))}
    if isinstance(leaf, bool | int | float):
        return {**about, "kind": type(leaf).__name__}
    return {**about, "kind": "jax" if isinstance(leaf, jax.Array) else "numpy"}


def _abstract(kind: dict[str, Any], fresh: Any) -> Any:
    """What Orbax needs to know to restore a leaf to its place."""
    shape, dtype = tuple(kind["shape"]), jnp.dtype(kind["dtype"])
    if kind["kind"] != "jax":
        return np.zeros(shape, dtype)
    place = getattr(fresh, "sharding", None)
    if not isinstance(place, jax.sharding.NamedSharding):
        place = sharding.get_replicate_sharding()
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)


def _from_array(kind: dict[str, Any], array: Any) -> Any:
    python = {"bool": bool, "int": int, "float": float}.get(kind["kind"])
    if python is not None:
        return python(np.asarray(array).item())
    if kind["kind"] == "key":
        return jax.random.wrap_key_data(jnp.asarray(array), impl=kind["impl"])
    return array
