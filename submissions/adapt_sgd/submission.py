"""AdaPT: SGD in fixed point, words chosen per layer (2021, arXiv:2107.13490).

Weights and gradients have few bits. Weights of two axes or more are layers of their
own; a bias takes the words of its module's weight, a norm those of the layer before it.
Each step rounds the gradient of a parameter to its layer's words and divides it by its
norm, as the authors' code does; so the learning rate, times 1 / (1 - momentum), is how
far a parameter moves. It updates float32 masters with it, and rounds those to the
weights that are trained on and evaluated. Every `lookback` steps a layer's words are
chosen anew, on the host, by `algoperf.numerics.adapt`, which says where it departs from
that code. The float32 products are not quantised further.

The authors decay biases and norms too, and lower the rate otherwise: here is a warm-up
and a cosine.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from algoperf import spec
from algoperf.numerics import adapt, rounding
from algoperf.submission import from_optax, mask_without, warmup_cosine

SETTINGS = adapt.Settings()


class Device(NamedTuple):
    """What the step needs on the device; layers and losses are counted from 0."""

    masters: Any
    optimizer: Any
    sums: Any  # of unit gradients since a layer's words were chosen
    losses: jax.Array  # (max_lookback,), a ring


class Host(NamedTuple):
    """Integers of each layer: (layers,) int32; `steps` since the last choice."""

    words: np.ndarray
    fractions: np.ndarray
    lookbacks: np.ndarray
    resolutions: np.ndarray
    steps: np.ndarray
    strategy: np.ndarray  # () int32, an index of adapt.STRATEGIES


def layers_of(params):
    """Returns the layer that each leaf belongs to, and the leaf that each layer is.

    By module, since JAX sorts a `bias` before its `kernel`; leaves of a module without
    weights belong to the layer before them.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    weights = [k for k, (_, leaf) in enumerate(leaves) if jnp.ndim(leaf) >= 2]
    own = {k: i for i, k in enumerate(weights)}
    of_module = {leaves[k][0][:-1]: own[k] for k in reversed(weights)}  # the first
    layers: list[int] = []
    for k, (path, _) in enumerate(leaves):
        before = layers[-1] if layers else 0
        layers.append(own.get(k, of_module.get(path[:-1], before)))
    return layers, weights or [0]


def build(workload, hyperparameters):
    """Returns SGD with momentum, for the float32 masters."""
    schedule = warmup_cosine(
        workload.step_hint,
        hyperparameters.learning_rate,
        hyperparameters.warmup_factor,
    )
    return optax.chain(
        optax.add_decayed_weights(hyperparameters.weight_decay, mask_without(workload)),
        optax.sgd(schedule, momentum=hyperparameters.momentum),
    )


def rounded(leaves, layers, words, host_words, host_fractions, first):
    """Rounds each leaf to its layer's words; `first` numbers the keys."""
    return [
        adapt.fixed_point(leaf, host_words[i], host_fractions[i], fold)
        for i, leaf, fold in zip(
            layers,
            leaves,
            [rounding.fold(words, first + k) for k in range(len(leaves))],
            strict=True,
        )
    ]


def normalised(leaf):
    """Returns the leaf with norm 1, or 0 if all of it is: as in the authors' code."""
    norm = jnp.linalg.norm(leaf.ravel())
    return leaf / jnp.where(norm > 0, norm, 1.0)


def make_step(workload, transformation):
    """Returns the compiled step."""

    def mean_loss(params, model_state, batch, rng):
        mode = spec.ForwardPassMode.TRAIN
        logits, state = workload.model_fn(params, batch, model_state, mode, rng, True)
        loss = workload.loss_fn(batch["targets"], logits, batch.get("weights"))
        return loss["summed"] / loss["n_valid_examples"], state

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(device, params, model_state, batch, rng, number, words, fractions, keep):
        (loss, model_state), gradient = jax.value_and_grad(mean_loss, has_aux=True)(
            params, model_state, batch, rng
        )
        key = rounding.words_of(jax.random.fold_in(rng, 1))
        leaves, structure = jax.tree.flatten(gradient)
        layers, _ = layers_of(gradient)
        leaves = rounded(leaves, layers, key, words, fractions, 0)
        leaves = [normalised(leaf) for leaf in leaves]
        sums = [
            old * keep[i] + leaf
            for i, old, leaf in zip(layers, device.sums, leaves, strict=True)
        ]
        gradient = jax.tree.unflatten(structure, leaves)
        updates, optimizer = transformation.update(
            gradient, device.optimizer, device.masters
        )
        masters = optax.apply_updates(device.masters, updates)
        kept = jax.tree.leaves(masters)
        kept = rounded(kept, layers, key, words, fractions, len(leaves))
        params = jax.tree.unflatten(structure, kept)
        losses = device.losses.at[number % len(device.losses)].set(loss)
        scalars = {"loss": loss, "mean_word_length": jnp.mean(words)}
        return Device(masters, optimizer, sums, losses), params, model_state, scalars

    return step


