"""The stopwatch, step windows and compile time, with a fake `now`."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from synthetic import FakeTime

from algoperf.clock import (
    SAVED_EVENT,
    Clock,
    CompileTime,
    Phase,
    StepsInFlight,
    StepTimes,
    Window,
    compile_time,
)

pytestmark = pytest.mark.alone


def test_phases_add_up_to_the_time_between_start_and_stop():
    time = FakeTime()
    clock = Clock(time)
    time.sleep(100)  # before the first switch: nobody's
    for phase, seconds in (
        (Phase.EVALUATION, 1),
        (Phase.SUBMISSION, 2),
        (Phase.LOGGING, 4),
        (Phase.SUBMISSION, 8),
        (Phase.SUBMISSION, 16),
    ):
        clock.switch(phase)
        time.sleep(seconds)
    clock.switch(None)
    time.sleep(100)
    assert clock.totals() == {"submission": 26, "evaluation": 1, "logging": 4}


def test_a_running_phase_is_read_to_the_moment():
    time = FakeTime()
    clock = Clock(time)
    clock.switch(Phase.SUBMISSION)
    time.sleep(3)
    assert clock.seconds(Phase.SUBMISSION) == 3
    assert clock.seconds(Phase.LOGGING) == 0
    time.sleep(1)
    assert clock.totals() == {"submission": 4, "evaluation": 0, "logging": 0}


def test_totals_are_restored():
    time = FakeTime()
    clock = Clock(time, {"submission": 10.0, "evaluation": 5.0})
    clock.switch(Phase.SUBMISSION)
    time.sleep(1)
    clock.switch(None)
    assert clock.totals() == {"submission": 11, "evaluation": 5, "logging": 0}


def test_a_window_reaches_from_the_first_step_end_to_the_last():
    times = StepTimes()
    times.open_window(10.0, step=1, compilations=3)
    times.close_window(16.0, step=4, compilations=3)
    assert times.windows == [Window(steps=3, seconds=6.0, compiled=False)]
    times.close_window(99.0, step=9, compilations=3)  # none is open
    times.open_window(100.0, step=9, compilations=3)
    times.close_window(101.0, step=9, compilations=3)  # no step in it
    assert len(times.windows) == 1


def test_a_window_with_compilation_is_left_out():
    times = StepTimes([Window(10, 10.0, compiled=False)])
    times.open_window(0.0, step=0, compilations=1)
    times.close_window(70.0, step=7, compilations=2)
    assert times.windows[1].compiled
    assert times.summary()["seconds"] == 1.0
    assert times.summary()["windows"] == 1


def test_contended_windows_are_left_out_and_counted():
    means = (1.0, 1.02, 1.04, 1.06, 1.5, 7.0)
    summary = StepTimes([Window(10, 10 * mean, False) for mean in means]).summary()
    assert summary["seconds"] == pytest.approx(1.03)
    assert summary["contended_windows"] == 2
    assert summary["windows"] == 6
    assert summary["slowest_window"] == pytest.approx(7.0)


def test_no_window_is_no_step_time():
    assert StepTimes().summary()["seconds"] is None


def test_steps_in_flight_are_limited(monkeypatch):
    waited_for: list[int] = []
    monkeypatch.setattr(
        "algoperf.clock.jax.block_until_ready", lambda x: waited_for.append(int(x))
    )
    in_flight = StepsInFlight(period=2)

    def add(step):
        sizes = {"w": jnp.full((3, 3), step), "b": jnp.full(2, step)}
        return in_flight.add({**sizes, "n": 1, "empty": jnp.ones(0)})

    assert [add(step) for step in range(1, 7)] == [False, True] + [False] * 4
    assert waited_for == [2, 2, 4]  # before the third, the fifth and the seventh
    in_flight.drain()
    assert [add(step) for step in range(7, 10)] == [False, True, False]
    assert waited_for == [2, 2, 4, 6, 8]


def test_donated_outputs_can_still_be_waited_for():
    in_flight = StepsInFlight(period=1)
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jnp.zeros((4, 4))
    for _ in range(5):
        x = step(x)
        in_flight.add(x)
    in_flight.drain()
    assert x[0, 0] == 5


ON_ANOTHER_BACKEND = """
import jax
import jax.numpy as jnp
from jax.extend.backend import register_backend_factory
from jaxlib import xla_client

from algoperf.clock import wait_for_devices

