"""Official submissions that train with `jax.pmap`: the layout of version 0.5.

They take and return params, model state and batches with a leading axis of devices;
here it is put on before their functions are called and taken off behind them.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from algoperf import sharding
from algoperf.errors import UserError


def with_device_axis(functions: Any) -> Any:
    """Wraps the functions of a submission that trains with `jax.pmap`.

    Such code takes and returns params and model state with a leading axis of the D
    devices, (D, ...), and batches of (D, B / D, ...). Each device keeps what it has, so
    nothing is sent between them. Back come the params of each device, which are alike
    because gradients were summed over the devices, and the mean of the model state,
    which is what the official code evaluates; as statistics of batches are averaged
    linearly, it does not matter when the mean is taken. The optimizer state stays as
    the submission made it.

    Args:
      functions: a NamedTuple, `algoperf.submission.SubmissionFunctions`.

    Returns:
      The functions for the layout of `algoperf.spec`: everything whole.
    """

    @functools.cache  # not before the first call: it asks JAX for the devices
    def moves() -> "_Moves":
        return _moves()

    def entered(params: Any, model_state: Any) -> tuple[Any, Any]:
        return moves().enter((params, model_state))

    def init_optimizer_state(workload, params, model_state, hyperparameters, rng):
        if jax.process_count() > 1:
            raise UserError(
                "this submission uses jax.pmap, which is run on one host only; start "
                "it on one host"
            )
        params, model_state = entered(params, model_state)
        moves().leave(params, model_state)  # compiled here, off the clock
        return functions.init_optimizer_state(
            workload, params, model_state, hyperparameters, rng
        )

    def in_layout(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(**arguments: Any) -> Any:
            params, model_state = entered(
                arguments["current_param_container"], arguments["model_state"]
            )
            arguments["current_param_container"] = params
            arguments["model_state"] = model_state
            outputs = function(**arguments)
            if not isinstance(outputs, tuple | list) or len(outputs) != 3:
                return outputs  # the runner says what is wrong
            optimizer_state, params, model_state = outputs
            return optimizer_state, *moves().leave(params, model_state)

        return wrapped

    def data_selection(
        workload, queue, optimizer_state, params, model_state, *others: Any
    ):
        params, model_state = entered(params, model_state)
        return functions.data_selection(
            workload,
            map(moves().split, queue),
            optimizer_state,
            params,
            model_state,
            *others,
        )

    return functions._replace(
        init_optimizer_state=init_optimizer_state,
        update_params=in_layout(functions.update_params),
        prepare_for_eval=in_layout(functions.prepare_for_eval),
        data_selection=data_selection,
    )


@dataclasses.dataclass(frozen=True)
class _Moves:
    """The ways between the layouts, compiled."""

    enter: Callable[[Any], Any]  # (...) -> (D, ...)
    split: Callable[[Any], Any]  # (B, ...) -> (D, B / D, ...)
    leave: Callable[[Any, Any], tuple[Any, Any]]  # (D, ...) -> (...)


def _moves() -> _Moves:
    whole, split = PartitionSpec(), PartitionSpec(sharding.BATCH_AXIS)

    def per_device(function, come_in, go_out):
        return jax.jit(
            jax.shard_map(
                function,
                mesh=sharding.get_mesh(),
                in_specs=come_in,
                out_specs=go_out,
                check_vma=False,  # that the params are alike is for the code to see to
            )
        )

    def add_axis(tree):
        return jax.tree.map(lambda x: x[None], tree)

    def drop_axis(params, model_state):
        def mean(x):
            if jnp.issubdtype(x.dtype, jnp.inexact):
                return jax.lax.pmean(x[0], sharding.BATCH_AXIS)
            return x[0]

        return jax.tree.map(lambda x: x[0], params), jax.tree.map(mean, model_state)

    return _Moves(
        enter=per_device(add_axis, whole, split),
        split=per_device(add_axis, split, split),
        leave=per_device(drop_axis, split, whole),
    )
