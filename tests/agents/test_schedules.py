"""Learning-rate schedules."""

from __future__ import annotations

import itertools

import pytest

from dispatchgym.agents.schedules import SHAPES, Schedule
from dispatchgym.envs.api import UnknownNameError, UsageError


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_every_shape_starts_at_its_peak_and_never_rises(shape: str) -> None:
    values = [Schedule(2.0, shape)(1 - done / 100) for done in range(101)]
    assert values[0] == pytest.approx(2.0)
    assert all(a >= b >= 0 for a, b in itertools.pairwise(values))
    assert values[-1] == pytest.approx(2.0 if shape == "constant" else 0.0)


def test_half_way_values_by_hand() -> None:
    assert [Schedule(1.0, shape)(0.5) for shape in ("constant", "linear", "cosine")] == pytest.approx([1.0, 0.5, 0.5])


def test_warm_up_rises_to_the_peak() -> None:
    schedule = Schedule(1.0, "linear", warm_up=0.1)
    assert [schedule(left) for left in (1.0, 0.95, 0.9, 0.45, 0.0)] == pytest.approx([0.0, 0.5, 1.0, 0.5, 0.0])


def test_unknown_shapes_and_shares_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'linear'"):
        Schedule(1.0, "liner")
    with pytest.raises(UsageError, match="warm_up"):
        Schedule(1.0, warm_up=1.0)
