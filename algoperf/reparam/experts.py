"""FlexMoRE: experts of low rank, made from full ones, and mixtures of any ranks.

An expert is a copy of a public MLP that was trained on a domain. What it learned, the
difference of its matrices to the public ones, is cut to a rank; a router with one
embedding for each expert mixes them (arXiv:2602.08818; the router is FlexOlmo's,
arXiv:2507.07024). Matrices are (m, n) = (fan-in, fan-out). An MLP is a dict of names
and matrices; T counts tokens, D the width, E experts.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from algoperf.errors import UserError
from algoperf.reparam.base import rank_of
from algoperf.reparam.low_rank import Factors, truncated

MLP = Mapping[
    str, Any
]  # name -> matrix, or Factors of the difference to the public one
Forward = Callable[[MLP, jax.Array], jax.Array]  # (matrices, x (T, D)) -> (T, D)


def low_rank_expert(public: MLP, expert: MLP, rank: int | float) -> dict[str, Factors]:
    """Returns the factors of each matrix's difference to the public one.

    W_expert - W_public = U S V^T, left = U_r sqrt(S_r), right = sqrt(S_r) V_r^T
    (arXiv:2602.08818). At rank min(m, n) nothing is lost.

    Args:
      public: the matrices that all experts started from.
      expert: the same names and shapes, trained further.
      rank: see `rank_of`.

    Raises:
      UserError: a rank out of range, or other names or shapes.
    """
    _check_same(public, expert)
    return {
        name: truncated(
            expert[name] - public[name], rank_of(rank, public[name].shape, name)
        )
        for name in public
    }


def full_expert(public: MLP, expert: MLP) -> dict[str, jax.Array]:
    """Returns the matrices of an expert: W_public + left right, or those it has."""
    return {
        name: public[name] + part.product() if isinstance(part, Factors) else part
        for name, part in expert.items()
    }


def num_parameters(
    shapes: Sequence[tuple[int, int]], ranks: Sequence[int | None], width: int
) -> int:
    """Returns the numbers of a mixture beside its public MLP.

    sum over experts of r (m + n) for each matrix, or m n at full rank, and a row of the
    router for each expert and the public one.

    Args:
      shapes: (m, n) of the matrices of an MLP.
      ranks: of each expert; None is a full one. Experts may differ.
      width: D, the length of a router's row.
    """
    own = sum(
        m * n if rank is None else rank * (m + n) for rank in ranks for m, n in shapes
    )
    return own + width * (len(ranks) + 1)


def route(
    x_TxD: jax.Array,
    embeddings_ExD: jax.Array,
    bias_E: jax.Array | None = None,
    top_k: int | None = None,
    renormalise: bool = False,
) -> jax.Array:
    """Returns the weights (T, E) of the experts: softmax(x e^T + bias), the top k.

    Rows of experts that were trained apart are put together as they are; nothing is
    trained jointly (FlexOlmo, arXiv:2507.07024).

    Args:
      x_TxD: the tokens' vectors.
      embeddings_ExD: one row for each expert.
      bias_E: added to the logits, to favour or disfavour experts.
      top_k: how many experts a token has; all, if not given. Weights of others are 0.
      renormalise: whether the weights of the top k add up to 1.

    Raises:
      UserError: top_k is not between 1 and E.
    """
    number = embeddings_ExD.shape[0]
    if top_k is not None and not 1 <= top_k <= number:
        raise UserError(f"top_k {top_k} of {number} experts: give 1 to {number}")
    logits_TxE = x_TxD @ embeddings_ExD.T
    if bias_E is not None:
        logits_TxE = logits_TxE + bias_E
    weights_TxE = jax.nn.softmax(logits_TxE, axis=-1)
    if top_k is None or top_k == number:
        return weights_TxE
    _, best_TxK = jax.lax.top_k(weights_TxE, top_k)
    is_best = jax.nn.one_hot(best_TxK, number, dtype=weights_TxE.dtype).sum(axis=1)
    weights_TxE = weights_TxE * is_best
    if renormalise:
        weights_TxE = weights_TxE / weights_TxE.sum(axis=-1, keepdims=True)
    return weights_TxE


def mixture(
    forward: Forward,
    public: MLP,
    experts: Sequence[MLP],
    x_TxD: jax.Array,
    weights_TxE: jax.Array,
) -> jax.Array:
    """Returns sum_e weights_e MLP_e(x) (T, D); expert 0 is the public MLP.

    Args:
      forward: what an MLP does with its matrices.
      public: the public matrices.
      experts: E - 1 of them, of any ranks, or full.
      x_TxD: the tokens' vectors.
      weights_TxE: from `route`.
    """
    if weights_TxE.shape[-1] != len(experts) + 1:
        raise UserError(
            f"{weights_TxE.shape[-1]} weights for {len(experts)} experts and the "
            "public one: give the router a row for each"
        )
    all_experts = [public, *(full_expert(public, expert) for expert in experts)]
    outputs_ExTxD = jnp.stack([forward(expert, x_TxD) for expert in all_experts])
    return jnp.einsum("te,etd->td", weights_TxE, outputs_ExTxD)


def _check_same(public: MLP, expert: MLP) -> None:
    wanted = {name: matrix.shape for name, matrix in public.items()}
    found = {name: matrix.shape for name, matrix in expert.items()}
    if wanted != found:
        raise UserError(f"an expert has matrices {found}, the public MLP {wanted}")