register_backend_factory("another", xla_client.make_cpu_client, priority=-1)
assert jax.default_backend() != "another"
step = jax.jit(lambda x: jax.lax.fori_loop(0, 5, lambda i, y: y @ y / 1500, x))
x = jax.device_put(jnp.ones((1500, 1500)), jax.devices("another")[0])
step(x).block_until_ready()
y = step(x)
before = y.is_ready()
wait_for_devices()
print(before, y.is_ready())
"""


def test_work_on_another_backend_than_the_default_one_is_waited_for():
    """As on the host's processor, beside an accelerator."""
    done = subprocess.run(
        [sys.executable, "-c", ON_ANOTHER_BACKEND],
        env=os.environ | {"JAX_PLATFORMS": ""},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["False", "True"], done.stderr


@pytest.mark.parametrize("num_steps", [8, 10, 40])
def test_steps_that_the_host_waits_for_itself_are_not_made_shorter(num_steps):
    """A line search say: when a step is dispatched, all before it are done."""
    time, in_flight, times = FakeTime(), StepsInFlight(), StepTimes()
    for step in range(1, num_steps + 1):
        time.sleep(0.01)
        if in_flight.add({"w": jnp.ones(2)}):
            times.open_window(time(), step, 0)
    in_flight.drain()
    times.close_window(time(), num_steps, 0)
    assert times.summary()["seconds"] == pytest.approx(0.01)


def _compile_something(number: float) -> None:
    jax.jit(lambda x: x * number)(1.0)


def test_compile_time_counts_under_the_current_phase():
    clock = Clock(FakeTime())
    with compile_time(clock, {"logging": 2.0}) as counted:
        _compile_something(1.5)  # the clock stands still: not counted
        assert counted.events == 0
        clock.switch(Phase.SUBMISSION)
        _compile_something(2.5)
        submission, events = counted.seconds["submission"], counted.events
        clock.switch(Phase.EVALUATION)
        _compile_something(3.5)
    _compile_something(4.5)  # nobody listens
    assert submission > 0
    assert events > 0
    assert counted.seconds["submission"] == submission
    assert counted.seconds["evaluation"] > 0
    assert counted.events == 2 * events
    assert counted.seconds["logging"] == 2.0


def test_what_a_cache_of_compiled_programs_saves_is_counted_as_if_it_was_spent():
    def report(seconds):
        jax.monitoring.record_event_duration_secs(SAVED_EVENT, seconds)

    time = FakeTime()
    clock = Clock(time)
    before = {"submission": 10.0}
    with compile_time(clock, before, {"submission": 3.0}) as counted:
        report(100.0)  # the clock stands still
        clock.switch(Phase.SUBMISSION)
        time.sleep(2)  # reading from the cache
        report(7.0)
        report(-0.5)  # it took longer to read than to compile: spent already
        clock.switch(Phase.EVALUATION)
        report(4.0)
    report(100.0)
    clock.switch(None)
    assert clock.seconds(Phase.SUBMISSION) == 2 + 7
    assert clock.seconds(Phase.EVALUATION) == 4
    assert counted.seconds["submission"] == 10 + 7
    assert counted.saved == {"submission": 3 + 7, "evaluation": 4, "logging": 0}


READ_FROM_A_CACHE = """
import jax
heard = []
jax.monitoring.register_event_duration_secs_listener(lambda e, s, **_: heard.append(e))
for _ in range(2):
    jax.jit(lambda x: x * 3)(1.0)
    print(heard.count({event!r}))
    jax.clear_caches()
"""


def test_jax_reports_what_its_cache_saves(tmp_path):
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    done = subprocess.run(
        [sys.executable, "-c", READ_FROM_A_CACHE.format(event=SAVED_EVENT)],
        env=os.environ | cache,
        capture_output=True,
        text=True,
        check=True,
    )
    compiled, read = map(int, done.stdout.split())
    assert compiled == 0
    assert read > 0


AUTOTUNING_OF_GPUS = """
from jax.extend.backend import get_compile_options

from algoperf.clock import Clock, compile_time

def cache():
    options = get_compile_options(num_replicas=1, num_partitions=1)
    debug_options = options.executable_build_options.debug_options
    return debug_options.xla_gpu_per_fusion_autotune_cache_dir

print([cache()])
with compile_time(Clock()):
    print([cache()])
"""


def test_what_no_event_reports_is_not_kept_on_disk(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", AUTOTUNING_OF_GPUS],
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    before, inside = done.stdout.split()
    assert str(tmp_path) in before
    assert inside == "['']"


def test_what_compiles_within_another_is_counted_once():
    counted = CompileTime({"submission": 1.0})
    counted.add(Phase.SUBMISSION, end=3.0, duration=1.0)  # an inner function
    counted.add(Phase.SUBMISSION, end=5.0, duration=1.5)  # another
    counted.add(Phase.SUBMISSION, end=6.0, duration=4.0)  # the outer one, 2 to 6
    counted.add(Phase.SUBMISSION, end=9.0, duration=2.0)  # and one after it
    assert counted.seconds["submission"] == 1.0 + 4.0 + 2.0
    assert counted.events == 4
