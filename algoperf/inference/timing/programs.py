"""The programs of any workload: its forward pass and its training step, compiled.

They are compiled from shapes alone, so a full-size workload needs neither its data nor
the memory to run.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from algoperf import spec
from algoperf.inference.timing import hlo
from algoperf.training_step import train_step

NAMES = ("forward", "step")
# A pack of graphs has room for so many nodes and edges of each, and for one that takes
# the padding.
MAX_PACKS = 8
NODES_PER_GRAPH, EDGES_PER_GRAPH = 26, 56


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program of a workload.

    Attributes:
      workload: its name in records.
      name: 'forward' (logits, as in evaluation) or 'step' (loss, gradient, AdamW).
      batch_size: examples.
      compiled: what runs.
      kernels: read off it.
      arguments: makes the arguments, on the device.
    """

    workload: str
    name: str
    batch_size: int
    compiled: Any
    kernels: tuple[hlo.Kernel, ...]
    arguments: Callable[[], tuple[Any, ...]]

    def runner(self) -> Callable[[], None]:
        """Returns what runs the program once, to its end.

        A step goes on from the parameters that the last one left.
        """
        arguments = self.arguments()
        if self.name == "forward":
            return lambda: jax.block_until_ready(self.compiled(*arguments))
        *state, batch, rng = arguments

        def run() -> None:
            nonlocal state
            *state, scalars = self.compiled(*state, batch, rng)
            jax.block_until_ready((state, scalars))

        return run


def params_for_speed(workload: Any) -> tuple[Any, Any]:
    """Returns (params, model state) of the right shapes, with values of no meaning.

    Speed does not depend on them, and drawing a workload's own means to compile more
    than the program that is timed. Matrices are normal over the root of their inputs;
    vectors, variances among them, are 0.1.
    """
    rng = np.random.default_rng(0)

    def drawn(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if len(leaf.shape) < 2:
            return jnp.full(leaf.shape, 0.1, leaf.dtype)
        values = rng.standard_normal(leaf.shape, np.float32)
        inputs = math.prod(leaf.shape[:-1])
        return jnp.asarray(values / np.float32(math.sqrt(inputs)), leaf.dtype)

    shapes = jax.eval_shape(workload.init_model_fn, jax.random.PRNGKey(0))
    return jax.tree.map(drawn, shapes)


def compile_program(
    workload: Any,
    name: str,
    batch_size: int | None = None,
    params: Callable[[], tuple[Any, Any]] | None = None,
) -> Program:
    """Compiles a program of a workload.

    Args:
      workload: any.
      name: one of NAMES.
      batch_size: examples; None: the workload's own.
      params: gives (params, model state); by default `params_for_speed`.
    """
    size = batch_size or workload.default_batch_size
    key = jax.random.PRNGKey(0)
    given = params or functools.partial(params_for_speed, workload)

    def arguments() -> tuple[Any, ...]:
        batch = program_batch(workload, size)
        if name == "forward":
            return *given(), batch
        fresh, state = jax.tree.map(jnp.copy, given())  # a step donates them
        return transformation.init(fresh), fresh, state, batch, key

    transformation = optax.adamw(1e-3)
    function: Any = jax.jit(forward_of(workload))
    if name == "step":
        function = train_step(workload, transformation, None, None)
    trained, state = jax.eval_shape(workload.init_model_fn, key)
    shapes: tuple[Any, ...] = trained, state, batch_shapes(workload, size)
    if name == "step":
        shapes = jax.eval_shape(transformation.init, trained), *shapes, key
    compiled = function.lower(*shapes).compile()
    found = tuple(hlo.kernels(compiled.as_text() or ""))
    return Program(workload.name, name, size, compiled, found, arguments)


def forward_of(workload: Any) -> Callable[[Any, Any, spec.Batch], Any]:
    """Returns (params, model state, batch) -> logits, as in evaluation."""

    def forward(params: Any, model_state: Any, batch: spec.Batch) -> Any:
        mode = spec.ForwardPassMode.EVAL
        return workload.model_fn(params, batch, model_state, mode, None, False)[0]

    return forward


def program_batch(workload: Any, batch_size: int) -> spec.Batch:
    """Returns a batch for speed: ids are 1, all else is 0.

    Of the shapes of `batch_shapes`. Speed depends on shapes alone, but for ids: PAD is
    0 and would be masked.
    """

    def filled(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        is_id = leaf.dtype == jnp.int32
        return jnp.full(leaf.shape, int(is_id), leaf.dtype)

    return jax.tree.map(filled, batch_shapes(workload, batch_size))


def batch_shapes(workload: Any, batch_size: int) -> spec.Batch:
    """Returns the shapes and types of a training batch; needs no data.

    Inputs are those of the workload's example, so many of them, tokens at the full
    length. Targets are class ids, or as the logits are; transcripts are half as long as
    the frames that they are aligned with.
    """
    batch = dict(jax.eval_shape(workload.example_batch))
    if hasattr(batch["inputs"], "n_node"):
        batch["inputs"] = _graph_shapes(batch["inputs"], batch_size)
    else:
        is_tokens = workload.input_dtype == jnp.int32
        length = workload.input_shape if is_tokens else ()
        batch = jax.tree.map(lambda leaf: _larger(leaf, batch_size, length), batch)
    if "targets" in batch:
        return batch
    params, model_state = jax.eval_shape(workload.init_model_fn, jax.random.PRNGKey(0))
    logits = jax.eval_shape(forward_of(workload), params, model_state, batch)
    return {**batch, "targets": _target_shapes(workload.loss_type, logits)}


def _larger(leaf: Any, batch_size: int, length: tuple[int, ...]) -> Any:
    """An example's leaf (1, ...) for a batch; rows of tokens at their full length."""
    return jax.ShapeDtypeStruct((batch_size, *(length or leaf.shape[1:])), leaf.dtype)


def _graph_shapes(graph: Any, batch_size: int) -> Any:
    """Of an example graph's named tuple, the shapes of `batch_size` graphs in packs."""
    packs = math.gcd(batch_size, MAX_PACKS)
    graphs = batch_size // packs
    edges = graphs * EDGES_PER_GRAPH
    lengths = {
        "nodes": graphs * NODES_PER_GRAPH + 1,
        "edges": edges,
        "receivers": edges,
        "senders": edges,
        "globals": graphs + 1,
        "n_node": graphs + 1,
        "n_edge": graphs + 1,
    }
    return type(graph)(
        **{
            name: jax.ShapeDtypeStruct((packs, length, *leaf.shape[2:]), leaf.dtype)
            for name, length in lengths.items()
            for leaf in (getattr(graph, name),)
        }
    )


def _target_shapes(loss_type: spec.LossType, logits: Any) -> Any:
    if loss_type is spec.LossType.CTC_LOSS:
        batch_size, frames = logits[1].shape
        shape = (batch_size, frames // 2)
        kinds = jnp.int32, jnp.float32
        return tuple(jax.ShapeDtypeStruct(shape, kind) for kind in kinds)
    if loss_type is spec.LossType.SOFTMAX_CROSS_ENTROPY:
        return jax.ShapeDtypeStruct(logits.shape[:-1], jnp.int32)
    return jax.ShapeDtypeStruct(logits.shape, jnp.float32)
