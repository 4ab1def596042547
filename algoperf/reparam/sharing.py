"""Random parameter sharing: many weights, one small memory.

Weight i of module k is w_i = lambda_k g(i) M[h(i)]: h says where in the memory M (m,)
it lies, g is a random sign, lambda_k gives the module its own scale. Desai and
Shrivastava 2023 (STABLE-RPS, arXiv:2310.11611); ROAST is Desai et al. 2022
(arXiv:2207.10702), elementwise hashing Chen et al. 2015 (HashedNets, arXiv:1504.04788).

h and g are computed from a seed at each use and never stored. The hash is the finaliser
of MurmurHash3 on 32 bits; the authors' is a quadratic modulo a prime of 31 bits, which
needs integers of 64.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from algoperf import spec
from algoperf.errors import UserError
from algoperf.reparam.base import Reparametrisation, State, matrices_of

LAYOUTS = ("fold", "tiles", "elements")
SCALERS = ("v1", "v2", "v3", "v4", "v5")
GRADIENT_EPSILON = 1e-6  # beside Gamma, as in the authors' code


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which weights share a memory, and how.

    Attributes:
      shapes: (rows, columns) of each shared matrix; rows are the fan-in.
      slots: of the memory, m.
      layout: 'fold' is RandomFold: all weights end to end, cut into pieces of m, each
        rotated at random; so every slot has floor(n/m) or ceil(n/m) weights, and one
        if m = n. 'tiles' is ROAST, 'elements' hashes each weight.
      seed: of h and g.
      tile: (rows, columns) of ROAST's tiles.
      init_std: standard deviation of M at first; scales make up for it.
    """

    shapes: tuple[tuple[int, ...], ...]
    slots: int
    layout: str = "fold"
    seed: int = 123_321
    tile: tuple[int, int] = (16, 16)
    init_std: float = 0.02

    @property
    def sizes(self) -> tuple[int, ...]:
        """Weights of each matrix."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def weights(self) -> int:
        """Weights in all, n."""
        return sum(self.sizes)

    @property
    def scales(self) -> tuple[float, ...]:
        """lambda of each matrix: 1 / sqrt(fan-in) over `init_std`."""
        return tuple(1.0 / (rows**0.5 * self.init_std) for rows, _ in self.shapes)


def make_plan(
    workload: spec.Workload, chosen: Any, slots: int | float, **options: Any
) -> Plan:
    """Returns the plan of the chosen parameters.

    Args:
      workload: gives names, types and shapes.
      chosen: the params' tree of booleans, from `select`.
      slots: m; a float in (0, 1] is the share m / n, 0.25 for fourfold compression.
      options: other fields of `Plan`.

    Raises:
      UserError: a memory of no slots, or of more than there are weights; an unknown
        layout.
    """
    shapes = tuple(
        shape for _, shape, is_chosen in matrices_of(workload, chosen) if is_chosen
    )
    weights = sum(math.prod(shape) for shape in shapes)
    number = slots if isinstance(slots, int) else round(slots * weights)
    if not 1 <= number <= weights:
        raise UserError(
            f"a memory of {number} slots for {weights} weights: give 1 to {weights} "
            "slots, or a share of the weights, as 0.25"
        )
    plan = Plan(shapes, number, **options)
    if plan.layout not in LAYOUTS:
        raise UserError(f"layout {plan.layout!r} is none of {', '.join(LAYOUTS)}")
    return plan


def mixed(x: jax.Array, seed: jax.Array | int) -> jax.Array:
    """Returns hashes, uint32, of integers: MurmurHash3's finaliser of x phi + seed."""
    x = x.astype(jnp.uint32) * jnp.uint32(0x9E3779B1) + jnp.asarray(seed, jnp.uint32)
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _seed(plan: Plan) -> jax.Array:
    """The seed, hidden from the compiler, which would store all hashes otherwise."""
    return jax.lax.optimization_barrier(jnp.uint32(plan.seed))


def signs(plan: Plan) -> jax.Array:
    """Returns g (n,), +1 or -1."""
    odd = mixed(jnp.arange(plan.weights), _seed(plan) ^ jnp.uint32(0x5BD1E995)) & 1
    return 1.0 - 2.0 * odd.astype(jnp.float32)


