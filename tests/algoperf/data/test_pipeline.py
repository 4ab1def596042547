"""Batches: every example once an epoch, a pure function of seed and position."""

import threading

import grain
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from algoperf import sharding
from algoperf.data.pipeline import InputQueue, eval_batches, train_batches

ARRAYS = {"inputs": np.arange(20).reshape(10, 2), "targets": np.arange(10)}


def _noisy(batch, generator):
    return {**batch, "noise": generator.random(len(batch["targets"]))}


@given(size=st.integers(1, 25), seed=st.integers(0, 2**32 - 1))
def test_every_epoch_holds_every_example_once(size, seed):
    dataset = train_batches(ARRAYS, size, seed)
    order = np.concatenate([dataset[i]["targets"] for i in range(-(-30 // size))])
    for epoch in range(3):
        assert sorted(order[10 * epoch : 10 * epoch + 10]) == list(range(10))


def test_epochs_and_seeds_have_orders_of_their_own():
    one, other = train_batches(ARRAYS, 10, seed=1), train_batches(ARRAYS, 10, seed=2)
    orders = [one[0], one[1], other[0], other[1]]
    assert len({tuple(batch["targets"]) for batch in orders}) == 4


def test_fields_stay_together():
    batch = train_batches(ARRAYS, 7, seed=0)[3]
    np.testing.assert_array_equal(batch["inputs"][:, 0], 2 * batch["targets"])


def test_a_batch_is_a_function_of_its_position():
    one, other = (train_batches(ARRAYS, 4, 3, augment=_noisy) for _ in range(2))
    late = one[1000]
    for position in (5, 1000, 2**33):
        for name, array in one[position].items():
            np.testing.assert_array_equal(array, other[position][name])
    assert (late["noise"] != one[1001]["noise"]).all()


@pytest.mark.parametrize("size", [1, 3, 5, 10, 16])
def test_evaluation_batches_hold_all_examples_in_order(size):
    dataset = eval_batches(ARRAYS, size)
    batches = [dataset[i] for i in range(len(dataset))]
    assert {len(batch["targets"]) for batch in batches} == {size}
    targets = np.concatenate([batch["targets"] for batch in batches])
    weights = np.concatenate([batch["weights"] for batch in batches])
    assert list(targets[weights == 1]) == list(range(10))
    assert weights.sum() == 10
    assert weights.dtype == np.float32


def test_weights_of_its_own_are_kept_and_padding_taken_out():
    dataset = eval_batches(
        ARRAYS, 8, lambda b: {**b, "weights": np.full((8, 2), 0.5, np.float32)}
    )
    assert dataset[0]["weights"].sum() == 8
    assert dataset[1]["weights"][:2].tolist() == [[0.5, 0.5], [0.5, 0.5]]
    assert dataset[1]["weights"][2:].sum() == 0


def _queue(position=0):
    dataset = train_batches(ARRAYS, 4, 0)
    return InputQueue(dataset, sharding.get_batch_dim_sharding(), position)


def test_a_queue_goes_on_where_another_stands():
    first = _queue()
    for _ in range(5):
        next(first)
    second = _queue(first.position)
    assert first.position == second.position == 5
    for _ in range(3):
        one, other = next(first), next(second)
        np.testing.assert_array_equal(one["targets"], other["targets"])
        assert isinstance(one["targets"], jax.Array)
        assert one["targets"].sharding == sharding.get_batch_dim_sharding()
    assert second.position == 8
    first.close()
    second.close()


def test_a_queue_gives_the_batches_of_the_dataset():
    queue, dataset = _queue(), train_batches(ARRAYS, 4, 0)
    for position in range(6):
        np.testing.assert_array_equal(
            next(queue)["targets"], dataset[position]["targets"]
        )
    queue.close()


class _Source:
    """Batches of one number, their position, up to an error."""

    def __init__(self, broken=None):
        self._broken = broken

    def __len__(self):
        return 2**40

    def __getitem__(self, position):
        if position == self._broken:
            raise OSError(f"cannot read batch {position}")
        return {"targets": np.full(8, position)}


def test_an_error_in_the_dataset_surfaces_where_its_batch_is_asked_for():
    dataset = grain.MapDataset.source(_Source(broken=5))
    queue = InputQueue(dataset, sharding.get_batch_dim_sharding(), 2)
    assert [int(next(queue)["targets"][0]) for _ in range(3)] == [2, 3, 4]
    for _ in range(2):  # and stays
        with pytest.raises(OSError, match="cannot read batch 5"):
            next(queue)
    assert queue.position == 5
    queue.close()


@pytest.mark.parametrize("broken", ["put_batches", "batches"])
def test_an_error_on_the_way_to_the_device_surfaces_too(monkeypatch, broken):
    def refuse(*_):
        raise MemoryError("the device is full")

    monkeypatch.setattr(f"algoperf.data.pipeline.{broken}", refuse)
    dataset = grain.MapDataset.source(_Source())
    queue = InputQueue(dataset, sharding.get_batch_dim_sharding(), 0)
    taken: list[BaseException] = []

    def take():
        try:
            next(queue)
        except MemoryError as error:
            taken.append(error)

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    thread.join(timeout=30)  # it would wait for ever
    assert [str(error) for error in taken] == ["the device is full"]
    queue.close()


@pytest.mark.parametrize("taken", [0, 1, 100])
def test_a_closed_queue_leaves_no_thread(taken):
    before = set(threading.enumerate())
    dataset = grain.MapDataset.source(_Source())
    queue = InputQueue(dataset, sharding.get_batch_dim_sharding(), 0)
    assert [int(next(queue)["targets"][0]) for _ in range(taken)] == [*range(taken)]
    queue.close()
    queue.close()
    assert not [t for t in set(threading.enumerate()) - before if t.is_alive()]
