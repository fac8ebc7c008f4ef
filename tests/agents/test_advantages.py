"""Advantages by hand."""

from __future__ import annotations

import numpy as np

from dispatchgym.agents.advantages import clock_relative, discounted


def test_a_decision_is_compared_with_the_others_from_its_own_time_on() -> None:
    rewards = np.array([[1.0, 0.0], [2.0, 5.0], [4.0, 0.0]])
    clock = np.array([[0.0, 0.0], [1.0, 2.0], [3.0, 9.0]])
    found = clock_relative(rewards, np.ones((3, 2)), clock, 2)
    # from time 0: 7 and 5; from 1: 6, and 5 (the other's next decision is at 2); from 3: 4, and 0
    assert found[:, 0].tolist() == [2.0, 1.0, 4.0]
    # from 0: 5 and 7; from 2: 5 and 4; from 9, when the first is over: nothing on either side
    assert found[:, 1].tolist() == [-2.0, 1.0, 0.0]


def test_what_comes_later_counts_less_by_the_time_between() -> None:
    rewards = np.array([[1.0], [1.0], [1.0]])
    assert discounted(rewards, np.array([[0.5], [0.25], [1.0]]))[:, 0].tolist() == [1.625, 1.25, 1.0]
