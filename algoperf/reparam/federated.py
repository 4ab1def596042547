"""FlexMoRE on a workload's own model: experts trained apart, merged at any ranks.

One party trains a public model on its domain. Each other party trains a copy's gated
MLPs on a domain of its own, all else as it was, and passes on these and one vector for
each MLP: the mean of what goes into it. A mixture has the public MLP and the experts of
any ranks side by side; a row for each in the router says which tokens are whose
(arXiv:2602.08818, arXiv:2507.07024; the arithmetic is in `experts`).

D width, F neurons, E experts with the public one first, T tokens.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from algoperf import spec
from algoperf.errors import UserError
from algoperf.reparam import experts
from algoperf.reparam.base import Reparametrisation, State
from algoperf.reparam.width import FIRST, SECOND, gated_mlps

RIDGE = 1e-2  # of the mean variance, added to all variances
ROUNDING = 1e-5  # relative, of a mean loss with factors multiplied out, in float32
Instead = Callable[[str, Any, jax.Array], jax.Array]  # (name, forward, x) -> (B, L, D)


class Router(NamedTuple):
    """The router of one MLP."""

    rows_ExD: jax.Array
    bias_E: jax.Array


class Moments(NamedTuple):
    """Of what goes into one MLP, over the tokens of a domain."""

    mean_D: jax.Array
    covariance_DxD: jax.Array


def train_mlps(public: Any) -> Reparametrisation:
    """Trains the gated MLPs of a model from where they are; all else stays.

    Args:
      public: its params. Training starts there, whatever the harness initialised.
    """
    names = set(gated_mlps(public))

    def init(params: Any, key: Any) -> State:
        del params, key
        nothing = jax.tree.map(lambda _: None, public)
        own = {n: public[n] if n in names else nothing[n] for n in public}
        rest = {n: nothing[n] if n in names else public[n] for n in public}
        return State(own, rest)

    def materialise(state: State) -> Any:
        return jax.tree.map(
            lambda own, rest: rest if own is None else own,
            state.trainable,
            state.frozen,
            is_leaf=lambda leaf: leaf is None,
        )

    return Reparametrisation(init, materialise)


def with_mlps(names: Sequence[str], instead: Instead) -> Any:
    """Returns a context in which the named top-level MLPs are computed otherwise.

    Args:
      names: of the modules.
      instead: (name, forward, x (B, L, D)) -> (B, L, D), where forward(kernels, x) does
        with {'fc1', 'fc2'} what the MLP does with its own.
    """

    def intercept(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if context.method_name != "__call__" or module.name not in names:
            return next_fun(*args, **kwargs)
        apart = module.clone(parent=None, name=None)

        def forward(mlp: experts.MLP, x: jax.Array) -> jax.Array:
            return apart.apply({"params": nested(mlp)}, x)

        return instead(module.name, forward, *args)

    return nn.intercept_methods(intercept)


def kernels(mlp: Any) -> dict[str, jax.Array]:
    """Returns {'fc1': (D, 2F), 'fc2': (F, D)} of an MLP's params."""
    return {name: mlp[name]["kernel"] for name in (FIRST, SECOND)}


def nested(mlp: experts.MLP) -> dict[str, Any]:
    """Returns the params of an MLP of such kernels."""
    return {name: {"kernel": kernel} for name, kernel in mlp.items()}


def make_moments(workload: Any) -> Callable[[Any, Sequence[spec.Batch]], Any]:
    """Returns (params, batches) -> the `Moments` of each gated MLP, by name."""
    names = gated_mlps(_shapes(workload))

    @jax.jit
    def sums(params: Any, batch: spec.Batch) -> Any:
        found = {}

        def instead(name: str, forward: Any, x_BLD: jax.Array) -> jax.Array:
            x_TxD = x_BLD.reshape(-1, x_BLD.shape[-1])
            found[name] = (x_TxD.sum(axis=0), x_TxD.T @ x_TxD, x_TxD.shape[0])
            return forward(kernels(params[name]), x_BLD)

        with with_mlps(names, instead):
            _logits(workload, params, batch)
        return found

    def moments(params: Any, batches: Sequence[spec.Batch]) -> dict[str, Moments]:
        parts = [jax.device_get(sums(params, batch)) for batch in batches]
        found = {}
        for name in names:
            total, squares, number = (
                sum(np.asarray(part[name][i], np.float64) for part in parts)
                for i in range(3)
            )
            mean = total / number
            covariance = squares / number - np.outer(mean, mean)
            found[name] = Moments(
                jnp.asarray(mean, jnp.float32), jnp.asarray(covariance, jnp.float32)
            )
        return found

    return moments


