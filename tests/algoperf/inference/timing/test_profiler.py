"""The profiler on a fake machine whose F, g and contention are known."""

import dataclasses
import random

import numpy as np
import pytest

from algoperf.errors import UserError
from algoperf.inference.timing import profiler
from algoperf.inference.timing.profiler import Grid, Limits, NoisyMachineError, Plan

G = 0.004
GRID = profiler.make_grid(1024)
LONG = Plan(rounds=11, max_rounds=11, seconds=1e9)


class FakeMachine:
    """Takes F(p) + g (o - 1), times noise, times `slow` in spells of other work."""

    def __init__(
        self, noise=0.02, busy=0.0, spell=40, slow=3.0, g=G, slope=0.0, seed=0
    ):
        self.random = random.Random(seed)
        self.noise, self.slow, self.g, self.slope = noise, slow, g, slope
        self.busy, self.spell, self.calls = busy, spell, 0
        self.seconds = 0.0
        self.is_busy = False

    def true_seconds(self, p, o):
        context = sum(p + i for i in range(1, o))
        return 0.02 + 0.0001 * max(0, p - 100) + self.g * (o - 1) + self.slope * context

    def __call__(self, p, o):
        if self.calls % self.spell == 0:
            self.is_busy = self.random.random() < self.busy
        self.calls += 1
        factor = self.slow if self.is_busy else 1.0
        taken = (
            self.true_seconds(p, o) * factor * self.random.lognormvariate(0, self.noise)
        )
        self.seconds += taken
        return taken

    def clock(self):
        return self.seconds


def errors(result, machine):
    """Relative errors of predictions against the truth, off the grid."""
    requests = [(1, 1), (80, 20), (300, 5), (450, 50), (700, 1)]
    return [
        abs(result.runtime.predict(*r) / machine.true_seconds(*r) - 1) for r in requests
    ]


def test_a_quiet_machine():
    machine = FakeMachine()
    result = profiler.profile(machine, GRID, LONG)
    profiler.check(result)
    assert result.runtime.seconds_per_token == pytest.approx(G, rel=0.01)
    assert result.runtime.r2 > 0.999
    assert result.held_out_error < 0.02
    assert result.spread == pytest.approx(0.02, rel=0.4)
    assert max(errors(result, machine)) < 0.03


def test_a_slope_in_the_context_is_chosen_where_there_is_one():
    sloped = profiler.profile(FakeMachine(slope=4e-6), GRID, LONG)
    assert sloped.runtime.seconds_per_token_slope == pytest.approx(4e-6, rel=0.1)
    profiler.check(sloped)


def test_spells_of_other_work_do_not_spoil_interleaved_rounds():
    """A fifth of the time three times slower, in spells as long as a round."""
    machine = FakeMachine(busy=0.2, spell=len(GRID.cells), seed=3)
    result = profiler.profile(machine, GRID, LONG)
    profiler.check(result)
    assert max(errors(result, machine)) < 0.05


def test_cell_by_cell_the_same_machine_spoils_the_fit():
    """Why rounds are interleaved: neither minimum nor median mends this."""
    machine = FakeMachine(busy=0.2, spell=len(GRID.cells), seed=3)
    cells = [*GRID.cells, *GRID.held_out]
    times = {cell: tuple(machine(*cell) for _ in range(11)) for cell in cells}
    result = profiler.fit_result(times, GRID)
    assert max(errors(result, machine)) > 0.1
    with pytest.raises(NoisyMachineError, match=r"deviate by|busy"):
        profiler.check(result)


def test_a_busy_machine_is_refused_with_a_reason():
    machine = FakeMachine(noise=0.5, busy=0.5, spell=7)
    result = profiler.profile(machine, GRID, LONG)
    with pytest.raises(
        NoisyMachineError, match=r"medians of 11 rounds.*end other work"
    ):
        profiler.check(result)
    loose = Limits(r2=-10, held_out_error=10, uncertainty=10)
    profiler.check(result, loose)


def test_a_fit_of_unknown_quality_is_refused():
    """As a file may have it."""
    result = profiler.profile(FakeMachine(), GRID, LONG)
    unknown = dataclasses.replace(result.runtime, r2=None)
    found = profiler.refusal(dataclasses.replace(result, runtime=unknown))
    assert found is not None
    assert found.startswith("R2 of the fit is not known (limit 0.995)")


