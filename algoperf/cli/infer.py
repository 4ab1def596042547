"""Measure what a language model costs to run, and predict requests from it."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from algoperf.cli import (
    common,
    infer_compare,
    infer_first_token,
    infer_models,
    infer_pareto,
    infer_roofline,
    infer_speculate,
    infer_strategies,
    infer_workload,
)
from algoperf.errors import UserError, unknown_name

if TYPE_CHECKING:
    from algoperf.inference.models.shapes import DecoderShape
    from algoperf.inference.timing.profiles import Profile, Setting

USAGE = """algoperf infer [profile [NAME | RUNS ...]] [--out DIR] [--flag value ...]
       algoperf infer predict PROFILE --prompt TOKENS --output TOKENS
       algoperf infer pareto RUNS ... [--profiles FILE_OR_DIR,...] [--out DIR]
       algoperf infer shapes
       algoperf infer roofline [WORKLOAD ...] [--program forward|step] [--batch N]
       algoperf infer compare WORKLOAD [--batch N]
       algoperf infer speculate [WORKLOAD] [--train_steps N] [--guesses 1,2,4]
       algoperf infer first_token [WORKLOAD] [--train_steps N] [--prompt TOKENS]
       algoperf infer strategies PROFILE [--draft PROFILE] --prompt TOKENS --output N

NAME is a shape that `algoperf infer shapes` lists, or a language-model workload, by
default finewebedu_lm; RUNS are folders of trials, whose trained models are served.
Writes NAME.json and a page with a plot, NAME.html. Of other workloads, NAME.json has
the times of a translation, or of a forward pass. roofline compares ideal with measured
time, of all workloads where none is named; compare the variants and sizes of one:
multiply-adds, throughput and latency."""
_ACTIONS = (
    "profile", "predict", "pareto", "shapes", "roofline", "compare", "speculate",
    "first_token", "strategies",
)  # fmt: skip


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of `algoperf infer`."""
    _define_profile_flags(values)
    infer_models.define_flags(values)
    infer_pareto.define_flags(values)
    flags.DEFINE_integer("prompt", None, "Tokens of the prompt.", flag_values=values)
    flags.DEFINE_integer("output", None, "Tokens of the output.", flag_values=values)
    for name, what in (
        ("dollars_per_hour", "the price of one device for an hour"),
        ("watts", "what one device draws"),
    ):
        flags.DEFINE_float(
            name, None, f"predict, pareto: {what}.", lower_bound=0.0, flag_values=values
        )
    flags.DEFINE_boolean(
        "any_hardware",
        False,
        "predict, pareto: take profiles of other hardware, whose times are of that.",
        flag_values=values,
    )
    infer_roofline.define_flags(values)
    infer_speculate.define_flags(values)
    infer_strategies.define_flags(values)
    common.define_json_flag(values)


