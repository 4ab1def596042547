"""Any optimizer state comes back as it was, whatever happens to the newest copy."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algoperf import sharding
from algoperf.checkpoint import Checkpoints
from algoperf.errors import UserError


class Moments(NamedTuple):
    mean: jax.Array
    count: int


def _state(value):
    """A state with leaves of every kind that may be in one."""
    return {
        "array": sharding.replicate(jnp.full((3, 2), value, jnp.float32)),
        "half": jnp.full(4, value, jnp.bfloat16),
        "whole": jnp.array(value, jnp.int32),
        "key": jax.random.key(value),
        "raw_key": jax.random.PRNGKey(value),
        "numpy": np.full((2, 2), value, np.float64),
        "scalar": np.float32(value),
        "moments": Moments(jnp.full(2, value * 0.5), value),
        "list": [value, float(value), bool(value % 2)],
        "nothing": None,
        "word": "a word",
        "function": abs,
        "empty": (),
    }


@pytest.fixture
def checkpoints(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    yield checkpoints
    checkpoints.close()


def _assert_equal(state, other):
    assert jax.tree.structure(state) == jax.tree.structure(other)
    for one, two in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True):
        if isinstance(one, jax.Array) and jnp.issubdtype(
            one.dtype, jax.dtypes.prng_key
        ):
            one, two = jax.random.key_data(one), jax.random.key_data(two)
        if isinstance(one, jax.Array | np.ndarray | np.generic):
            assert one.dtype == two.dtype
            np.testing.assert_array_equal(one, two)
        else:
            assert type(one) is type(two)
            assert one == two


def test_a_state_of_all_kinds_comes_back(checkpoints):
    checkpoints.save(3, _state(7), {"step": 3, "rows": [{"loss": 0.1}]})
    state, facts = checkpoints.restore(_state(0))
    _assert_equal(state, _state(7))
    assert facts == {"step": 3, "rows": [{"loss": 0.1}]}
    assert isinstance(state["numpy"], np.ndarray)
    assert state["array"].sharding == sharding.get_replicate_sharding()


def test_nothing_saved_is_nothing_restored(checkpoints):
    assert checkpoints.restore(_state(0)) is None


def test_the_newest_two_are_kept(checkpoints, tmp_path):
    for step in (1, 2, 3):
        checkpoints.save(step, _state(step), {"step": step})
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["checkpoint_2", "checkpoint_3"]
    assert checkpoints.restore(_state(0))[1] == {"step": 3}


def test_a_step_saved_again_is_replaced(checkpoints):
    checkpoints.save(1, _state(1), {"step": 1})
    checkpoints.save(1, _state(2), {"step": 2})
    state, facts = checkpoints.restore(_state(0))
    assert facts == {"step": 2}
    _assert_equal(state, _state(2))


def test_another_structure_is_refused_by_name(checkpoints):
    checkpoints.save(1, {"a": jnp.ones(2), "b": jnp.ones(2)}, {})
    with pytest.raises(UserError, match=r"differ in \['c'\].*keep the structure"):
        checkpoints.restore({"a": jnp.ones(2), "b": jnp.ones(2), "c": jnp.ones(2)})


def test_a_full_disk_harms_no_earlier_checkpoint(checkpoints, monkeypatch):
    checkpoints.save(1, _state(1), {"step": 1})

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._manager, "save", full)
        with pytest.raises(UserError, match=r"No space left on device.*--resume"):
            checkpoints.save(2, _state(2), {"step": 2})
    assert checkpoints.restore(_state(0))[1] == {"step": 1}


def test_a_full_disk_is_named_however_long_the_error_is(checkpoints, monkeypatch):
    def full(*_, **__):
        raise ValueError(
            f"RESOURCE_EXHAUSTED {'in a file ' * 99}No space left on device"
        )

    monkeypatch.setattr(checkpoints._manager, "save", full)
    with pytest.raises(UserError, match=r"\(No space left on device\); mend that"):
        checkpoints.save(2, _state(2), {"step": 2})


def test_what_another_host_broke_is_not_called_a_bad_disk(checkpoints, monkeypatch):
    class JaxRuntimeError(Exception):
        """Known by its name."""

    def broken(*_, **__):
        raise JaxRuntimeError("Gloo: Connection closed by peer")

    checkpoints.save(1, _state(1), {"step": 1})
    monkeypatch.setattr(checkpoints._manager, "save", broken)
    with pytest.raises(JaxRuntimeError):
        checkpoints.save(2, _state(2), {"step": 2})
    monkeypatch.setattr(checkpoints._manager, "restore", broken)
    with pytest.raises(JaxRuntimeError):
        checkpoints.restore(_state(0))


def _empty(path):
    path.write_bytes(b"")


def _cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.usefixtures("_collected")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", [_empty, _cut, Path.unlink])
def test_no_damage_gives_a_wrong_state(tmp_path, damage):
    """Each file of the newest copy in turn: the state is one that was saved."""
    fallbacks = 0
    for number in range(100):
        checkpoints = Checkpoints(tmp_path / str(number))
        checkpoints.save(1, _state(1), {"step": 1})
        checkpoints.save(2, _state(2), {"step": 2})
        newest = tmp_path / str(number) / "checkpoint_2"
        files = sorted(path for path in newest.rglob("*") if path.is_file())
        if number >= len(files):
            break
        damage(files[number])
        state, facts = checkpoints.restore(_state(0))
        _assert_equal(state, _state(facts["step"]))
        fallbacks += facts["step"] == 1
        steps = [2, 1] if facts["step"] == 2 else [1]
        assert sorted(checkpoints._manager.all_steps(), reverse=True) == steps
        checkpoints.close()
    assert fallbacks >= 2  # facts, data


@pytest.mark.usefixtures("_collected")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_nothing_readable_is_an_error(checkpoints, tmp_path):
    for step in (1, 2):
        checkpoints.save(step, _state(step), {"step": step})
        _empty(tmp_path / f"checkpoint_{step}" / "facts" / "metadata")
    with pytest.raises(UserError, match=r"none of the checkpoints .* can be read"):
        checkpoints.restore(_state(0))
