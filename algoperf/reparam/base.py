"""Training something small inside a fixed parameter tree.

A reparametrisation says what is trained (`State.trainable`), what stays
(`State.frozen`) and how the workload's full parameters follow from both.
`from_optax(build, reparametrise=...)` trains with it: the harness always holds full
parameters, the optimizer sees the small thing alone.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from algoperf import spec
from algoperf.errors import UserError
from algoperf.matrices import KERNELS, matrix_shape


class State(NamedTuple):
    """What a reparametrisation keeps.

    Where it acts on single parameters, both have the structure of the parameters, with
    a subtree or None in the place of each leaf. So a mask over the parameters, such as
    `mask_without(workload)`, is a prefix of `trainable` and serves optax as it is.
    """

    trainable: Any  # what the optimizer sees
    frozen: Any  # all else that the parameters follow from


class Training(NamedTuple):
    """Optimizer state of a submission that trains a reparametrisation."""

    steps: jax.Array  # () int32, finished ones
    small: State
    transformation: Any  # the optimizer's own state, of `small.trainable`


Advance = Callable[[State, Any, jax.Array, Any], tuple[State, Any]]


@dataclasses.dataclass(frozen=True)
class Reparametrisation:
    """Three pure functions, and what changes between steps, if anything.

    Attributes:
      init: (params, key) -> State; starts at the workload's initial parameters, or as
        close as it can.
      materialise: State -> params, the full tree; differentiable in `trainable`.
      advance: (state, optimizer state, finished steps, objective) -> (state, optimizer
        state), called at the beginning of each compiled step, for merges, restarts and
        masks that follow from data. `objective` is that of the full parameters.
    """

    init: Callable[[Any, Any], State]
    materialise: Callable[[State], Any]
    advance: Advance | None = None

    def trainable(self, state: State) -> Any:
        """Returns what the optimizer sees."""
        return state.trainable

    def with_trainable(self, state: State, trainable: Any) -> State:
        """Returns the state with other trainable arrays: the way back."""
        return state._replace(trainable=trainable)

    def materialise_from(self, state: State) -> Callable[[Any], Any]:
        """Returns the map from trainable arrays to full parameters."""
        return lambda trainable: self.materialise(self.with_trainable(state, trainable))


def select(
    workload: spec.Workload,
    *,
    types: Collection[spec.ParameterType] = KERNELS,
    path: str | None = None,
    smallest: int = 1,
    output: bool = True,
) -> Any:
    """Returns the params' tree: True where a reparametrisation acts.

    Args:
      workload: gives names, types and shapes.
      types: which parameter types.
      path: a regular expression that a parameter's name ('layer_0_mlp/fc1/kernel') must
        contain; None for all.
      smallest: the least size of the smaller side of the parameter's matrix.
      output: whether the output layer counts too.

    Raises:
      UserError: nothing matches, or the expression is none.
    """
    try:
        pattern = re.compile(path or "")
    except re.error as error:
        raise UserError(f"path {path!r} is no regular expression: {error}") from error

    def matches(
        key_path: Any, kind: spec.ParameterType, shape: spec.ShapeTuple
    ) -> bool:
        matrix = matrix_shape(kind, shape.shape_tuple)
        return (
            kind in types
            and len(matrix) == 2
            and min(matrix) >= smallest
            and pattern.search(name_of(key_path)) is not None
            and (output or not workload.is_output_params(key_path[0].key))
        )

    kinds, shapes = workload.model_params_types, workload.param_shapes
    chosen = jax.tree_util.tree_map_with_path(matches, kinds, shapes)
    if not any(jax.tree.leaves(chosen)):
        there = [
            f"{name_of(key_path)} ({kind.name})"
            for key_path, kind in jax.tree_util.tree_leaves_with_path(kinds)
        ]
        more = f" and {len(there) - 6} more" if len(there) > 6 else ""
        raise UserError(
            f"no parameter matches types {', '.join(sorted(t.name for t in types))}"
            f"{f', path {path!r}' if path else ''}, sides of {smallest} or more; there "
            f"are: {', '.join(there[:6])}{more}"
        )
    return chosen


def name_of(key_path: Any) -> str:
    """Returns the name of a parameter, such as 'hidden/kernel'."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def rank_of(rank: int | float, shape: tuple[int, ...], name: str = "a matrix") -> int:
    """Returns the rank for a matrix (m, n): `rank` itself, or a share of min(m, n).

    An int is the rank, from 1 to min(m, n). A float in (0, 1] is a share of min(m, n),
    rounded, at least 1.

    Raises:
      UserError: it is out of range.
    """
    largest = min(shape)
    what = f"rank {rank} for {name} of shape {shape[0]} x {shape[1]}"
    if isinstance(rank, int):
        if not 1 <= rank <= largest:
            raise UserError(f"{what}: give 1 to {largest}, or a share of it, as 0.25")
        return rank
    if not 0.0 < rank <= 1.0:
        raise UserError(f"{what}: a share must be above 0 and at most 1")
    return max(1, round(rank * largest))


class Rule(NamedTuple):
    """How one matrix (fan-in, fan-out) is made of something else.

    Attributes:
      init: (matrix, key) -> (trainable, frozen), two pytrees.
      materialise: (trainable, frozen) -> matrix.
    """

    init: Callable[[jax.Array, Any], tuple[Any, Any]]
    materialise: Callable[[Any, Any], jax.Array]


