"""Programs of all workloads: their shapes, their FLOPs."""

import jax
import pytest

from algoperf import registry
from algoperf.inference.rooflines import roofline
from algoperf.inference.timing import programs

MINI = {
    workload.variant: workload
    for workload in registry.select_workloads(["all"], "mini")
}
# XLA counts 8 n log2 n for a transform of n real numbers, we 2.5 n log2 n.
OF_FFT = 8 / 2.5


def check_flops(program):
    """Within 3 % of XLA's total, which counts the body of a loop once."""
    once = sum(kernel.flops for kernel in program.kernels)
    ffts = sum(kernel.flops for kernel in program.kernels if kernel.kind == "fft")
    wanted = program.compiled.cost_analysis()["flops"] - (OF_FFT - 1) * ffts
    assert once == pytest.approx(wanted, rel=0.03)


def test_there_are_nine():
    assert len(MINI) == 9


@pytest.mark.parametrize("name", MINI)
def test_a_forward_pass_agrees_with_the_compiler(name):
    check_flops(programs.compile_program(MINI[name], "forward"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["criteo1tb", "ogbg", "librispeech_deepspeech"])
def test_a_training_step_agrees_with_the_compiler(name):
    """Those with scatters, gathers, recurrences, transforms."""
    check_flops(programs.compile_program(MINI[name], "step"))


TYPICAL = ("imagenet_resnet", "ogbg", "wmt")
NAMES = [n if n in TYPICAL else pytest.param(n, marks=pytest.mark.slow) for n in MINI]


@pytest.mark.parametrize("name", NAMES)
def test_shapes_are_those_of_the_data(name):
    """What is made without data is what the pipeline gives, but for what is packed."""
    workload = MINI[name]
    size = workload.default_batch_size
    real = jax.eval_shape(lambda: workload.dataset("train", size, seed=0)[0])
    made = programs.batch_shapes(workload, size)
    assert made["inputs"] == real["inputs"]
    if name == "imagenet_vit":  # mixes labels up
        assert made["targets"].shape == real["targets"].shape[:1]
    elif name.startswith("librispeech"):
        assert [t.dtype for t in made["targets"]] == [t.dtype for t in real["targets"]]
        assert made["targets"][0].shape[0] == size
    else:
        assert made["targets"] == real["targets"]


WANTED = {
    "criteo1tb": (64, 1),
    "fastmri": (64, 320, 320),
    "finewebedu_lm": (64, 1024, 50_257),
    "imagenet_resnet": (64, 1000),
    "imagenet_vit": (64, 1000),
    "librispeech_conformer": (64, 500, 1024),
    "librispeech_deepspeech": (64, 500, 1024),
    "ogbg": (72, 128),
    "wmt": (64, 256, 32_000),
}


@pytest.mark.parametrize("name", NAMES)
def test_full_size_needs_no_data(name):
    """Logits of the published sizes, from shapes alone."""
    workload = registry.find_workload(name, "full")
    batch = programs.batch_shapes(workload, 64)
    params, state = jax.eval_shape(workload.init_model_fn, jax.random.PRNGKey(0))
    logits = jax.eval_shape(programs.forward_of(workload), params, state, batch)
    first = logits[0] if isinstance(logits, tuple) else logits
    assert first.shape == WANTED[name]


def test_variances_are_positive():
    workload = MINI["imagenet_resnet"]
    params, state = programs.params_for_speed(workload)
    shapes = jax.eval_shape(workload.init_model_fn, jax.random.PRNGKey(0))
    for made, wanted in zip(
        *map(jax.tree.leaves, ((params, state), shapes)), strict=True
    ):
        assert (made.shape, made.dtype) == (wanted.shape, wanted.dtype)
    assert all((leaf > 0).all() for leaf in jax.tree.leaves(state))


@pytest.mark.slow
def test_a_step_goes_on_from_what_it_left():
    workload = MINI["criteo1tb"]
    step = programs.compile_program(workload, "step", 16)
    run = step.runner()
    run()
    run()  # what it was given the first time is gone
    forward = programs.compile_program(workload, "forward", 16)
    forward.runner()()
    ratio = roofline.totals(step.kernels).flops / roofline.totals(forward.kernels).flops
    assert ratio > 2.5  # forward, and backward to weights and to inputs
