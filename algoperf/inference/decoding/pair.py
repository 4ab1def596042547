"""A trained pair of language models, target and draft, to measure strategies with.

Strategies are worth what the two models agree on, so random weights show nothing. The
pair is trained on a language-model workload for some hundred steps; then each draft
gets a head that foresees acceptance, and a second draft is distilled from the target.
What is made is saved, so that an interrupted study goes on where it was.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from algoperf.errors import UserError
from algoperf.inference.decoding import acceptance_head, distill, fitting
from algoperf.inference.decoding.acceptance_head import Head
from algoperf.inference.decoding.keep import Keep, Say, fingerprint
from algoperf.inference.models import decoder
from algoperf.inference.models.decoder import Model
from algoperf.inference.models.shapes import DecoderShape


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
    keep = Keep(folder, say)
    keep.check_is_of(
        {
            "target": dataclasses.asdict(target),
            "draft": dataclasses.asdict(draft),
            "settings": dataclasses.asdict(settings),
            "given": None if target_params is None else fingerprint(target_params),
            "prompt": text.prompts.shape[1],
        }
    )
    large, small = two_models(target, draft, text, settings, keep, target_params)
    drafts = {"draft": small}
    drafts["distilled"] = Model(
        draft,
        keep.stage("distilled", lambda: _distilled(large, small, text, settings)),
    )
    heads = {
        name: keep.stage(
            f"{name}_head", functools.partial(_head, large, model, text, settings)
        )
        for name, model in drafts.items()
    }
    return Pair(large, drafts, heads, facts(large, drafts, text))


def two_models(
    target: DecoderShape,
    draft: DecoderShape,
    text: Text,
    settings: PairSettings,
    keep: Keep,
    target_params: decoder.Params | None = None,
) -> tuple[Model, Model]:
    """Returns the target and a draft, each trained on the text alone, or kept.

    Args:
      target: its shape.
      draft: its shape.
      text: of a workload.
      settings: the steps and the learning rate.
      keep: where they are kept.
      target_params: a trained target; None trains one.
    """

    def trained(shape: DecoderShape, seed: int) -> decoder.Params:
        fresh = Model(shape, decoder.init_params(shape, jax.random.key(seed)))
        model, _ = fitting.train_decoder(
            fresh, text.batch_at, settings.train_steps, settings.learning_rate
        )
        return model.params

    if target_params is None:
        target_params = keep.stage("target", lambda: trained(target, 0))
    return (
        Model(target, target_params),
        Model(draft, keep.stage("draft", lambda: trained(draft, 1))),
    )


def _distilled(
    target: Model, draft: Model, text: Text, settings: PairSettings
) -> decoder.Params:
    prompt, key = text.prompts.shape[1], jax.random.key(2)
    model, _ = distill.distil(
        target, draft, text.batch_at, prompt, settings.distil, key
    )
    return model.params


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
