"""A pair of models: shapes, files, and stages that are made once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoders import TRAINED, drawn_params

from algoperf.errors import UserError
from algoperf.inference import acceptance_head, distill, keep, pair
from algoperf.inference.pair import PairSettings
from algoperf.inference.shapes import param_shapes

SETTINGS = PairSettings(
    train_steps=40,
    learning_rate=1e-2,
    head=acceptance_head.Settings(
        blocks=1, num_steps=2, batch_size=4, temperature=0.0
    ),
    head_texts=8,
    distil=distill.Settings(num_steps=3),
)  # fmt: skip


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


@pytest.mark.slow
def test_a_pair_is_made_once(tmp_path):
    draft = pair.draft_shape(TRAINED, 1, 8)
    said = []
    made = pair.make(TRAINED, draft, TEXT, SETTINGS, tmp_path, said.append)
    stages = ["target", "draft", "distilled", "draft_head", "distilled_head"]
    assert said == [f"training: {name}" for name in stages]
    assert made.facts["target_loss"] < np.log(37) / 2
    assert 0 < made.facts["draft_overlap"] < 1

    again = pair.make(TRAINED, draft, TEXT, SETTINGS, tmp_path, said.append)
    assert len(said) == 5
    jax.tree.map(np.testing.assert_array_equal, again.heads, made.heads)
    assert again.facts == made.facts

    other = pair.draft_shape(TRAINED, 2, 8)
    with pytest.raises(UserError, match="other settings"):
        pair.make(TRAINED, other, TEXT, SETTINGS, tmp_path, said.append)