def slot_of_weight(plan: Plan) -> jax.Array:
    """Returns h (n,), int32: where each weight lies in the memory."""
    if plan.layout == "tiles":
        return _tiles(plan)
    i = jnp.arange(plan.weights)
    if plan.layout == "elements":
        return (mixed(i, _seed(plan)) % plan.slots).astype(jnp.int32)
    return ((_rotations(plan)[i // plan.slots] + i) % plan.slots).astype(jnp.int32)


def _rotations(plan: Plan) -> jax.Array:
    """Where in the memory each piece of RandomFold starts, int32 (pieces,)."""
    pieces = jnp.arange(-(-plan.weights // plan.slots))
    return (mixed(pieces, _seed(plan)) % plan.slots).astype(jnp.int32)


def _tiles(plan: Plan) -> jax.Array:
    height, width = plan.tile
    found, first = [], 0
    for rows, columns in plan.shapes:
        down, across = -(-rows // height), -(-columns // width)
        numbers = first + jnp.arange(down * across).reshape(down, 1, across, 1)
        start = (mixed(numbers, _seed(plan)) % plan.slots).astype(jnp.int32)
        inside = jnp.arange(height)[:, None] * width + jnp.arange(width)
        whole = (start + inside[None, :, None, :]) % plan.slots
        whole = whole.reshape(down * height, across * width)
        found.append(whole[:rows, :columns].ravel())
        first += down * across
    return jnp.concatenate(found)


def spread(plan: Plan, memory: jax.Array) -> jax.Array:
    """Returns M[h(i)] (n,) of a memory (m,); its transpose sums over the uses."""
    if plan.layout != "fold":
        return memory[slot_of_weight(plan)]
    twice = jnp.concatenate([memory, memory])
    pieces = jax.vmap(
        lambda start: jax.lax.dynamic_slice(twice, (start,), (plan.slots,))
    )(_rotations(plan))
    return pieces.ravel()[: plan.weights]


def summed(plan: Plan, values: jax.Array) -> jax.Array:
    """Returns (m,): the sum of values (n,) over the weights of each slot."""
    memory = jax.ShapeDtypeStruct((plan.slots,), values.dtype)
    (sums,) = jax.linear_transpose(lambda x: spread(plan, x), memory)(values)
    return sums


class SharedWeights(NamedTuple):
    """What is trained: the memory (m,), and all that does not share."""

    memory: Any  # (m,); a boolean in a mask
    others: Any  # the params' tree, with None where weights are shared


def shared(workload: spec.Workload, chosen: Any, plan: Plan) -> Reparametrisation:
    """Returns the reparametrisation; its `trainable` is `SharedWeights`.

    The memory starts as N(0, init_std^2), so that a weight has the standard deviation
    1 / sqrt(fan-in). Training does not start at the workload's own weights.
    """
    structure: Any = jax.tree.structure(workload.param_shapes)
    shapes = [shape.shape_tuple for shape in jax.tree.leaves(workload.param_shapes)]
    is_shared = jax.tree.leaves(chosen)

    def init(params: Any, key: Any) -> State:
        memory = plan.init_std * jax.random.normal(key, (plan.slots,))
        leaves = zip(jax.tree.leaves(params), is_shared, strict=True)
        others = structure.unflatten([None if out else x for x, out in leaves])
        return State(SharedWeights(memory, others), None)

    def materialise(state: State) -> Any:
        flat = spread(plan, state.trainable.memory) * signs(plan)
        leaves, first, number = [], 0, 0
        for place, other in enumerate(structure.flatten_up_to(state.trainable.others)):
            if not is_shared[place]:
                leaves.append(other)
                continue
            size = plan.sizes[number]
            part = plan.scales[number] * flat[first : first + size]
            leaves.append(part.reshape(shapes[place]))
            first, number = first + size, number + 1
        return structure.unflatten(leaves)

    return Reparametrisation(init, materialise)


def gamma(plan: Plan, mode: str = "v1") -> jax.Array:
    """Returns Gamma (m,), which gradients of the memory are divided by.

    With the scales lambda and the number c of a slot's weights: v1 (sum lambda)^2 / c,
    v2 sum lambda, v3 sum lambda / c, v4 sqrt(sum lambda^2), v5 sum lambda^2; v1 is the
    authors' default. Under v1 and v5 SGD on the function does not depend on `init_std`.

    Raises:
      UserError: an unknown mode.
    """
    if mode not in SCALERS:
        raise UserError(f"gradient scaler {mode!r} is none of {', '.join(SCALERS)}")
    scale = jnp.concatenate(
        [
            jnp.full((size,), scale, jnp.float32)
            for size, scale in zip(plan.sizes, plan.scales, strict=True)
        ]
    )
    if mode == "v4":
        return jnp.sqrt(summed(plan, jnp.square(scale)))
    if mode == "v5":
        return summed(plan, jnp.square(scale))
    total = summed(plan, scale)
    if mode == "v2":
        return total
    uses = jnp.maximum(summed(plan, jnp.ones_like(scale)), 1.0)
    return (jnp.square(total) if mode == "v1" else total) / uses


def scale_memory_gradient(plan: Plan, mode: str = "v1") -> optax.GradientTransformation:
    """Divides the memory's gradient by Gamma + 1e-6; Gamma is kept in the state."""

    def init(trainable):
        del trainable
        return gamma(plan, mode)

    def update(updates, state, params=None):
        del params
        memory = updates.memory / (GRADIENT_EPSILON + state)
        return updates._replace(memory=memory), state

    return optax.GradientTransformation(init, update)
