"""Submissions written from an optax transformation, and parts of such.

The shortest submission is

    import optax
    from algoperf.submission import from_optax, warmup_cosine

    def build(workload, hyperparameters):
        schedule = warmup_cosine(workload.step_hint, hyperparameters.learning_rate)
        return optax.adamw(schedule, weight_decay=hyperparameters.weight_decay)

    (get_batch_size, init_optimizer_state, update_params, prepare_for_eval,
     data_selection) = from_optax(build)
"""

import dataclasses
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from algoperf import reparam, spec
from algoperf.errors import UserError
from algoperf.schedules import warmup_cosine
from algoperf.training_step import Objective as Objective
from algoperf.training_step import (
    RewriteLoss,
    WithRecipeState,
    first_recipe_state,
    recipe_of,
    train_step,
)
from algoperf.tuning import as_namedtuple

LOG_EVERY_STEPS = 100

Build = Callable[[spec.Workload, Any], optax.GradientTransformation]
EvalParams = Callable[[Any, spec.ParameterContainer], spec.ParameterContainer]
Reparametrise = Callable[[spec.Workload, Any], reparam.Reparametrisation]


class WithTrainingParams(NamedTuple):
    """State of a transformation that trains other params than are evaluated.

    Until an evaluation the params are the very arrays that the harness holds too, so
    they cost memory only while averages are evaluated.
    """

    transformation: Any
    params: Any


class SubmissionFunctions(NamedTuple):
    """The five functions, in the order in which a module unpacks them."""

    get_batch_size: Callable[[str], int]
    init_optimizer_state: Callable[..., spec.OptimizerState]
    update_params: Callable[..., spec.UpdateReturn]
    prepare_for_eval: Callable[..., spec.UpdateReturn]
    data_selection: Callable[..., spec.Batch]


def from_optax(
    build: Build,
    batch_sizes: Mapping[str, int] | None = None,
    self_tuned: Mapping[str, Any] | None = None,
    eval_params: EvalParams | None = None,
    rewrite_loss: RewriteLoss | None = None,
    reparametrise: Reparametrise | None = None,
) -> SubmissionFunctions:
    """Returns the five functions for a gradient transformation.

    The mean loss is differentiated; hyperparameters named `dropout_rate` and
    `label_smoothing` are honoured where the search space has them, and so is `recipe`,
    the name of a recipe of `algoperf.numerics` that quantises the products (an error
    with `rewrite_loss`, which may call `numerics.apply` itself). The step is
    compiled once per trial, with donated state. A transformation whose update names
    them gets the extra arguments `value`, the loss, and `objective` (see `Objective`).

    Where the search space has a `step_hint_factor` below 1, the trial is complete after
    `planned_steps`: a schedule for so many is taken to be at 0 from there on, as those
    of `algoperf.schedules` are, where further steps would train nothing. With
    `eval_params` or `reparametrise` it goes on, since what is evaluated may still
    change. A plan for all of the step hint ends no trial.

    Args:
      build: `(workload, hyperparameters) -> optax.GradientTransformation`.
      batch_sizes: by workload name; the workload's default where it has none.
      self_tuned: the hyperparameters under the self-tuning ruleset.
      eval_params: `(transformation's state, params) -> params` that are evaluated in
        their place, an average for example; training goes on from the params. Of a
        model with batch normalisation, running statistics are gathered with them, in
        another forward pass of one example in eight.
      rewrite_loss: `(workload, hyperparameters, loss, rng) -> loss`, called while the
        step is traced: the function that is differentiated in place of the mean loss
        `(params, model_state, batch, rng) -> (scalar, model_state)`. For other numerics
        (see `algoperf.numerics.apply`) or regularisation.
      reparametrise: `(workload, hyperparameters) -> reparam.Reparametrisation`: the
        transformation then trains something smaller, from which full parameters follow
        (see `algoperf.reparam`). `rewrite_loss` and the harness see full parameters.
    """
    if eval_params is not None and reparametrise is not None:
        raise UserError("give from_optax eval_params or reparametrise, not both")
    made = _FromOptax(
        build,
        batch_sizes or {},
        as_namedtuple(self_tuned),
        eval_params,
        None if eval_params is None else jax.jit(eval_params),
        rewrite_loss,
        reparametrise,
    )
    return SubmissionFunctions(
        *(getattr(made, function) for function in SubmissionFunctions._fields)
    )


