"""A pair of models: shapes, files, and stages that are made once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoders import TRAINED, drawn_params

from algoperf.errors import UserError
from algoperf.inference.decoding import acceptance_head, distill, fitting, keep, pair
from algoperf.inference.decoding.pair import PairSettings
from algoperf.inference.models import decoder
from algoperf.inference.models.shapes import param_shapes

SETTINGS = PairSettings(
    head=acceptance_head.Settings(blocks=1, temperature=0.0), head_texts=8
)


def _rows(seed, batch=8):
    """Text that can be learned: each token follows from the one before."""
    starts = np.random.default_rng(seed).integers(37, size=(batch, 1))
    return ((starts + 5 * np.arange(33)) % 37).astype(np.int32)


TEXT = pair.Text(_rows, _rows(10_000, 2)[:, :6], _rows(10_001, 4))


def test_a_draft_is_a_smaller_target():
    draft = pair.draft_shape(TRAINED, 1, 16)
    assert (draft.num_layers, draft.width, draft.num_heads) == (1, 16, 2)
    assert draft.head_width == TRAINED.head_width
    assert draft.mlp_width == 40 * 16 // 24
    assert draft.vocab_size == TRAINED.vocab_size
    assert draft.num_parameters < TRAINED.num_parameters / 2
    for layers, width in ((1, 12), (0, 8), (1, 0)):
        with pytest.raises(UserError, match="multiple"):
            pair.draft_shape(TRAINED, layers, width)


def test_trees_come_back_as_they_were(tmp_path):
    tree = drawn_params(TRAINED)
    keep.save_tree(tmp_path / "a.npz", tree)
    found = keep.load_tree(tmp_path / "a.npz")
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    jax.tree.map(np.testing.assert_array_equal, found, tree)
    shapes = jax.tree.map(jnp.shape, found)
    assert shapes == param_shapes(TRAINED)
    (tmp_path / "b.npz").write_text("no archive")
    with pytest.raises(UserError, match="delete it"):
        keep.load_tree(tmp_path / "b.npz")


def _fakes(monkeypatch):
    """Training that leaves models as they began, and keeps count."""
    calls = []

    def train_decoder(model, batch_at, num_steps, learning_rate):
        calls.append((model.shape.num_layers, num_steps))
        return model, np.zeros(num_steps)

    def distil(target, draft, batch_at, prompt, settings, key):
        calls.append(("distil", prompt))
        double = jax.tree.map(lambda leaf: 2 * leaf, draft.params)
        return decoder.Model(draft.shape, double), np.zeros(1)

    def train(target, draft, texts, prompt, settings, key):
        calls.append(("head", texts.shape, prompt))
        return acceptance_head.init(draft.shape.width, 1, key), np.zeros(1)

    monkeypatch.setattr(fitting, "train_decoder", train_decoder)
    monkeypatch.setattr(distill, "distil", distil)
    monkeypatch.setattr(acceptance_head, "train", train)
    return calls


def test_every_stage_is_made_once(tmp_path, monkeypatch):
    calls, said = _fakes(monkeypatch), []
    draft = pair.draft_shape(TRAINED, 1, 8)
    made = pair.make(TRAINED, draft, TEXT, SETTINGS, tmp_path, said.append)
    stages = ["target", "draft", "distilled", "draft_head", "distilled_head"]
    assert said == [f"training: {name}" for name in stages]
    heads = [("head", (8, 33), 6)] * 2
    assert calls == [(2, 1000), (1, 1000), ("distil", 6), *heads]
    small = made.drafts["draft"].params["embedding"]
    np.testing.assert_array_equal(
        made.drafts["distilled"].params["embedding"], 2 * small
    )

    again = pair.make(TRAINED, draft, TEXT, SETTINGS, tmp_path, said.append)
    assert len(said) == len(calls) == 5
    jax.tree.map(np.testing.assert_array_equal, again.heads, made.heads)
    assert again.facts == made.facts
    # Fresh weights are small: both models say that all tokens are alike.
    assert made.facts["target_loss"] == pytest.approx(np.log(37), abs=0.1)
    assert made.facts["draft_overlap"] > 0.9

    for other, settings in ((pair.draft_shape(TRAINED, 2, 8), SETTINGS),
                            (draft, PairSettings())):  # fmt: skip
        with pytest.raises(UserError, match="other settings"):
            pair.make(TRAINED, other, TEXT, settings, tmp_path, said.append)


def test_a_given_target_is_taken_and_told_apart(tmp_path, monkeypatch):
    calls, draft = _fakes(monkeypatch), pair.draft_shape(TRAINED, 1, 8)
    given, other = (
        jax.tree.map(jnp.asarray, drawn_params(TRAINED, seed)) for seed in (0, 1)
    )
    made = pair.make(TRAINED, draft, TEXT, SETTINGS, tmp_path, print, given)
    assert made.target.params is given
    assert calls[0] == (1, 1000)
    with pytest.raises(UserError, match="other settings"):
        pair.make(TRAINED, draft, TEXT, SETTINGS, tmp_path, print, other)
