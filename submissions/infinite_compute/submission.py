"""Ensemble, then distil, for scarce data (Kim et al. 2025, arXiv:2509.14786).

Members start from seeds of their own, see batches of their own, and decay their weights
up to 30 times as strongly as is usual. A student, also new, then learns from the mean
of their logits and from the labels. All of it together costs what `step_hint` plain
steps do, and so fits in a budget that they fit in: MEMBER and FORWARD say what the
models' parts of a step cost. The parameters that are returned are the student's; until
it starts, the first member's, so that evaluations say how training goes.

The paper's members see the data many times, with computing time to spare. Here they
share the time that one model has, and so the times that it sees the data: on the mini
language model, four together not once.

The paper's student learns from sequences that the ensemble writes, beside real ones;
this one learns from what the ensemble says of real ones (Hinton et al. 2015).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from algoperf import sharding, spec
from algoperf.errors import UserError
from algoperf.schedules import warmup_cosine
from algoperf.submission import Objective, mask_without

# Costs in plain steps, as measured on the mini language model: of a member's gradient
# and update, and of its forward pass, which is a third of a gradient's operations.
MEMBER, FORWARD = 1.1, 0.4


class Learner(NamedTuple):
    """One model in training; the members of the ensemble are stacked in one."""

    params: Any
    model_state: Any
    optimizer_state: Any


class EnsembleState(NamedTuple):
    """All models of the trial."""

    members: Learner  # leaves (members, ...)
    student: Learner


def ensemble_steps(workload: spec.Workload, hyperparameters: Any) -> int:
    """Returns after how many steps the members are done and distillation starts."""
    plain_steps = hyperparameters.ensemble_share * workload.step_hint
    return max(1, round(plain_steps / (MEMBER * hyperparameters.members)))


def student_steps(workload: spec.Workload, hyperparameters: Any) -> int:
    """Returns how many steps the student takes after that."""
    plain_steps = (1 - hyperparameters.ensemble_share) * workload.step_hint
    return max(1, round(plain_steps / (1 + FORWARD * hyperparameters.members)))


def optimizer(
    workload: spec.Workload, hyperparameters: Any, num_steps: int
) -> optax.GradientTransformation:
    """Returns AdamW with strong decay, on a warm-up and cosine of so many steps."""
    schedule = warmup_cosine(
        num_steps, hyperparameters.learning_rate, hyperparameters.warmup_factor
    )
    return optax.chain(
        optax.clip_by_global_norm(hyperparameters.grad_clip),
        optax.adamw(
            schedule,
            b1=1.0 - hyperparameters.one_minus_beta1,
            b2=hyperparameters.beta2,
            weight_decay=hyperparameters.weight_decay,
            mask=mask_without(workload),
        ),
    )


def build(workload: spec.Workload, hyperparameters: Any) -> tuple[Any, Any]:
    """Returns the optimizers of the members and of the student."""
    of_members = ensemble_steps(workload, hyperparameters)
    of_student = student_steps(workload, hyperparameters)
    return (
        optimizer(workload, hyperparameters, of_members),
        optimizer(workload, hyperparameters, of_student),
    )


def teacher_probabilities(logits: jax.Array) -> jax.Array:
    """Maps (members, ..., classes) to softmax of the mean over members (..., classes).

    The ensemble of the paper averages logits, not probabilities.
    """
    return jax.nn.softmax(jnp.mean(logits.astype(jnp.float32), axis=0))


def distillation_loss(
    objective: Objective, params: Any, teacher: jax.Array, share: Any
):
    """Returns (1 - share) CE(labels) + share CE(teacher), and the new model state.

    The second is the divergence KL(teacher || student) and a constant.
    """
    batch, workload = objective.batch, objective.workload
    logits, model_state = workload.model_fn(
        params,
        batch,
        objective.model_state,
        spec.ForwardPassMode.TRAIN,
        objective.rng,
        update_batch_norm=True,
        dropout_rate=objective.dropout_rate,
    )
    losses = [
        workload.loss_fn(labels, logits, batch.get("weights"))
        for labels in (batch["targets"], teacher)
    ]
    hard, soft = (loss["summed"] / loss["n_valid_examples"] for loss in losses)
    return (1 - share) * hard + share * soft, model_state


def updated(transformation: Any, learner: Learner, gradient: Any, model_state: Any):
    """Returns a learner after one step of its optimizer."""
    updates, optimizer_state = transformation.update(
        gradient, learner.optimizer_state, learner.params
    )
    params = optax.apply_updates(learner.params, updates)
    return Learner(params, model_state, optimizer_state)


def make_steps(workload: spec.Workload, hyperparameters: Any) -> tuple[Any, Any]:
    """Returns the compiled steps of the members and of the student."""
    for_members, for_student = build(workload, hyperparameters)
    dropout_rate = getattr(hyperparameters, "dropout_rate", None)
    count, share = hyperparameters.members, hyperparameters.distillation_share

    def train_members(members, batch, rng):
        def one(member):
            learner, batch, rng = member
            objective = Objective(
                workload, batch, learner.model_state, rng, dropout_rate
            )
            (loss, model_state), gradient = jax.value_and_grad(
                objective.loss_and_state, has_aux=True
            )(learner.params)
            return updated(for_members, learner, gradient, model_state), loss

        batches = jax.tree.map(
            lambda x: x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1), batch
        )
        # One after another: a third cheaper than batched products on a CPU, and the
        # activations of one member are all that is in memory.
        keys = jax.random.split(rng, count)
        members, losses = jax.lax.map(one, (members, batches, keys))
        shown = jax.tree.map(lambda x: x[0], members)
        return members, shown.params, shown.model_state, jnp.mean(losses)

    def distil(student, members, batch, rng):
        def answer(member):
            mode = spec.ForwardPassMode.EVAL
            return workload.model_fn(
                member.params, batch, member.model_state, mode, None, False
            )[0]

        teacher = teacher_probabilities(jax.lax.map(answer, members))
        objective = Objective(workload, batch, student.model_state, rng, dropout_rate)
        (loss, model_state), gradient = jax.value_and_grad(
            lambda params: distillation_loss(objective, params, teacher, share),
            has_aux=True,
        )(student.params)
        student = updated(for_student, student, gradient, model_state)
        return student, student.params, student.model_state, loss

    return jax.jit(train_members, donate_argnums=0), jax.jit(distil, donate_argnums=0)


@jax.jit
def interleave(batches: list[spec.Batch]) -> spec.Batch:
    """Joins batches, one row of each in turn: several devices have some of all."""
    place = sharding.get_batch_dim_sharding()

    def of_leaf(*parts):
        joined = jnp.stack(parts, axis=1).reshape(-1, *parts[0].shape[1:])
        return jax.lax.with_sharding_constraint(joined, place)

    return jax.tree.map(of_leaf, *batches)


def get_batch_size(workload_name: str) -> int:
    """Has no wish: each model takes the workload's default."""
    raise ValueError(f"no batch size of its own for {workload_name}")


