"""Placement, its official name, and batch sizes that fit the devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from algoperf import jax_sharding_utils, sharding
from algoperf.errors import UserError


def test_the_official_name_has_the_same_functions():
    for name in jax_sharding_utils.__all__:
        assert getattr(jax_sharding_utils, name) is getattr(sharding, name)


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
