"""`algoperf infer first_token`: a small model reads the prompt for a large one."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from algoperf import records
from algoperf.cli import printing
from algoperf.cli.infer import machine, speculate

if TYPE_CHECKING:
    from algoperf.inference.decoding.kv_prediction import Maps
    from algoperf.inference.decoding.pair import Text
    from algoperf.inference.decoding.strategy_bench import Cell, Row
    from algoperf.inference.models.decoder import Model

COLUMNS = ("who_reads", "seconds", "speed_up", "speed_up_low", "speed_up_high", "flops",
           "loss", "perplexity")  # fmt: skip
DEFAULT_PROMPT = 48


def run(values: flags.FlagValues, positional: Sequence[str]) -> None:
    """Trains a base model, a small one and the maps; measures time and quality.

    Args:
      values: of the flags.
      positional: none, or the workload.
    """
    cores = machine.pin(values.cores)
    from algoperf.inference.decoding import kv_prediction, pair, strategy_bench
    from algoperf.inference.models.trained import trained_shape

    workload = speculate.workload_of(values, positional)
    large = trained_shape(workload.name, workload.model)
    layers = values.draft_layers or large.num_layers
    small = pair.draft_shape(large, layers, values.draft_width)
    prompt = values.prompt or min(DEFAULT_PROMPT, large.max_length * 3 // 4)
    kv_prediction.check_prompt(small, large, prompt, 1)
    folder = Path(values.out) / f"{large.name}_first_token"
    records.make_folder(folder)
    text = speculate.text_of(workload, prompt, values.num_prompts)
    base, auxiliary, maps = _made(values, large, small, text, folder)
    wanted = [strategy_bench.PLAIN, strategy_bench.Cell("predicted"),
              strategy_bench.Cell("auxiliary")]  # fmt: skip
    machine.say("measuring the time to the first token")
    rounds, counts = strategy_bench.measure(
        _asker(base, auxiliary, maps, text),
        wanted,
        values.rounds,
        values.seconds,
        machine.clock(cores),
        [],
        _not_kept,
    )
    rows = strategy_bench.summarise(wanted, rounds, counts, values.num_prompts, 1.0)
    _report(values, folder, (base, auxiliary, maps), text, rows, machine.describe())


def _not_kept(rounds: Any) -> None:
    """A minute's measurement is made anew."""
    del rounds


def _made(
    values: flags.FlagValues,
    large: Any,
    small: Any,
    text: "Text",
    folder: Path,
) -> "tuple[Model, Model, Maps]":
    """Trains the models and the maps, or reads them from the folder."""
    import jax

    from algoperf.inference.decoding import kv_prediction, pair
    from algoperf.inference.decoding.keep import Keep

    prompt = text.prompts.shape[1]
    plan = kv_prediction.Settings(num_steps=values.tune_steps)
    keep = Keep(folder, machine.say)
    keep.check_is_of(
        {
            "base": dataclasses.asdict(large),
            "auxiliary": dataclasses.asdict(small),
            "settings": dataclasses.asdict(plan),
            "train_steps": values.train_steps,
            "prompt": prompt,
        }
    )
    settings = pair.PairSettings(values.train_steps)
    base, begin = pair.two_models(large, small, text, settings, keep)

    def trained() -> dict[str, Any]:
        model, maps, _ = kv_prediction.train(
            begin, base, text.batch_at, prompt, plan, jax.random.key(6)
        )
        return {"auxiliary": model.params, "maps": maps}

    found = keep.stage("prediction", trained)
    return base, type(base)(small, found["auxiliary"]), found["maps"]


def _asker(
    base: "Model", auxiliary: "Model", maps: "Maps", text: "Text"
) -> "Callable[[Cell], None]":
    """Returns what gives the first token after each prompt, in one of three ways."""
    import jax.numpy as jnp

    from algoperf.inference.decoding import kv_prediction
    from algoperf.inference.models import decoder

    prompts = [jnp.asarray(row[None], jnp.int32) for row in text.prompts]
    capacity = decoder.capacity_for(text.prompts.shape[1] + 1)

    def ask(cell: "Cell") -> None:
        for row in prompts:
            if cell.kind == "predicted":
                logits, _ = kv_prediction.compiled_prefill(
                    auxiliary.shape, base.shape, auxiliary.params, base.params, maps,
                    row, capacity,
                )  # fmt: skip
            else:
                model = auxiliary if cell.kind == "auxiliary" else base
                logits, _ = kv_prediction.compiled_own_prefill(*model, row, capacity)
            logits.block_until_ready()

    return ask


def _report(
    values: flags.FlagValues,
    folder: Path,
    models: "tuple[Model, Model, Maps]",
    text: "Text",
    rows: "list[Row]",
    hardware: dict[str, Any],
) -> None:
    import math

    import jax.numpy as jnp

    from algoperf.inference.decoding import kv_prediction, strategies
    from algoperf.inference.models import decoder
    from algoperf.inference.tradeoffs import costs

    base, auxiliary, maps = models
    prompt = text.prompts.shape[1]
    held_out = jnp.asarray(text.held_out, jnp.int32)
    losses = kv_prediction.quality(auxiliary, base, maps, held_out, prompt)
    capacity = decoder.capacity_for(prompt + 1)
    flops = {
        "base": costs.prompt_flops(base.shape, prompt),
        "predicted": strategies.first_token_flops(
            auxiliary.shape, base.shape, prompt, capacity
        ),
        "auxiliary": costs.prompt_flops(auxiliary.shape, prompt),
    }
    table = []
    for row in rows:
        who = "base" if row.cell.kind == "plain" else row.cell.kind
        seconds = 1 / row.tokens_per_second
        speeds = (row.speed_up, row.speed_up_low, row.speed_up_high)
        loss = losses[who]
        table.append([who, seconds, *speeds, flops[who], loss, math.exp(loss)])
    printing.write_csv(folder / "first_token.csv", COLUMNS, table)
    found = {
        "prompt": prompt,
        "blind_loss": losses["blind"],
        "hardware": hardware,
        "ways": [dict(zip(COLUMNS, cells, strict=True)) for cells in table],
    }
    records.write_json(folder / "first_token.json", found)

    def print_text() -> None:
        shown = [
            [x if isinstance(x, str) else f"{x:.4g}" for x in row] for row in table
        ]
        printing.print_table(COLUMNS, shown)
        print(
            f"A prompt of {prompt} tokens. Loss in nats on what follows; of the base "
            f"model without the prompt: {losses['blind']:.4g}.\nTable: "
            f"{folder}/first_token.csv"
        )

    printing.show(values.json, found, print_text)
