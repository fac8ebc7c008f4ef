"""The end of processing under shutdowns, against counting time units."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dispatchgym.envs.jobshop.scenario import Scenario
from dispatchgym.solvers.jobshop.downtime import end_of_processing, next_up, pieces
from tests.envs.jobshop.strategies import scenarios
from tests.solvers.jobshop.brute_force import end_by_ticks

HORIZON = 40


def is_up(time: int, windows: list[tuple[int, int]]) -> bool:
    return not any(down <= time < up for down, up in windows)


@given(scenario=scenarios(1), duration=st.integers(1, 8))
def test_processing_ends_when_its_time_units_are_used_up(scenario: Scenario, duration: int) -> None:
    windows, mode = scenario.windows(0), scenario.on_interrupt
    for start in filter(lambda time: is_up(time, windows), range(HORIZON)):
        assert end_of_processing(start, duration, windows, mode) == end_by_ticks(start, duration, windows, mode)


@given(scenario=scenarios(1))
def test_the_next_moment_up_is_the_first_one(scenario: Scenario) -> None:
    windows = scenario.windows(0)
    for time in range(HORIZON):
        assert next_up(time, windows) == next(t for t in range(time, 2 * HORIZON) if is_up(t, windows))


@given(scenario=scenarios(1), duration=st.integers(1, 8), first=st.integers(0, 30), length=st.integers(0, 20))
def test_the_pieces_cover_every_start_while_up_once_and_give_its_end(
    scenario: Scenario, duration: int, first: int, length: int
) -> None:
    windows, mode = scenario.windows(0), scenario.on_interrupt
    last = first + length
    found = {}
    for piece in pieces(duration, windows, mode, first, last):
        for start in range(piece.first, piece.last + 1):
            assert start not in found
            found[start] = piece.end + (start - piece.first if piece.moves else 0)
    right = {
        start: end_by_ticks(start, duration, windows, mode) for start in range(first, last + 1) if is_up(start, windows)
    }
    assert found == right


def test_a_shutdown_at_the_very_end_does_not_interrupt() -> None:
    assert end_of_processing(0, 5, [(5, 9)], "resume") == 5
    assert end_of_processing(1, 5, [(5, 9)], "resume") == 10  # four units before, one after
    assert end_of_processing(1, 5, [(5, 9)], "restart") == 14
