"""Batch sizes and budgets of trials."""

import dataclasses
from pathlib import Path

import jax
import pytest
from synthetic import SYNTHETIC

from algoperf import registry, runner, sharding, tuning
from algoperf.errors import UserError
from algoperf.loading import load_submission
from algoperf.trials import global_batch_size, trial_configs
from algoperf.workload import derive

HERE = Path(__file__).resolve().parent
SILU = derive(SYNTHETIC, variant="synthetic_silu")


def _submission(write_submission, text):
    return write_submission(f"\ndef get_batch_size(workload_name):\n    {text}\n")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("return 64", 64),
        ("return __import__('numpy').int64(64)", 64),
        ("raise ValueError(workload_name)", SYNTHETIC.default_batch_size),
        ("return {'synthetic_silu_mini': 1, 'synthetic_silu': 2}[workload_name]", 1),
    ],
)
def test_the_wish_of_the_submission_or_the_default(write_submission, text, size):
    assert global_batch_size(_submission(write_submission, text), SILU) == size


def test_names_are_asked_from_the_most_exact_on(write_submission):
    text = "print(workload_name); raise ValueError"
    submission = _submission(write_submission, text)
    asked = []

    def get_batch_size(name):
        asked.append(name)
        raise ValueError

    functions = submission.functions._replace(get_batch_size=get_batch_size)
    submission = dataclasses.replace(submission, functions=functions)
    global_batch_size(submission, SILU)
    assert asked == ["synthetic_silu_mini", "synthetic_silu", "synthetic"]


def test_a_wish_above_the_cap_is_capped(write_submission):
    submission = _submission(write_submission, "return 4096")
    workload = derive(SYNTHETIC, max_batch_size=128)
    assert global_batch_size(submission, workload) == 128


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("return 'many'", "get_batch_size of adam returned 'many'"),
        ("return 32.0", "returned 32.0"),
        ("return 0", "returned 0; return a whole number of 1 or more, or raise Val"),
        ("return {'synthetic': 64}.get(workload_name)", "returned None"),
        ("return {}[workload_name]", "raised KeyError: .*must raise ValueError"),
    ],
)
def test_a_batch_size_that_is_none_is_refused(write_submission, text, says):
    with pytest.raises(UserError, match=says):
        global_batch_size(_submission(write_submission, text), SYNTHETIC)


def test_a_batch_size_must_divide_over_the_devices(write_submission, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    submission = _submission(write_submission, "return 30")
    with pytest.raises(UserError, match=r"of adam is 30, .*divisible by the 8.*: 32"):
        global_batch_size(submission, SYNTHETIC)


def test_self_tuning_has_half_as_much_again(make_config):
    external, own = make_config(), make_config(ruleset="self")
    assert external.budget_sec == SYNTHETIC.max_allowed_runtime_sec
    assert own.budget_sec == 1.5 * SYNTHETIC.max_allowed_runtime_sec


def test_microbatches_must_divide_and_are_for_from_optax(write_submission):
    place = sharding.Placement(microbatches=3)
    workload = dataclasses.replace(SYNTHETIC, placement=place)
    ours = _submission(write_submission, "return 32")
    official = load_submission(HERE / "submissions" / "official")
    with pytest.raises(UserError, match="run it without --microbatches"):
        global_batch_size(official, workload)
    with pytest.raises(UserError, match=r"times 3 microbatches; the nearest .* is: 33"):
        global_batch_size(ours, workload)
    assert global_batch_size(ours, SYNTHETIC) == 32


@pytest.mark.parametrize("name", ["adapt_sgd", "infinite_compute"])
def test_a_recipe_that_a_submission_would_ignore_is_refused(make_config, name):
    submission = load_submission(registry.find_submission(name))
    base = make_config(submission=submission)
    space = [{"learning_rate": 0.1}, {"learning_rate": 0.1, "recipe": "mxfp8"}]
    says = f"recipe 'mxfp8', and {name} computes its .*by functools.wraps"
    with pytest.raises(UserError, match=says):
        trial_configs(base, space, [1, 2])


def test_echoed_batches_take_recipes_and_microbatches(make_config):
    """As one update of the batch does, for it is the step of from_optax."""
    submission = load_submission(registry.find_submission("data_echoing"))
    (point, *_) = tuning.load_search_space(submission.default_search_space)
    parts = dataclasses.replace(SYNTHETIC, placement=sharding.Placement(microbatches=2))
    config = make_config(
        submission=submission,
        workload=parts,
        hyperparameters={**point, "recipe": "mxfp8"},
        max_steps=2,
    )
    record = runner.run_trial(config)
    assert record["numerics"]["recipe"] == "mxfp8"
    assert record["global_step"] == 2


def test_packs_must_divide_over_the_devices(write_submission, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 16)
    submission = _submission(write_submission, "return 32")
    assert global_batch_size(submission, SYNTHETIC) == 32
    workload = derive(SYNTHETIC, max_packs=8)
    with pytest.raises(UserError, match=r"synthetic_mini, .* at most 8 devices"):
        global_batch_size(submission, workload)
