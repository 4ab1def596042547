"""Try a submission for a few steps and name every violation of the contract."""

from collections.abc import Sequence

from absl import flags

from algoperf.cli import common

USAGE = (
    "algoperf check NAME_OR_PATH [--workloads X,Y|all] [--scale mini|full]\n"
    "         [--ruleset external|self] [--steps N]"
)
QUICK = "mini_fast"


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of `algoperf check`."""
    flags.DEFINE_list(
        "workloads",
        None,
        "Names that `algoperf workloads` lists; all: every base workload of the scale. "
        f"By default those of the suite {QUICK}, or all at scale full.",
        flag_values=values,
    )
    common.define_choice_flags(values)
    common.define_data_flags(values)
    flags.DEFINE_integer(
        "steps", 3, "How many steps.", lower_bound=2, flag_values=values
    )


def main(values: flags.FlagValues, positional: Sequence[str]) -> int:
    """Prints a line per workload, or its violations; returns 1 if there are any."""
    name = common.one_argument(positional, "submission", "check")
    from algoperf import contract, loading, registry, tuning

    loaded = loading.load_submission(registry.find_submission(name))
    space = common.search_space(values, loaded)
    names = values.workloads
    if names is None:
        names = registry.find_suite(QUICK)[0] if values.scale == "mini" else ["all"]
    workloads = [
        common.configured(workload, values)
        for workload in registry.select_workloads(names, values.scale)
    ]
    total = 0
    for workload in workloads:
        point = None if space is None else tuning.trial_point(space, 0, 1)
        found = contract.try_out(loaded, workload, point, values.steps)
        total += len(found.violations)
        count = len(found.violations) or "no"
        noun = "violation" if count == 1 else "violations"
        print(f"{loaded.name} on {workload.name}: {count} {noun}", flush=True)
        for violation in found.violations:
            print(f"  - {violation}", flush=True)
        if found.unread:
            print(
                f"  note: nothing read {', '.join(found.unread)} of the search space "
                f"in {values.steps} steps; is a name misspelt?",
                flush=True,
            )
    return 1 if total else 0
