"""What the clock charges a submission for: by fake time, and by real sleeps."""

import collections
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from synthetic import SYNTHETIC, replaced, rows_of

from algoperf import records, runner
from algoperf.checkpoint import Checkpoints
from algoperf.recorder import Recorder
from algoperf.workload import derive

pytestmark = pytest.mark.alone


def _sleeping(function, clock, seconds):
    """Returns the function with a nap on the host before it."""

    def wrapped(*arguments, **keywords):
        clock.sleep(seconds)
        return function(*arguments, **keywords)

    return wrapped


def _run(config, clock):
    record = runner.run_trial(config, now=clock)
    assert record["status"] is records.Status.COMPLETED, record["message"]
    return record


def test_host_time_of_the_submission_is_charged(make_config, clock):
    config = make_config(workload=derive(SYNTHETIC, max_allowed_runtime_sec=1e4))
    functions = config.submission.functions
    config = replaced(
        config,
        init_optimizer_state=_sleeping(functions.init_optimizer_state, clock, 1000),
        data_selection=_sleeping(functions.data_selection, clock, 1),
        update_params=_sleeping(functions.update_params, clock, 10),
        prepare_for_eval=_sleeping(functions.prepare_for_eval, clock, 100),
    )
    record = _run(config, clock)
    steps, evaluations = 12, 3  # the one at step 0 is not prepared for
    assert record["clock"]["submission"] == 11 * steps + 100 * evaluations
    times = [row[records.SUBMISSION_TIME] for row in rows_of(config)]
    assert times == [0, 144, 288, 432]


def test_evaluation_checkpoints_and_logging_are_not_charged(
    make_config, monkeypatch, clock
):
    workload = derive(SYNTHETIC, after_evaluation=lambda: clock.sleep(1))
    save, add = Checkpoints.save, Recorder.add_evaluation
    monkeypatch.setattr(Checkpoints, "save", _sleeping(save, clock, 10))
    monkeypatch.setattr(Recorder, "add_evaluation", _sleeping(add, clock, 100))
    config = make_config(workload=workload)
    record = _run(config, clock)
    splits, evaluations, checkpoints = 3, 4, 3
    assert record["clock"] == {
        "submission": 0,
        "evaluation": splits * evaluations,
        "logging": 10 * checkpoints + 100 * evaluations,
    }
    last = rows_of(config)[-1]
    assert last[records.SUBMISSION_TIME] == last[records.SCORE] == 0
    assert last[records.EVAL_TIME] == splits * evaluations
    assert last[records.TOTAL_TIME] == sum(
        last[key]
        for key in (records.SUBMISSION_TIME, records.EVAL_TIME, records.LOGGING_TIME)
    )


def test_compile_time_is_charged_and_recorded_apart(make_config):
    record = _run(make_config(), time.perf_counter)
    compiled, clock = record["compile"], record["clock"]
    assert 0 < compiled["submission"] <= clock["submission"]
    assert 0 < compiled["evaluation"] <= clock["evaluation"]
    assert compiled["submission"] > 0.3 * clock["submission"]  # the step is tiny


NAP = 0.1  # seconds


class SleepyDevice:
    """Maps a tree to itself, slowly, on the device; the host does not wait.

    On CPU, JAX runs a callback at once, on the host's own thread, unless its inputs
    are still on their way: hence the work before it. `busy` is the time that the
    device needed, from the moment that it had something to do.
    """

    def __init__(self):
        self.busy = self.on_host = self._done = 0.0
        self._starts = collections.deque()
        self._work = jax.jit(self._some_work)
        self._sleep = jax.jit(self._nap_after)

    def __call__(self, tree):
        start = time.perf_counter()
        self._starts.append(start)
        tree = self._sleep(tree, self._work(jax.tree.leaves(tree)[0]))
        self.on_host += time.perf_counter() - start
        return tree

    def _some_work(self, leaf):
        matrix = jnp.full((200, 200), 0.01) + 0 * leaf.ravel()[0]
        body = lambda _, m: jnp.tanh(m @ m)  # noqa: E731
        return jax.lax.fori_loop(0, 20, body, matrix)[0, 0]

    def _nap_after(self, tree, worked):
        def nap(_):
            time.sleep(NAP)
            start, end = self._starts.popleft(), time.perf_counter()
            self.busy += end - max(start, self._done)
            self._done = end
            return np.float32(0)

        zero = jax.ShapeDtypeStruct((), jnp.float32)
        late = jax.pure_callback(nap, zero, worked)
        return jax.tree.map(lambda leaf: leaf + late, tree)


@pytest.mark.parametrize(
    ("name", "period"), [("update_params", 5), ("prepare_for_eval", 1)]
)
def test_time_on_the_device_is_charged_though_the_host_does_not_wait(
    make_config, name, period
):
    device = SleepyDevice()
    config = make_config(max_steps=6 * period, eval_period_steps=period)
    function = getattr(config.submission.functions, name)
    totals = []  # after each evaluation

    def slow(**arguments):
        state, params, model_state = function(**arguments)
        return state, device(params), model_state

    def watch(progress):
        if progress.is_new_evaluation:
            totals.append((device.busy, device.on_host))

    config = replaced(config, **{name: slow})
    record = runner.run_trial(config, watch=watch)
    assert record["status"] is records.Status.COMPLETED, record["message"]
    busy, on_host = np.diff(totals[1:], axis=0).T  # before them something compiles
    assert busy.min() > 0.9 * period * NAP
    assert on_host.sum() < 0.8 * busy.sum()  # the host really did not wait
    assert _charged(config, busy) == pytest.approx(1, abs=0.05)


def _charged(config, busy):
    """Returns the least charge per second that the device was busy.

    `busy` [E] has the seconds before each evaluation but the first two. A charge too
    low in any of them shows; a busy machine only ever adds to some.
    """
    times = [row[records.SUBMISSION_TIME] for row in rows_of(config)]
    return (np.diff(times[1:]) / busy).min()


def test_work_that_the_state_does_not_hold_is_charged(make_config):
    device, hidden = SleepyDevice(), []
    config = make_config(max_steps=6, eval_period_steps=1)
    prepare = config.submission.functions.prepare_for_eval

    def slow(**arguments):
        hidden.append(device({"unused": jnp.zeros(3)}))
        return prepare(**arguments)

    totals = []

    def watch(progress):
        if progress.is_new_evaluation:
            totals.append(device.busy)

    config = replaced(config, prepare_for_eval=slow)
    record = runner.run_trial(config, watch=watch)
    assert record["status"] is records.Status.COMPLETED, record["message"]
    busy = np.diff(totals[1:])
    assert busy.min() > 0.9 * NAP
    assert _charged(config, busy) == pytest.approx(1, abs=0.1)  # a step costs a bit


def test_phases_add_up_to_the_wall_time_of_the_loop(make_config, monkeypatch, no_cache):
    walls = []
    run = runner._Trial.run

    def timed(trial):
        start = time.perf_counter()
        outcome = run(trial)
        walls.append(time.perf_counter() - start)
        return outcome

    monkeypatch.setattr(runner._Trial, "run", timed)
    record = _run(make_config(), time.perf_counter)
    assert sum(record["clock"].values()) == pytest.approx(walls[0], rel=0.02)
