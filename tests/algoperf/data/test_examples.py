"""Examples read one by one: once an epoch, by seed and place, broken ones named."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sources import Numbers, noisy, shifted

from algoperf import sharding
from algoperf.data.examples import (
    DataError,
    DataOptions,
    eval_examples,
    train_examples,
)
from algoperf.data.pipeline import SKIPPED, InputQueue, batches
from algoperf.errors import UserError

PLAIN = DataOptions()
SKIP = DataOptions(skip_corrupt=True)


def train(source, size, seed=0, options=PLAIN):
    return train_examples(source, size, seed, options, noisy, shifted)


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@given(size=st.integers(1, 25), seed=st.integers(0, 2**32 - 1))
def test_every_epoch_holds_every_example_once(size, seed):
    dataset = train(Numbers(10), size, seed)
    order = np.concatenate([dataset[i]["targets"] for i in range(-(-30 // size))])
    for epoch in range(3):
        assert sorted(order[10 * epoch : 10 * epoch + 10]) == list(range(10))


def test_fields_of_an_example_stay_together():
    batch = train(Numbers(50), 7)[3]
    np.testing.assert_array_equal(batch["inputs"]["value"], batch["targets"])
    assert batch["noise"].shape == (7,)
    assert ((batch["shift"] - batch["targets"]) < 1).all()


def test_a_batch_is_a_function_of_seed_and_position():
    one, other = train(Numbers(10), 4, 3), train(Numbers(10), 4, 3)
    late = one[1000]
    for position in (5, 1000, 2**33):
        assert_equal(one[position], other[position])
    assert (late["noise"] != one[1001]["noise"]).all()
    assert (late["noise"] != train(Numbers(10), 4, 4)[1000]["noise"]).all()


@given(hosts=st.sampled_from([1, 2, 3, 6]), position=st.integers(0, 20))
def test_hosts_share_a_batch_without_gap_or_overlap(hosts, position):
    whole = train(Numbers(10), 6)[position]
    parts = [
        train(Numbers(10), 6, options=DataOptions(host=host, num_hosts=hosts))[position]
        for host in range(hosts)
    ]
    for field in ("targets", "noise"):
        joined = np.concatenate([part[field] for part in parts])
        np.testing.assert_array_equal(joined, whole[field])


def test_a_batch_that_does_not_divide_over_the_hosts_is_an_error():
    with pytest.raises(UserError, match="batch size 6 is not divisible by 4 hosts"):
        train(Numbers(10), 6, options=DataOptions(num_hosts=4))


@pytest.mark.parametrize("size", [1, 3, 5, 10, 16])
@pytest.mark.parametrize("hosts", [1, 2])
def test_evaluation_holds_all_examples_once(size, hosts):
    size *= hosts
    seen = []
    for host in range(hosts):
        options = DataOptions(host=host, num_hosts=hosts)
        dataset = eval_examples(Numbers(10), size, options, noisy)
        for i in range(len(dataset)):
            batch = dataset[i]
            assert len(batch["targets"]) == size // hosts
            seen += list(batch["targets"][batch["weights"] == 1])
    assert sorted(seen) == list(range(10))


def test_evaluation_draws_the_same_every_time():
    one, other = (eval_examples(Numbers(10), 4, PLAIN, noisy) for _ in range(2))
    assert_equal(one[1], other[1])


@pytest.mark.parametrize("make", [train, None], ids=["train", "evaluation"])
def test_a_broken_example_ends_the_run_with_its_name(make):
    source = Numbers(10, broken=[4])
    dataset = train(source, 10) if make else eval_examples(source, 10, PLAIN, noisy)
    with pytest.raises(DataError, match=r"numbers\.bin, record 4"):
        dataset[0]


def test_a_skipped_training_example_is_replaced_and_counted():
    batch = train(Numbers(10, broken=[4, 5]), 10, options=SKIP)[0]
    assert sorted(batch["targets"]) == [0, 1, 2, 3, 6, 6, 6, 7, 8, 9]
    assert batch[SKIPPED] == 3  # 4 (then 5) and 5
    assert SKIPPED not in train(Numbers(10), 10, options=SKIP)[0]


def test_a_skipped_evaluation_example_has_no_weight_and_is_counted():
    dataset = eval_examples(Numbers(10, broken=[0, 4]), 6, SKIP, noisy)
    first = dataset[0]
    assert list(first["targets"][first["weights"] == 1]) == [1, 2, 3, 5]
    assert first[SKIPPED] == 2
    second = eval_examples(Numbers(4, broken=[2, 3]), 2, SKIP, noisy)[1]
    assert second["weights"].sum() == 0  # a whole batch of them
    assert second[SKIPPED] == 2


def test_nothing_but_broken_examples_is_an_error_even_when_skipping():
    everything = Numbers(200, broken=range(200))
    with pytest.raises(UserError, match="100 examples in a row"):
        train(everything, 1, options=SKIP)[0]
    with pytest.raises(UserError, match="every example"):
        eval_examples(everything, 4, SKIP, noisy)[0]


def test_the_queue_counts_what_was_skipped_in_the_batches_taken():
    source = Numbers(10, broken=[4])
    sharded = sharding.get_batch_dim_sharding()
    queue = InputQueue(train(source, 10, options=SKIP), sharded)
    for taken in range(1, 4):
        assert SKIPPED not in next(queue)
        assert queue.skipped == taken
    queue.close()
    queue = InputQueue(train(source, 10, options=SKIP), sharded, 3, skipped=3)
    next(queue)
    assert queue.skipped == 4
    queue.close()


def test_the_queue_of_a_finite_dataset_ends():
    dataset = eval_examples(Numbers(10), 4, PLAIN, noisy)
    queue = InputQueue(dataset, sharding.get_batch_dim_sharding())
    assert len(list(queue)) == 3
    assert list(queue) == []
    queue.close()


def test_threads_give_the_same_batches_and_the_same_errors():
    dataset = train(Numbers(10), 4, options=SKIP)[5:]
    made = batches(dataset, threads=3)
    for one, other in itertools.islice(zip(made, batches(dataset), strict=False), 9):
        assert_equal({**one}, {**other})
    assert len(list(batches(dataset[:7], threads=3))) == 7
    queue = InputQueue(
        train(Numbers(10, broken=[4]), 10), sharding.get_batch_dim_sharding(), threads=2
    )
    with pytest.raises(UserError, match=r"numbers\.bin, record 4"):
        next(queue)
    queue.close()


@pytest.mark.slow
def test_worker_processes_give_the_same_batches_and_the_same_errors():
    dataset = train(Numbers(10), 4, options=SKIP)[5:]
    made = batches(dataset, workers=2)
    for one, other in itertools.islice(zip(made, batches(dataset), strict=False), 6):
        assert_equal({**one}, {**other})
    made.close()
    queue = InputQueue(
        train(Numbers(10, broken=[4]), 10), sharding.get_batch_dim_sharding(), workers=2
    )
    with pytest.raises(UserError, match=r"numbers\.bin, record 4"):
        next(queue)
    queue.close()
