"""The federated study's arithmetic, on a language model of a few hundred numbers."""

import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import KEY, assert_trees_close

from algoperf import cli, reparam
from algoperf.errors import UserError
from algoperf.reparam import experts, federated
from algoperf.workload import derive
from workloads.finewebedu_lm.workload import MINI

WORKLOAD = derive(
    MINI,
    model={
        "vocab_size": 16,
        "num_layers": 1,
        "width": 8,
        "num_heads": 2,
        "mlp_width": 12,
        "max_length": 6,
    },
    input_shape=(6,),
)
MLP = "layer_0_mlp"
DOMAINS = ("history", "law")


def _params(seed):
    shapes = jax.tree.map(lambda s: s.shape_tuple, WORKLOAD.param_shapes)
    generator = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(generator.normal(0, 0.5, shape), jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


PUBLIC = _params(0)
TRAINED = [{**PUBLIC, MLP: _params(seed)[MLP]} for seed in (1, 2)]
_TOKENS = np.random.default_rng(5).integers(16, size=(4, 7))
BATCH = {
    "inputs": _TOKENS[:, :-1],
    "targets": _TOKENS[:, 1:],
    "weights": np.ones((4, 6), np.float32),
}
PLAIN = federated.make_plain_evaluate(WORKLOAD)
EVALUATE = federated.make_evaluate(WORKLOAD)


def _router(bias):
    rows = jnp.zeros((len(bias), 8))
    return {MLP: federated.Router(rows, jnp.asarray(bias))}


def test_a_router_that_is_sure_gives_the_expert_alone():
    """At full rank; so the mixture is computed where the MLP was."""
    mixtures = federated.merged(PUBLIC, TRAINED, [12, 12])
    alone = [PLAIN(params, [BATCH]) for params in (PUBLIC, *TRAINED)]
    for number, loss in enumerate(alone):
        bias = np.full(3, -1e4)
        bias[number] = 0
        found = EVALUATE(PUBLIC, mixtures, _router(bias), [BATCH])
        assert found == pytest.approx(loss, rel=1e-5)
    assert len({round(loss, 3) for loss in alone}) == 3


def test_equal_weights_are_the_mean_of_the_outputs():
    """Of one layer: the mixed MLP is one of 3 F neurons, fc2 divided by 3."""
    mixtures = federated.merged(PUBLIC, TRAINED, [2, 3])
    found = EVALUATE(PUBLIC, mixtures, _router([0.0, 0.0, 0.0]), [BATCH])
    parts = [federated.kernels(PUBLIC[MLP]), *mixtures[MLP]]
    halves = [jnp.split(part["fc1"], 2, axis=1) for part in parts]
    wide = {
        "fc1": jnp.concatenate([h[0] for h in halves] + [h[1] for h in halves], axis=1),
        "fc2": jnp.concatenate([part["fc2"] for part in parts]) / 3,
    }
    model = derive(WORKLOAD, model={"mlp_width": 36})
    params = {**PUBLIC, MLP: federated.nested(wide)}
    wanted = federated.make_plain_evaluate(model)(params, [BATCH])
    assert found == pytest.approx(wanted, rel=1e-5)


def test_ranks_cut_the_difference_and_stop_at_the_full_one():
    cut = federated.merged(PUBLIC, TRAINED, [3, 99])[MLP]
    before, after = (federated.kernels(p[MLP]) for p in (PUBLIC, TRAINED[0]))
    for name in before:
        delta = np.asarray(after[name] - before[name], np.float64)
        u, s, vt = np.linalg.svd(delta, full_matrices=False)
        wanted = before[name] + (u[:, :3] * s[:3]) @ vt[:3]
        np.testing.assert_allclose(cut[0][name], wanted, atol=1e-5)
    assert_trees_close(cut[1], federated.kernels(TRAINED[1][MLP]))
    with pytest.raises(UserError, match="rank 0"):
        federated.merged(PUBLIC, TRAINED, [0, 1])


def test_the_router_is_the_probability_of_the_domain():
    """Against Bayes with normal densities, in NumPy."""
    generator = np.random.default_rng(0)
    means = generator.normal(size=(3, 4))
    root = generator.normal(size=(4, 4))
    covariance = root @ root.T + np.eye(4)
    x = generator.normal(size=(5, 4))
    router = federated.router(jnp.asarray(means), jnp.asarray(covariance))
    found = experts.route(jnp.asarray(x), router.rows_ExD, router.bias_E)
    regular = covariance + federated.RIDGE * np.trace(covariance) / 4 * np.eye(4)
    inverse = np.linalg.inv(regular)
    away = x[:, None] - means[None]
    logs = -0.5 * np.einsum("tei,ij,tej->te", away, inverse, away)
    wanted = np.exp(logs - logs.max(axis=1, keepdims=True))
    wanted /= wanted.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)


def test_moments_are_those_of_what_goes_into_the_mlp():
    """With an embedding of one token, whatever it is, all tokens have one vector."""
    moments = federated.make_moments(WORKLOAD)
    found = moments(PUBLIC, [BATCH, BATCH])[MLP]
    assert found.mean_D.shape == (8,)
    # RMS norm: the mean square over the features is the scale's, here weighed out.
    scale = np.asarray(PUBLIC["layer_0_mlp_norm"]["scale"], np.float64)
    second = np.asarray(found.covariance_DxD) + np.outer(found.mean_D, found.mean_D)
    assert np.sum(np.diag(second) / scale**2) == pytest.approx(8, rel=1e-3)
    same = {**BATCH, "inputs": np.zeros((4, 6), int)}
    flat = moments(PUBLIC, [same])[MLP]
    np.testing.assert_allclose(flat.covariance_DxD, 0, atol=1e-4)