def _logits(workload: Any, params: Any, batch: spec.Batch) -> Any:
    mode = spec.ForwardPassMode.EVAL
    return workload.model_fn(params, batch, {}, mode, None, False)[0]


def router(means_ExD: jax.Array, covariance_DxD: jax.Array) -> Router:
    """Returns rows C^-1 m_e and biases -m_e^T C^-1 m_e / 2.

    The softmax of x row_e + bias_e is then the probability of domain e given x, where
    x is normal with mean m_e and one covariance C for all (linear discriminant
    analysis), all domains being as likely. Each row follows from its own domain and the
    public covariance alone.

    Args:
      means_ExD: of what goes into the MLP, the public domain's first.
      covariance_DxD: of the public domain.
    """
    width = covariance_DxD.shape[0]
    ridge = RIDGE * jnp.trace(covariance_DxD) / width
    regular = covariance_DxD + ridge * jnp.eye(width)
    rows = jnp.linalg.solve(regular, means_ExD.T).T
    return Router(rows, -0.5 * jnp.sum(rows * means_ExD, axis=1))


def make_evaluate(
    workload: Any, top_k: int | None = None
) -> Callable[[Any, Any, Any, Sequence[spec.Batch]], float]:
    """Returns (params, mixtures, routers, batches) -> the mean loss, compiled once.

    Mixtures have full matrices, so that one program serves all ranks.

    Args:
      workload: gives the model and its loss.
      top_k: experts for each token, their weights adding up to 1; all if None.
    """
    names = gated_mlps(_shapes(workload))

    @jax.jit
    def measured(params: Any, mixtures: Any, routers: Any, batch: spec.Batch) -> Any:
        def instead(name: str, forward: Any, x_BLD: jax.Array) -> jax.Array:
            x_TxD = x_BLD.reshape(-1, x_BLD.shape[-1])
            rows_ExD, bias_E = routers[name]
            weights_TxE = experts.route(
                x_TxD, rows_ExD, bias_E, top_k, renormalise=top_k is not None
            )
            public = kernels(params[name])
            mixed_TxD = experts.mixture(
                forward, public, mixtures[name], x_TxD, weights_TxE
            )
            return mixed_TxD.reshape(x_BLD.shape)

        with with_mlps(names, instead):
            return workload.evaluation_step(params, {}, batch)

    def evaluate(
        params: Any, mixtures: Any, routers: Any, batches: Sequence[spec.Batch]
    ) -> float:
        parts = [measured(params, mixtures, routers, batch) for batch in batches]
        return workload.metrics_of(parts)["loss"]

    return evaluate


def make_plain_evaluate(
    workload: Any,
) -> Callable[[Any, Sequence[spec.Batch]], float]:
    """Returns (params, batches) -> the mean loss of the model as it is."""
    step = jax.jit(workload.evaluation_step)

    def evaluate(params: Any, batches: Sequence[spec.Batch]) -> float:
        parts = [step(params, {}, batch) for batch in batches]
        return workload.metrics_of(parts)["loss"]

    return evaluate


def merged(public: Any, trained: Sequence[Any], ranks: Sequence[int]) -> Any:
    """Returns {name of an MLP: kernels of each expert}, cut to the experts' ranks.

    Args:
      public: params.
      trained: params of each expert.
      ranks: of each expert; a matrix whose smaller side is less has its full rank.
    """
    found = {}
    for name in gated_mlps(public):
        own = kernels(public[name])
        found[name] = [
            _at_rank(own, kernels(params[name]), rank)
            for params, rank in zip(trained, ranks, strict=True)
        ]
    return found


