"""A profile on disk: measured times, the fitted runtime, hardware, versions. JSON."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from algoperf import records
from algoperf.errors import UserError
from algoperf.inference.models.shapes import DecoderShape, RotaryScaling
from algoperf.inference.timing.profiler import (
    Cell,
    Grid,
    Result,
    fit_result,
    refusal,
)
from algoperf.inference.timing.runtime import RuntimeModel

KIND = "algoperf inference profile"
SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Setting:
    """How a model was measured, beside its shape.

    Attributes:
      dtype: of weights and cache.
      batch_size: requests at once.
      clock: wall, or cpu for process time.
      capacity: of the cache; None: sized for each request.
      parallel: devices that share the model.
      cores: of the processor that the process may use; None on an accelerator.
    """

    dtype: str = "float32"
    batch_size: int = 1
    clock: str = "wall"
    capacity: int | None = None
    parallel: int = 1
    cores: int | None = None


@dataclasses.dataclass(frozen=True)
class _WithinMeasured(RuntimeModel):
    """A runtime that refuses what `extrapolation` has a reason against."""

    extrapolation: Callable[[int, int], str | None] | None = None

    def check(self, prompt: int, output: int) -> None:
        super().check(prompt, output)
        assert self.extrapolation is not None
        if reason := self.extrapolation(prompt, output):
            raise UserError(reason)


@dataclasses.dataclass(frozen=True)
class Profile:
    """What was measured, where, and what follows.

    Attributes:
      shape: the model's.
      setting: how.
      result: times and fit.
      hardware: what `hardware.describe_host` and `describe_devices` say, merged.
      versions: of packages.
      served: how the weights are stored and their bytes; of a trial's model which
        trial it is and its quality as served.
    """

    shape: DecoderShape
    setting: Setting
    result: Result
    hardware: Mapping[str, Any]
    versions: Mapping[str, Any]
    served: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def runtime(self) -> RuntimeModel:
        """The fitted F and g."""
        return self.result.runtime

    def extrapolation(self, prompt: int, output: int) -> str | None:
        """Returns what of a request is beyond all that was measured; None: nothing."""
        shortest = min(self.runtime.prompt_seconds)
        if prompt < shortest:
            return (
                f"prompts were measured from {shortest} tokens on, {prompt} are "
                "extrapolated"
            )
        longest = max(self.runtime.prompt_seconds)
        if prompt > longest:
            return (
                f"prompts were measured up to {longest} tokens, {prompt} are "
                "extrapolated"
            )
        longest = max(measured for _, measured in self.result.times)
        if output > longest:  # however short the prompt: an error of g grows with it
            return (
                f"outputs were measured up to {longest} tokens, {output} are "
                "extrapolated"
            )
        longest = max(sum(cell) for cell in self.result.times)
        if prompt + output > longest:
            return (
                f"requests were measured up to {longest} tokens of prompt and output, "
                f"{prompt} + {output} are extrapolated"
            )
        return None

    @property
    def within_measured(self) -> RuntimeModel:
        """The same, which refuses a request that it would extrapolate."""
        fields = dataclasses.fields(RuntimeModel)
        facts = {field.name: getattr(self.runtime, field.name) for field in fields}
        return _WithinMeasured(**facts, extrapolation=self.extrapolation)

    def save(self, path: Path) -> None:
        """Writes JSON, as a whole or not at all."""
        records.write_json(path, to_json(self))


def to_json(profile: Profile) -> dict[str, Any]:
    """Returns a profile as JSON holds it."""
    result = profile.result
    return {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "shape": dataclasses.asdict(profile.shape),
        "setting": dataclasses.asdict(profile.setting),
        "runtime": result.runtime.to_json(),
        "held_out_error": result.held_out_error,
        "uncertainty": result.uncertainty,
        "spread": result.spread,
        "rounds": result.rounds,
        "reason_not_to_trust": refusal(result),
        "cells": [
            {
                "prompt": prompt,
                "output": output,
                "held_out": (prompt, output) in result.held_out,
                "seconds": list(seconds),
            }
            for (prompt, output), seconds in result.times.items()
        ],
        "hardware": dict(profile.hardware),
        "versions": dict(profile.versions),
        "served": dict(profile.served),
    }


def load_profile(path: Path) -> Profile:
    """Reads a profile.

    Raises:
      UserError: the file is missing or is no profile of this version.
    """
    try:
        value = json.loads(path.read_text())
    except OSError as error:
        raise UserError(
            f"cannot read {path} ({error.strerror}); algoperf infer profile writes one"
        ) from error
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}); measure again") from error
    if not isinstance(value, dict) or value.get("kind") != KIND:
        raise UserError(f"{path} is no profile; algoperf infer profile writes one")
    if value.get("schema_version") != SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema version {value.get('schema_version')}, this is "
            f"{SCHEMA_VERSION}; measure again"
        )
    try:
        return _from_json(value)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} is a broken profile ({type(error).__name__}: {error}); measure "
            "again"
        ) from error


def _from_json(value: Mapping[str, Any]) -> Profile:
    times: dict[Cell, tuple[float, ...]] = {}
    held_out: list[Cell] = []
    for cell in value["cells"]:
        at = (int(cell["prompt"]), int(cell["output"]))
        times[at] = tuple(float(seconds) for seconds in cell["seconds"])
        if cell["held_out"]:
            held_out.append(at)
    result = Result(
        times=times,
        held_out=tuple(held_out),
        runtime=RuntimeModel.from_json(value["runtime"]),
        held_out_error=value["held_out_error"],
        uncertainty=float(value["uncertainty"]),
        spread=float(value["spread"]),
        rounds=int(value["rounds"]),
    )
    scaling = value["shape"]["rotary_scaling"]
    shape = value["shape"] | {
        "rotary_scaling": None if scaling is None else RotaryScaling(**scaling)
    }
    return Profile(
        shape=DecoderShape(**shape),
        setting=Setting(**value["setting"]),
        result=result,
        hardware=dict(value["hardware"]),
        versions=dict(value["versions"]),
        served=value.get("served", {}),
    )


def refitted(
    profile: Profile, rule: str = "auto", context_slope: bool | None = None
) -> Profile:
    """Returns the profile with another form fitted to its measured times."""
    times, held_out = profile.result.times, profile.result.held_out
    cells = [cell for cell in times if cell not in held_out]
    prompts = tuple(sorted({p for p, _ in cells}))
    outputs = tuple(sorted({o for _, o in cells}))
    # A cache of its own may hold less than the model.
    longest = profile.runtime.max_length or profile.shape.max_length
    grid = Grid(prompts, outputs, held_out, longest)
    result = fit_result(times, grid, rule, context_slope)
    return dataclasses.replace(profile, result=result)


def other_hardware(
    profile: Profile, here: Mapping[str, Any], cores: int | None
) -> list[str]:
    """Returns what differs between a profile's hardware and this one; [] if nothing.

    Args:
      profile: measured anywhere.
      here: host and devices, as in `Profile.hardware`.
      cores: that a process may use here; counts where the processor computes.
    """
    was = profile.hardware
    names = ["platform", "device_kind"]
    names.append("cpu" if was.get("platform") == "cpu" else "device_count")
    found = [
        f"{name} {was.get(name)!r}, here {here.get(name)!r}"
        for name in names
        if was.get(name) != here.get(name)
    ]
    measured = profile.setting.cores
    if measured is not None and cores is not None and measured > cores:
        found.append(f"{measured} cores, here {cores}")
    return found


def check_hardware(
    profile: Profile, here: Mapping[str, Any], cores: int | None = None
) -> None:
    """Raises UserError for a profile of other hardware; see `other_hardware`."""
    differences = other_hardware(profile, here, cores)
    if differences:
        raise UserError(
            f"the profile of {profile.shape.name} was measured on other hardware "
            f"({'; '.join(differences)}): measure here, or ask for its own with "
            "--any_hardware"
        )
