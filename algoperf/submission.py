"""Submissions: written from an optax transformation, or loaded from a path.

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
import hashlib
import inspect
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from algoperf import compatibility, pmap_layout, reparam, spec
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
    average = None if eval_params is None else jax.jit(eval_params)
    own_point = as_namedtuple(self_tuned)
    ends_with_its_plan = eval_params is None and reparametrise is None

    def get_batch_size(workload_name: str) -> int:
        if workload_name not in (batch_sizes or {}):
            raise ValueError(f"no batch size of its own for {workload_name}")
        return (batch_sizes or {})[workload_name]

    def init_optimizer_state(
        workload, model_params, model_state, hyperparameters, rng
    ) -> spec.OptimizerState:
        if hyperparameters is None:
            if self_tuned is None:
                raise UserError(
                    "this submission has no setting for the self-tuning ruleset; run "
                    "it with --ruleset external, or give from_optax self_tuned={...}"
                )
            hyperparameters = as_namedtuple(self_tuned)
        transformation = built(build, workload, hyperparameters)
        small = (
            None if reparametrise is None else reparametrise(workload, hyperparameters)
        )
        recipe = recipe_of(hyperparameters, rewrite_loss)
        step = train_step(
            workload, transformation, hyperparameters, rewrite_loss, small, eval_params
        )
        if recipe is not None and not recipe.has_state:
            # Only to tell now of one that matches nothing; others have it made below.
            first_recipe_state(workload, recipe, model_params, model_state)
        # Placed like the params; otherwise the second step would compile again. Copied,
        # because a state may hold the params themselves and both are donated.

        def initialise(params, model_state, rng):
            if small is not None:
                state: Any = reparam.start(small, transformation, params, rng)
            else:
                state = transformation.init(params)
            if recipe is not None and recipe.has_state:
                of_recipe = first_recipe_state(workload, recipe, params, model_state)
                state = WithRecipeState(state, of_recipe)
            return jax.tree.map(jnp.copy, state)

        start = (model_params, model_state, rng)
        places = workload.placement.shardings(jax.eval_shape(initialise, *start))
        state = jax.jit(initialise, out_shardings=places)(*start)
        return (WithTrainingParams(state, model_params) if average else state), step

    vars(init_optimizer_state)["self_tuned"] = self_tuned  # for `Submission.point`

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
    ) -> spec.UpdateReturn:
        del current_params_types, loss_type, eval_results
        point = own_point if hyperparameters is None else hyperparameters
        if ends_with_its_plan and _is_over(workload, point, global_step):
            raise spec.TrainingCompleteError
        state, step = optimizer_state
        params = current_param_container
        if average:
            state, params = state
        state, params, model_state, scalars = step(
            state, params, model_state, batch, rng
        )
        if average:
            state = WithTrainingParams(state, params)
        logger = workload.metrics_logger
        if logger is not None and global_step % LOG_EVERY_STEPS == 0:
            logger.append_scalar_metrics(scalars, global_step)
        return (state, step), params, model_state

    def prepare_for_eval(
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
        if average:
            state, _ = optimizer_state
            inner = state.transformation
            if isinstance(inner, WithRecipeState):
                inner = inner.transformation
            params = average(inner, state.params)
        return optimizer_state, params, model_state

    def data_selection(workload, input_queue, *unused) -> spec.Batch:
        del workload, unused
        return next(input_queue)

    return SubmissionFunctions(
        get_batch_size,
        init_optimizer_state,
        update_params,
        prepare_for_eval,
        data_selection,
    )


def built(
    build: Build, workload: spec.Workload, hyperparameters: Any
) -> optax.GradientTransformation:
    """Calls `build`.

    Raises:
      UserError: it returns something else.
    """
    made = build(workload, hyperparameters)
    if not (hasattr(made, "init") and hasattr(made, "update")):
        raise UserError(
            f"{getattr(build, '__name__', 'build')} returned {type(made).__name__}, "
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
    """Returns the params' tree with False where the type is excluded, else True."""
    return jax.tree.map(lambda kind: kind not in excluded, workload.model_params_types)