def _at_rank(public: experts.MLP, expert: experts.MLP, rank: int) -> experts.MLP:
    if rank < 1:
        raise UserError(f"an expert of rank {rank}: give 1 or more")
    cut: dict[str, Any] = {}
    for name, kernel in public.items():
        own = min(rank, *kernel.shape)
        cut |= experts.low_rank_expert({name: kernel}, {name: expert[name]}, own)
    return experts.full_expert(public, cut)


def average(trained: Sequence[Any]) -> Any:
    """Returns the mean of all params: one model of the size of one."""
    return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *trained)


def spectra(public: Any, trained: Sequence[Any]) -> np.ndarray:
    """Returns (experts, ranks): the squared singular values of all differences.

    Entry (e, k) is what expert e's MLPs gain, in squared Frobenius norm, when their
    rank goes from k to k + 1: the sum over their matrices (Eckart and Young 1936).
    """
    rows = []
    for params in trained:
        values = [
            np.linalg.svd(np.asarray(own[part] - before[part]), compute_uv=False) ** 2
            for name in gated_mlps(public)
            for own, before in [(kernels(params[name]), kernels(public[name]))]
            for part in own
        ]
        longest = max(map(len, values))
        rows.append(sum(np.pad(v, (0, longest - len(v))) for v in values))
    return np.stack(rows)


def ranks_by_energy(energies: np.ndarray, rank: int) -> list[int]:
    """Returns the experts' ranks of mean `rank` that keep the most energy together.

    A rank costs each expert the same, and each one's gains fall with its rank, so the
    largest gains of all experts together are the best choice. Each has rank 1 at least.

    Args:
      energies: (experts, ranks), falling along the ranks; see `spectra`.
      rank: the mean rank.
    """
    number, longest = energies.shape
    wanted = min(rank, longest) * number
    first = np.full((number, 1), np.inf)
    gains = np.concatenate([first, energies[:, 1:]], axis=1)
    order = np.argsort(-gains.ravel(), kind="stable")[:wanted]
    return np.bincount(order // longest, minlength=number).tolist()


def num_parameters(
    public: Any, ranks: Sequence[int | None], has_router: bool = True
) -> int:
    """Returns the numbers of the public model and of all that a mixture adds to it.

    A rank above m n / (m + n) costs more than the matrix itself; it is counted as it
    is. None is a full expert.

    Args:
      public: params.
      ranks: of each expert.
      has_router: whether there is one; without, somebody else chooses the expert.
    """
    total = sum(leaf.size for leaf in jax.tree.leaves(public))
    for name in gated_mlps(public):
        for kernel in kernels(public[name]).values():
            m, n = kernel.shape
            cut = [None if r is None else min(r, m, n) for r in ranks]
            total += experts.num_parameters([(m, n)], cut, 0)
        width = public[name][FIRST]["kernel"].shape[0]
        if has_router:
            total += (len(ranks) + 1) * (width + 1)  # rows, and biases
    return total


def break_even(losses: Mapping[float, float], loss: float) -> float:
    """Returns the rank from which on mixtures are at least as good as a baseline.

    All greater ranks are, too. Between two ranks the loss is taken to be linear in the
    rank's logarithm. Infinity where the greatest rank is worse. Where none is, the
    smallest: the true rank is that or less.

    As good but for rounding will do: a mixture of full rank is one of full experts.

    Args:
      losses: of each rank.
      loss: the baseline's.
    """
    bound = loss + ROUNDING * abs(loss)
    ranks = sorted(losses)
    worse = [place for place, rank in enumerate(ranks) if not losses[rank] <= bound]
    if not worse:
        return ranks[0]
    if worse[-1] == len(ranks) - 1:
        return math.inf
    before, after = ranks[worse[-1]], ranks[worse[-1] + 1]
    share = (losses[before] - bound) / (losses[before] - losses[after])
    return float(before * (after / before) ** share)


def _shapes(workload: Any) -> Any:
    """Returns the params' shapes, as dicts."""
    return jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape.shape_tuple, jnp.float32),
        workload.param_shapes,
    )
