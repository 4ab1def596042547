"""The machine that `algoperf infer` measures: its cores, its facts, its progress."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def pin(wanted: int) -> int | None:
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


def clock(cores: int | None) -> Callable[[], float]:
    """Returns process time where there is one core of a processor, else wall time."""
    from algoperf.inference.timing import measure

    return measure.CLOCKS[measure.clock_name(cores)]


def describe() -> dict[str, Any]:
    """Returns host and devices, as records have them."""
    from algoperf import hardware

    return {**hardware.describe_host(), **hardware.describe_devices()}


def say(text: str) -> None:
    """Tells of progress, apart from what is printed."""
    print(text, file=sys.stderr, flush=True)