def test_energies_are_what_a_rank_keeps():
    energies = federated.spectra(PUBLIC, TRAINED)
    assert energies.shape == (2, 8)
    for expert, rank in itertools.product(range(2), (1, 5)):
        ranks = [99, 99]
        ranks[expert] = rank
        cut = federated.merged(PUBLIC, TRAINED, ranks)[MLP][expert]
        full = federated.kernels(TRAINED[expert][MLP])
        lost = sum(float(jnp.sum((full[n] - cut[n]) ** 2)) for n in full)
        assert lost == pytest.approx(energies[expert, rank:].sum(), rel=1e-3)


def test_ranks_by_energy_are_the_best_of_all():
    """Against all ways to share the ranks out."""
    generator = np.random.default_rng(1)
    energies = -np.sort(-generator.exponential(size=(3, 5)), axis=1)
    for rank in range(1, 6):
        found = federated.ranks_by_energy(energies, rank)
        assert sum(found) == 3 * rank
        assert min(found) >= 1
        ways = itertools.product(range(1, 6), repeat=3)
        best = max(_kept(energies, w) for w in ways if sum(w) == 3 * rank)
        assert _kept(energies, found) == pytest.approx(best)
    assert federated.ranks_by_energy(energies, 9) == [5, 5, 5]


def _kept(energies, ranks):
    return sum(row[:rank].sum() for row, rank in zip(energies, ranks, strict=True))


def test_sizes_of_mixtures():
    total = sum(leaf.size for leaf in jax.tree.leaves(PUBLIC))
    # fc1 (8, 24) and fc2 (12, 8); two experts; three rows of the router with a bias.
    low = federated.num_parameters(PUBLIC, [2, 3])
    assert low == total + 5 * (8 + 24) + 5 * (12 + 8) + 3 * 9
    full = federated.num_parameters(PUBLIC, [None, None])
    assert full == total + 2 * (8 * 24 + 12 * 8) + 3 * 9
    own = federated.num_parameters(PUBLIC, [None, None], has_router=False)
    assert own == full - 3 * 9


def test_break_even_is_where_all_greater_ranks_are_as_good():
    # The loss falls from 3 to 2 between 2 and 8: 2.5 is half of the way.
    assert federated.break_even({2: 3.0, 8: 2.0, 16: 1.0}, 2.5) == pytest.approx(
        4, rel=1e-4
    )
    assert federated.break_even({8: 2.0, 2: 3.0}, 2.75) == pytest.approx(
        2 * 2**0.5, rel=1e-4
    )
    # Rank 1 is as good by luck, for rank 2 is not.
    found = federated.break_even({1: 2.0, 2: 3.0, 8: 2.0}, 2.5)
    assert found == pytest.approx(4, rel=1e-4)
    assert federated.break_even({1: 2.0, 2: 3.0}, 2.5) == math.inf
    assert federated.break_even({1: 3.0}, 2.5) == math.inf
    assert federated.break_even({1: 2.0, 2: 1.0}, 2.5) == 1
    assert federated.break_even({1: 3.0, 2: 2.5 + 1e-6}, 2.5) < 2  # rounding
    assert federated.break_even({1: math.nan}, 2.5) == math.inf


def test_experts_train_their_mlps_alone_from_the_public_model():
    small = federated.train_mlps(PUBLIC)
    state = small.init(_params(9), KEY)
    assert_trees_close(small.materialise(state), PUBLIC, tolerance=0)
    assert reparam.count(state.trainable) == 8 * 24 + 12 * 8
    moved = jax.tree.map(lambda x: x + 1, state.trainable)
    full = small.materialise(small.with_trainable(state, moved))
    assert_trees_close(full["embed"], PUBLIC["embed"], tolerance=0)
    kernel = PUBLIC[MLP]["fc2"]["kernel"]
    np.testing.assert_allclose(full[MLP]["fc2"]["kernel"], kernel + 1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_federated_study_runs_and_goes_on(tmp_path, capfd, monkeypatch):
    """With two of the six domains."""
    domains = {name: w for name, w in MINI.by_domain().items() if name in DOMAINS}
    monkeypatch.setattr(type(MINI), "by_domain", lambda self: domains)
    flags = ["reparam", "--study=federated", "--workload=finewebedu_lm"]
    flags += ["--series=same rank,ranks by energy", "--max_steps=2", "--studies=1"]
    flags += ["--values=1,96", f"--out={tmp_path}"]
    assert cli.main(flags) == 0
    text = (tmp_path / "federated.md").read_text()
    assert "| series | rank | history | law |" in text
    assert "| same rank | public model | " in text
    assert (tmp_path / "federated.svg").exists()
    header, *rows = (tmp_path / "federated.csv").read_text().splitlines()
    assert "loss_law" in header
    assert len(rows) == 6 + 2 * 2
    (found,) = tmp_path.glob("expert/study_0/*/trial_1/record.json")
    assert json.loads(found.read_text())["sizes"]["trainable_parameters"] == 110_592
    capfd.readouterr()
    before = found.stat().st_mtime_ns
    assert cli.main(flags) == 0
    assert "3 of 3 training runs are done" in capfd.readouterr().out
    assert found.stat().st_mtime_ns == before
    assert (tmp_path / "federated.md").read_text() == text
