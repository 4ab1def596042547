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
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax

from algoperf import sharding, spec
from algoperf.errors import UserError
from algoperf.tuning import as_namedtuple

LOG_EVERY_STEPS = 100

Build = Callable[[spec.Workload, Any], optax.GradientTransformation]
Loss = Callable[..., Any]  # (params, model_state, batch, rng) -> (mean, model_state)
RewriteLoss = Callable[[spec.Workload, Any, Loss, spec.RandomState], Loss]


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
    rewrite_loss: RewriteLoss | None = None,
) -> SubmissionFunctions:
    """Returns the five functions for a gradient transformation.

    The mean loss is differentiated; hyperparameters named `dropout_rate` and
    `label_smoothing` are honoured where the search space has them. The step is
    compiled once per trial, with donated state.

    Args:
      build: `(workload, hyperparameters) -> optax.GradientTransformation`.
      batch_sizes: by workload name; the workload's default where it has none.
      self_tuned: the hyperparameters under the self-tuning ruleset.
      rewrite_loss: `(workload, hyperparameters, loss, rng) -> loss`, called while the
        step is traced: the function that is differentiated in place of the mean loss
        `(params, model_state, batch, rng) -> (scalar, model_state)`. For other numerics
        (see `algoperf.numerics.apply`) or regularisation.
    """

    def get_batch_size(workload_name: str) -> int:
        if workload_name not in (batch_sizes or {}):
            raise ValueError(f"no batch size of its own for {workload_name}")
        return (batch_sizes or {})[workload_name]

    def init_optimizer_state(
        workload, model_params, model_state, hyperparameters, rng
    ) -> spec.OptimizerState:
        del model_state, rng
        if hyperparameters is None:
            if self_tuned is None:
                raise UserError(
                    "this submission has no setting for the self-tuning ruleset; run "
                    "it with --ruleset external, or give from_optax self_tuned={...}"
                )
            hyperparameters = as_namedtuple(self_tuned)
        transformation = build(workload, hyperparameters)
        step = _train_step(workload, transformation, hyperparameters, rewrite_loss)
        # Placed like the params; otherwise the second step would compile again.
        initialise = jax.jit(
            transformation.init, out_shardings=sharding.get_replicate_sharding()
        )
        return initialise(model_params), step

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
        del current_params_types, hyperparameters, loss_type, eval_results
        state, step = optimizer_state
        state, params, model_state, scalars = step(
            state, current_param_container, model_state, batch, rng
        )
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
        return optimizer_state, current_param_container, model_state

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


def _train_step(
    workload: spec.Workload,
    transformation: optax.GradientTransformation,
    hyperparameters: Any,
    rewrite_loss: RewriteLoss | None,
) -> Callable[..., tuple[Any, Any, Any, dict[str, jax.Array]]]:
    dropout_rate = getattr(hyperparameters, "dropout_rate", None)
    label_smoothing = getattr(hyperparameters, "label_smoothing", 0.0)

    def mean_loss(params, model_state, batch, rng):
        logits, new_model_state = workload.model_fn(
            params,
            batch,
            model_state,
            spec.ForwardPassMode.TRAIN,
            rng,
            update_batch_norm=True,
            dropout_rate=dropout_rate,
        )
        loss = workload.loss_fn(
            batch["targets"], logits, batch.get("weights"), label_smoothing
        )
        return loss["summed"] / loss["n_valid_examples"], new_model_state

    def step(state, params, model_state, batch, rng):
        loss_fn: Loss = mean_loss
        if rewrite_loss is not None:
            loss_fn = rewrite_loss(workload, hyperparameters, mean_loss, rng)
        (loss, model_state), gradient = jax.value_and_grad(loss_fn, has_aux=True)(
            params, model_state, batch, rng
        )
        updates, state = transformation.update(gradient, state, params)
        scalars = {"loss": loss, "grad_norm": optax.tree.norm(gradient)}
        return state, optax.apply_updates(params, updates), model_state, scalars

    return jax.jit(step, donate_argnums=(0, 1, 2))


def warmup_cosine(
    num_steps: int, peak: float, warmup_factor: float = 0.05
) -> optax.Schedule:
    """Linear warm-up to `peak` over a share of the steps, then cosine to zero.

    Args:
      num_steps: where the rate is zero again, usually `workload.step_hint`.
      peak: the highest rate.
      warmup_factor: share of `num_steps` spent warming up, from 0 to 1.
    """
    warmup_steps = max(1, round(warmup_factor * num_steps))
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=peak,
        warmup_steps=warmup_steps,
        decay_steps=max(num_steps, warmup_steps + 1),
    )


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


@dataclasses.dataclass(frozen=True)
class Submission:
    """A loaded submission: its functions and where they come from."""

    name: str
    path: Path
    sha256: str  # of the source file
    functions: SubmissionFunctions
    wants_train_state: bool  # update_params names the argument `train_state`

    @property
    def default_search_space(self) -> Path:
        """Where the search space is unless a flag says otherwise."""
        return self.path.with_name("tuning_search_space.json")


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
        source = path.read_bytes()
    except OSError as error:
        raise UserError(f"no submission at {path}: {error.strerror}") from error
    module = _import_file(path, name)
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
    return Submission(
        name=name,
        path=path,
        sha256=hashlib.sha256(source).hexdigest(),
        functions=functions,
        wants_train_state="train_state"
        in inspect.signature(functions.update_params).parameters,
    )


def _import_file(path: Path, name: str) -> Any:
    module_name = f"algoperf_submission_{re.sub(r'[^0-9A-Za-z_]', '_', name)}"
    spec_ = importlib.util.spec_from_file_location(module_name, path)
    if spec_ is None or spec_.loader is None:
        raise UserError(f"submission {path} is not a Python file")
    module = importlib.util.module_from_spec(spec_)
    sys.modules[module_name] = module  # dataclasses in it look themselves up here
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.append(folder)  # so that it can import modules that lie beside it
    try:
        spec_.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        raise UserError(
            f"submission {path} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    return module


def _unchanged(
    *, optimizer_state, current_param_container, model_state, **_: Any
) -> spec.UpdateReturn:
    """The prepare_for_eval of a submission that has none."""
    return optimizer_state, current_param_container, model_state
