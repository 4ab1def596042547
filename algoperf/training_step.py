"""One training step of a gradient transformation: loss, gradient, update.

The loss may be quantised by a recipe of `algoperf.numerics`.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from algoperf import numerics, reparam, spec
from algoperf.errors import UserError
from algoperf.numerics.state import rescaled

Loss = Callable[..., Any]  # (params, model_state, batch, rng) -> (mean, model_state)
RewriteLoss = Callable[[spec.Workload, Any, Loss, spec.RandomState], Loss]

# One example in so many gives the statistics of a network that is not the trained one.
STATISTICS_PART = 8


class Counted(NamedTuple):
    """A model state, and of how many valid examples its loss is the mean."""

    model_state: Any
    valid: jax.Array


@dataclasses.dataclass(frozen=True)
class Objective:
    """The training loss of one step, for rules that need more than its gradient.

    The update of a transformation gets it as the extra argument `objective` (see
    `optax.GradientTransformationExtraArgs`), beside `value`, the loss. What its
    methods compute is charged like all else.
    """

    workload: spec.Workload
    batch: spec.Batch
    model_state: spec.ModelAuxiliaryState  # before the step
    rng: spec.RandomState  # of dropout: the same masks at every call
    dropout_rate: Any = None
    label_smoothing: Any = 0.0
    rewrite: Callable[[Loss, spec.RandomState], Loss] | None = None  # of the mean loss
    rewrites_all: bool = False  # whether it takes any function, as a recipe does
    materialise: Callable[[Any], Any] = lambda params: params  # what is trained -> full
    microbatches: int = 1  # the gradient of the batch is summed over so many parts
    counts: bool = False  # whether the new model state comes as `Counted`

    def loss_and_state(self, params: Any) -> tuple[jax.Array, Any]:
        """Returns the mean loss of the batch and the new model state."""
        loss: Loss = self.mean_loss
        if self.rewrite is not None:
            loss = self.rewrite(loss, self.rng)
        full = self.materialise(params)
        return loss(full, self.model_state, self.batch, self.rng)

    def loss(self, params: Any) -> jax.Array:
        """Returns the mean loss of the batch, all of it at once."""
        return self.loss_and_state(params)[0]

    def gradient(self, params: Any) -> Any:
        """Returns the gradient of `loss`."""
        return self.value_and_gradient(params)[1]

    def value_and_gradient(self, params: Any) -> tuple[tuple[jax.Array, Any], Any]:
        """Returns what `loss_and_state` does, and the gradient of the loss.

        With `microbatches`, one part of the batch is computed after another, so that
        activations of one part at a time are held: mean losses L_j of n_j valid
        examples give sum_j n_j L_j / sum_j n_j, and gradients likewise. Statistics of
        batch normalisation are those of each part, in turn; so are dropout masks.
        """
        if self.microbatches == 1:
            return jax.value_and_grad(self.loss_and_state, has_aux=True)(params)

        def add(carry: Any, numbered: Any) -> tuple[Any, None]:
            total, model_state = carry
            number, batch = numbered
            part = dataclasses.replace(
                self.on(batch).reseeded(number), model_state=model_state, counts=True
            )
            (loss, counted), gradient = jax.value_and_grad(
                part.loss_and_state, has_aux=True
            )(params)
            weighted = jax.tree.map(
                lambda x: counted.valid.astype(x.dtype) * x, (loss, gradient)
            )
            total = jax.tree.map(jnp.add, total, (counted.valid, weighted))
            return (total, counted.model_state), None

        zeros = jax.tree.map(jnp.zeros_like, (jnp.float32(0), params))
        start = (jnp.float32(0), zeros), self.model_state
        numbers = jnp.arange(self.microbatches)
        parts = jax.tree.map(lambda x: _in_parts(x, self.microbatches), self.batch)
        ((valid, sums), model_state), _ = jax.lax.scan(add, start, (numbers, parts))
        loss, gradient = jax.tree.map(lambda x: x / valid.astype(x.dtype), sums)
        return (loss, model_state), gradient

    def logits(self, params: Any) -> Any:
        """Returns what the model says of the batch, with dropout as in the loss.

        All of it at once: microbatches do not bound the memory of its gradient.
        By the recipe that rewrites the loss, if one does; `rewrite_loss` of a
        submission takes losses alone.
        """
        forward: Loss = self._forward
        if self.rewrite is not None and self.rewrites_all:
            forward = self.rewrite(forward, self.rng)
        full = self.materialise(params)
        return forward(full, self.model_state, self.batch, self.rng)[0]

    def statistics_of(self, params: Any) -> Any:
        """Returns the new model state of these full parameters, unquantised.

        Running statistics of batch normalisation belong to the network that gave
        them: those of quantised activations, or of the parameters that an average
        is taken of, do not fit what is evaluated. So another forward pass is made, of
        one example in `STATISTICS_PART`; of all where they cannot be split so.
        """
        batch, part = self.batch, STATISTICS_PART
        if all(x.ndim and x.shape[0] % part == 0 for x in jax.tree.leaves(batch)):
            batch = jax.tree.map(lambda x: _in_parts(x, part)[0], batch)
        return self._forward(params, self.model_state, batch, self.rng)[1]

    def on(self, batch: spec.Batch) -> "Objective":
        """Returns the objective of another batch, or of a part of this one."""
        return dataclasses.replace(self, batch=batch)

    def reseeded(self, number: int) -> "Objective":
        """Returns the objective with other dropout masks, one set for each number."""
        return dataclasses.replace(self, rng=jax.random.fold_in(self.rng, number))

    def mean_loss(
        self, params: Any, model_state: Any, batch: spec.Batch, rng: Any
    ) -> tuple[jax.Array, Any]:
        """Returns the mean loss, not rewritten, and the new model state."""
        logits, new_model_state = self._forward(params, model_state, batch, rng)
        loss = self.workload.loss_fn(
            batch["targets"], logits, batch.get("weights"), self.label_smoothing
        )
        valid = loss["n_valid_examples"]
        if not self.counts:
            return loss["summed"] / valid, new_model_state
        count = jnp.float32(valid)  # of a part, may be 0
        mean = loss["summed"] / jnp.where(count == 0, 1, count)
        return mean, Counted(new_model_state, count)

    def _forward(self, params, model_state, batch, rng) -> tuple[Any, Any]:
        return self.workload.model_fn(
            params,
            batch,
            model_state,
            spec.ForwardPassMode.TRAIN,
            rng,
            update_batch_norm=True,
            dropout_rate=self.dropout_rate,
        )


def _in_parts(array: jax.Array, number: int) -> jax.Array:
    """Returns (number, batch / number, ...); each device keeps its own examples."""
    rows = array.reshape(-1, number, *array.shape[1:])
    return jnp.moveaxis(rows, 1, 0)


class WithRecipeState(NamedTuple):
    """State of a transformation and of a recipe that has one."""

    transformation: Any
    recipe: numerics.State


def recipe_of(
    hyperparameters: Any, rewrite_loss: RewriteLoss | None
) -> numerics.Recipe | None:
    """Returns the recipe that the hyperparameters name, if they do.

    Raises:
      UserError: there is none of this name, or the loss is rewritten already.
    """
    name = getattr(hyperparameters, "recipe", None)
    if name is None:
        return None
    if rewrite_loss is not None:
        raise UserError(
            f"the hyperparameters name the recipe {name!r}, and rewrite_loss takes its "
            "place; call numerics.apply in rewrite_loss, or name no recipe"
        )
    return numerics.find_recipe(name)


def first_recipe_state(
    workload: Any, recipe: numerics.Recipe, params: Any, model_state: Any
) -> numerics.State:
    """Returns a recipe's state before the first step; runs nothing of the model.

    Raises:
      UserError: the recipe matches none of the model's products.
    """
    return numerics.init_state(
        recipe,
        _forward(workload, model_state),
        params,
        workload.example_batch(),
        parameter_types=workload.model_params_types,
    )


def recipe_facts(
    workload: Any, hyperparameters: Any, params: Any, model_state: Any
) -> dict[str, Any] | None:
    """Returns what the record says of the recipe that the hyperparameters name, if any.

    'recipe', the numbers of 'products' of the forward pass and of those 'quantised',
    and 'units': in how many of the latter's products, forward and both gradients, run
    in which units here ('float32': emulated). Runs nothing of the model; products are
    of an example batch.
    """
    name = getattr(hyperparameters, "recipe", None)
    if not isinstance(name, str) or name not in numerics.RECIPES:
        return None
    found = numerics.products(
        name,
        _forward(workload, model_state),
        params,
        workload.example_batch(),
        parameter_types=workload.model_params_types,
    )
    quantised = [item for item in found if item.reason is None]
    units = collections.Counter(kind for item in quantised for kind in item.units)
    return {
        "recipe": name,
        "products": len(found),
        "quantised": len(quantised),
        "units": dict(units),
    }


def _forward(workload: Any, model_state: Any) -> Callable[..., Any]:
    """Returns the training pass: (params, batch) -> logits."""

    def forward(params: Any, batch: spec.Batch) -> Any:
        mode, rng = spec.ForwardPassMode.TRAIN, jax.random.PRNGKey(0)
        return workload.model_fn(params, batch, model_state, mode, rng, True)[0]

    return forward


def train_step(
    workload: spec.Workload,
    transformation: optax.GradientTransformation,
    hyperparameters: Any,
    rewrite_loss: RewriteLoss | None,
    small: reparam.Reparametrisation | None = None,
    average: Callable[[Any, Any], Any] | None = None,
) -> Callable[..., tuple[Any, Any, Any, dict[str, jax.Array]]]:
    """Returns the compiled step.

    It maps (state, params, model state, batch, rng) to (state, params, model state,
    scalars to log). Where the recipe of the hyperparameters has state, the state is a
    `WithRecipeState`; where something smaller is trained, a `reparam.Training`. Where
    an `average` of (state, params) is what is evaluated, the model state is its own.

    Raises:
      UserError: a recipe with state, and something smaller to train or microbatches.
    """
    recipe = recipe_of(hyperparameters, rewrite_loss)
    has_state = recipe is not None and recipe.has_state
    if has_state and workload.placement.microbatches > 1:
        raise UserError(
            f"recipe {hyperparameters.recipe!r} has a state of its own, which looks at "
            "whole batches; run it with --microbatches 1"
        )
    if has_state and small is not None:
        raise UserError(
            f"recipe {hyperparameters.recipe!r} has a state of its own, which a "
            "reparametrisation does not keep; choose a recipe without"
        )
    rewrite = None
    if rewrite_loss is not None:
        rewrite = functools.partial(rewrite_loss, workload, hyperparameters)
    made = _TrainStep(
        workload,
        optax.with_extra_args_support(transformation).update,
        recipe,
        rewrite,
        small,
        average,
        dropout_rate=getattr(hyperparameters, "dropout_rate", None),
        label_smoothing=getattr(hyperparameters, "label_smoothing", 0.0),
    )
    chosen = made.step_with_recipe_state if has_state else made.step
    # Params that are not used are kept, for the new ones take their place in memory.
    return jax.jit(chosen, donate_argnums=(0, 1, 2), keep_unused=True)


@dataclasses.dataclass(frozen=True)
class _TrainStep:
    """What `train_step` compiles: `step`, or `step_with_recipe_state`."""

    workload: spec.Workload
    update: Callable[..., tuple[Any, Any]]  # of the transformation
    recipe: numerics.Recipe | None
    rewrite: Callable[[Loss, spec.RandomState], Loss] | None  # of the submission
    small: reparam.Reparametrisation | None
    average: Callable[[Any, Any], Any] | None
    dropout_rate: Any
    label_smoothing: Any

    def step(self, state, params, model_state, batch, rng):
        """Makes a step by a recipe without state, or without a recipe."""
        small, constrain = self.small, self.workload.placement.constrain
        rewrite = self.rewrite if self.recipe is None else self._quantised
        objective = self._objective(batch, model_state, rng, rewrite)
        if small is not None:
            training = reparam.begin_step(small, state, objective)
            state, params = training.transformation, small.trainable(training.small)
            objective = dataclasses.replace(
                objective, materialise=small.materialise_from(training.small)
            )
        (loss, model_state), gradient = objective.value_and_gradient(params)
        before = params
        state, params, scalars = self._updated(objective, loss, gradient, state, params)
        model_state = self._evaluated_state(
            objective, model_state, before, state, params
        )
        if small is not None:
            state, params = reparam.finish_step(small, training, params, state)
        return *constrain((state, params, model_state)), scalars

    def step_with_recipe_state(self, state, params, model_state, batch, rng):
        """Makes a step by a recipe that has state."""
        recipe, constrain = self.recipe, self.workload.placement.constrain
        assert recipe is not None
        read = functools.partial(self._quantised, state=state.recipe)
        objective = self._objective(batch, model_state, rng, read)
        (loss, gathered), gradient, next_state = numerics.value_and_grad(
            recipe, objective.mean_loss, has_aux=True, **self._options(rng)
        )(state.recipe, params, model_state, batch, rng)
        new, new_params, scalars = self._updated(
            objective, loss, gradient, state.transformation, params
        )
        new_model_state = self._evaluated_state(
            objective, gathered, params, new, new_params
        )
        after = new, new_params, new_model_state
        if isinstance(recipe.loss_scale, numerics.DynamicLossScale):
            before = state.transformation, params, model_state
            # A rule may take more gradients, of which one may overflow alone.
            is_finite = next_state.is_finite & _stays_finite(before, after)
            next_state = rescaled(recipe, state.recipe, next_state, is_finite)
            keep = functools.partial(jnp.where, is_finite)
            after = jax.tree.map(keep, after, before)
        scalars["loss_scale"] = next_state.loss_scale
        state = WithRecipeState(after[0], next_state)
        return *constrain((state, *after[1:])), scalars

    def _objective(self, batch, model_state, rng, rewrite) -> Objective:
        return Objective(
            self.workload,
            batch,
            model_state,
            rng,
            self.dropout_rate,
            self.label_smoothing,
            rewrite,
            rewrites_all=self.recipe is not None,
            microbatches=self.workload.placement.microbatches,
        )

    def _updated(self, objective, loss, gradient, state, params):
        """Returns the transformation's state, the params, and scalars to log."""
        gradient = self.workload.placement.constrain(gradient)
        updates, state = self.update(
            gradient, state, params, value=loss, objective=objective
        )
        scalars = {"loss": loss, "grad_norm": optax.tree.norm(gradient)}
        return state, optax.apply_updates(params, updates), scalars

    def _evaluated_state(self, objective, gathered, before, state, after):
        """The model state of what is evaluated; `gathered` where that is what trains.

        `before` and `after` are the params that the step found and left.
        """
        if not jax.tree.leaves(gathered):
            return gathered
        if self.average is not None:
            return objective.statistics_of(self.average(state, after))
        if self.recipe is not None:
            return objective.statistics_of(objective.materialise(before))
        return gathered

    def _quantised(self, loss, rng, state=None) -> Loss:
        assert self.recipe is not None
        return numerics.apply(self.recipe, loss, state=state, **self._options(rng))

    def _options(self, rng: spec.RandomState) -> dict[str, Any]:
        """What a recipe needs beside the loss; dropout has the key itself."""
        return {
            "key": jax.random.fold_in(rng, 1),
            "parameter_types": self.workload.model_params_types,
        }


def _stays_finite(before: Any, after: Any) -> jax.Array:
    """Returns whether all numbers that were finite still are, of two trees alike."""
    is_finite = jnp.bool_(True)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        if jnp.issubdtype(new.dtype, jnp.inexact):
            is_finite &= jnp.all(jnp.isfinite(new) | ~jnp.isfinite(old))
    return is_finite
