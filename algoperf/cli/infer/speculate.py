"""`algoperf infer speculate`: train a pair of models, measure ways to guess ahead."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from algoperf import records
from algoperf.cli import common, printing
from algoperf.cli.infer import machine, serving
from algoperf.errors import UserError

if TYPE_CHECKING:
    from algoperf.inference.decoding.pair import Pair, PairSettings, Text
    from algoperf.inference.decoding.strategy_bench import Row
    from algoperf.workload import Workload

WORKLOAD = "finewebedu_lm"
# Rounds of several of these do not compare.
HARDWARE = ("cpu", "cores", "device_kind", "device_count")
DEFAULT_PROMPT = 16
HELD_OUT = 32  # sequences


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of `algoperf infer speculate`."""
    for name, default, least, text in (
        ("train_steps", 1000, 1, "steps that train the large and the small model."),
        ("tune_steps", 300, 1, "steps that distil the draft, train its head, or train "
         "maps, each."),
        ("draft_layers", None, 1, "layers of the small model; by default 1 for "
         "speculate, as many as the large one's for first_token."),
        ("draft_width", 32, 1, "width of the small model, a multiple of a head's."),
        ("num_prompts", 8, 1, "prompts that every strategy answers in a round."),
    ):  # fmt: skip
        flags.DEFINE_integer(
            name, default, f"speculate, first_token: {text}", lower_bound=least,
            flag_values=values,
        )  # fmt: skip
    flags.DEFINE_list(
        "guesses", [str(k) for k in range(1, 9)],
        "speculate: fixed numbers of guesses a round; the greatest is also the most "
        "that a threshold allows.", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_list(
        "thresholds", ["0.2", "0.4", "0.6", "0.8"],
        "speculate: probabilities of a rejection at which guessing ends, of the "
        "draft's confidence and of the head.", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_float(
        "temperature", 0.0, "speculate: 0 takes the likeliest tokens; above, tokens "
        "are drawn, and there is no oracle.", lower_bound=0.0, flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string(
        "divergence", "total_variation", "speculate: that distilling lowers: "
        "forward_kl, reverse_kl, jensen_shannon or total_variation.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_float(
        "on_policy", 0.5, "speculate: share of distilling on text that the draft "
        "writes.", lower_bound=0.0, upper_bound=1.0, flag_values=values,
    )  # fmt: skip
    flags.DEFINE_float(
        "cost_ratio", 0.1, "speculate: a draft pass over a target pass on the hardware "
        "that is meant, for the column 'at the ratio'.", lower_bound=0.0,
        flag_values=values,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is asked of the pair.

    Attributes:
      prompt: tokens of a prompt.
      output: tokens of an answer.
      guesses: fixed numbers a round.
      thresholds: of confidence and head.
      temperature: of both models.
      num_prompts: of a round.
    """

    prompt: int
    output: int
    guesses: tuple[int, ...]
    thresholds: tuple[float, ...]
    temperature: float
    num_prompts: int


def run(values: flags.FlagValues, positional: Sequence[str]) -> None:
    """Trains or reads the pair, measures, and writes a CSV, a page and a picture.

    Args:
      values: of the flags.
      positional: none, or the workload.
    """
    cores = machine.pin(values.cores)
    from algoperf.inference.decoding import pair, strategy_bench, strategy_runs
    from algoperf.inference.models.trained import trained_shape

    workload = workload_of(values, positional)
    target = trained_shape(workload.name, workload.model)
    draft = pair.draft_shape(target, values.draft_layers or 1, values.draft_width)
    plan = _plan(values, target.max_length)
    settings = _settings(values)
    folder = Path(values.out) / f"{target.name}_speculate"
    records.make_folder(folder)
    text = text_of(workload, plan.prompt, plan.num_prompts)
    made = pair.make(target, draft, text, settings, folder, machine.say)
    wanted = strategy_bench.cells(
        list(made.drafts), plan.guesses, plan.thresholds, True, plan.temperature == 0
    )
    ask = strategy_runs.asker(
        made, text.prompts, plan.output, max(plan.guesses), plan.temperature
    )
    file = folder / "rounds.json"
    hardware = machine.describe()
    asked = {
        "plan": dataclasses.asdict(plan),
        "cores": values.cores,  # 0: wall time, else that of the process
        "hardware": {name: hardware[name] for name in HARDWARE},
    }
    done = _earlier_rounds(file, asked)
    machine.say(f"measuring {len(wanted)} strategies; {len(done)} rounds are done")
    rounds, counts = strategy_bench.measure(
        ask,
        wanted,
        values.rounds,
        values.seconds,
        machine.clock(cores),
        done,
        lambda all_: records.write_json(file, asked | {"rounds": all_}),
    )
    tokens = plan.output * plan.num_prompts
    rows = strategy_bench.summarise(wanted, rounds, counts, tokens, values.cost_ratio)
    _report(values, folder, made, plan, rows, len(rounds), hardware)


def workload_of(values: flags.FlagValues, positional: Sequence[str]) -> "Workload":
    """Returns the language model that is named, or the usual one."""
    if len(positional) > 1:
        raise UserError(f"give one workload, not {len(positional)}")
    name = positional[0] if positional else WORKLOAD
    return serving.find_workload(name, values)


def _plan(values: flags.FlagValues, longest_text: int) -> Plan:
    guesses = tuple(sorted(set(common.numbers(values, "guesses"))))
    thresholds = tuple(sorted(set(common.numbers(values, "thresholds", float))))
    if not guesses or guesses[0] < 1:
        raise UserError("--guesses: give numbers of at least 1, as in 1,2,4")
    if any(not 0 <= h <= 1 for h in thresholds):
        raise UserError("--thresholds: give probabilities, as in 0.3,0.6")
    prompt = DEFAULT_PROMPT if values.prompt is None else values.prompt
    room = longest_text - prompt - guesses[-1] - 1
    output = room if values.output is None else values.output
    if not 1 <= output <= room:
        raise UserError(
            f"a prompt of {prompt}, an output of {output} and {guesses[-1]} guesses "
            f"do not fit {longest_text} tokens; shorten one of them"
        )
    return Plan(
        prompt, output, guesses, thresholds, values.temperature, values.num_prompts
    )


def _settings(values: flags.FlagValues) -> "PairSettings":
    from algoperf.inference.decoding import acceptance_head, distill
    from algoperf.inference.decoding.pair import PairSettings

    steps = values.tune_steps
    return PairSettings(
        values.train_steps,
        head=acceptance_head.Settings(num_steps=steps, temperature=values.temperature),
        distil=distill.Settings(
            values.divergence, on_policy=values.on_policy, num_steps=steps
        ),
    )


def text_of(workload: "Workload", prompt: int, num_prompts: int) -> "Text":
    """Returns training text, and prompts and sequences of the validation split."""
    import numpy as np

    from algoperf.inference.decoding.pair import Text

    train = workload.dataset("train", workload.default_batch_size, seed=0)
    both = num_prompts + HELD_OUT
    validation = workload.dataset("validation", both, seed=0)[0]

    def whole(batch: Any) -> np.ndarray:
        """Inputs (B, L), and the target after them: (B, L + 1)."""
        return np.concatenate([batch["inputs"], batch["targets"][:, -1:]], axis=1)

    held_out = whole(validation)
    return Text(
        batch_at=lambda step: whole(train[step]),
        prompts=held_out[:num_prompts, :prompt],
        held_out=held_out[num_prompts:],
    )


def _earlier_rounds(file: Path, asked: Mapping[str, Any]) -> list[dict[str, float]]:
    """Returns the rounds of an earlier, interrupted call.

    Raises:
      UserError: they asked for something else, or were measured otherwise.
    """
    if not file.is_file():
        return []
    stored = json.loads(file.read_text())
    for name, what in (
        ("plan", "other prompts or strategies"),
        ("cores", "other --cores"),
        ("hardware", "another machine"),
    ):
        if stored.get(name) != json.loads(json.dumps(asked[name])):
            raise UserError(
                f"{file} holds rounds of {what}; take another --out, or delete it to "
                "measure the same pair anew"
            )
    return stored["rounds"]


def _report(
    values: flags.FlagValues,
    folder: Path,
    pair: "Pair",
    plan: Plan,
    rows: "list[Row]",
    rounds: int,
    hardware: dict[str, Any],
) -> None:
    from algoperf.inference.decoding import strategy_report

    target, draft = pair.target.shape, pair.drafts["draft"].shape
    title = f"Guessing ahead: {target.name} and a draft"
    facts = [
        f"target {target.num_parameters:,} parameters, draft "
        f"{draft.num_parameters:,}; prompts of {plan.prompt} tokens, answers of "
        f"{plan.output}, temperature {plan.temperature:g}",
        f"medians of {rounds} rounds of {plan.num_prompts} prompts on "
        f"{hardware.get('device_kind')} ({hardware.get('cpu')})",
        f"modelled: by counts and the measured time of each model; at the ratio: a "
        f"draft pass takes {values.cost_ratio:g} of a target pass",
        *(f"{name.replace('_', ' ')}: {fact:.3f}" for name, fact in pair.facts.items()),
    ]
    table = [strategy_report.values(row) for row in rows]
    printing.write_csv(folder / "strategies.csv", strategy_report.COLUMNS, table)
    page = strategy_report.markdown(rows, title, facts)
    records.write_text(folder / "strategies.md", page)
    records.write_text(folder / "strategies.svg", strategy_report.svg(rows, title))
    found = {
        "rounds": rounds,
        "facts": pair.facts,
        "strategies": [
            dict(zip(strategy_report.COLUMNS, cells, strict=True)) for cells in table
        ],
    }

    def print_text() -> None:
        print(page)
        print(f"Table, page and picture: {folder}/strategies.csv, .md, .svg")

    printing.show(values.json, found, print_text)
