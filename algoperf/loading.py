"""Submissions loaded from a path."""

import dataclasses
import hashlib
import inspect
import json
import os
import re
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from algoperf import compatibility, pmap_layout, spec
from algoperf.errors import UserError
from algoperf.submission import SubmissionFunctions, from_optax, self_tuned_point
from algoperf.tuning import as_namedtuple


@dataclasses.dataclass(frozen=True)
class Submission:
    """A loaded submission: its functions and where they come from."""

    name: str
    path: Path
    sha256: str  # of the source file; of all that ran as it was loaded, if several did
    functions: SubmissionFunctions
    wants_train_state: bool  # update_params names the argument `train_state`

    @property
    def default_search_space(self) -> Path:
        """Where the search space is unless a flag says otherwise."""
        return self.path.with_name("tuning_search_space.json")

    @property
    def is_from_optax(self) -> bool:
        """Whether its step is that of `from_optax`, which can take microbatches."""
        return self.functions.update_params.__module__ == from_optax.__module__

    def point(self, hyperparameters: Mapping[str, Any] | None) -> Any:
        """Returns hyperparameters as submissions read them.

        Under the self-tuning ruleset, where they are None, those of `from_optax`; None
        for other submissions, which keep their own to themselves.
        """
        if hyperparameters is None:
            return self_tuned_point(self.functions)
        return as_namedtuple(hyperparameters)


def load_submission(path: Path) -> Submission:
    """Imports a submission from its file, or from the folder that holds it.

    Raises:
      UserError: no such file, an error while importing it, or a missing function.
    """
    path = path.resolve()
    if path.is_dir():
        path = path / "submission.py"
    name = path.parent.name if path.stem == "submission" else path.stem
    try:
        path.read_bytes()
    except OSError as error:
        raise UserError(f"no submission at {path}: {error.strerror}") from error
    loaded = _load(path, name)
    module = loaded.module
    missing = [
        function
        for function in SubmissionFunctions._fields
        if function != "prepare_for_eval"
        and not callable(getattr(module, function, None))
    ]
    if missing:
        raise UserError(
            f"submission {path} does not define {', '.join(missing)}; "
            "see algoperf/spec.py, or start from `algoperf new NAME`"
        )
    for function in SubmissionFunctions._fields:
        given = getattr(getattr(module, function, None), "__name__", function)
        if given != function and given in SubmissionFunctions._fields:
            raise UserError(
                f"submission {path}: {function} is another function, {given}; the five "
                f"come in the order {', '.join(SubmissionFunctions._fields)}"
            )
    functions = SubmissionFunctions(
        get_batch_size=module.get_batch_size,
        init_optimizer_state=module.init_optimizer_state,
        update_params=module.update_params,
        prepare_for_eval=getattr(module, "prepare_for_eval", _unchanged),
        data_selection=module.data_selection,
    )
    update_arguments = inspect.signature(functions.update_params).parameters
    if loaded.uses_pmap:
        functions = pmap_layout.with_device_axis(functions)
    return Submission(
        name=name,
        path=path,
        sha256=_sha256(path, loaded.files),
        functions=functions,
        wants_train_state="train_state" in update_arguments,
    )


def _load(path: Path, name: str) -> compatibility.Loaded:
    module_name = f"algoperf_submission_{re.sub(r'[^0-9A-Za-z_]', '_', name)}"
    try:
        return compatibility.load(path, module_name)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if Path(frame.filename) == path]
        where = f", line {own[-1].lineno}" if own else ""
        text = f"{type(error).__name__}: {error}"
        raise UserError(
            f"submission {path}{where} cannot be imported: {text}"
        ) from error


def _sha256(path: Path, files: Iterable[Path]) -> str:
    """Returns the hash of a submission's file; of all its files, if it has several.

    Then names count too, relative to the first file's folder.
    """
    contents = {os.path.relpath(f, path.parent): f.read_bytes() for f in files}
    if len(contents) == 1:
        return hashlib.sha256(*contents.values()).hexdigest()
    hashes = [
        (name, hashlib.sha256(content).hexdigest())
        for name, content in sorted(contents.items())
    ]
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()


def _unchanged(
    *, optimizer_state, current_param_container, model_state, **_: Any
) -> spec.UpdateReturn:
    """The prepare_for_eval of a submission that has none."""
    return optimizer_state, current_param_container, model_state