def _define_profile_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "out", "runs/inference", "Where profiles and pages go.", flag_values=values
    )
    flags.DEFINE_enum(
        "scale", "mini", ("mini", "full"), "Of a workload.", flag_values=values
    )
    flags.DEFINE_list(
        "prompts",
        [],
        "Prompt lengths (source lengths, batch sizes or samples); by default spread.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "outputs", [], "Output lengths, 1 first; by default 1, 2, 4, ...",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "longest", 1024, "The most tokens of a request, where lengths are spread.",
        lower_bound=8, flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "batch_size", 1, "Requests at once.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_enum(
        "dtype", None, ("float32", "bfloat16", "float16"),
        "Of the weights; by default float32 on a processor, else bfloat16.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "capacity", None, "One cache size for all requests; by default each has its "
        "own.", lower_bound=1, flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "parallel", 1, "Devices that share the model.", lower_bound=1,
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "cores", 1, "Cores of the processor to run on, where there is no accelerator; "
        "0: all. With one, process time is taken, which other processes do not spoil.",
        lower_bound=0, flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer(
        "rounds", 8, "How often everything is measured, at least.", lower_bound=3,
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_float(
        "seconds", 45.0, "No further round begins after so many, compilation not "
        "counted.", lower_bound=0.0, flag_values=values,
    )  # fmt: skip
    flags.DEFINE_enum(
        "rule", "auto", ("auto", "table", "affine", "hinge", "quadratic"),
        "How the time of a prompt follows from its length; auto: what predicts "
        "lengths best that it has not seen.", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_boolean(
        "accept_noise", False, "Write the profile even where it should not be trusted.",
        flag_values=values,
    )  # fmt: skip


def main(values: flags.FlagValues, positional: Sequence[str]) -> int:
    """Profiles, predicts or lists; returns 0."""
    action, *rest = positional or ["profile"]
    if action not in _ACTIONS:
        raise unknown_name("action", action, _ACTIONS)
    if action == "shapes":
        common.no_arguments(rest)
        _list_shapes(values)
    elif action == "predict":
        path = common.one_argument(rest, "PROFILE to predict from", "infer")
        _predict(values, Path(path))
    elif action == "pareto":
        infer_pareto.main(values, rest)
    elif action == "roofline":
        infer_roofline.run(values, rest, _pin(values.cores), _here, _say)
    elif action == "compare":
        infer_compare.run(values, rest, _pin(values.cores), _here, _say)
    elif action == "speculate":
        infer_speculate.run(values, rest, _pin(values.cores), _here, _say)
    elif action == "first_token":
        infer_first_token.run(values, rest, _pin(values.cores), _here, _say)
    elif action == "strategies":
        infer_strategies.run(values, rest, _here)
    elif infer_workload.takes(rest):
        infer_workload.run(values, rest[0], _pin(values.cores), _here, _say)
    else:
        _profile(values, rest or [infer_models.WORKLOAD])
    return 0


def _profile(values: flags.FlagValues, names: list[str]) -> None:
    from algoperf.inference.models.shapes import SHAPES
    from algoperf.inference.timing import profiler

    infer_models.check_names(names, SHAPES)
    out = Path(values.out)
    lengths = _lengths(values.prompts, "prompts"), _lengths(values.outputs, "outputs")
    plan = profiler.Plan(
        rounds=values.rounds,
        max_rounds=max(values.rounds, profiler.Plan.max_rounds),
        seconds=values.seconds,
    )
    cores = _pin(values.cores)
    timed: dict[Any, tuple[Any, float | None]] = {}
    for model in infer_models.models(values, names):
        longest = min(model.shape.max_length, values.capacity or model.shape.max_length)
        grid = profiler.make_grid(longest, *lengths, values.longest)
        setting, mesh = _setting(values, cores)
        _make_folder(out)
        shape, params, facts = model.load(setting.dtype, mesh)
        key = infer_models.what_is_timed(shape, params)
        if key not in timed:
            timed[key] = _timed(values, shape, params, grid, plan, setting, mesh)
        measured, facts["step_bytes"] = timed[key]
        profile = _described(shape, setting, measured, facts)
        _report(values, profile, out / model.file_name(facts))


def _timed(
    values: flags.FlagValues,
    shape: "DecoderShape",
    params: Any,
    grid: Any,
    plan: Any,
    setting: "Setting",
    mesh: Any,
) -> tuple[Any, float | None]:
    """Returns measured times and their fit, and bytes that a decoding step moves."""
    from algoperf.inference.models import decoder
    from algoperf.inference.rooflines import traffic
    from algoperf.inference.timing import measure, profiler

    measured = profiler.profile(
        measure.decoder_measure(
            shape,
            params,
            setting.batch_size,
            measure.CLOCKS[setting.clock],
            setting.capacity,
            mesh,
        ),
        grid,
        plan,
        rule=values.rule,
        say=_say,
    )
    if mesh is not None:
        return measured, None
    capacity = setting.capacity or decoder.capacity_for(
        max(prompt + output for prompt, output in grid.cells)
    )
    return measured, traffic.step_bytes(shape, params, setting.batch_size, capacity)


def _report(values: flags.FlagValues, profile: "Profile", base: Path) -> None:
    """Writes and shows a profile, or refuses it; `base` is a path without an ending."""
    from algoperf import records
    from algoperf.inference.timing import plot, profiler, profiles

    reason = profiler.refusal(profile.result)
    if reason is not None and not values.accept_noise:
        raise profiler.NoisyMachineError(
            f"no profile of {profile.shape.name}: {reason} (--accept_noise writes it "
            "all the same)"
        )
    file, page = (base.with_name(f"{base.name}.{end}") for end in ("json", "html"))
    profile.save(file)
    records.write_text(page, plot.profile_page(profile))

    def print_text() -> None:
        common.print_table(("what", "is"), plot.summary(profile))
        if reason is not None:
            print(f"Not to be trusted: {reason}.")
        print(f"Profile: {file}\nPlot: {page}")

    common.show(values.json, profiles.to_json(profile), print_text)


def _described(
    shape: "DecoderShape", setting: "Setting", result: Any, served: dict[str, Any]
) -> "Profile":
    from algoperf import hardware
    from algoperf.inference.timing.profiles import Profile

    versions = hardware.describe_versions()
    return Profile(shape, setting, result, _here(), versions, served)


def _here() -> dict[str, Any]:
    from algoperf import hardware

    return {**hardware.describe_host(), **hardware.describe_devices()}


def _setting(values: flags.FlagValues, cores: int | None) -> "tuple[Setting, Any]":
    """Returns how to measure, and the mesh; None for one device."""
    import jax

    from algoperf.inference.models import parallel
    from algoperf.inference.timing import measure
    from algoperf.inference.timing.profiles import Setting

    if values.parallel > jax.device_count():
        raise UserError(
            f"--parallel {values.parallel}, but there are {jax.device_count()} devices"
        )
    mesh = None
    if values.parallel > 1:
        mesh = parallel.model_mesh(jax.devices()[: values.parallel])
    is_cpu = jax.default_backend() == "cpu"
    setting = Setting(
        dtype=values.dtype or ("float32" if is_cpu else "bfloat16"),
        batch_size=values.batch_size,
        clock=measure.clock_name(cores),
        capacity=values.capacity,
        parallel=values.parallel,
        cores=cores if is_cpu else None,
    )
    return setting, mesh


def _pin(wanted: int) -> int | None:
    """Keeps this process to the idlest cores, before JAX starts its threads.

    Returns:
      how many cores it may use; None where that cannot be told.
    """
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count()
    allowed = sorted(os.sched_getaffinity(0))
    too_late = "jax" in sys.modules
    if wanted == 0 or wanted >= len(allowed) or too_late or _has_accelerator():
        return len(allowed)
    import psutil

    busy = psutil.cpu_percent(interval=0.3, percpu=True)
    idlest = sorted(allowed, key=lambda core: busy[core] if core < len(busy) else 100.0)
    os.sched_setaffinity(0, set(idlest[:wanted]))
    return wanted


def _has_accelerator() -> bool:
    """Whether JAX will likely find one; asks no driver."""
    named = os.environ.get("JAX_PLATFORMS", "")
    if named:
        return not named.startswith("cpu")
    return any(Path(f"/dev/{name}").exists() for name in ("nvidia0", "accel0", "kfd"))


def _predict(values: flags.FlagValues, path: Path) -> None:
    from algoperf.inference.timing import profiles
    from algoperf.inference.tradeoffs import costs

    if values.prompt is None or values.output is None:
        raise UserError("give --prompt TOKENS and --output TOKENS to predict")
    profile = profiles.load_profile(path)
    if values.rule != "auto":
        profile = profiles.refitted(profile, values.rule)
    if not values.any_hardware:
        profiles.check_hardware(profile, _here(), os.cpu_count())
    setting = profile.setting
    option = costs.Option(profile.runtime, setting.parallel, setting.batch_size)
    prompt, output = values.prompt, values.output
    seconds = profile.runtime.predict(prompt, output)
    found = {
        "model": profile.shape.name,
        "prompt": prompt,
        "output": output,
        "seconds": seconds,
        "prompt_seconds": profile.runtime.prompt_seconds(prompt),
        "decode_seconds": profile.runtime.decode_seconds(prompt, output),
        "tokens_per_second": option.tokens_per_second(prompt, output),
        "is_extrapolated": prompt > max(profile.runtime.prompt_seconds),
    }
    if not profile.served.get("ranks"):  # a shape says nothing of factors
        found["flops"] = setting.batch_size * _flops(profile.shape, prompt, output)
    if values.dollars_per_hour is not None:
        found["dollars"] = option.dollars(prompt, output, values.dollars_per_hour)
    if values.watts is not None:
        found["joules"] = option.joules(prompt, output, values.watts)
    rows = [[name, _shown(value)] for name, value in found.items()]
    common.show(values.json, found, lambda: common.print_table(("what", "is"), rows))


def _flops(shape: "DecoderShape", prompt: int, output: int) -> float:
    """Of a request: the prompt, and each output token after the first."""
    from algoperf.inference.tradeoffs import costs

    further = max(output - 1, 0)
    middle = prompt + output // 2  # FLOPs are linear in the context
    decoding = further * costs.token_flops(shape, middle)
    return costs.prompt_flops(shape, prompt) + decoding


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _list_shapes(values: flags.FlagValues) -> None:
    from algoperf.inference.models.shapes import SHAPES

    rows = [
        {
            "name": shape.name,
            "parameters": shape.num_parameters,
            "layers": shape.num_layers,
            "width": shape.width,
            "heads": shape.num_heads,
            "kv heads": shape.kv_heads,
            "longest": shape.max_length,
        }
        for shape in SHAPES.values()
    ]
    common.show(
        values.json,
        rows,
        lambda: common.print_table(list(rows[0]), [list(row.values()) for row in rows]),
    )


def _lengths(texts: Sequence[str], flag: str) -> list[int]:
    try:
        return [int(text) for text in texts]
    except ValueError as error:
        raise UserError(
            f"--{flag} {','.join(texts)}: give token counts, as in 1,16,64"
        ) from error


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from error


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
