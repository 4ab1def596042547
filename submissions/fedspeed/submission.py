"""FedSpeed: local steps on shards of the batch (Sun et al. 2023, arXiv:2302.10429)."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from algoperf.errors import UserError
from algoperf.schedules import warmup_cosine
from algoperf.submission import from_optax, mask_without, planned_steps


class FedSpeedState(NamedTuple):
    """Rounds so far, and each client's sum of its moves, negated."""

    steps: jax.Array  # () int32
    correction: Any  # leaves (clients, ...): lambda times the paper's g-hat


def split_batch(batch: Any, clients: int, microbatches: int = 1) -> Any:
    """Splits the first axis of each leaf: (b, ...) to (clients, b / clients, ...).

    Leaves may have several entries for each row: a row of molecules is a pack of them.

    Raises:
      UserError: the rows do not divide, each client's over its microbatches.
    """
    rows = min(leaf.shape[0] for leaf in jax.tree.leaves(batch))
    if rows % (clients * microbatches):
        parts = f" in {microbatches} microbatches each" if microbatches > 1 else ""
        raise UserError(
            f"a batch of {rows} cannot be split over {clients} clients{parts}; choose "
            f"a number of clients that divides {rows // microbatches}"
        )
    return jax.tree.map(
        lambda x: x.reshape(clients, x.shape[0] // clients, *x.shape[1:]), batch
    )


def fedspeed(
    rate: float,
    schedule: optax.Schedule,
    clients: int,
    local_steps: int,
    prox: float,
    rho: float,
    alpha: float,
    weight_decay: Any,
    grad_clip: float,
) -> optax.GradientTransformationExtraArgs:
    """One round of FedSpeed (algorithm 1) for each update, all clients taking part.

    From x = x_t, each client takes local steps on its shard,

        g = (1 - alpha) grad F(x) + alpha grad F(x + rho grad F(x) / ||grad F(x)||)
        x <- x - rate (clip(g + decay x) - g_hat + (x - x_t) / lambda),

    (the perturbation is rho long as in the authors' code; the paper adds rho grad F),
    then g_hat <- g_hat - (x - x_t) / lambda, and with m the mean of the clients'
    x - lambda g_hat, x_{t+1} = x_t + schedule(t) (m - x_t). The paper's x_{t+1} is m.
    Without prox term that is FedAvg (McMahan et al. 2017), and with one client and one
    step SGD. Each client draws dropout masks, and what a recipe rounds at random, of
    its own at each step.

    The schedule is on the server's step: m - x_t holds g_hat of all earlier rounds, so
    that x moves at a local rate of 0 too.

    Args:
      rate: of the local steps.
      schedule: share by round of the way to m, from 0 to 1.
      clients: how many shards.
      local_steps: how many steps each takes, all on the whole shard.
      prox: 1 / lambda; 0 for none, then there is no correction either.
      rho: length of the perturbation.
      alpha: share of the perturbed gradient; 0 for none.
      weight_decay: tree of factors, like the params.
      grad_clip: largest norm of a local gradient.
    """

    def local_gradient(objective, x):
        g = objective.gradient(x)
        if alpha:
            scale = rho / jnp.maximum(optax.tree.norm(g), 1e-12)
            worst = jax.tree.map(lambda x, g: x + scale * g, x, g)
            g = jax.tree.map(
                lambda a, b: (1 - alpha) * a + alpha * b, g, objective.gradient(worst)
            )
        g = jax.tree.map(lambda g, x, decay: g + decay * x, g, x, weight_decay)
        clip = jnp.minimum(1.0, grad_clip / jnp.maximum(optax.tree.norm(g), 1e-12))
        return jax.tree.map(lambda g: clip * g, g)

    def train_client(objective, start, client, correction, batch):
        x = start
        for step in range(local_steps):
            here = objective.on(batch).reseeded(client * local_steps + step)
            x = jax.tree.map(
                lambda x, g, h, x0: x - rate * (g - prox * h + prox * (x - x0)),
                x,
                local_gradient(here, x),
                correction,
                start,
            )
        if not prox:
            return x, correction
        correction = jax.tree.map(lambda h, x, x0: h - (x - x0), correction, x, start)
        return jax.tree.map(jnp.subtract, x, correction), correction

    def init(params):
        zeros = jax.tree.map(lambda x: jnp.zeros((clients, *x.shape), x.dtype), params)
        return FedSpeedState(jnp.int32(0), zeros)

    def update(updates, state, params=None, *, objective, **extra):
        share = schedule(state.steps)
        batches = split_batch(objective.batch, clients, objective.microbatches)
        train = functools.partial(train_client, objective, params)
        sent, correction = jax.vmap(train)(
            jnp.arange(clients), state.correction, batches
        )
        # As differences, so that what does not change stays as it is.
        updates = jax.tree.map(
            lambda s, x: share * jnp.mean(s - x, axis=0), sent, params
        )
        return updates, FedSpeedState(state.steps + 1, correction)

    return optax.GradientTransformationExtraArgs(init, update)


def build(workload, hyperparameters):
    """Returns FedSpeed; batch statistics are of the whole batch, before the round.

    A round costs as much as `local_steps` gradients of the batch, twice that with
    perturbation, and one more, which every step takes, for the loss and those
    statistics.
    """
    decay = jax.tree.map(
        lambda decayed: hyperparameters.weight_decay if decayed else 0.0,
        mask_without(workload),
    )
    return fedspeed(
        hyperparameters.learning_rate,
        warmup_cosine(
            planned_steps(workload, hyperparameters),
            1.0,
            hyperparameters.warmup_factor,
        ),
        clients=hyperparameters.clients,
        local_steps=hyperparameters.local_steps,
        prox=hyperparameters.prox,
        rho=hyperparameters.rho,
        alpha=hyperparameters.alpha,
        weight_decay=decay,
        grad_clip=hyperparameters.grad_clip,
    )


(
    get_batch_size,
    init_optimizer_state,
    update_params,
    prepare_for_eval,
    data_selection,
) = from_optax(build)
