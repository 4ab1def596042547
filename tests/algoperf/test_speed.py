"""The ratio that budgets are stretched by on another machine."""

import math

import pytest
from synthetic import kill_at

from algoperf import records, speed
from algoperf.errors import OtherRunError
from algoperf.runner import run_trial
from algoperf.trials import TrialConfig


def test_a_probe_takes_time_and_a_second_one_about_as_long():
    first, second = speed.probe_step_sec(), speed.probe_step_sec()
    assert 1e-6 < first < 1
    assert 1 / 20 < first / second < 20


@pytest.mark.parametrize(
    ("slower", "ratio"), [(1, 1), (3, 3), (0.8, 0.8), (0.01, 0.75)]
)
def test_the_ratio_is_one_on_the_reference_machine(monkeypatch, slower, ratio):
    seconds = slower * speed.REFERENCE_STEP_SEC
    monkeypatch.setattr(speed, "probe_step_sec", lambda: seconds)
    assert speed.budget_ratio() == pytest.approx(ratio)


def test_the_budget_is_stretched_and_recorded(make_config):
    config: TrialConfig = make_config(max_steps=2, budget_ratio=2.0)
    assert config.budget_sec == 2 * config.workload.max_allowed_runtime_sec
    run_trial(config)
    record = records.read_record(config.folder)
    assert record["budget_ratio"] == 2.0
    assert record["budget_sec"] == config.budget_sec


def test_a_resumed_run_keeps_its_budget(make_config):
    config = make_config(budget_ratio=2.0)
    kill_at(config, 5)
    other, told = make_config(budget_ratio=5.0), []
    run_trial(other, resume=True, watch=lambda now: told.append(now.budget_sec))
    assert set(told) == {config.budget_sec}
    record = records.read_record(config.folder)
    assert record["budget_sec"] == config.budget_sec


@pytest.mark.parametrize(("first", "second"), [(1.0, math.inf), (math.inf, 1.0)])
def test_a_budget_is_neither_won_nor_lost_by_a_resume(make_config, first, second):
    kill_at(make_config(budget_ratio=first), 5)
    with pytest.raises(OtherRunError, match="time budget, asked for is"):
        run_trial(make_config(budget_ratio=second), resume=True)
