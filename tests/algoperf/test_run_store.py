"""The file of a search's runs, and who may add to it."""

import pytest

from algoperf import locks
from algoperf.errors import UserError
from algoperf.run_store import Run, Store


def _run(number):
    return Run("search", "adamw", number, {}, "completed", [], None, 0.0)


def _store(folder):
    return Store.open(folder / "store.json.xz", {"metric": "loss"})


def test_one_process_adds_at_a_time(tmp_path):
    ours, theirs = _store(tmp_path), _store(tmp_path)
    with theirs.held():
        with pytest.raises(UserError, match=r"store.json.xz is being written by"):
            ours.held().__enter__()
        theirs.add(_run(1), {})
    with ours.held():
        ours.add(_run(2), {})
    assert list(_store(tmp_path).runs) == [_run(1).key, _run(2).key]


def test_a_store_of_other_facts_is_not_taken(tmp_path):
    ours = _store(tmp_path)
    Store(ours.path, {"metric": "accuracy"}).add(_run(1), {})
    with pytest.raises(UserError, match="was begun with metric accuracy"):
        ours.held().__enter__()
    assert locks.owner_of(ours.path) is None


def test_who_has_lost_the_lock_writes_nothing(tmp_path):
    ours = _store(tmp_path)
    with ours.held():
        locks.path_of(ours.path).unlink()  # as another does that took us for dead
        with locks.hold(ours.path), pytest.raises(UserError, match="another writer"):
            ours.add(_run(1), {})
        assert not ours.path.exists()
    ours.add(_run(1), {})  # by who holds nothing, if nobody else does
