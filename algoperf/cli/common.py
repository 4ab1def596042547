"""What several commands share: flags, arguments, JSON output."""

import dataclasses
import os
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from absl import flags

from algoperf import hardware, records
from algoperf.errors import STOP_SIGNALS, UserError

if TYPE_CHECKING:
    from algoperf.launch.hosts import HostConfig
    from algoperf.loading import Submission
    from algoperf.tuning import SearchSpace
    from algoperf.workload import Workload

BENCHMARKS = {"mini": "mini", "full": "v0.6"}  # whose rules score a scale


def define_workloads_flag(values: flags.FlagValues) -> None:
    """Defines `--workloads`."""
    flags.DEFINE_list(
        "workloads",
        ["all"],
        "Names that `algoperf workloads` lists; all: every base workload of the scale.",
        flag_values=values,
    )


def define_suite_flag(values: flags.FlagValues) -> None:
    """Defines `--suite`."""
    flags.DEFINE_string(
        "suite",
        None,
        "A suite instead of --workloads and --scale: mini (all nine base workloads), "
        "mini_fast (two), mini_qualification (three), full, full_qualification.",
        flag_values=values,
    )


def choose_suite(values: flags.FlagValues) -> None:
    """Sets `--workloads` and `--scale` to those of `--suite`, if it is given.

    Raises:
      UserError: an unknown suite, or flags that contradict it.
    """
    from algoperf import registry

    if not values.suite:
        return
    if values["workloads"].present:
        raise UserError("give --suite or --workloads, not both")
    names, scale = registry.find_suite(values.suite)
    if values["scale"].present and values.scale != scale:
        raise UserError(
            f"the suite {values.suite} is of --scale {scale}; leave --scale out"
        )
    values["workloads"].value, values["scale"].value = names, scale


def load_submissions(names: Sequence[str]) -> "list[Submission]":
    """Loads what `--submissions` names.

    Raises:
      UserError: none is named, one cannot be loaded, or two have one name.
    """
    from algoperf import loading, registry

    if not names:
        raise UserError("--submissions names none; `algoperf submissions` lists them")
    loaded = [loading.load_submission(registry.find_submission(name)) for name in names]
    counts = Counter(submission.name for submission in loaded)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise UserError(
            f"two submissions are named {twice[0]}; name each once, or rename the "
            "folder of one"
        )
    return loaded


def define_choice_flags(values: flags.FlagValues) -> None:
    """Defines which scale, ruleset and search space: `run`, `sweep` and `check`."""
    flags.DEFINE_enum(
        "scale",
        "mini",
        records.SCALES,
        "mini: embedded data, for a laptop; full: the published problem.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "ruleset",
        "external",
        records.RULESETS,
        "external: hyperparameters from the search space; self: none given, 1.5 times "
        "the budget.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "tuning_search_space",
        None,
        "The search space, instead of tuning_search_space.json beside the submission.",
        flag_values=values,
    )


def define_data_dir_flag(values: flags.FlagValues) -> None:
    """Defines `--data_dir`."""
    flags.DEFINE_string(
        "data_dir",
        None,
        "Where `algoperf data prepare` puts data sets; by default $ALGOPERF_DATA_DIR, "
        "else ./data. The mini scale needs none.",
        flag_values=values,
    )


# With fewer, threads make batches faster than processes.
MANY_CORES = 8


def define_data_flags(values: flags.FlagValues) -> None:
    """Defines where data lies, how it is read, and which metric counts."""
    define_data_dir_flag(values)
    flags.DEFINE_integer(
        "data_workers",
        None,
        "Processes that make batches; 0 uses threads of the run. By default 0 at scale "
        "mini and on few cores, else one for every two cores.",
        lower_bound=0,
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "skip_corrupt",
        False,
        "Pass over examples that cannot be read, and count them in the record, instead "
        "of ending with an error.",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "official_metrics",
        False,
        "Where the official code computes a metric differently (the word error rate), "
        "the target counts for its version, so that published results compare.",
        flag_values=values,
    )


def configured(workload: "Workload", values: flags.FlagValues) -> "Workload":
    """Returns the workload with data and target metric as the flags say."""
    from algoperf.data.examples import DataOptions

    cores = hardware.core_count()
    reads_ahead = workload.scale != "mini"  # mini batches are made in no time
    workers = values.data_workers
    if workers is None:
        workers = cores // 2 if reads_ahead and cores >= MANY_CORES else 0
    options = DataOptions(
        folder=Path(values.data_dir) if values.data_dir else None,
        workers=workers,
        threads=min(cores, MANY_CORES) if reads_ahead else 0,
        skip_corrupt=values.skip_corrupt,
    )
    metric = workload.target_metric_name
    if values.official_metrics:
        metric = workload.official_metric_name or metric
    return dataclasses.replace(workload, data=options, target_metric_name=metric)


