"""Writes docs/algorithms.md from the bundled submissions and docs/step_times.json.

python docs/make_algorithms.py
"""

import ast
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from algoperf import hardware, registry, tuning
from algoperf.loading import load_submission
from scoring import step_times

PAGE = Path(__file__).resolve().parent / "algorithms.md"
STEP_TIMES = PAGE.with_name("step_times.json")
WORKLOAD = ("finewebedu_lm", "mini")
BASE = "adamw"
HEAD = """# The submissions that come with AlgoPerf

Written by `python docs/make_algorithms.py`. `algoperf run --submission NAME` takes each
of these names; each is one short file in `submissions/NAME/` to read and to copy from.
How to write one stands in [writing_a_submission.md](writing_a_submission.md).

- **Code** says whose parts the update rule is made of: those named after `optax`, and
  our own functions. Where the rule is all optax's, it is checked against the paper too.
- **State** is how many numbers the optimizer state holds for each parameter, counted
  on the mini language model with the first point of the search space. AdamW's two
  moments are 2. The parameters themselves and what only lives within a step are not in.
- Averages (`ema`, `lawa`, `schedule_free_adamw`) need one more while evaluated.
- Where something else than the parameters is trained (`factorised`, `lora`, `pruned`,
  `quantized_lora`, `relora`, `stable_rps`), that and what it starts from are in.
  [reparam.md](reparam.md) tells them apart. So are the models of `infinite_compute` and
  the weights in float32 of `adapt_sgd`.
- **Step** is the time of a training step over AdamW's on the mini language model, with
  its standard error, and **Memory** that of parameters and state. All took turns in one
  run of `algoperf step_times --submissions all --suite mini` (`--rounds {rounds}
  --steps {steps}`, {machine}), and
  [step_times.json](step_times.json) has the other workloads too. With so small a model
  (AdamW takes {adamw_ms:.0f} ms) work on the parameters weighs more than with a large
  batch, and more gradients per step are counted as they come.
- Docstrings say where a rule leaves its paper. Two more do: `prodigy` is optax's, which
  corrects the rate for the bias of Adam's moments always and the distance with it, what
  the authors' code does if asked to; `mars` is the algorithm as printed, where the
  authors' code clips each tensor by itself and leaves those that are no matrices to
  AdamW.
- On the language model, what decays weights decays the scale of attention logits too,
  a scalar with the official type of a weight: strong decay keeps the logits small.
  `muon` and `scion` take its fused kernel of queries, keys and values for one matrix,
  and `adam_mini` has a block for each of that kernel's outputs, none of heads.
- The steps timed are the first of a trial. Two submissions have cheaper ones later:
  `kron`, once it no longer fits its preconditioner at every step, and
  `infinite_compute`, once its members are done and the student learns.

| Name | What it is | Source | Code | Lines | State | Memory | Step |
|---|---|---|---|---|---|---|---|
"""
# Parts that make no update rule: clipping, decay, the rate, glue.
GLUE = {
    "add_decayed_weights",
    "apply_updates",
    "chain",
    "clip_by_global_norm",
    "constant_schedule",
    "linear_schedule",
    "masked",
    "partition",
    "scale",
    "scale_by_learning_rate",
    "scale_by_schedule",
    "stateless",
    "with_extra_args_support",
}
RULE = re.compile(r"optax\.((?:contrib\.)?[a-z]\w*)\(")
# Our own parts that several submissions share.
SHARED = re.compile(
    r"\b((?:low_rank|pruning|sharing)\.[a-z]\w*|scale_by_(?:galore|fira|apollo))\("
)


def summary(docstring: str) -> tuple[str, str]:
    """Splits a docstring's first line into what it is and the source."""
    line = docstring.split("\n")[0].rstrip(".")
    source = re.search(r" \(([^()]*\d{4}[^()]*)\)", line)
    if source is None:
        return line, ""
    return line.replace(source.group(0), "", 1), source.group(1)


def parts(source: str) -> tuple[list[str], list[str]]:
    """Returns the rules of optax that a module calls, and its own functions."""
    found = dict.fromkeys(RULE.findall(source))
    tree = ast.parse(source)
    own = list(dict.fromkeys(SHARED.findall(source)))
    own += [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [name for name in found if name not in GLUE], [
        name for name in own if name != "build"
    ]


def numbers(tree: Any, without: Iterable[Any]) -> int:
    """Counts the numbers in the arrays of a tree, but for those of other arrays."""
    seen = {id(leaf) for leaf in without}
    return sum(
        leaf.size
        for leaf in jax.tree.leaves(tree)
        if isinstance(leaf, jax.Array) and id(leaf) not in seen
    )


def state_per_parameter(name: str) -> float:
    """Returns how many numbers a submission keeps for each parameter."""
    workload = registry.find_workload(*WORKLOAD)
    submission = load_submission(registry.find_submission(name))
    space = tuning.load_search_space(submission.default_search_space)
    point = tuning.as_namedtuple(tuning.trial_point(space, 0, 1))
    params, model_state = workload.init_model_fn(jax.random.PRNGKey(0))
    state = submission.functions.init_optimizer_state(
        workload, params, model_state, point, jax.random.PRNGKey(0)
    )
    return numbers(state, jax.tree.leaves(params)) / workload.num_parameters


def measured(name: str, facts: Mapping[str, Any]) -> tuple[str, str]:
    """Returns memory and time of a step over AdamW's, as they were measured."""
    of = facts["submissions"]
    if name not in of:
        return "-", "-"
    params = facts["parameter_bytes"]
    memory = (params + of[name]["state_bytes"]) / (params + of[BASE]["state_bytes"])
    times = step_times.parsed(facts).of
    ratio = times[name].seconds / times[BASE].seconds
    error = ratio * math.hypot(times[name].error, times[BASE].error)
    return f"{memory:.2f}", "1" if name == BASE else f"{ratio:.2f} ± {error:.2f}"


def row(name: str, path: Path, facts: Mapping[str, Any]) -> str:
    """Returns the line of one submission."""
    source = path.read_text(encoding="utf-8")
    what, paper = summary(ast.get_docstring(ast.parse(source)) or "")
    rules, own = parts(source)
    code = [f"optax: {', '.join(f'`{rule}`' for rule in rules)}"] if rules else []
    if own:
        code.append(f"ours: {', '.join(f'`{function}`' for function in own)}")
    lines = len(source.splitlines())
    state = f"{state_per_parameter(name):.2f}"
    cells = (name, what, paper, "; ".join(code), lines, state, *measured(name, facts))
    return f"| {' | '.join(map(str, cells))} |\n"


def head(facts: Mapping[str, Any]) -> str:
    """Returns all that stands before the lines."""
    return HEAD.format(
        rounds=facts["rounds"],
        steps=facts["steps_per_round"],
        machine=hardware.host_words(facts["host"]),
        adamw_ms=1e3 * step_times.parsed(facts).of[BASE].seconds,
    )


def measurement() -> dict[str, Any]:
    """Returns what was measured on the workload."""
    content = json.loads(STEP_TIMES.read_text(encoding="utf-8"))
    return dict(content["workloads"]["_".join(WORKLOAD)])


def main() -> None:
    """Writes the page."""
    facts = measurement()
    paths = sorted(registry.submission_paths().items())
    rows = [row(name, path, facts) for name, path in paths]
    PAGE.write_text(head(facts) + "".join(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
