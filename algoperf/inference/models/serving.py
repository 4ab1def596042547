"""Recipes of serving: a decoder's weights packed, of low rank, pruned, or all of it.

Everything here acts on parameters before they are served; `weights` says how products
use what comes out. Dimension key: D width, F neurons of the MLP.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from algoperf.errors import UserError
from algoperf.inference.models.decoder import Params
from algoperf.inference.models.shapes import DecoderShape
from algoperf.inference.models.weights import LowRank, is_kernel, materialised
from algoperf.numerics.formats import find_format
from algoperf.numerics.packed import Packed, pack
from algoperf.reparam.base import rank_of
from algoperf.reparam.low_rank import truncated
from algoperf.reparam.width import FIRST, SECOND, kept_neurons

Layer = dict[str, Any]

# Singular values below this share of the largest are what float32 leaves of zero.
SMALLEST_SINGULAR_VALUE = 1e-5
# Outputs of these are one kernel wherever a rank is given or found: factors then share
# the left one. It is how the workload's own kernels are.
_pack = jax.jit(pack, static_argnums=(1, 2))  # op by op it would compile each op
_FUSED = {"qkv": ("query", "key", "value"), "up_gate": ("up", "gate")}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How weights are served.

    Attributes:
      weight_format: a name in `numerics.FORMATS` that kernels are packed in, blocks
        along the axis that a product contracts; None: not packed.
      packs_embedding: whether the embedding and the output layer are packed too.
      rank: of the truncated singular value decomposition of each kernel in a block, see
        `rank_of`; None: as they are. Kernels that would not get smaller stay.
      pruned: share of the neurons of each MLP that are left out, those with the least
        max|up| + max|gate| (see `reparam.width`).
      is_compact: neurons that do nothing are left out and kernels of low rank become
        factors, which changes no logit.
    """

    weight_format: str | None = None
    packs_embedding: bool = False
    rank: int | float | None = None
    pruned: float = 0.0
    is_compact: bool = False

    @property
    def changes(self) -> bool:
        """Whether it changes what the model computes, or how its weights are stored."""
        return (
            self.weight_format is not None or self.rank is not None or self.pruned > 0
        )

    def label(self, dtype: str) -> str:
        """Returns what to call it, with the dtype of what is not packed."""
        parts = [dtype if self.weight_format is None else self.weight_format]
        if self.packs_embedding:
            parts.append("embedding")
        if self.rank is not None:
            parts.append(f"rank {self.rank:g}")
        if self.pruned:
            parts.append(f"pruned {self.pruned:g}")
        return " + ".join(parts)


def check_recipe(recipe: Recipe) -> None:
    """Raises UserError for a recipe that no model can be served with."""
    if not 0.0 <= recipe.pruned < 1.0:
        raise UserError(
            f"--prune {recipe.pruned:g}: give a share of the neurons, at least 0 and "
            "less than 1"
        )
    rank = recipe.rank
    if rank is not None and not (rank >= 1 if isinstance(rank, int) else 0 < rank <= 1):
        raise UserError(
            f"--rank {rank}: give a whole number, or a share above 0 and at most 1"
        )
    if recipe.weight_format is None:
        if recipe.packs_embedding:
            raise UserError("--pack_embedding needs a format: give --weights too")
        return
    found = find_format(recipe.weight_format)
    if found.scale is None:
        raise UserError(
            f"--weights {recipe.weight_format} packs nothing; give --dtype instead"
        )
    if found.is_stochastic:
        raise UserError(
            f"--weights {recipe.weight_format} rounds at random, which trained weights "
            "gain nothing from; take a format that rounds to nearest"
        )


def served(
    shape: DecoderShape, params: Params, recipe: Recipe, dtype: Any = jnp.float32
) -> tuple[DecoderShape, Params]:
    """Returns the shape and the parameters that a recipe serves.

    Args:
      shape: the model's.
      params: dense ones, see `param_shapes`.
      recipe: what to do: leave out neurons, then factorise, then pack.
      dtype: of everything that is not packed, and of what is unpacked.

    Raises:
      UserError: the recipe fits no model, or not this one.
    """
    check_recipe(recipe)
    layers = [dict(layer) for layer in params["layers"]]
    if recipe.is_compact:
        layers = _without_dead_neurons(shape, layers)
    if recipe.pruned:
        layers = [_pruned(layer, recipe.pruned) for layer in layers]
    neurons = layers[0]["down"]["kernel"].shape[0]
    if recipe.rank is not None or recipe.is_compact:
        layers = [_factorised(layer, recipe) for layer in layers]
    tree = {**params, "layers": layers}
    if recipe.weight_format is not None:
        tree = _packed(tree, recipe)
    tree = jax.tree.map(lambda leaf: _cast(leaf, dtype), tree, is_leaf=is_kernel)
    return dataclasses.replace(shape, mlp_width=neurons), tree


