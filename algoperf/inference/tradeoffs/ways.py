"""How a profile serves a model: its recipe, its setting, its machine. No JAX."""

from collections.abc import Mapping

from algoperf.inference.timing.profiles import Profile

_UNCHANGED = "float32"


def recipe(profile: Profile) -> str:
    """Returns how the weights are stored."""
    return profile.served.get("recipe", profile.setting.dtype)


def is_unchanged(profile: Profile) -> bool:
    """Whether the model has the quality that it was trained to."""
    return recipe(profile) == _UNCHANGED


def served_as(profiles: Mapping[str, Profile]) -> dict[str, str]:
    """Returns of each profile what its times depend on, where it is not the usual.

    That is its recipe, its setting and, where there are several, its machine.
    """
    ways = {name: _way(profile) for name, profile in profiles.items()}
    machines = {name: served_on(profile) for name, profile in profiles.items()}
    if len(set(machines.values())) < 2:
        return ways
    return {name: f"{way}, on {machines[name]}" for name, way in ways.items()}


def _way(profile: Profile) -> str:
    setting, parts = profile.setting, [recipe(profile)]
    # A format's name does not say what products are in.
    if setting.dtype not in (_UNCHANGED, parts[0].partition(" + ")[0]):
        parts.append(setting.dtype)
    if setting.batch_size > 1:
        parts.append(f"batch {setting.batch_size}")
    if setting.capacity is not None:
        parts.append(f"cache {setting.capacity}")
    if setting.parallel > 1:
        parts.append(f"{setting.parallel} devices")
    return ", ".join(parts)


def served_on(profile: Profile) -> str:
    """Returns the hardware that a profile was measured on."""
    hardware, setting = profile.hardware, profile.setting
    if hardware.get("platform") == "cpu":
        cores = f"{setting.cores} core{'s' if setting.cores != 1 else ''}"
        return f"{cores} of {hardware.get('cpu')}"
    return f"{setting.parallel} x {hardware.get('device_kind')}"
