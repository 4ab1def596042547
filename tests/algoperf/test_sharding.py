"""Placement, its official name, and batch sizes that fit the devices."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shards import largest_difference, on_devices

from algoperf import jax_sharding_utils, sharding
from algoperf.errors import UserError
from algoperf.sharding import Placement

HERE = Path(__file__).parent
LONG = (
    "criteo1tb",
    "fastmri",
    "imagenet_resnet",
    "imagenet_vit",
    "librispeech_conformer",
    "librispeech_deepspeech",
    "ogbg",
    "wmt",
)
MINI = (
    "finewebedu_lm",
    *(pytest.param(name, marks=pytest.mark.long) for name in LONG),
)


def test_the_official_name_has_the_same_functions():
    alias = {"get_batch_sharding": "get_batch_dim_sharding"}
    for name in jax_sharding_utils.__all__:
        own = getattr(sharding, alias.get(name, name))
        assert getattr(jax_sharding_utils, name) is own


def test_a_batch_is_split_and_params_are_whole():
    tree = {"x": np.arange(16.0).reshape(8, 2)}
    count = jax.device_count()
    for place, shape in (
        (sharding.shard_along_batch_dim, (8 // count, 2)),
        (sharding.replicate, (8, 2)),
    ):
        array = place(tree)["x"]
        assert len(array.addressable_shards) == count
        assert {shard.data.shape for shard in array.addressable_shards} == {shape}
        np.testing.assert_array_equal(array, tree["x"])


def test_shards_are_shown(capsys):
    sharding.display_shard_info(sharding.replicate(jnp.ones(2)))
    assert len(capsys.readouterr().out.splitlines()) == jax.device_count()


@pytest.mark.parametrize(("size", "nearest"), [(30, 32), (1, 8), (0, 8), (-4, 8)])
def test_a_batch_size_that_does_not_divide_is_refused(monkeypatch, size, nearest):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    with pytest.raises(UserError, match=f"size is {size}, .* 8 devices; .*: {nearest}"):
        sharding.check_batch_size(size, "size")
    sharding.check_batch_size(64, "size")


def test_large_arrays_are_split_along_their_longest_axis_that_divides():
    place = Placement("fsdp", model_devices=4, min_size=100)
    for shape, axis in {
        (): None,
        (96,): None,  # small
        (104,): 0,
        (102,): None,  # does not divide
        (8, 16): 1,
        (16, 8): 0,
        (16, 16): 1,
        (30, 8): 1,
        (3, 3, 64, 128): 3,
        (7, 9, 11): None,
    }.items():
        assert place.sharded_axis(shape) == axis, shape
    assert Placement().sharded_axis((2**20,)) is None


@given(
    st.lists(st.integers(1, 64), max_size=4),
    st.integers(1, 16),
    st.integers(0, 2**12),
)
def test_what_is_split_divides_and_adds_up(shape, shards, min_size):
    place = Placement("fsdp", shards, min_size)
    array = jax.ShapeDtypeStruct(shape, "float32")
    size = 4 * math.prod(shape)
    axis = place.sharded_axis(shape)
    if axis is None:
        assert place.bytes_per_device([array]) == size
        return
    assert shape[axis] % shards == 0
    assert math.prod(shape) >= min_size
    assert place.bytes_per_device([array, array]) * shards == 2 * size


def test_keys_stay_whole():
    place = Placement("fsdp", model_devices=1, min_size=0)
    keys = jax.random.split(jax.random.key(0), 8)
    assert place.sharding_of(keys).spec == jax.sharding.PartitionSpec()
    assert place.bytes_per_device(keys) == 8 * 8
    assert place.constrain({"keys": keys})["keys"].shape == (8,)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (Placement("zero"), "no sharding is called 'zero'"),
        (Placement("replicated", 2), "for fsdp sharding alone"),
        (Placement("fsdp", 16), "16 model devices are asked for and 8 are here"),
        (Placement("fsdp", 3), "8 devices are not divisible by 3 model devices"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(monkeypatch, place, message):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    with pytest.raises(UserError, match=message):
        place.check()
    for good in (Placement(), Placement("fsdp"), Placement("fsdp", 4)):
        good.check()


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    """What trials on 1, 2 and 8 devices gave, each replicated and sharded."""
    submission = HERE / "submissions" / "adam.py"
    return {
        count: on_devices(
            count,
            "synthetic_mini",
            f"--out={tmp_path_factory.mktemp('runs')}",
            f"--submission={submission}",
        )
        for count in (1, 2, 8)
    }


@pytest.mark.slow
def test_losses_do_not_depend_on_the_devices(trials):
    found = []
    for count, seen in trials.items():
        for kind in ("replicated", "fsdp"):
            assert seen[kind]["status"] == "completed", seen[kind]["message"]
            found.append(seen[kind]["losses"])
        assert seen["replicated_arrays_split"] == 0
        assert (seen["fsdp_arrays_split"] > 0) == (count > 1)
    assert len(found[0]) == 9
    assert len(set(found[0])) == 9  # it trains
    assert largest_difference(found) < 1e-5


def test_memory_falls_as_the_formula_says():
    """By 8, for what is split; XLA's own count of the step's arguments."""
    seen = on_devices(8, "memory")
    for kind in ("replicated", "fsdp", "hybrid"):
        assert seen[kind]["arguments"] == seen[kind]["formula"], kind
        # A copy of what is gathered and the gradients, whole; and what is small.
        assert seen[kind]["temporary"] < 2 * seen["params"] + 100_000, kind
    assert seen["fsdp"]["state"] == seen["by_hand"]["fsdp"]
    assert seen["hybrid"]["state"] == seen["by_hand"]["hybrid"]
    assert seen["fsdp"]["state"] < seen["replicated"]["state"] / 7
    assert seen["fsdp"]["peak"] < seen["hybrid"]["peak"] < seen["replicated"]["peak"]


def test_shardings_of_a_submission_that_are_not_fsdp_are_explained(tmp_path):
    official = HERE / "submissions" / "official"
    seen = on_devices(
        2, "synthetic_mini", f"--out={tmp_path}", f"--submission={official}"
    )
    assert seen["replicated"]["status"] == "completed"
    assert seen["fsdp"]["status"] == "failed"
    assert seen["fsdp"]["message"].endswith("run it with --sharding replicated")


@pytest.mark.slow
@pytest.mark.parametrize("name", MINI)
def test_losses_of_a_workload_do_not_depend_on_the_devices(name):
    """A few steps; tests/benchmarks/sharding_equality.py takes 50."""
    runs = [on_devices(count, name, "--steps=3") for count in (1, 8)]
    assert runs[1]["fsdp_arrays_split"] > 0
    found = [seen[kind] for seen in runs for kind in ("replicated", "fsdp")]
    assert largest_difference(found) < 1e-5


def test_packs_must_divide_over_the_devices_and_are_not_cut(monkeypatch):
    for devices in (1, 2, 4, 8):
        monkeypatch.setattr(jax, "device_count", lambda devices=devices: devices)
        sharding.check_packs(8, "ogbg")
    with pytest.raises(UserError, match=r"ogbg has batches of packs.*--microbatches"):
        sharding.check_packs(8, "ogbg", microbatches=2)
    for devices in (3, 16):
        monkeypatch.setattr(jax, "device_count", lambda devices=devices: devices)
        with pytest.raises(UserError, match=f"at most 8 devices.*; {devices} are"):
            sharding.check_packs(8, "ogbg")
