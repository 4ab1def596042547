"""`algoperf infer profile WORKLOAD` for workloads that are no decoders.

Translation: F(p) to read a source and g per output token. Speech: seconds by samples.
All others: seconds by examples of a batch.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from algoperf.cli import common, printing
from algoperf.cli.infer import machine
from algoperf.errors import UserError

if TYPE_CHECKING:
    from algoperf.inference.timing.profiler import Plan

# The language model is profiled as a decoder.
DECODERS = ("finewebedu_lm",)
KIND = "algoperf inference times"
# How decoders are measured and served; what is measured here is float32 on one device.
DECODER_FLAGS = (
    *("parallel", "capacity", "dtype", "longest"),
    *("weights", "pack_embedding", "rank", "prune", "compact", "evaluate", "data_dir"),
)


def takes(names: Sequence[str]) -> bool:
    """Whether the one name given is of a workload that is no decoder, not a folder."""
    from algoperf import registry

    return (
        len(names) == 1
        and not Path(names[0]).exists()
        and any(
            names[0].startswith(family)
            for family in registry.family_names()
            if family not in DECODERS
        )
    )


def run(values: flags.FlagValues, name: str) -> None:
    """Measures, fits, and writes NAME.json, or NAME_batch_size-B.json.

    Args:
      values: of the flags.
      name: of a workload.

    Raises:
      UserError: a flag that this workload has no use for, or a machine too noisy.
    """
    cores = machine.pin(values.cores)
    from algoperf import registry

    workload = registry.find_workload(name, values.scale)
    from algoperf.inference.timing import measure, profiler
    from algoperf.inference.timing.encoder_decoder import has_decode_path

    clock = measure.clock_name(cores)
    plan = profiler.Plan(
        rounds=values.rounds,
        max_rounds=max(values.rounds, profiler.Plan.max_rounds),
        seconds=values.seconds,
    )
    is_translation = has_decode_path(workload.model)
    _check_flags(values, workload.name, is_translation)
    make = _translation if is_translation else _forward
    rows, found = make(values, workload, plan, measure.CLOCKS[clock])
    found = {
        "kind": KIND,
        "schema_version": 1,
        "workload": workload.name,
        "parameters": workload.num_parameters,
        "clock": clock,
        "cores": cores,
        "hardware": machine.describe(),
        **found,
    }
    batch = f"_batch_size-{values.batch_size}" if values.batch_size != 1 else ""
    _finish(values, workload.name + batch, rows, found)


def _check_flags(values: flags.FlagValues, name: str, is_translation: bool) -> None:
    """What only decoders know is an error, not passed over."""
    sizes = () if is_translation else ("outputs", "batch_size")
    for flag in (*DECODER_FLAGS, *sizes):
        if values[flag].present:
            raise UserError(
                f"--{flag} has no meaning for {name}; it is for decoders"
                + ("" if is_translation else " (sizes are given as --prompts)")
            )


def _translation(
    values: flags.FlagValues,
    workload: Any,
    plan: "Plan",
    clock: Callable[[], float],
) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """F(p) and g; what is shown, and what is written."""
    from algoperf.inference.timing import encoder_decoder, profiler
    from algoperf.inference.timing.programs import params_for_speed

    params, _ = params_for_speed(workload)
    longest = workload.model.max_length
    grid = profiler.make_grid(
        # Source and output have lengths of their own.
        2 * longest,
        common.numbers(values, "prompts"),
        common.numbers(values, "outputs"),
        longest,
    )
    held_out = tuple(cell for cell in grid.held_out if max(cell) <= longest)
    grid = dataclasses.replace(grid, held_out=held_out)
    measure = encoder_decoder.translation_measure(
        workload.model, params, values.batch_size, clock, longest
    )
    result = profiler.profile(measure, grid, plan, rule=values.rule, say=machine.say)
    runtime = result.runtime
    lengths = sorted(runtime.prompt_seconds)
    rows = [
        (f"F({p}): read {p} tokens, give one", _ms(runtime.prompt_seconds[p]))
        for p in (lengths[0], lengths[-1])
    ]
    rows += [
        ("rule of F", runtime.prompt_seconds.rule),
        ("g: one more output token", _ms(runtime.seconds_per_token)),
        ("R2", f"{runtime.r2 or 0.0:.4f}"),
    ]
    found = {
        "what": "seconds of a batch, by source and output tokens",
        "batch_size": values.batch_size,
        "runtime": runtime.to_json(),
        "held_out_error": result.held_out_error,
        "uncertainty": result.uncertainty,
        "reason_not_to_trust": profiler.refusal(result),
        "cells": [
            {
                "source": source,
                "output": output,
                "held_out": (source, output) in result.held_out,
                "seconds": list(seconds),
            }
            for (source, output), seconds in result.times.items()
        ],
    }
    return rows, found


def _forward(
    values: flags.FlagValues,
    workload: Any,
    plan: "Plan",
    clock: Callable[[], float],
) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """T(n); what is shown, and what is written."""
    from algoperf.inference.timing import forward_time, profiler

    sizes = common.numbers(values, "prompts")
    result = forward_time.profile_forward(
        workload, plan, clock, sizes, values.rule, machine.say
    )
    name = forward_time.size_name(workload)
    rows = [
        (f"{n} {name if n > 1 else name.rstrip('s')}",
         f"{_ms(seconds)}, {n / seconds:,.0f} {name} per second")
        for n, seconds in result.medians.items()
        if n not in result.held_out
    ]  # fmt: skip
    rows.append(("rule", f"{result.seconds.rule}, R2 {result.r2:.4f}"))
    found = {
        "what": f"seconds of a forward pass, by {name}",
        "runtime": result.seconds.to_json(),
        "r2": result.r2,
        "held_out_error": result.held_out_error,
        "uncertainty": result.uncertainty,
        "reason_not_to_trust": profiler.refusal(result),
        "cells": [
            {"size": n, "held_out": n in result.held_out, "seconds": list(seconds)}
            for n, seconds in sorted(result.times.items())
        ],
    }
    return rows, found


def _finish(
    values: flags.FlagValues,
    name: str,
    rows: list[tuple[str, str]],
    found: dict[str, Any],
) -> None:
    """Writes and shows, or refuses."""
    from algoperf import hardware, records
    from algoperf.inference.timing.profiler import NoisyMachineError

    reason = found["reason_not_to_trust"]
    if reason and not values.accept_noise:
        raise NoisyMachineError(
            f"no profile of {name}: {reason} (--accept_noise writes it all the same)"
        )
    file = Path(values.out) / f"{name}.json"
    found["versions"] = hardware.describe_versions()
    records.make_folder(file.parent)
    records.write_json(file, found)
    if found["held_out_error"] is not None:
        typical = f"{100 * found['held_out_error']:.1f} % on average"
        rows.append(("error on what the fit has not seen", typical))

    def print_text() -> None:
        printing.print_table(("what", "is"), rows)
        if reason:
            print(f"Not to be trusted: {reason}.")
        print(f"Profile: {file}")

    printing.show(values.json, found, print_text)


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"