def planned_steps(workload: spec.Workload, hyperparameters: Any) -> int:
    """Returns how many steps a schedule is for: those of the hint, or a part of them.

    A search space may say which, as `step_hint_factor`: where a step costs two
    gradients, the budget ends at about half of the hint, and a schedule that is made
    for all of it would be cut off at a high rate.
    """
    factor = getattr(hyperparameters, "step_hint_factor", 1.0)
    return max(1, round(factor * workload.step_hint))


def _is_over(workload: spec.Workload, hyperparameters: Any, step: int) -> bool:
    """Whether a plan for less than the step hint has no step left."""
    steps = planned_steps(workload, hyperparameters)
    return steps < workload.step_hint and step >= steps


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


@dataclasses.dataclass(frozen=True)
class Submission:
    """A loaded submission: its functions and where they come from."""

    name: str
    path: Path
    sha256: str  # of the source file; of all that ran as it was loaded, if several did
    functions: SubmissionFunctions
    wants_train_state: bool  # update_params names the argument `train_state`

    @property
    def default_search_space(self) -> Path:
        """Where the search space is unless a flag says otherwise."""
        return self.path.with_name("tuning_search_space.json")

    @property
    def is_from_optax(self) -> bool:
        """Whether its step is that of `from_optax`, which can take microbatches."""
        return self.functions.update_params.__module__ == from_optax.__module__

    def point(self, hyperparameters: Mapping[str, Any] | None) -> Any:
        """Returns hyperparameters as submissions read them.

        Under the self-tuning ruleset, where they are None, those of `from_optax`; None
        for other submissions, which keep their own to themselves.
        """
        if hyperparameters is None:
            init = self.functions.init_optimizer_state
            hyperparameters = getattr(init, "self_tuned", None)
        return as_namedtuple(hyperparameters)


def load_submission(path: Path) -> Submission:
    """Imports a submission from its file, or from the folder that holds it.

    Raises:
      UserError: no such file, an error while importing it, or a missing function.
    """
    path = path.resolve()
    if path.is_dir():
        path = path / "submission.py"
    name = path.parent.name if path.stem == "submission" else path.stem
    try:
        path.read_bytes()
    except OSError as error:
        raise UserError(f"no submission at {path}: {error.strerror}") from error
    loaded = _load(path, name)
    module = loaded.module
    missing = [
        function
        for function in SubmissionFunctions._fields
        if function != "prepare_for_eval"
        and not callable(getattr(module, function, None))
    ]
    if missing:
        raise UserError(
            f"submission {path} does not define {', '.join(missing)}; "
            "see algoperf/spec.py, or start from `algoperf new NAME`"
        )
    functions = SubmissionFunctions(
        get_batch_size=module.get_batch_size,
        init_optimizer_state=module.init_optimizer_state,
        update_params=module.update_params,
        prepare_for_eval=getattr(module, "prepare_for_eval", _unchanged),
        data_selection=module.data_selection,
    )
    update_arguments = inspect.signature(functions.update_params).parameters
    if loaded.uses_pmap:
        functions = pmap_layout.with_device_axis(functions)
    return Submission(
        name=name,
        path=path,
        sha256=_sha256(path, loaded.files),
        functions=functions,
        wants_train_state="train_state" in update_arguments,
    )


def _load(path: Path, name: str) -> compatibility.Loaded:
    module_name = f"algoperf_submission_{re.sub(r'[^0-9A-Za-z_]', '_', name)}"
    try:
        return compatibility.load(path, module_name)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(
            f"submission {path} cannot be imported: {type(error).__name__}: {error}"
        ) from error


def _sha256(path: Path, files: Iterable[Path]) -> str:
    """Returns the hash of a submission's file; of all its files, if it has several.

    Then names count too, relative to the first file's folder.
    """
    contents = {os.path.relpath(f, path.parent): f.read_bytes() for f in files}
    if len(contents) == 1:
        return hashlib.sha256(*contents.values()).hexdigest()
    hashes = [
        (name, hashlib.sha256(content).hexdigest())
        for name, content in sorted(contents.items())
    ]
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()


def _unchanged(
    *, optimizer_state, current_param_container, model_state, **_: Any
) -> spec.UpdateReturn:
    """The prepare_for_eval of a submission that has none."""
    return optimizer_state, current_param_container, model_state