def test_what_is_accepted_is_right():
    """Over machines of all kinds: an accepted profile errs by less than 10 %."""
    kinds = [(0.02, 0.0), (0.05, 0.2), (0.1, 0.3), (0.2, 0.0), (0.02, 0.5)]
    accepted = 0
    for seed in range(15):
        noise, busy = kinds[seed % len(kinds)]
        machine = FakeMachine(noise=noise, busy=busy, spell=30, seed=seed)
        result = profiler.profile(machine, GRID, LONG)
        if profiler.refusal(result) is None:
            accepted += 1
            assert np.mean(errors(result, machine)) < 0.1
    assert 3 <= accepted < 15


def test_rounds_go_on_until_medians_are_known():
    plan = Plan(rounds=4, max_rounds=60, seconds=1e9)
    quiet = profiler.profile(FakeMachine(noise=0.01), GRID, plan)
    assert quiet.rounds == 4
    noisy = profiler.profile(FakeMachine(noise=0.05), GRID, plan)
    assert 4 < noisy.rounds < 60
    assert noisy.uncertainty <= Limits().uncertainty / 3


def test_time_limits_the_rounds_but_for_three():
    machine = FakeMachine()
    plan = Plan(rounds=50, max_rounds=50, seconds=1.0)
    result = profiler.profile(machine, GRID, plan, clock=machine.clock)
    assert result.rounds == 3


def test_each_round_has_every_cell_in_another_order():
    seen = []

    def measure(p, o):
        seen.append((p, o))
        return 1.0 + p + o

    cells = GRID.cells
    plan = Plan(rounds=3, max_rounds=3)
    profiler.measure_rounds(measure, cells, plan, 0.0)
    rounds = [seen[i : i + len(cells)] for i in range(0, len(seen), len(cells))]
    assert len(rounds) == 4  # the first warms up
    assert all(sorted(r) == sorted(cells) for r in rounds)
    assert rounds[1] != rounds[2] != rounds[3]


def test_too_few_cells_are_an_error_before_anything_is_measured():
    def measure(p, o):
        raise AssertionError

    grid = profiler.make_grid(64, [16], [1, 4])
    with pytest.raises(UserError, match="too few to fit"):
        profiler.profile(measure, grid)


def test_compiling_is_not_silent_for_long():
    now = 0.0

    def measure(p, o):
        nonlocal now
        now += profiler.SILENCE_SEC * 0.4
        return 1.0

    said = []
    cells = [(p, 1) for p in range(1, 8)]
    plan = Plan(rounds=3, max_rounds=3)
    profiler.measure_rounds(measure, cells, plan, 0.0, lambda: now, said.append)
    assert said[:4] == [
        "compiled and warmed up 1 of 7 cells",
        "compiled and warmed up 4 of 7 cells",
        "compiled and warmed up 7 of 7 cells",
        "compiled and warmed up 7 cells in 28 s",
    ]


def test_held_out_cells_are_off_the_grid():
    assert len(GRID.held_out) >= 4
    for p, o in GRID.held_out:
        assert p not in GRID.prompts
        assert o not in GRID.outputs
        assert p + o <= 1024


def test_a_cell_that_is_fitted_is_not_held_out():
    """1, half-way between 1 and 2, and 3, which is an output of the grid."""
    grid = profiler.make_grid(128, (1, 2), (1, 2, 3))
    assert grid.held_out == ((1, 4),)
    assert profiler.make_grid(128, (1, 2), (1, 2, 3, 4, 6)).held_out == ((1, 9),)


@pytest.mark.parametrize("length", [8, 16, 64, 100, 1024, 40_960])
def test_every_length_has_a_grid(length):
    grid = profiler.make_grid(length)
    assert grid.outputs[0] == 1
    assert all(p + o <= length for p, o in (*grid.cells, *grid.held_out))
    assert grid.held_out
    machine = FakeMachine()
    result = profiler.profile(machine, grid, Plan(rounds=5, max_rounds=5, seconds=1e9))
    assert result.runtime.seconds_per_token > 0


def test_given_lengths_are_taken():
    grid = profiler.make_grid(100, prompts=[50, 10, 10], outputs=[1, 30])
    assert grid.prompts == (10, 50)
    assert grid.cells == [(10, 1), (10, 30), (50, 1), (50, 30)]
    assert grid.held_out == ((30, 45),)


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"prompts": (95,)}, "shorter prompts"),
        ({"outputs": (2, 4)}, "begin with 1"),
        ({"outputs": (1,)}, "two output lengths"),
        ({"prompts": (0, 5)}, "at least 1"),
    ],
)
def test_a_grid_that_makes_no_sense_is_an_error(facts, says):
    with pytest.raises(UserError, match=says):
        dataclasses.replace(Grid((1, 10), (1, 10), (), 100), **facts)
