"""Train with one submission on one workload; leave a record of each trial."""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from algoperf.cli import common
from algoperf.cli.common import StopRequest
from algoperf.errors import UserError

if TYPE_CHECKING:
    from algoperf.hosts import Hosts
    from algoperf.trials import TrialConfig
    from algoperf.workload import Workload

USAGE = (
    "algoperf run --submission NAME_OR_PATH --workload NAME [--scale mini|full]\n"
    "         [--out DIR] [--ruleset external|self] [--trials N] [--trial_index I]\n"
    "         [--study K] [--seed S] [--max_steps N] [--resume]\n"
    "         [--sharding replicated|fsdp] [--microbatches N]\n"
    "         [--coordinator HOST:PORT --num_hosts N --host_index I | --hosts slurm]"
)


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of `algoperf run`."""
    flags.DEFINE_string(
        "submission",
        None,
        "A name that `algoperf submissions` lists, or a path to submission.py.",
        required=True,
        flag_values=values,
    )
    flags.DEFINE_string(
        "workload",
        None,
        "A name that `algoperf workloads` lists.",
        required=True,
        flag_values=values,
    )
    common.define_run_flags(values)
    common.define_host_flags(values)
    flags.DEFINE_integer(
        "trial_index",
        None,
        "Run only this trial, counted from 1, of those that --trials N would run.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "study",
        0,
        "The number of the study; each has its own seeds.",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "step_hint",
        None,
        "What schedules plan for, instead of the workload's own step hint.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "resume",
        False,
        "Go on with what the output folder has; finished trials are left alone.",
        flag_values=values,
    )


def main(values: flags.FlagValues, positional: Sequence[str]) -> int:
    """Runs the trials; returns 1 if one failed, diverged, or lost a host.

    75 after Ctrl-C, so that a script does not go on; 0 after SIGTERM, whose sender
    knows that the run is not over.
    """
    common.no_arguments(positional)
    from algoperf.launch import hosts as launch

    config = common.host_config(values)
    if config is None:
        from algoperf.hosts import Hosts

        return _run(values, Hosts(), lambda _: None)

    return launch.supervised(config, functools.partial(_run, values))


def _run(
    values: flags.FlagValues, hosts: "Hosts", announce: Callable[[Path], None]
) -> int:
    from algoperf import runner
    from algoperf.cli.progress import ProgressReport
    from algoperf.launch.hosts import facts_in_common
    from algoperf.launch.jobs import UNFINISHED
    from algoperf.launch.local import PARENT, is_left_behind
    from algoperf.records import Status

    configs = trial_configs(values, hosts)
    if hosts.count > 1:  # it reads all source files
        sha256 = configs[0].submission.sha256
        points = [config.hyperparameters for config in configs]
        facts = facts_in_common(values.flag_values_dict(), sha256, points)
        hosts.must_be_alike(facts)

    def announced() -> Iterator["TrialConfig"]:
        for config in configs:
            announce(config.folder)
            yield config

    # A supervised host is the child of its own parent, which ends with it.
    parent = os.environ.get(PARENT) if hosts.count == 1 else None
    with StopRequest() as stop, ProgressReport() as report:
        records = runner.run_study(
            announced(),
            resume=values.resume,
            should_stop=lambda: stop.is_asked or is_left_behind(parent),
            watch=report.watch if hosts.is_leader else lambda *_: None,
            finished=report.finished,
            flags=values.flag_values_dict(),
            hosts=hosts,
        )
    bad = {Status.FAILED, Status.DIVERGED}
    if hosts.is_broken or any(record["status"] in bad for record in records):
        return 1
    return UNFINISHED if stop.is_interrupt else 0


def _budget_ratio(workload: "Workload") -> float:
    """Returns 1 at full scale, whose budgets are for the official hardware."""
    if workload.scale != "mini" or math.isinf(workload.max_allowed_runtime_sec):
        return 1.0
    from algoperf import speed

    return speed.budget_ratio()


def _max_steps(values: flags.FlagValues, workload: "Workload") -> int | None:
    """Returns the last step; without a budget a trial that misses needs one."""
    from algoperf import trials

    if values.max_steps is not None:
        return values.max_steps
    if values.target_setting is not None:
        return workload.step_hint
    if values.ignore_budget:
        return math.ceil(trials.budget_factor(values.ruleset) * workload.step_hint)
    return None


def trial_configs(
    values: flags.FlagValues, hosts: "Hosts | None" = None
) -> list["TrialConfig"]:
    """Returns what to run, from the flags.

    Raises:
      UserError: an unknown name, or a search space that is missing or malformed.
    """
    from algoperf import calibration, loading, registry, sharding, trials

    loaded = loading.load_submission(registry.find_submission(values.submission))
    workload = common.configured(
        registry.find_workload(values.workload, values.scale), values
    )
    placement = sharding.Placement(
        values.sharding, values.model_devices, microbatches=values.microbatches
    )
    placement.check()
    data = workload.data
    if hosts is not None:
        data = dataclasses.replace(data, host=hosts.index, num_hosts=hosts.count)
    workload = dataclasses.replace(workload, placement=placement, data=data)
    if values.step_hint is not None:
        workload = dataclasses.replace(workload, step_hint=values.step_hint)
    if values.ignore_budget:
        workload = dataclasses.replace(workload, max_allowed_runtime_sec=math.inf)
    if values.until is not None and values.target_setting is None:
        raise UserError("--until needs --target_setting, say --target_setting=1")
    if values.target_setting is not None:
        workload = calibration.for_target_setting(
            workload, values.target_setting, values.until
        )
    base = trials.TrialConfig(
        submission=loaded,
        workload=workload,
        out=common.out_folder(values),
        ruleset=values.ruleset,
        study=values.study,
        seed=values.seed,
        max_steps=_max_steps(values, workload),
        eval_period_steps=values.eval_period_steps,
        checkpoint_period_sec=values.checkpoint_period_sec,
        budget_ratio=_budget_ratio(workload),
    )
    space = common.search_space(values, loaded)
    numbers = range(1, values.trials + 1)
    if values.trial_index is not None:
        numbers = range(values.trial_index, values.trial_index + 1)
    return trials.trial_configs(base, space, numbers)