def per_matrix(
    workload: spec.Workload,
    chosen: Any,
    rule: Callable[[str, tuple[int, ...]], Rule],
    train_others: bool = True,
) -> Reparametrisation:
    """Returns a reparametrisation of the chosen parameters, each by itself.

    Args:
      workload: gives names, types and shapes.
      chosen: the params' tree of booleans, from `select`.
      rule: (name, shape) of a matrix -> its rule; raises UserError for a bad shape.
      train_others: whether the parameters that are not chosen are trained as they are;
        otherwise they stay.
    """
    structure: Any = jax.tree.structure(workload.param_shapes)
    shapes = [shape.shape_tuple for shape in jax.tree.leaves(workload.param_shapes)]
    matrices = matrices_of(workload, chosen)
    rules = [
        rule(name, matrix) if is_chosen else None
        for name, matrix, is_chosen in matrices
    ]

    def init(params: Any, key: Any) -> State:
        parts = []
        for number, x in enumerate(structure.flatten_up_to(params)):
            own = rules[number]
            if own is None:
                parts.append((x, None) if train_others else (None, x))
                continue
            _, matrix, _ = matrices[number]
            own_key = jax.random.fold_in(key, number)
            parts.append(own.init(x.reshape(matrix), own_key))
        trainable, frozen = zip(*parts, strict=True)
        return State(structure.unflatten(trainable), structure.unflatten(frozen))

    def materialise(state: State) -> Any:
        leaves = []
        for number, (trainable, frozen) in enumerate(
            zip(
                structure.flatten_up_to(state.trainable),
                structure.flatten_up_to(state.frozen),
                strict=True,
            )
        ):
            own = rules[number]
            if own is None:
                leaves.append(frozen if trainable is None else trainable)
            else:
                matrix = own.materialise(trainable, frozen)
                leaves.append(matrix.reshape(shapes[number]))
        return structure.unflatten(leaves)

    return Reparametrisation(init, materialise)


def matrices_of(
    workload: spec.Workload, chosen: Any
) -> list[tuple[str, tuple[int, ...], bool]]:
    """Returns (name, matrix shape, is chosen) of each parameter, in order."""
    kinds = jax.tree_util.tree_leaves_with_path(workload.model_params_types)
    shapes = jax.tree.leaves(workload.param_shapes)
    return [
        (name_of(key_path), matrix_shape(kind, shape.shape_tuple), is_chosen)
        for (key_path, kind), shape, is_chosen in zip(
            kinds, shapes, jax.tree.leaves(chosen), strict=True
        )
    ]


def start(
    reparametrisation: Reparametrisation, transformation: Any, params: Any, key: Any
) -> Training:
    """Returns the state before the first step."""
    small = reparametrisation.init(params, key)
    trainable = reparametrisation.trainable(small)
    return Training(jnp.int32(0), small, transformation.init(trainable))


def begin_step(
    reparametrisation: Reparametrisation, training: Training, objective: Any
) -> Training:
    """Returns the state as a step begins, after merges, restarts and new masks."""
    if reparametrisation.advance is None:
        return training
    small, state = reparametrisation.advance(
        training.small, training.transformation, training.steps, objective
    )
    return Training(training.steps, small, state)


def finish_step(
    reparametrisation: Reparametrisation,
    training: Training,
    trainable: Any,
    transformation: Any,
) -> tuple[Training, Any]:
    """Returns the state after a step, and the full parameters."""
    small = reparametrisation.with_trainable(training.small, trainable)
    params = reparametrisation.materialise(small)
    return Training(training.steps + 1, small, transformation), params


def count(tree: Any) -> int:
    """Returns how many numbers the arrays of a tree hold; shapes do."""
    return sum(math.prod(leaf.shape) for leaf in _arrays(tree))


def num_bytes(tree: Any) -> int:
    """Returns the bytes of the arrays of a tree; `jax.ShapeDtypeStruct` do."""
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in _arrays(tree))


def _arrays(tree: Any) -> list[Any]:
    leaves = jax.tree.leaves(tree)
    return [
        leaf for leaf in leaves if hasattr(leaf, "shape") and hasattr(leaf, "dtype")
    ]


def sizes(params: Any, optimizer_state: Any) -> dict[str, float]:
    """Returns what a submission trains and stores, counted on its state.

    'trainable_parameters' are the numbers that the optimizer changes, 'stored_bytes'
    what the parameters follow from, 'compression_ratio' the bytes of the full
    parameters over those, 'optimizer_state_bytes' all other arrays of the optimizer
    state. Without a reparametrisation all parameters are trained and stored.

    Args:
      params: the full parameters.
      optimizer_state: what `init_optimizer_state` returned.
    """
    own = {id(leaf) for leaf in jax.tree.leaves(params)}
    found = [
        node
        for node in jax.tree.leaves(optimizer_state, is_leaf=_is_state)
        if _is_state(node)
    ]
    rest = [
        leaf
        for leaf in jax.tree.leaves(optimizer_state, is_leaf=_is_state)
        if not _is_state(leaf) and id(leaf) not in own
    ]
    stored = num_bytes(found) if found else num_bytes(params)
    trainable = [state.trainable for state in found] if found else params
    return {
        "trainable_parameters": count(trainable),
        "stored_bytes": stored,
        "compression_ratio": num_bytes(params) / stored,
        "optimizer_state_bytes": num_bytes(rest),
    }


def _is_state(node: Any) -> bool:
    return isinstance(node, State)
