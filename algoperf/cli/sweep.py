"""Run several submissions on several workloads, trial after trial; resumable."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from algoperf import records
from algoperf.cli import common
from algoperf.errors import UserError

if TYPE_CHECKING:
    from algoperf.launch.local import Job

USAGE = (
    "algoperf sweep --submissions A,B [--suite mini|mini_fast|mini_qualification]\n"
    "         [--workloads X,Y|all] [--scale mini|full]\n"
    "         [--studies K] [--trials N] [--out DIR] [--ruleset external|self] ..."
)
# Passed on to each `algoperf run` as they were given.
_PASSED_ON = (
    "scale",
    "out",
    "ruleset",
    "seed",
    "tuning_search_space",
    "max_steps",
    "eval_period_steps",
    "checkpoint_period_sec",
    "trials",
    "data_dir",
    "data_workers",
    "skip_corrupt",
    "official_metrics",
    "target_setting",
    "sharding",
    "model_devices",
)


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of `algoperf sweep`."""
    flags.DEFINE_list(
        "submissions",
        None,
        "Names that `algoperf submissions` lists, or paths, with commas between.",
        required=True,
        flag_values=values,
    )
    common.define_workloads_flag(values)
    flags.DEFINE_string(
        "suite",
        None,
        "A suite instead of --workloads and --scale: mini (all nine base workloads), "
        "mini_fast (two), mini_qualification (three), full, full_qualification.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "studies",
        1,
        "How many studies, each with seeds of its own.",
        lower_bound=1,
        flag_values=values,
    )
    common.define_run_flags(values)


def main(values: flags.FlagValues, positional: Sequence[str]) -> int:
    """Runs what is not finished yet; returns 1 if a trial failed or diverged."""
    common.no_arguments(positional)
    from algoperf import registry
    from algoperf.launch import local

    if values.suite:
        if values["workloads"].present:
            raise UserError("give --suite or --workloads, not both")
        names, scale = registry.find_suite(values.suite)
        values["workloads"].value, values["scale"].value = names, scale

    jobs = list(_jobs(values))
    print(f"{len(jobs)} trials, records under {values.out}", flush=True)
    codes = []
    with common.StopRequest() as stop:
        for _, code in local.run_jobs(jobs, lambda: stop.is_asked):
            codes.append(code)
            print(f"[{len(codes)}/{len(jobs)} done]", flush=True)
    statuses = Counter(_status(job.folder) for job in jobs)
    print(", ".join(f"{count} {status}" for status, count in statuses.items()))
    if stop.is_asked:
        print("stopped; the same command goes on with what is missing")
    return 1 if any(codes) else 0


def _jobs(values: flags.FlagValues) -> "Iterator[Job]":
    """Yields the trials, the ones to compare side by side in time."""
    from algoperf import registry, submission, tuning
    from algoperf.launch.local import Job

    submissions = [
        submission.load_submission(registry.find_submission(name))
        for name in values.submissions
    ]
    names = [loaded.name for loaded in submissions]
    if len(set(names)) != len(names):
        raise UserError(f"two submissions have one name: {', '.join(sorted(names))}")
    for loaded in submissions:
        space = common.search_space(values, loaded)
        if space is not None:
            tuning.trial_point(space, 0, values.trials)  # are there that many?
    workloads = registry.select_workloads(values.workloads, values.scale)
    passed_on = [
        f"--{name}={values[name].value}"
        for name in _PASSED_ON
        if values[name].value is not None
    ]
    for workload in workloads:
        for study in range(values.studies):
            for trial in range(1, values.trials + 1):
                for loaded in submissions:
                    yield Job(
                        arguments=(
                            f"--submission={loaded.path}",
                            f"--workload={workload.name}",
                            f"--study={study}",
                            f"--trial_index={trial}",
                            *passed_on,
                        ),
                        folder=records.trial_folder(
                            Path(values.out), loaded.name, study, workload.name, trial
                        ),
                    )


def _status(folder: Path) -> str:
    if not (folder / records.RECORD_FILE).exists():
        return "missing"
    return records.read_record(folder)["status"]