@dataclasses.dataclass(frozen=True)
class _FromOptax:
    """The five functions of `from_optax`, and what they were made of.

    The optimizer state is the transformation's and the compiled step; where an average
    is evaluated, the former is `WithTrainingParams`.
    """

    build: Build
    batch_sizes: Mapping[str, int]
    own_point: Any  # the hyperparameters under the self-tuning ruleset, if there are
    eval_params: EvalParams | None
    average: EvalParams | None  # the same, compiled
    rewrite_loss: RewriteLoss | None
    reparametrise: Reparametrise | None

    def get_batch_size(self, workload_name: str) -> int:
        if workload_name not in self.batch_sizes:
            raise ValueError(f"no batch size of its own for {workload_name}")
        return self.batch_sizes[workload_name]

    def init_optimizer_state(
        self, workload, model_params, model_state, hyperparameters, rng
    ) -> spec.OptimizerState:
        if hyperparameters is None:
            if self.own_point is None:
                raise UserError(
                    "this submission has no setting for the self-tuning ruleset; run "
                    "it with --ruleset external, or give from_optax self_tuned={...}"
                )
            hyperparameters = self.own_point
        transformation = built(self.build, workload, hyperparameters)
        small = None
        if self.reparametrise is not None:
            small = self.reparametrise(workload, hyperparameters)
        step = train_step(
            workload,
            transformation,
            hyperparameters,
            self.rewrite_loss,
            small,
            self.eval_params,
        )
        recipe = recipe_of(hyperparameters, self.rewrite_loss)
        if recipe is not None and not recipe.has_state:
            # Only to tell now of one that matches nothing; others have it made below.
            first_recipe_state(workload, recipe, model_params, model_state)

        def initialise(params, model_state, rng):
            if small is not None:
                state: Any = reparam.start(small, transformation, params, rng)
            else:
                state = transformation.init(params)
            if recipe is not None and recipe.has_state:
                of_recipe = first_recipe_state(workload, recipe, params, model_state)
                state = WithRecipeState(state, of_recipe)
            return jax.tree.map(jnp.copy, state)

        # Placed like the params; otherwise the second step would compile again. Copied,
        # because a state may hold the params themselves and both are donated.
        start = (model_params, model_state, rng)
        places = workload.placement.shardings(jax.eval_shape(initialise, *start))
        state = jax.jit(initialise, out_shardings=places)(*start)
        if self.average is not None:
            state = WithTrainingParams(state, model_params)
        return state, step

    def update_params(
        self,
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
    ) -> spec.UpdateReturn:
        del current_params_types, loss_type, eval_results
        if self._is_over(workload, hyperparameters, global_step):
            raise spec.TrainingCompleteError
        state, step = optimizer_state
        params = current_param_container
        if self.average is not None:
            state, params = state
        state, params, model_state, scalars = step(
            state, params, model_state, batch, rng
        )
        if self.average is not None:
            state = WithTrainingParams(state, params)
        logger = workload.metrics_logger
        if logger is not None and global_step % LOG_EVERY_STEPS == 0:
            logger.append_scalar_metrics(scalars, global_step)
        return (state, step), params, model_state

    def prepare_for_eval(
        self,
        workload,
        current_param_container,
        current_params_types,
        model_state,
        hyperparameters,
        loss_type,
        optimizer_state,
        eval_results,
        global_step,
        rng,
    ) -> spec.UpdateReturn:
        del workload, current_params_types, hyperparameters, loss_type
        del eval_results, global_step, rng
        params = current_param_container
        if self.average is not None:
            state, _ = optimizer_state
            inner = state.transformation
            if isinstance(inner, WithRecipeState):
                inner = inner.transformation
            params = self.average(inner, state.params)
        return optimizer_state, params, model_state

    def data_selection(self, workload, input_queue, *unused) -> spec.Batch:
        del workload, unused
        return next(input_queue)

    def _is_over(
        self, workload: spec.Workload, hyperparameters: Any, step: int
    ) -> bool:
        """Whether a plan for less than the step hint has no step left."""
        if self.average is not None or self.reparametrise is not None:
            return False
        point = self.own_point if hyperparameters is None else hyperparameters
        steps = planned_steps(workload, point)
        return steps < workload.step_hint and step >= steps


