"""Run several submissions on several workloads, here or on a cluster; resumable."""

import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from algoperf import records
from algoperf.cli import common
from algoperf.errors import UserError

if TYPE_CHECKING:
    from algoperf.launch.cluster import Hardware
    from algoperf.launch.jobs import Job

USAGE = (
    "algoperf sweep --submissions A,B [--suite mini|mini_fast|mini_qualification]\n"
    "         [--workloads X,Y|all] [--scale mini|full]\n"
    "         [--studies K] [--trials N] [--out DIR] [--ruleset external|self]\n"
    "         [--executor local|slurm|kubernetes] [--cluster FILE] ..."
)
EXECUTORS = ("local", "slurm", "kubernetes")
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
    "ignore_budget",
    "target_setting",
    "until",
    "sharding",
    "model_devices",
    "microbatches",
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
    common.define_suite_flag(values)
    flags.DEFINE_integer(
        "studies",
        1,
        "How many studies, each with seeds of its own.",
        lower_bound=1,
        flag_values=values,
    )
    common.define_run_flags(values)
    _define_executor_flags(values)


def _define_executor_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_enum(
        "executor",
        "local",
        EXECUTORS,
        "local: processes of this machine; slurm: an array job for each type of "
        "hardware, and a job that scores; kubernetes: prints a manifest.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "cluster",
        None,
        "What the cluster has: JSON, see docs/cluster.md.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "devices",
        None,
        "Not with slurm. each: a process for each accelerator, the default at "
        "scale mini; all: one trial at a time has all of them, the default at scale "
        "full; 0,2: a process for each of these.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "only",
        None,
        "Run one trial alone, by its number in the sweep, from 0: for a job of an "
        "array. The exit status is 0 if it has a result, 75 if it was stopped before.",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_string(
        "benchmark",
        None,
        "What the last job on a cluster scores by, as of algoperf score. By default "
        "the suite, or mini, at scale mini, and v0.6 at scale full.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "kind",
        "job",
        ("job", "jobset"),
        "Of the Kubernetes manifest. job: needs nothing more in the cluster; jobset: "
        "needs JobSet, and scores at the end.",
        flag_values=values,
    )


def main(values: flags.FlagValues, positional: Sequence[str]) -> int:
    """Runs what is not finished yet; returns 1 if a trial failed or has no result."""
    common.no_arguments(positional)
    out = common.out_folder(values)
    import jax

    from algoperf.launch import cluster, jobs

    # This process only looks at names and shapes: accelerators are for the trials.
    jax.config.update("jax_platforms", "cpu")
    common.choose_suite(values)
    if values.only is not None and values.executor != "local":
        raise UserError("--only runs a trial here: give no --executor with it")
    for name, executors in (
        ("cluster", ("slurm", "kubernetes")),
        ("benchmark", ("slurm", "kubernetes")),
        ("devices", ("local", "kubernetes")),  # Slurm gives a trial all of its job's
        ("kind", ("kubernetes",)),
    ):
        if values[name].present and values.executor not in executors:
            raise UserError(f"--{name} is for --executor {' or '.join(executors)}")
    if values.executor == "local":
        wanted = list(_jobs(values))
        jobs.plan(out, wanted)
        return _run_here(values, wanted)
    types = cluster.load(Path(values.cluster) if values.cluster else None)
    if values.executor == "kubernetes":
        return _print_manifest(values, types)
    return _submit(values, types, out)


def _run_here(values: flags.FlagValues, wanted: "list[Job]") -> int:
    from algoperf.launch import jobs, local

    if values.only is not None:
        if values.only >= len(wanted):
            raise UserError(
                f"--only {values.only}: the sweep has trials 0 to {len(wanted) - 1}"
            )
        wanted = [wanted[values.only]]
    wish = values.devices or ("each" if values.scale == "mini" else "all")
    devices = local.choose_devices(wish, local.accelerators())
    if values.only is not None:
        devices = devices[:1] if values.devices else []
    print(f"{len(wanted)} trials, records under {values.out}", flush=True)
    codes = []
    with common.StopRequest() as stop:
        for _, code in local.run_jobs(
            wanted, lambda: stop.is_asked, devices=devices, notice=_say
        ):
            codes.append(code)
            if not stop.is_asked:
                print(f"[{len(codes)}/{len(wanted)} done]", flush=True)
    standings = [jobs.standing(job.folder) for job in wanted]
    counts = Counter(standing.status for standing in standings)
    print(", ".join(f"{count} {status}" for status, count in counts.items()))
    if values.only is not None:
        if jobs.is_finished(wanted[0].folder):
            return 0  # also if it failed: running it again would change nothing
        return next((code for code in codes if code > 0), jobs.UNFINISHED)
    if stop.is_asked:
        print("stopped; the same command goes on with what is missing")
        return 1
    # A trial that alone was asked to stop has saved, and its process has given 0.
    missing = sum(not standing.is_finished for standing in standings)
    if missing:
        print(f"{missing} without a result; the same command goes on with them")
    return 1 if missing or any(codes) else 0


def _say(line: str) -> None:
    print(line, flush=True)


def _submit(values: flags.FlagValues, types: "Sequence[Hardware]", out: Path) -> int:
    """Submits to Slurm what is neither finished nor submitted."""
    from algoperf.launch import cluster, jobs, slurm

    wanted = list(_jobs(values))
    trials: dict[Hardware, list[Job]] = {}
    for job in wanted:
        name = job.folder.parent.name.removesuffix("_jax")
        trials.setdefault(cluster.choose(types, name), []).append(job)
    jobs.plan(out, wanted)
    score = _score_arguments(values, _named(out))
    submitted = slurm.submit(trials, out, score)
    counts = Counter(jobs.standing(job.folder).status for job in wanted)
    print(", ".join(f"{count} {status}" for status, count in counts.items()))
    if not submitted:
        print("nothing to submit: every trial is finished or in the queue")
        return 0
    print(f"submitted {len(submitted) - 1} trials, and job {submitted[slurm.SCORE]}")
    print(f"which scores them; logs are in {out / jobs.FOLDER / 'logs'}")
    print(f"algoperf status {out} says how they stand")
    return 0


def _named(out: Path) -> Path:
    """Returns a folder such as `.` by its name; a link keeps its own."""
    return Path(os.path.abspath(out))


def _score_arguments(values: flags.FlagValues, out: Path) -> list[str]:
    """Returns how the last job scores; its results lie beside the records."""
    benchmark = values.benchmark or common.BENCHMARKS[values.scale]
    if values.benchmark is None and values.scale == "mini" and values.suite:
        benchmark = values.suite
    base = out.with_name(f"{out.name}-score")
    return [
        str(out),
        f"--benchmark={benchmark}",
        f"--ruleset={values.ruleset}",
        f"--report={base}.html",
        f"--json={base}.json",
        f"--csv={base}-csv",
    ]


def _print_manifest(values: flags.FlagValues, types: "Sequence[Hardware]") -> int:
    """Prints a manifest for `kubectl apply -f -`."""
    import json

    from algoperf import registry
    from algoperf.launch import cluster, kubernetes

    name = _named(Path(values.out)).name
    folders = {"out": f"{kubernetes.OUT}/{name}"}
    parts: dict[Hardware, list[str]] = {}
    for workload in registry.select_workloads(values.workloads, values.scale):
        hardware = cluster.choose(types, workload.name)
        parts.setdefault(hardware, []).append(workload.name)
    count = values.studies * values.trials * len(values.submissions)
    sweeps = []
    for hardware, workloads in parts.items():
        mounts = dict(folders)
        if hardware.kubernetes.data_claim:  # pods of other types have no such mount
            mounts["data_dir"] = kubernetes.DATA
        given = [
            f"--{name}={mounts.get(name, values[name].value)}"
            for name in (*_PASSED_ON, "studies", "devices")
            if name in mounts or values[name].value is not None
        ]
        names = [
            f"--{name}={','.join(items)}"
            for name, items in (
                ("submissions", values.submissions),
                ("workloads", workloads),
            )
        ]
        sweeps.append((hardware, [*names, *given], count * len(workloads)))
    # What Kubernetes takes for a name, short enough for what it appends to it.
    name = re.sub("[^a-z0-9]+", "-", f"algoperf-{name}".lower())[:40]
    score = _score_arguments(values, Path(folders["out"]))
    found = kubernetes.manifest(sweeps, values.kind, name.strip("-"), score)
    json.dump(found, sys.stdout, indent=1)
    print()
    return 0


def _jobs(values: flags.FlagValues) -> "Iterator[Job]":
    """Yields the trials, the ones to compare side by side in time."""
    from algoperf import registry, tuning
    from algoperf.launch.jobs import Job

    submissions = common.load_submissions(values.submissions)
    for loaded in submissions:
        space = common.search_space(values, loaded)
        if space is None:
            continue
        try:
            tuning.trial_point(space, 0, values.trials)  # are there that many?
        except UserError as error:
            raise UserError(f"{loaded.name}: {error}") from error
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