def init_optimizer_state(
    workload: spec.Workload,
    model_params: spec.ParameterContainer,
    model_state: spec.ModelAuxiliaryState,
    hyperparameters: spec.Hyperparameters,
    rng: spec.RandomState,
) -> spec.OptimizerState:
    """Returns all models, each from an initialisation of its own, and the steps."""
    if workload.loss_type is not spec.LossType.SOFTMAX_CROSS_ENTROPY:
        raise UserError(
            "infinite_compute distils class probabilities, and the loss of "
            f"{workload.name} is {workload.loss_type.name}; use it on finewebedu_lm"
        )
    for_members, for_student = build(workload, hyperparameters)
    started = [
        workload.init_model_fn(key)
        for key in jax.random.split(rng, hyperparameters.members)
    ]
    place = sharding.get_replicate_sharding()

    @functools.partial(jax.jit, out_shardings=place)
    def assemble(started, params, model_state):
        stacked, states = jax.tree.map(lambda *x: jnp.stack(x), *started)
        members = Learner(stacked, states, jax.vmap(for_members.init)(stacked))
        student = Learner(params, model_state, for_student.init(params))
        return EnsembleState(members, jax.tree.map(jnp.copy, student))

    state = assemble(started, model_params, model_state)
    return state, *make_steps(workload, hyperparameters)


def update_params(
    workload: spec.Workload,
    current_param_container: spec.ParameterContainer,
    current_params_types: spec.ParameterTypeTree,
    model_state: spec.ModelAuxiliaryState,
    hyperparameters: spec.Hyperparameters,
    batch: spec.Batch,
    loss_type: spec.LossType,
    optimizer_state: spec.OptimizerState,
    eval_results: spec.EvalResults,
    global_step: int,
    rng: spec.RandomState,
) -> spec.UpdateReturn:
    """Trains the members, later the student; the first member stands in for it.

    Raises:
      TrainingCompleteError: the student's schedule is at its end, and its rate at 0.
    """
    of_members = ensemble_steps(workload, hyperparameters)
    if global_step >= of_members + student_steps(workload, hyperparameters):
        raise spec.TrainingCompleteError
    (members, student), train_members, distil = optimizer_state
    if global_step < of_members:
        members, params, model_state, loss = train_members(members, batch, rng)
    else:
        student, params, model_state, loss = distil(student, members, batch, rng)
    logger = workload.metrics_logger
    if logger is not None and global_step % 100 == 0:
        logger.append_scalar_metrics({"loss": loss}, global_step)
    state = EnsembleState(members, student)
    return (state, train_members, distil), params, model_state


def data_selection(
    workload: spec.Workload,
    input_queue,
    optimizer_state: spec.OptimizerState,
    current_param_container: spec.ParameterContainer,
    model_state: spec.ModelAuxiliaryState,
    hyperparameters: spec.Hyperparameters,
    global_step: int,
    rng: spec.RandomState,
) -> spec.Batch:
    """Draws a batch for each member, later one for the student."""
    if global_step >= ensemble_steps(workload, hyperparameters):
        return next(input_queue)
    batches = [next(input_queue) for _ in range(hyperparameters.members)]
    return interleave(batches)
