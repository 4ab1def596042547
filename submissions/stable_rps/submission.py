"""STABLE-RPS: all kernels in one memory (Desai, Shrivastava 2023, arXiv:2310.11611).

`share` is the memory's size over that of the kernels, `layout` how it is shared: 'fold'
(RandomFold, the paper's), 'tiles' (ROAST) or 'elements' (HashedNets). `rule` is 'sgd',
as in the paper, where the gradient scaler `scaler` matters, or 'adam', which it hardly
touches. `init_std` is the memory's standard deviation at first: Adam's steps have the
size of the rate, so it says how fast the memory moves beside what does not share.
"""

import optax

from algoperf import reparam
from algoperf.errors import unknown_name
from algoperf.reparam import sharing
from algoperf.submission import from_optax, mask_without, warmup_cosine


def plan_of(workload, hyperparameters):
    """Returns which parameters share, and how."""
    chosen = reparam.select(workload)
    return chosen, sharing.make_plan(
        workload,
        chosen,
        hyperparameters.share,
        layout=hyperparameters.layout,
        init_std=hyperparameters.init_std,
    )


def build(workload, hyperparameters):
    """Returns SGD with momentum or Adam for the memory and what does not share.

    The decay is decoupled from Adam, and part of the gradient in SGD.
    """
    momentum = 1.0 - hyperparameters.one_minus_beta1
    mask = sharing.SharedWeights(True, mask_without(workload))
    decay = optax.add_decayed_weights(hyperparameters.weight_decay, mask=mask)
    adam = optax.scale_by_adam(b1=momentum, b2=hyperparameters.beta2)
    rules = {
        "adam": optax.chain(adam, decay),
        "sgd": optax.chain(decay, optax.trace(momentum, nesterov=True)),
    }
    if hyperparameters.rule not in rules:
        raise unknown_name("rule", hyperparameters.rule, rules)
    _, plan = plan_of(workload, hyperparameters)
    schedule = warmup_cosine(
        workload.step_hint,
        hyperparameters.learning_rate,
        hyperparameters.warmup_factor,
    )
    return optax.chain(
        sharing.scale_memory_gradient(plan, hyperparameters.scaler),
        optax.clip_by_global_norm(hyperparameters.grad_clip),
        rules[hyperparameters.rule],
        optax.scale_by_learning_rate(schedule),
    )


def reparametrise(workload, hyperparameters):
    """Returns one memory for all kernels."""
    chosen, plan = plan_of(workload, hyperparameters)
    return sharing.shared(workload, chosen, plan)


(
    get_batch_size,
    init_optimizer_state,
    update_params,
    prepare_for_eval,
    data_selection,
) = from_optax(build, reparametrise=reparametrise)