def described(params: Params) -> dict[str, Any]:
    """Returns what a served tree is: bytes as stored, of all and of what is packed.

    'weight_bytes' of everything; 'dense_bytes' of the same model with every kernel as
    an array of its dtype; 'ranks' of the factorised kernels, smallest and largest.
    """
    nodes = [n for n in jax.tree.leaves(params, is_leaf=is_kernel) if is_kernel(n)]
    ranks = [n.left.shape[1] for n in nodes if isinstance(n, LowRank)]
    dense = jax.eval_shape(materialised, params)
    return {
        "weight_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
        "dense_bytes": sum(
            leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(dense)
        ),
        "ranks": [min(ranks), max(ranks)] if ranks else None,
    }


def numerical_rank(kernel: Any) -> int:
    """Returns how many singular values are more than rounding errors of float32."""
    values = np.linalg.svd(np.asarray(kernel, np.float32), compute_uv=False)
    return max(1, int((values > SMALLEST_SINGULAR_VALUE * values[0]).sum()))


def _without_dead_neurons(shape: DecoderShape, layers: list[Layer]) -> list[Layer]:
    """Leaves out neurons whose output nobody reads, or which is always 0.

    As many in each layer, so that the model still has one MLP width.
    """
    dead = [_dead_neurons(shape, layer) for layer in layers]
    number = min(int(is_dead.sum()) for is_dead in dead)
    if number in (0, len(dead[0])):
        return layers
    kept = [np.sort(np.argsort(~is_dead, kind="stable")[number:]) for is_dead in dead]
    return [
        _narrowed(layer, places) for layer, places in zip(layers, kept, strict=True)
    ]


def _dead_neurons(shape: DecoderShape, layer: Layer) -> np.ndarray:
    """Returns (F,) booleans."""
    is_dead = ~np.any(np.asarray(layer["down"]["kernel"]), axis=1)
    if shape.is_gated and "bias" not in layer["up"]:
        is_dead |= ~np.any(np.asarray(layer["up"]["kernel"]), axis=0)
    return is_dead


def _pruned(layer: Layer, fraction: float) -> Layer:
    names = ("up", "gate") if "gate" in layer else ("up", "up")
    first_Dx2F = jnp.concatenate([layer[name]["kernel"] for name in names], axis=1)
    mlp = {FIRST: {"kernel": first_Dx2F}, SECOND: layer["down"]}
    return _narrowed(layer, np.asarray(kept_neurons(mlp, fraction)))


def _narrowed(layer: Layer, kept: np.ndarray) -> Layer:
    """Returns the layer with these neurons of its MLP alone."""
    new = dict(layer)
    for name in ("up", "gate"):
        if name in layer:
            new[name] = {k: leaf[..., kept] for k, leaf in layer[name].items()}
    down = layer["down"]
    new["down"] = {**down, "kernel": down["kernel"][kept]}
    return new


def _factorised(layer: Layer, recipe: Recipe) -> Layer:
    """Puts factors in the place of kernels where that is smaller."""
    new = dict(layer)
    for fused, names in _FUSED.items():
        if all(name in layer for name in names):
            whole = _side_by_side([layer[name] for name in names])
            factors = _factors(whole["kernel"], recipe)
            if factors is not None:
                new = {key: part for key, part in new.items() if key not in names}
                new[fused] = {**whole, "kernel": factors}
    for name in ("out", "up", "down"):
        if name in new:
            factors = _factors(new[name]["kernel"], recipe)
            if factors is not None:
                new[name] = {**new[name], "kernel": factors}
    return new


def _side_by_side(parts: list[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        name: jnp.concatenate([part[name] for part in parts], axis=-1)
        for name in parts[0]
    }


def _factors(kernel: jax.Array, recipe: Recipe) -> LowRank | None:
    """Returns factors of a kernel; None where it is smaller as it is."""
    m, n = kernel.shape
    if recipe.rank is not None:
        rank = rank_of(recipe.rank, (m, n), "a kernel")
    else:
        rank = numerical_rank(kernel)
    if rank * (m + n) >= m * n:
        return None
    left, right = truncated(kernel, rank)
    return LowRank(left, right)


def _packed(params: Params, recipe: Recipe) -> Params:
    """Packs kernels along what products contract: (m, n) along m, tables along D."""
    fmt = find_format(recipe.weight_format or "")

    def one(node: Any, axis: int) -> Any:
        if isinstance(node, LowRank):
            return LowRank(one(node.left, axis), one(node.right, axis))
        return _pack(node, fmt, axis)

    def layer_packed(layer: Layer) -> Layer:
        return {
            name: {**part, "kernel": one(part["kernel"], 0)}
            if isinstance(part, dict) and "kernel" in part
            else part
            for name, part in layer.items()
        }

    new = {**params, "layers": [layer_packed(layer) for layer in params["layers"]]}
    if recipe.packs_embedding:
        new["embedding"] = one(params["embedding"], 1)
        if "head" in params:
            new["head"] = {**params["head"], "kernel": one(params["head"]["kernel"], 0)}
    return new


def _cast(node: Any, dtype: Any) -> Any:
    if isinstance(node, LowRank):
        return LowRank(_cast(node.left, dtype), _cast(node.right, dtype))
    if isinstance(node, Packed):
        return dataclasses.replace(node, dtype=jnp.dtype(dtype))
    return jnp.asarray(node).astype(dtype)
