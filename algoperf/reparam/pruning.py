"""Masks: training with a part of the weights at 0.

A score says how much each weight matters; the weights with the largest scores over all
chosen parameters together are kept. Scores are pure functions of the parameters and,
for some, of a loss's gradient; masks are trees of booleans with None where nothing is
pruned.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from algoperf import spec
from algoperf.errors import UserError
from algoperf.matrices import matrix_shape
from algoperf.reparam.base import Reparametrisation, State

Score = Callable[[Any], Any]  # params -> scores, a tree of the same shapes
Gradient = Callable[[Any], Any]  # params -> gradient of the loss


def magnitude(params: Any) -> Any:
    """Returns |w| (Han et al. 2015, arXiv:1506.02626)."""
    return jax.tree.map(jnp.abs, params)


def snip(gradient: Gradient, params: Any) -> Any:
    """Returns |w dL/dw| (Lee et al. 2019, arXiv:1810.02340, equation 6)."""
    return jax.tree.map(lambda w, g: jnp.abs(w * g), params, gradient(params))


def grasp(gradient: Gradient, params: Any) -> Any:
    """Returns w (H g), whose largest are kept (Wang et al. 2020, arXiv:2002.07376).

    The paper's S(-w) = -w H g estimates what removing w does to the norm of the
    gradient; it removes the largest S (algorithm 1), which are the smallest here.
    """
    _, curved = jax.jvp(gradient, (params,), (gradient(params),))
    return jax.tree.map(jnp.multiply, params, curved)


def synflow(output: Callable[[Any], jax.Array], params: Any) -> Any:
    """Returns |w| dR/d|w| of R = output(|w|) (Tanaka et al. 2020, arXiv:2006.05467).

    Args:
      output: params -> the sum of the model's outputs for an input of ones, scalar.
      params: their absolute values are taken.
    """
    positive = magnitude(params)
    return jax.tree.map(jnp.multiply, jax.grad(output)(positive), positive)


def with_unit_scales(params: Any, kinds: Any) -> Any:
    """Returns the params with 1 for batch norm scales of 0, to be scored.

    Networks of residual blocks may start the last scale of each block at 0. No kernel
    of a block then changes the loss or lies on a path to the output, so all would be
    pruned for ever; the papers' networks start at 1.

    Args:
      params: to be scored.
      kinds: their tree of `spec.ParameterType`.
    """

    def unit(x: jax.Array, kind: spec.ParameterType) -> jax.Array:
        is_scale = kind is spec.ParameterType.BATCH_NORM_SCALE
        return jnp.where(x == 0, jnp.ones_like(x), x) if is_scale else x

    return jax.tree.map(unit, params, kinds)


def with_drawn_outputs(params: Any, workload: spec.Workload) -> Any:
    """Returns the params with an output layer that starts at 0 drawn, to be scored.

    Its kernels are normal numbers of deviation 1 / sqrt(fan-in), the same in all runs;
    others stay as they are. While the output is 0 whatever comes in, no other weight
    changes the loss or lies on a path to the output, and the smallest weights of all
    are those of the output layer: the network that is left would never train.
    """

    def drawn(x: jax.Array, deviation: float) -> jax.Array:
        noise = deviation * jax.random.normal(jax.random.PRNGKey(0), x.shape, x.dtype)
        return jnp.where(jnp.std(x) > 0, x, noise)

    return _map_outputs(drawn, params, workload)


def with_unit_outputs(params: Any, workload: spec.Workload) -> Any:
    """Returns the params with an output layer of usual size, to be scored.

    Its kernels get the standard deviation 1 / sqrt(fan-in). Some networks start it far
    smaller than all other layers; its weights would then be the smallest of all, and
    the whole layer would be pruned. In the papers' networks all layers start alike.
    One that starts at 0 stays there: see `with_drawn_outputs`.
    """

    def unit(x: jax.Array, start_of_others: float) -> jax.Array:
        deviation = jnp.std(x)
        return jnp.where(deviation > 0, x * start_of_others / deviation, x)

    return _map_outputs(unit, params, workload)


def _map_outputs(
    fn: Callable[[jax.Array, float], jax.Array], params: Any, workload: spec.Workload
) -> Any:
    """Maps (kernel, 1 / sqrt(fan-in)) of the output layer; other leaves stay."""

    def mapped(path: Any, x: jax.Array, kind: spec.ParameterType) -> jax.Array:
        matrix = matrix_shape(kind, x.shape)
        if len(matrix) != 2 or not workload.is_output_params(path[0].key):
            return x
        return fn(x, 1.0 / math.sqrt(matrix[0]))

    return jax.tree_util.tree_map_with_path(mapped, params, workload.model_params_types)


def kept_number(density: float, total: int) -> int:
    """Returns how many of `total` weights stay.

    Raises:
      UserError: the density is not in (0, 1], or so low that none stays.
    """
    number = round(density * total)
    if not 0.0 < density <= 1.0 or number < 1:
        raise UserError(
            f"density {density} of {total} weights: give a share in (0, 1] that keeps "
            "one weight at least"
        )
    return number


def keep_largest(scores: Any, chosen: Any, density: float) -> Any:
    """Returns the masks that keep a share of the chosen weights, by their scores.

    Exactly round(density n) of the n chosen weights stay; of equal scores the first.
    None stays where the largest score is 0 or no finite number: see `check_masks`.

    Raises:
      UserError: see `kept_number`.
    """
    return _keep(scores, chosen, kept_number(density, _total(scores, chosen)))


def _total(tree: Any, chosen: Any) -> int:
    """Returns how many weights are chosen."""
    structure: Any = jax.tree.structure(chosen)
    pairs = zip(structure.flatten_up_to(tree), jax.tree.leaves(chosen), strict=True)
    return sum(x.size for x, wanted in pairs if wanted)


def _keep(scores: Any, chosen: Any, number: int | jax.Array) -> Any:
    """Returns the masks that keep so many of the chosen weights; may be traced.

    Where the largest score is 0, the first weights of the tree would stay, and where
    one is no finite number, those of such scores. It says nothing of them: none stays.
    """
    structure: Any = jax.tree.structure(chosen)
    leaves = structure.flatten_up_to(scores)
    is_chosen = jax.tree.leaves(chosen)
    picked = [x for x, wanted in zip(leaves, is_chosen, strict=True) if wanted]
    flat = jnp.concatenate([x.ravel() for x in picked])
    order = jnp.argsort(flat, descending=True, stable=True)
    kept = jnp.zeros(flat.shape, bool).at[order].set(jnp.arange(flat.size) < number)
    largest = flat[order[0]]
    # -inf is of what is pruned already.
    kept &= (largest != 0) & jnp.isfinite(largest) & ~jnp.isnan(flat).any()
    masks, first = [], 0
    for x, wanted in zip(leaves, is_chosen, strict=True):
        masks.append(kept[first : first + x.size].reshape(x.shape) if wanted else None)
        first += x.size if wanted else 0
    return structure.unflatten(masks)


def check_masks(masks: Any) -> None:
    """Looks at the masks that a score gave, when a step has made them.

    Raises:
      UserError: they keep nothing, because no score was above 0, or some no numbers.
    """
    if not any(bool(jnp.any(mask)) for mask in jax.tree.leaves(masks)):
        raise UserError(
            "the largest pruning score is 0 or no finite number, so scores tell no "
            "weight from another: at its initial weights the network's loss or output "
            "depends on none of them, or overflows; take another score, or start the "
            "network elsewhere"
        )


def iterated(
    score: Score, params: Any, chosen: Any, density: float, rounds: int
) -> Any:
    """Prunes in rounds, to density^(k / rounds) in round k, scoring what is left.

    SynFlow takes 100 rounds (Tanaka et al. 2020, arXiv:2006.05467, algorithm 1).

    Raises:
      UserError: see `kept_number`.
    """
    total = _total(params, chosen)
    kept_number(density, total)
    densities = (density ** (k / rounds) for k in range(1, rounds + 1))
    numbers = jnp.asarray([round(share * total) for share in densities])

    def prune(k: jax.Array, masks: Any) -> Any:
        scores = _kept_first(score(apply_masks(params, masks)), masks)
        return _keep(scores, chosen, numbers[k])

    everything = keep_largest(magnitude(params), chosen, 1.0)
    return jax.lax.fori_loop(0, rounds, prune, everything)


def _kept_first(scores: Any, masks: Any) -> Any:
    """What is pruned stays pruned, whatever the scores of the rest."""
    return _map_masked(lambda s, mask: jnp.where(mask, s, -jnp.inf), scores, masks)


def apply_masks(params: Any, masks: Any) -> Any:
    """Returns the params times the masks, as they are where there is none."""
    return _map_masked(lambda x, mask: x * mask, params, masks)


def _map_masked(fn: Callable[[Any, Any], Any], tree: Any, masks: Any) -> Any:
    """Maps (leaf, mask) where there is a mask; other leaves stay."""
    structure: Any = jax.tree.structure(tree)
    pairs = zip(jax.tree.leaves(tree), structure.flatten_up_to(masks), strict=True)
    new = [x if mask is None else fn(x, mask) for x, mask in pairs]
    return structure.unflatten(new)


def masked(
    chosen: Any, masks_from: Callable[[Any, Any], Any], density: float
) -> Reparametrisation:
    """Returns the reparametrisation w * mask, with masks made at the first step.

    Args:
      chosen: the params' tree of booleans, from `select`.
      masks_from: (params, objective) -> masks; the objective is that of the first
        batch, for scores that follow from data. Runs inside the compiled step, at the
        first step only.
      density: that the masks will have, for a mistake to be found before training.

    Raises:
      UserError: at `init`: see `kept_number`.
    """

    def init(params: Any, key: Any) -> State:
        del key
        kept_number(density, _total(params, chosen))
        return State(params, keep_largest(magnitude(params), chosen, 1.0))

    def advance(small, transformation, steps, objective):
        masks = jax.lax.cond(
            steps == 0,
            lambda: masks_from(small.trainable, objective),
            lambda: small.frozen,
        )
        return small._replace(frozen=masks), transformation

    return Reparametrisation(
        init, lambda state: apply_masks(state.trainable, state.frozen), advance
    )


def lottery_ticket(
    chosen: Any, density: float, period: int, rounds: int, rewind_step: int = 0
) -> Reparametrisation:
    """Iterative magnitude pruning with rewinding, in one training run.

    Every `period` steps, `rounds` times: the weights that grew largest are kept, to a
    density of density^(k / rounds) after round k; all parameters go back to what they
    were after `rewind_step` steps; the optimizer's moments are 0 again, and so is the
    count that Adam corrects their bias by. After the last round the ticket trains on.
    Other counters, and so schedules, do not go back (Frankle and Carbin 2019,
    arXiv:1803.03635; Frankle et al. 2020, arXiv:1912.05671).

    Raises:
      UserError: a period or rewinding step out of range; a density, at `init`.
    """
    if period < 1 or rounds < 1 or not 0 <= rewind_step < period:
        raise UserError(
            f"lottery ticket with period {period}, rounds {rounds}, rewind_step "
            f"{rewind_step}: give positive numbers, and rewind before the first pruning"
        )

    def init(params: Any, key: Any) -> State:
        del key
        kept_number(density, _total(params, chosen))
        masks = keep_largest(magnitude(params), chosen, 1.0)
        return State(params, (masks, params))

    def pruned(small: State, round_number: int) -> State:
        masks, early = small.frozen
        scores = _kept_first(magnitude(small.trainable), masks)
        masks = keep_largest(scores, chosen, density ** (round_number / rounds))
        return State(early, (masks, early))

    def advance(small, transformation, steps, objective):
        del objective
        masks, early = small.frozen
        is_early = steps == rewind_step
        early = jax.tree.map(
            lambda new, old: jnp.where(is_early, new, old), small.trainable, early
        )
        small = State(small.trainable, (masks, early))
        is_due = (steps > 0) & (steps % period == 0) & (steps <= rounds * period)
        index = jnp.where(is_due, steps // period, 0)
        branches: list[Callable[[State], State]] = [lambda small: small]
        branches += [
            functools.partial(pruned, round_number=k) for k in range(1, rounds + 1)
        ]
        small = jax.lax.switch(index, branches, small)
        return small, _restarted(transformation, is_due)

    return Reparametrisation(
        init, lambda state: apply_masks(state.trainable, state.frozen[0]), advance
    )


def _restarted(transformation: Any, is_due: jax.Array) -> Any:
    """Returns the optimizer's state, as at its start where due but for schedules."""

    def is_adam(state: Any) -> bool:
        return isinstance(state, optax.ScaleByAdamState)

    def restart(state: Any) -> Any:
        return jax.tree.map(
            lambda x: jnp.where(
                is_due & (is_adam(state) or jnp.ndim(x) > 0), jnp.zeros_like(x), x
            ),
            state,
        )

    return jax.tree.map(restart, transformation, is_leaf=is_adam)


def stored_bytes(kept: int, total: int, bytes_per_weight: int = 4) -> int:
    """Returns the bytes of a pruned array: the kept weights, and a bit for each."""
    return kept * bytes_per_weight + -(-total // 8)


def sizes(workload: spec.Workload, chosen: Any, density: float) -> dict[str, float]:
    """Returns what `reparam.sizes` counts, of a network stored without its zeros.

    Masks are dense while a submission trains, so its own state tells nothing of these.

    Args:
      workload: gives the shapes.
      chosen: the params' tree of booleans, from `select`.
      density: the share of their weights that stays.

    Raises:
      UserError: see `kept_number`.
    """
    shapes = jax.tree.leaves(workload.param_shapes)
    numbers = [math.prod(shape.shape_tuple) for shape in shapes]
    pairs = zip(numbers, jax.tree.leaves(chosen), strict=True)
    total = sum(number for number, wanted in pairs if wanted)
    kept, others = kept_number(density, total), sum(numbers) - total
    stored = stored_bytes(kept, total) + 4 * others
    return {
        "trainable_parameters": kept + others,
        "stored_bytes": stored,
        "compression_ratio": 4 * sum(numbers) / stored,
    }
