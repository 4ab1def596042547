"""A trained pair of language models, target and draft, to measure strategies with.

Strategies are worth what the two models agree on, so random weights show nothing. The
pair is trained on a language-model workload for some hundred steps; then each draft
gets a head that foresees acceptance, and a second draft is distilled from the target.
What is made is saved, so that an interrupted study goes on where it was.
"""

import dataclasses
import functools
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
from algoperf.inference import acceptance_head, decoder, distill, fitting
from algoperf.inference.acceptance_head import Head
from algoperf.inference.decoder import Model
from algoperf.inference.shapes import DecoderShape

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Text:
    """What the pair learns from and is asked.

    Attributes:
      batch_at: from the step to training text (B, T), int32.
      prompts: (N, P), int32, not trained on.
      held_out: (M, T), int32, not trained on.
    """

    batch_at: Callable[[int], np.ndarray]
    prompts: np.ndarray
    held_out: np.ndarray


@dataclasses.dataclass(frozen=True)
class PairSettings:
    """How the pair is made.

    Attributes:
      train_steps: of target and draft, each.
      learning_rate: of both, the highest.
      head: of the heads.
      head_texts: that the target writes for them.
      distil: of the distilled draft.
    """

    train_steps: int = 1000
    learning_rate: float = 3e-3
    head: acceptance_head.Settings = acceptance_head.Settings()  # noqa: RUF009, frozen
    head_texts: int = 256
    distil: distill.Settings = distill.Settings()  # noqa: RUF009, frozen


@dataclasses.dataclass(frozen=True)
class Pair:
    """A target and its drafts by name, each with its head.

    Attributes:
      target: the model whose tokens are wanted.
      drafts: 'draft' and 'distilled'.
      heads: of each draft.
      facts: what training gave, by name: held-out losses, acceptances.
    """

    target: Model
    drafts: dict[str, Model]
    heads: dict[str, Head]
    facts: dict[str, float]


def draft_shape(target: DecoderShape, num_layers: int, width: int) -> DecoderShape:
    """Returns a smaller shape of the same architecture; heads stay as wide.

    Raises:
      UserError: the width is no multiple of the target's heads.
    """
    if width < 1 or width % target.head_width or num_layers < 1:
        raise UserError(
            f"a draft of {num_layers} layers and width {width}: it needs a layer, and "
            f"a width that is a multiple of {target.name}'s heads, {target.head_width}"
        )
    heads = width // target.head_width
    return dataclasses.replace(
        target,
        name=f"{target.name}_draft",
        num_layers=num_layers,
        width=width,
        num_heads=heads,
        num_kv_heads=None if target.num_kv_heads is None else heads,
        mlp_width=max(1, target.mlp_width * width // target.width),
    )


def make(
    target: DecoderShape,
    draft: DecoderShape,
    text: Text,
    settings: PairSettings,
    folder: Path,
    say: Say,
    target_params: decoder.Params | None = None,
) -> Pair:
    """Returns the pair, trained or read from the folder.

    Args:
      target: its shape.
      draft: its shape.
      text: of a workload.
      settings: of training; another pair in the folder is an error.
      folder: where what is made is kept; exists.
      say: told of every stage.
      target_params: a trained target; None trains one.

    Raises:
      UserError: the folder holds another pair.
    """
    keep = _Keep(folder, say)
    keep.check_is_of(
        {
            "target": dataclasses.asdict(target),
            "draft": dataclasses.asdict(draft),
            "settings": dataclasses.asdict(settings),
            "target is given": target_params is not None,
        }
    )
    prompt = text.prompts.shape[1]

    def trained(shape: DecoderShape, seed: int) -> Callable[[], decoder.Params]:
        fresh = Model(shape, decoder.init_params(shape, jax.random.key(seed)))
        return lambda: (
            fitting.train_decoder(
                fresh, text.batch_at, settings.train_steps, settings.learning_rate
            )[0].params
        )

    if target_params is None:
        target_params = keep.stage("target", trained(target, 0))
    large = Model(target, target_params)
    drafts = {"draft": Model(draft, keep.stage("draft", trained(draft, 1)))}
    drafts["distilled"] = Model(
        draft,
        keep.stage(
            "distilled",
            lambda: (
                distill.distil(
                    large,
                    drafts["draft"],
                    text.batch_at,
                    prompt,
                    settings.distil,
                    jax.random.key(2),
                )[0].params
            ),
        ),
    )
    heads = {
        name: keep.stage(
            f"{name}_head", functools.partial(_head, large, small, text, settings)
        )
        for name, small in drafts.items()
    }
    return Pair(large, drafts, heads, facts(large, drafts, text))


def _head(target: Model, draft: Model, text: Text, settings: PairSettings) -> Head:
    """Trains a head on what the target writes after training prompts."""
    prompt = text.prompts.shape[1]
    batches: list[np.ndarray] = []
    while sum(len(batch) for batch in batches) < settings.head_texts:
        given_BT = jnp.asarray(text.batch_at(len(batches)), jnp.int32)
        written_BT = fitting.sample(
            *target,
            given_BT[:, :prompt],
            given_BT.shape[1] - prompt,
            settings.head.temperature,
            jax.random.fold_in(jax.random.key(3), len(batches)),
        )
        batches.append(np.asarray(written_BT))
    texts = np.concatenate(batches)[: settings.head_texts]
    return acceptance_head.train(
        target, draft, texts, prompt, settings.head, jax.random.key(4)
    )[0]


def facts(target: Model, drafts: dict[str, Model], text: Text) -> dict[str, float]:
    """Returns held-out losses in nats per token, and 1 - TVD of each draft.

    The latter is the mean acceptance of sampled guesses (temperature 1) on held-out
    text; greedy, a guess is accepted where the likeliest tokens agree.
    """
    held_out = jnp.asarray(text.held_out, jnp.int32)
    loss = jax.jit(fitting.next_token_loss, static_argnums=0)
    found = {"target_loss": float(loss(*target, held_out))}
    p_BTV = decoder.compiled_forward(*target, held_out[:, :-1])
    for name, draft in drafts.items():
        q_BTV = decoder.compiled_forward(*draft, held_out[:, :-1])
        apart = distill.divergence("total_variation", p_BTV, q_BTV)
        agree = jnp.argmax(p_BTV, axis=-1) == jnp.argmax(q_BTV, axis=-1)
        found[f"{name}_loss"] = float(loss(*draft, held_out))
        found[f"{name}_overlap"] = float(1 - jnp.mean(apart))
        found[f"{name}_agreement"] = float(jnp.mean(agree))
    return found


class _Keep:
    """Trees of arrays in a folder, one file for each stage."""

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