def define_run_flags(values: flags.FlagValues) -> None:
    """Defines what `run` and `sweep` share."""
    define_choice_flags(values)
    define_data_flags(values)
    define_sharding_flags(values)
    flags.DEFINE_string(
        "out",
        "runs",
        "Where records go, as <out>/<submission>/study_<i>/<workload>_jax/trial_<k>.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "trials", 1, "How many trials of each study.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_integer(
        "seed",
        0,
        "All randomness follows from it.",
        lower_bound=0,
        upper_bound=2**31 - 1,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "max_steps",
        None,
        "End each trial after so many steps.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "eval_period_steps",
        None,
        "Evaluate every so many steps, instead of the workload's own period.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "ignore_budget",
        False,
        "A trial ends at its target, its own plan's end or its step hint (or "
        "--max_steps), however long that takes: for comparisons on shared machines.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "target_setting",
        None,
        "Train as targets are set: over this share of the step hint, to the end, "
        "whatever target and budget (algoperf calibrate takes 0.75).",
        lower_bound=0.0,
        flag_values=values,
    )
    flags.DEFINE_float(
        "until",
        None,
        "With --target_setting: end each trial where validation reaches this.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "checkpoint_period_sec",
        60.0,
        "Save a checkpoint at the first evaluation after so many seconds.",
        lower_bound=0.0,
        flag_values=values,
    )


def define_sharding_flags(values: flags.FlagValues) -> None:
    """Defines how a run lays out its arrays over several devices."""
    flags.DEFINE_enum(
        "sharding",
        "replicated",
        ("replicated", "fsdp"),
        "Of parameters and optimizer state over the devices: replicated: all of them "
        "on every device; fsdp: large arrays are split, and gathered where needed.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "model_devices",
        None,
        "With fsdp: over how many devices arrays are split; all by default.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_integer(
        "microbatches",
        1,
        "Gradient accumulation: batches are computed in so many parts, one after "
        "another, which takes less memory; for submissions made with from_optax.",
        lower_bound=1,
        flag_values=values,
    )


def define_host_flags(values: flags.FlagValues) -> None:
    """Defines which of the hosts of a run this one is."""
    flags.DEFINE_enum(
        "hosts",
        None,
        ("slurm", "open_mpi", "kubernetes", "tpu"),
        "Run on several hosts, which this launcher has started: it says which.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "coordinator",
        None,
        "Run on several hosts: address and free port of host 0, as in node1:8476.",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "num_hosts", None, "How many hosts.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_integer(
        "host_index",
        None,
        "Which host this is, from 0; host 0 writes the record.",
        lower_bound=0,
        flag_values=values,
    )


def host_config(values: flags.FlagValues) -> "HostConfig | None":
    """Returns which host this is; None where the run has one host.

    Raises:
      UserError: flags or environment do not say it all.
    """
    from algoperf.launch import hosts

    given = (values.coordinator, values.num_hosts, values.host_index)
    if values.hosts:
        if given != (None, None, None):
            raise UserError("give --hosts, or --coordinator and its two, not both")
        return hosts.from_environment(values.hosts, os.environ)
    if given == (None, None, None):
        return None
    if None in given:
        raise UserError("--coordinator, --num_hosts and --host_index go together")
    return hosts.from_flags(*given)


def out_folder(values: flags.FlagValues) -> Path:
    """Returns the folder that `--out` names.

    Raises:
      UserError: it is an address: records need a file system.
    """
    return folder_of(values.out)


def folder_of(out: str, flag: str = "out") -> Path:
    """Returns the folder that the value of a flag names; see `out_folder`."""
    if "://" in out:
        raise UserError(
            f"--{flag} {out} is no folder; records need a file system with renames "
            "and hard links: mount a shared one, or copy the records when they are done"
        )
    return Path(out)


def search_space(
    values: flags.FlagValues, submission: "Submission"
) -> "SearchSpace | None":
    """Returns the search space that the flags ask for; None when self-tuning.

    Raises:
      UserError: it is missing or malformed.
    """
    given = values.tuning_search_space
    if values.ruleset == "self":
        if given:
            raise UserError(
                "--ruleset self gives no hyperparameters; leave --tuning_search_space "
                "out"
            )
        return None
    from algoperf import tuning

    return tuning.load_search_space(
        Path(given) if given else submission.default_search_space
    )


class StopRequest:
    """Set by the first signal that asks to stop; a second Ctrl-C acts as usual.

    Other signals may come twice from one hand: Slurm sends SIGUSR2, then SIGTERM, while
    the checkpoint is being written.
    """

    def __init__(self) -> None:
        self.is_asked = False
        self.is_interrupt = False  # by Ctrl-C
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in STOP_SIGNALS:
            self._before[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.is_asked = True
        self.is_interrupt = number == signal.SIGINT
        signal.signal(signal.SIGINT, self._before[signal.SIGINT])

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def no_arguments(positional: Sequence[str]) -> None:
    """Raises UserError for arguments that are not flags."""
    if positional:
        raise UserError(f"unexpected argument {positional[0]!r}; flags start with --")


def one_argument(positional: Sequence[str], what: str, command: str) -> str:
    """Returns the one argument that is not a flag."""
    if len(positional) != 1:
        raise UserError(f"give one {what}, see algoperf {command} --help")
    return positional[0]


def numbers(
    values: flags.FlagValues, name: str, kind: Callable[[str], Any] = int
) -> list[Any]:
    """Returns the numbers that a flag lists.

    Raises:
      UserError: one is none.
    """
    texts = values[name].value or []
    try:
        return [kind(text) for text in texts]
    except ValueError as error:
        what = "whole numbers, as in 1,16,64" if kind is int else "numbers"
        raise UserError(f"--{name} {','.join(texts)}: give {what}") from error
