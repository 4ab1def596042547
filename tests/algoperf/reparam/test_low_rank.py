"""LoRA, ReLoRA and factorised weights: their exact laws."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import KEY, PARAMS, WORKLOAD, assert_trees_close, draw
from synthetic import SYNTHETIC, examples

from algoperf import numerics, reparam, spec
from algoperf.errors import UserError
from algoperf.reparam import low_rank
from algoperf.reparam.low_rank import Factors

CHOSEN = reparam.select(WORKLOAD)


class FakeObjective:
    """What `advance` asks of an objective."""

    def __init__(self, seed=0):
        self.rng = jax.random.PRNGKey(seed)


@settings(max_examples=15)
@given(
    st.sampled_from([(1, 4), (6, 4), (5, 9)]),
    st.sampled_from([0.01, 0.5, 1.0]),
    st.integers(0, 2**32 - 1),
)
def test_the_error_of_truncation_is_the_dropped_spectrum(shape, share, seed):
    """Eckart and Young 1936."""
    m, n = shape
    w = np.random.default_rng(seed).normal(size=(m, n)).astype(np.float32)
    rank = reparam.rank_of(share, (m, n))
    factors = low_rank.truncated(jnp.asarray(w), rank)
    s = np.linalg.svd(w.astype(np.float64), compute_uv=False)
    error = np.sum((w - np.asarray(factors.product())) ** 2)
    np.testing.assert_allclose(error, np.sum(s[rank:] ** 2), rtol=1e-4, atol=1e-9)
    # The singular values are shared evenly.
    for gram in (factors.left.T @ factors.left, factors.right @ factors.right.T):
        np.testing.assert_allclose(gram, np.diag(s[:rank]), atol=1e-4)


def test_full_rank_factors_give_the_dense_parameters():
    full = low_rank.factorised(WORKLOAD, CHOSEN, 1.0)
    assert_trees_close(full.materialise(full.init(PARAMS, KEY)), PARAMS, 2e-6)
    half = low_rank.factorised(WORKLOAD, CHOSEN, 0.5)
    found = half.materialise(half.init(PARAMS, KEY))
    ranks = {"hidden": 2, "head": 2}
    for name, rank in ranks.items():
        assert np.linalg.matrix_rank(found[name]["kernel"], tol=1e-4) == rank
    query = found["attention"]["query"]["kernel"]
    assert query.shape == (4, 2, 3)  # cut as the 4 x 6 matrix that it is
    assert np.linalg.matrix_rank(query.reshape(4, 6), tol=1e-4) == 2


def test_full_rank_factors_give_the_dense_logits():
    params, model_state = SYNTHETIC.init_model_fn(KEY)
    full = low_rank.factorised(SYNTHETIC, reparam.select(SYNTHETIC), 1.0)
    found = full.materialise(full.init(params, KEY))

    def logits(params):
        batch = {"inputs": examples("train")["inputs"][:8]}
        mode = spec.ForwardPassMode.EVAL
        return SYNTHETIC.model_fn(params, batch, model_state, mode, KEY, False)[0]

    np.testing.assert_allclose(logits(found), logits(params), atol=1e-5)


def test_lora_starts_at_the_params_and_counts_as_its_formula():
    small = low_rank.lora(WORKLOAD, CHOSEN, 2)
    state = small.init(PARAMS, KEY)
    assert_trees_close(small.materialise(state), PARAMS, 0)
    factors = sum(2 * (m + n) for m, n in [(4, 6), (5, 7), (8, 3)])
    others = 24 + 7
    sizes = reparam.sizes(PARAMS, reparam.start(small, optax.adam(1), PARAMS, KEY))
    assert sizes["trainable_parameters"] == factors + others
    assert sizes["stored_bytes"] == 4 * (factors + others + 24 + 35 + 24)
    assert sizes["optimizer_state_bytes"] == 8 * (factors + others) + 4 + 4
    alone = low_rank.lora(WORKLOAD, CHOSEN, 2, train_others=False)
    assert reparam.count(alone.init(PARAMS, KEY).trainable) == factors


def test_lora_is_scaled_by_alpha_over_rank():
    small = low_rank.lora(WORKLOAD, CHOSEN, 2, alpha=3.0)
    state = small.init(PARAMS, KEY)
    factors = state.trainable["hidden"]["kernel"]
    assert np.abs(factors.left).max() <= 5**-0.5
    state.trainable["hidden"]["kernel"] = factors._replace(right=jnp.ones((2, 7)))
    found = small.materialise(state)["hidden"]["kernel"]
    wanted = PARAMS["hidden"]["kernel"] + 1.5 * factors.left @ np.ones((2, 7))
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_a_base_in_few_bits():
    """NVFP4 along the fan-in; stored bytes are those of the packed arrays."""
    chosen = reparam.select(WORKLOAD, path="hidden")
    small = low_rank.lora(WORKLOAD, chosen, 1, base_format="nvfp4")
    state = jax.jit(small.init)(PARAMS, KEY)
    found = jax.jit(small.materialise)(state)
    wanted = numerics.quantize(PARAMS["hidden"]["kernel"], "nvfp4", axis=0)
    np.testing.assert_array_equal(found["hidden"]["kernel"], wanted)
    np.testing.assert_array_equal(found["hidden"]["bias"], PARAMS["hidden"]["bias"])
    packed = state.frozen["hidden"]["kernel"]
    assert packed.nbytes == reparam.num_bytes(packed)
    assert packed.codes.nbytes == 16 * 7 / 2  # five rows are padded to a block


def _trained(small, seed=1, steps=3):
    """Returns a state whose factors and moments are random, and the optimizer."""
    optimizer = optax.adam(0.1)
    training = reparam.start(small, optimizer, PARAMS, KEY)
    generator = np.random.default_rng(seed)

    def random(x):
        return jnp.asarray(generator.normal(size=x.shape), x.dtype)

    trainable = jax.tree.map(random, training.small.trainable)
    adam, rest = training.transformation
    adam = adam._replace(mu=jax.tree.map(random, adam.mu), nu=adam.mu)
    return reparam.Training(
        jnp.int32(steps),
        small.with_trainable(training.small, trainable),
        (adam, rest),
    )


RELORA = low_rank.relora(WORKLOAD, CHOSEN, 2, period=3, alpha=5.0)


@jax.jit
def _begin_step(training):
    return reparam.begin_step(RELORA, training, FakeObjective())


def test_a_merge_keeps_the_function_and_starts_anew():
    before = _trained(RELORA)
    after = _begin_step(before)
    assert_trees_close(
        RELORA.materialise(after.small), RELORA.materialise(before.small), 1e-5
    )
    factors = after.small.trainable["hidden"]["kernel"]
    assert not factors.right.any()
    assert 0 < np.abs(factors.left).max() <= 5**-0.5
    moments = after.transformation[0].mu
    assert np.count_nonzero(moments["hidden"]["kernel"].left) <= 1
    np.testing.assert_array_equal(  # others keep theirs
        moments["hidden"]["bias"], before.transformation[0].mu["hidden"]["bias"]
    )


def test_between_merges_nothing_changes():
    """The first step is no merge either."""
    for steps in (0, 1, 4):
        before = _trained(RELORA, steps=steps)
        jax.tree.map(np.testing.assert_array_equal, _begin_step(before), before)


def _loss(small, state, g):
    """Returns trainable -> the scalar product of the full parameters and g."""

    def loss(trainable):
        full = small.materialise(small.with_trainable(state, trainable))
        return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, full, g)))

    return loss


def _step(small, training, rate, seed=7):
    """Returns the state after a step of Adam, and the update."""
    trainable = training.small.trainable
    gradient = jax.grad(_loss(small, training.small, draw(seed)))(trainable)
    updates, state = optax.adam(rate).update(gradient, training.transformation)
    trainable = optax.apply_updates(trainable, updates)
    return reparam.finish_step(small, training, trainable, state)[0], updates


def test_merges_at_a_zero_rate_are_no_steps():
    """Merges after 3 and 6 steps, the first of factors that were trained."""
    training = reparam.start(RELORA, optax.adam(0.0), PARAMS, KEY)
    for seed in (7, 8):
        training, _ = _step(RELORA, training, 0.1, seed)
    before = training.small.trainable["hidden"]["kernel"]
    full = RELORA.materialise(training.small)
    assert np.abs(full["hidden"]["kernel"] - PARAMS["hidden"]["kernel"]).max() > 0.1
    for _ in range(5):
        training, _ = _step(RELORA, _begin_step(training), 0.0)
        assert_trees_close(RELORA.materialise(training.small), full, 1e-5)
    after = training.small.trainable["hidden"]["kernel"]
    assert not np.allclose(after.left, before.left)
    assert not after.right.any()


def test_the_first_update_after_a_merge_is_of_the_rates_size():
    """Whichever moments stay: left factors have no gradient of their own then."""
    small = low_rank.relora(WORKLOAD, CHOSEN, 2, period=3, kept_moments=0.5)
    training = reparam.start(small, optax.adam(0.1), PARAMS, KEY)
    for seed in (7, 8, 9):
        training, _ = _step(small, training, 0.1, seed)
    training = reparam.begin_step(small, training, FakeObjective())
    moments = training.transformation[0].mu["hidden"]["kernel"].left
    assert 0 < np.count_nonzero(moments) < moments.size
    _, updates = _step(small, training, 0.1)
    assert max(float(abs(x).max()) for x in jax.tree.leaves(updates)) < 0.3


def test_the_share_of_moments_that_stays():
    x = {"w": Factors(jnp.ones((200, 50)), jnp.ones((50, 200)))}
    adam = optax.adam(0.1)
    state = adam.init(x)
    state = (state[0]._replace(mu=x, nu=x), *state[1:])
    pruned = low_rank.prune_moments(state, x, 0.25, KEY)
    kept = [float(leaf.mean()) for leaf in jax.tree.leaves(pruned[0].mu)]
    np.testing.assert_allclose(kept, 0.25, atol=4 * (0.25 * 0.75 / 10_000) ** 0.5)
    jax.tree.map(np.testing.assert_array_equal, pruned[0].mu, pruned[0].nu)
    assert int(pruned[0].count) == 0
    with pytest.raises(UserError, match="nothing to prune at a merge"):
        low_rank.prune_moments(optax.sgd(0.1).init(x), x, 0.25, KEY)


def test_the_rate_warms_up_again_after_each_merge():
    rate = low_rank.rewarmed(lambda step: 2.0 + 0 * step, period=10, warmup=4)
    found = [float(rate(step)) for step in (0, 5, 9, 10, 11, 13, 14, 19, 20, 22)]
    assert found == [2, 2, 2, 0, 0.5, 1.5, 2, 2, 0, 1]


def test_frobenius_decay_is_the_gradient_of_the_products_norm():
    x = {"w": Factors(*draw_pair(3)), "b": jnp.ones(4)}

    def penalty(tree):
        return 0.15 * jnp.sum(jnp.square(tree["w"].product()))

    wanted = jax.grad(penalty)(x)
    decay = low_rank.frobenius_decay(0.3)
    zeros = jax.tree.map(jnp.zeros_like, x)
    found, _ = decay.update(zeros, decay.init(x), x)
    assert_trees_close(found, wanted, 1e-4)
    assert not found["b"].any()
    mask = low_rank.without_factors({"w": True, "b": True}, {"w": True, "b": False})
    assert mask == {"w": False, "b": True}


def draw_pair(rank):
    generator = np.random.default_rng(0)
    shapes = [(6, rank), (rank, 5)]
    return [jnp.asarray(generator.normal(size=s), jnp.float32) for s in shapes]


def test_the_gradient_of_lora_is_that_of_the_full_matrix_projected():
    """dL/dleft = s G right^T, dL/dright = s left^T G."""
    small = low_rank.lora(WORKLOAD, CHOSEN, 2, alpha=5.0)
    state = _trained(small).small
    g = draw(7)

    found = jax.grad(_loss(small, state, g))(state.trainable)["hidden"]["kernel"]
    factors = state.trainable["hidden"]["kernel"]
    wanted = g["hidden"]["kernel"]
    np.testing.assert_allclose(found.left, 2.5 * wanted @ factors.right.T, atol=1e-4)
    np.testing.assert_allclose(found.right, 2.5 * factors.left.T @ wanted, atol=1e-4)


def test_errors_come_before_training():
    with pytest.raises(UserError, match="rank 4 for head/kernel of shape 8 x 3"):
        low_rank.lora(WORKLOAD, CHOSEN, 4)
    with pytest.raises(UserError, match="rank 0"):
        low_rank.factorised(WORKLOAD, CHOSEN, 0)
    with pytest.raises(UserError, match="period 0 of ReLoRA"):
        low_rank.relora(WORKLOAD, CHOSEN, 1, period=0)
    with pytest.raises(UserError, match="nvfp5"):
        low_rank.lora(WORKLOAD, CHOSEN, 1, base_format="nvfp5")