def init_optimizer_state(workload, model_params, model_state, hyperparameters, rng):
    """Returns ((device, host), step)."""
    transformation = build(workload, hyperparameters)
    count = len(layers_of(model_params)[1])
    start = adapt.Precision()
    device = Device(
        masters=jax.tree.map(jnp.copy, model_params),
        optimizer=transformation.init(model_params),
        sums=[jnp.zeros_like(leaf) for leaf in jax.tree.leaves(model_params)],
        losses=jnp.zeros(SETTINGS.max_lookback),
    )
    host = Host(
        words=np.full(count, start.word_length, np.int32),
        fractions=np.full(count, start.fraction_length, np.int32),
        lookbacks=np.full(count, start.lookback, np.int32),
        resolutions=np.full(count, start.resolution, np.int32),
        steps=np.zeros(count, np.int32),
        strategy=np.zeros((), np.int32),
    )
    # Compiles what a choice runs, so that none comes in the middle of training.
    choose(device, host._replace(steps=host.lookbacks), 1, rng)
    return (device, host), make_step(workload, transformation)


def choose(device: Device, host: Host, global_step: int, rng: Any) -> Host:
    """Chooses new words for the layers that are due; the sums start anew after it."""
    due = np.flatnonzero(host.steps >= host.lookbacks)
    if not len(due):
        return host
    leaves = jax.tree.leaves(device.masters)
    _, weights = layers_of(device.masters)
    losses = np.asarray(device.losses)
    window = int(np.ceil(np.mean(host.lookbacks)))
    recent = losses[
        (global_step - 1 - np.arange(min(window, global_step))) % len(losses)
    ]
    strategy = adapt.next_strategy(
        adapt.STRATEGIES[int(host.strategy)], float(recent.mean()), float(recent[0])
    )
    new = [array.copy() for array in host[:5]]
    for i in due:
        leaf = weights[i]
        spread = adapt.diversity(
            int(host.steps[i]), float(jnp.linalg.norm(device.sums[leaf].ravel()))
        )
        before = adapt.Precision(*(int(array[i]) for array in host[:4]))
        words = rounding.fold(rounding.words_of(rng), 1000 + int(i))
        after = adapt.switched(before, leaves[leaf], spread, strategy, words, SETTINGS)
        new[0][i], new[1][i] = after.word_length, after.fraction_length
        new[2][i], new[3][i] = after.lookback, after.resolution
        new[4][i] = 0
    words, fractions, lookbacks, resolutions, steps = new
    index = np.asarray(adapt.STRATEGIES.index(strategy), np.int32)
    return Host(words, fractions, lookbacks, resolutions, steps, index)


def update_params(
    workload,
    current_param_container,
    current_params_types,
    model_state,
    hyperparameters,
    batch,
    loss_type,
    optimizer_state,
    eval_results,
    global_step,
    rng,
):
    """One step, and before it the choice of words where a layer is due."""
    (device, host), step = optimizer_state
    host = Host(*map(np.asarray, host))
    host = choose(device, host, global_step, rng)
    keep = (host.steps > 0).astype(np.float32)
    device, params, model_state, scalars = step(
        device,
        current_param_container,
        model_state,
        batch,
        rng,
        global_step,
        host.words,
        host.fractions,
        keep,
    )
    host = host._replace(steps=host.steps + 1)
    logger = workload.metrics_logger
    if logger is not None and global_step % 100 == 0:
        logger.append_scalar_metrics(scalars, global_step)
    return ((device, host), step), params, model_state


get_batch_size, _, _, prepare_for_eval, data_selection = from_optax(build)
