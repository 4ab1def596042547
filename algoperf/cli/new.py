"""Write the skeleton of a submission that already runs."""

import re
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from algoperf import records, registry
from algoperf.cli import common
from algoperf.errors import UserError

USAGE = "algoperf new NAME [--out DIR]"

SUBMISSION = '''"""{name}: say here in one line what is new about it."""

import optax

from algoperf.submission import from_optax, mask_without, planned_steps, warmup_cosine


def build(workload, hyperparameters):
    """Returns the optax gradient transformation that trains `workload`.

    `hyperparameters` has the names of tuning_search_space.json. What a submission may
    ask of `workload`, and what the five functions do, stands in algoperf/spec.py.
    """
    schedule = warmup_cosine(
        planned_steps(workload, hyperparameters),
        hyperparameters.learning_rate,
        hyperparameters.warmup_factor,
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(b1=1.0 - hyperparameters.one_minus_beta1, b2=0.99),
        optax.add_decayed_weights(
            hyperparameters.weight_decay, mask=mask_without(workload)
        ),
        optax.scale_by_learning_rate(schedule),
    )


# To change more than the update rule (which data, how often, what is evaluated),
# write any of these as a function of your own instead.
(
    get_batch_size,
    init_optimizer_state,
    update_params,
    prepare_for_eval,
    data_selection,
) = from_optax(build)
'''

SEARCH_SPACE = """{
  "learning_rate": {"min": 0.001, "max": 0.01, "scaling": "log"},
  "one_minus_beta1": {"min": 0.05, "max": 0.2, "scaling": "log"},
  "weight_decay": {"min": 0.05, "max": 0.5, "scaling": "log"},
  "warmup_factor": {"feasible_points": [0.05]}
}
"""


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of `algoperf new`."""
    flags.DEFINE_string(
        "out", ".", "The folder in which NAME/ is made.", flag_values=values
    )


def main(values: flags.FlagValues, positional: Sequence[str]) -> int:
    """Writes NAME/submission.py and NAME/tuning_search_space.json."""
    name = common.one_argument(positional, "NAME", "new")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
        raise UserError(f"{name!r} is no name: letters, digits and _, a letter first")
    if name in registry.submission_paths():
        raise UserError(
            f"{name} is the name of a submission that comes with AlgoPerf; choose "
            "another, or you would run that one"
        )
    folder = Path(values.out) / name
    if folder.exists():
        raise UserError(f"{folder} is there already; choose another name or --out")
    records.make_folder(folder)
    records.write_text(folder / "submission.py", SUBMISSION.replace("{name}", name))
    records.write_text(folder / "tuning_search_space.json", SEARCH_SPACE)
    print(
        f"written: {folder}/submission.py and tuning_search_space.json\n"
        f"try it:  algoperf check {folder}\n"
        f"run it:  algoperf run --submission {folder} --workload finewebedu_lm "
        f"--max_steps 50 --out runs/{name}"
    )
    return 0