def self_tuned_point(functions: SubmissionFunctions) -> Any:
    """Returns what `from_optax` was given for the self-tuning ruleset.

    None for other submissions, which keep their own to themselves.
    """
    made = getattr(inspect.unwrap(functions.init_optimizer_state), "__self__", None)
    return made.own_point if isinstance(made, _FromOptax) else None


def built(
    build: Build, workload: spec.Workload, hyperparameters: Any
) -> optax.GradientTransformation:
    """Calls `build`.

    Raises:
      UserError: it takes something else, or returns something else.
    """
    name = getattr(build, "__name__", "build")
    try:
        inspect.signature(build).bind(workload, hyperparameters)
    except TypeError as error:
        raise UserError(
            f"{name} must take (workload, hyperparameters): {error}"
        ) from error
    made = build(workload, hyperparameters)
    if not (hasattr(made, "init") and hasattr(made, "update")):
        raise UserError(
            f"{name} returned {type(made).__name__}, "
            "no optax gradient transformation; is its return statement missing?"
        )
    return made


# What weight decay should leave alone.
BIASES_AND_NORMS = frozenset(
    {
        spec.ParameterType.BIAS,
        spec.ParameterType.ATTENTION_BIAS,
        spec.ParameterType.BATCH_NORM_SCALE,
        spec.ParameterType.BATCH_NORM_BIAS,
        spec.ParameterType.LAYER_NORM_SCALE,
        spec.ParameterType.LAYER_NORM_BIAS,
    }
)


def mask_without(
    workload: spec.Workload,
    excluded: Collection[spec.ParameterType] = BIASES_AND_NORMS,
) -> Any:
    """Returns the params' tree with False where the type is excluded, else True.

    Types are the official ones. The scale of attention logits in the language model is
    a WEIGHT by these, and not left out: strong decay keeps its logits small.
    """
    return jax.tree.map(lambda kind: kind not in excluded, workload.model_params_types)


def planned_steps(workload: spec.Workload, hyperparameters: Any) -> int:
    """Returns how many steps a schedule is for: those of the hint, or a part of them.

    A search space may say which, as `step_hint_factor`: where a step costs two
    gradients, the budget ends at about half of the hint, and a schedule that is made
    for all of it would be cut off at a high rate.
    """
    factor = getattr(hyperparameters, "step_hint_factor", 1.0)
    return max(1, round(factor * workload.step_hint))


def standard_chain(
    workload: spec.Workload,
    hyperparameters: Any,
    direction: optax.GradientTransformation,
    schedule: optax.Schedule | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Completes an update direction d(g) to an optimizer.

    x <- x - s_t (d(clip(g)) + weight_decay mask x): the gradient's global norm is
    clipped at `grad_clip` where the search space has it, the decay is decoupled
    (Loshchilov and Hutter 2019, arXiv:1711.05101) and leaves biases and norms alone.

    Args:
      workload: gives the steps and the types of the parameters.
      hyperparameters: `weight_decay` and, for the schedule, `learning_rate` and
        `warmup_factor`.
      direction: maps gradients to d, such as `optax.scale_by_adam()`.
      schedule: s_t; warm-up and cosine decay over `planned_steps` if not given.
    """
    if schedule is None:
        schedule = warmup_cosine(
            planned_steps(workload, hyperparameters),
            hyperparameters.learning_rate,
            hyperparameters.warmup_factor,
        )
    parts = [
        direction,
        optax.add_decayed_weights(
            hyperparameters.weight_decay, mask=mask_without(workload)
        ),
        optax.scale_by_learning_rate(schedule),
    ]
    if hasattr(hyperparameters, "grad_clip"):
        parts.insert(0, optax.clip_by_global_norm(hyperparameters.grad_clip))
    return optax.with_extra_args_support(optax.chain(*parts))
