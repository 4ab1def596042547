"""`algoperf infer profile`: measure models, and fit the time of a request."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from algoperf import records
from algoperf.cli import common, printing
from algoperf.cli.infer import machine, not_decoders, serving
from algoperf.errors import UserError

if TYPE_CHECKING:
    from algoperf.inference.models.shapes import DecoderShape
    from algoperf.inference.timing.profiles import Profile, Setting


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of `algoperf infer profile`, of which others take some."""
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
    serving.define_flags(values)


def run(values: flags.FlagValues, positional: Sequence[str]) -> None:
    """Measures, fits, and writes a JSON file and a page of each model.

    Args:
      values: of the flags.
      positional: a shape, a workload, or folders of trials; none: the mini language
        model.
    """
    if not_decoders.takes(positional):
        not_decoders.run(values, positional[0])
    else:
        _decoders(values, positional or [serving.WORKLOAD])


def _decoders(values: flags.FlagValues, names: Sequence[str]) -> None:
    from algoperf.inference.models.shapes import SHAPES
    from algoperf.inference.timing import profiler

    serving.check_names(names, SHAPES)
    out = Path(values.out)
    prompts, outputs = (common.numbers(values, n) for n in ("prompts", "outputs"))
    plan = profiler.Plan(
        rounds=values.rounds,
        max_rounds=max(values.rounds, profiler.Plan.max_rounds),
        seconds=values.seconds,
    )
    cores = machine.pin(values.cores)
    timed: dict[Any, tuple[Any, float | None]] = {}
    for model in serving.models(values, names):
        longest = min(model.shape.max_length, values.capacity or model.shape.max_length)
        grid = profiler.make_grid(longest, prompts, outputs, values.longest)
        setting, mesh = _setting(values, cores)
        records.make_folder(out)
        shape, params, facts = model.load(setting.dtype, mesh)
        key = serving.what_is_timed(shape, params)
        if key not in timed:
            timed[key] = _timed(values, shape, params, grid, plan, setting, mesh)
        measured, facts["step_bytes"] = timed[key]
        profile = _described(shape, setting, measured, facts)
        name = model.file_name(facts["recipe"], setting, values.dtype)
        _report(values, profile, _place(out / name, facts.get("trial")))


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
        say=machine.say,
    )
    if mesh is not None:
        return measured, None
    capacity = setting.capacity or decoder.capacity_for(
        max(prompt + output for prompt, output in grid.cells)
    )
    return measured, traffic.step_bytes(shape, params, setting.batch_size, capacity)


def _place(base: Path, trial: Mapping[str, Any] | None) -> Path:
    """Returns where a profile goes, without an ending.

    That is `base`, or `base` with _2, _3, ... where another trial's profile has the
    name: trials of two folders may share submission, study and number.
    """
    from algoperf.inference.timing import profiles

    def is_of_another(path: Path) -> bool:
        try:
            theirs = profiles.load_profile(path).served.get("trial")
        except UserError:  # no file, or none that can be read
            return False
        return _without_step(theirs) != _without_step(trial)

    number, place = 1, base
    while is_of_another(place.with_name(f"{place.name}.json")):
        number += 1
        place = base.with_name(f"{base.name}_{number}")
    return place


def _without_step(trial: Mapping[str, Any] | None) -> dict[str, Any]:
    """A trial that has gone on is the same."""
    return {key: value for key, value in (trial or {}).items() if key != "step"}


def _report(values: flags.FlagValues, profile: "Profile", base: Path) -> None:
    """Writes and shows a profile, or refuses it; `base` is a path without an ending."""
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
        printing.print_table(("what", "is"), plot.summary(profile))
        if reason is not None:
            print(f"Not to be trusted: {reason}.")
        print(f"Profile: {file}\nPlot: {page}")

    printing.show(values.json, profiles.to_json(profile), print_text)


def _described(
    shape: "DecoderShape", setting: "Setting", result: Any, served: dict[str, Any]
) -> "Profile":
    from algoperf import hardware
    from algoperf.inference.timing.profiles import Profile

    versions = hardware.describe_versions()
    return Profile(shape, setting, result, machine.describe(), versions, served)


def _setting(values: flags.FlagValues, cores: int | None) -> "tuple[Setting, Any]":
    """Returns how to measure, and the mesh; None for one device."""
    import jax

    from algoperf.inference.models import parallel
    from algoperf.inference.timing import measure
    from algoperf.inference.timing.profiles import Setting

    if values.parallel > jax.device_count():
        raise UserError(
            f"--parallel {values.parallel} takes so many devices; JAX sees "
            f"{jax.device_count()}"
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
