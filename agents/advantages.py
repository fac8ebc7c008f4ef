"""How much better than expected decisions turned out: pure functions over (steps, environments)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def discounted(rewards: npt.NDArray[np.floating], factors: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Sums of what comes: each step's own, and what comes after it times its factor; shape (steps, environments)."""
    sums = np.zeros(rewards.shape)
    later = np.zeros(rewards.shape[1])
    for t in range(len(rewards) - 1, -1, -1):
        later = rewards[t] + factors[t] * later
        sums[t] = later
    return sums


def clock_relative(
    rewards: npt.NDArray[np.floating],
    factors: npt.NDArray[np.floating],
    clock: npt.NDArray[np.float64],
    group: int,
) -> npt.NDArray[np.float64]:
    """What comes after each decision, less the mean of what comes after that time in the group's other episodes.

    The same requests come at the same times in all of them, so most of what luck does to one it does to the others.
    Source: Mao et al., input-dependent baselines, ICLR 2019.

    Args:
        rewards, factors: of each decision, see `discounted`; 0 and anything after an episode's end.
        clock: rising, shape (steps, environments).
        group: consecutive environments that share an instance.
    """
    steps, envs = rewards.shape
    sums = np.vstack([discounted(rewards, factors), np.zeros((1, envs))])
    found = sums[:steps].copy()
    for first in range(0, envs, group):
        for i in range(first, first + group):
            for j in range(first, first + group):
                if i != j:
                    at = np.searchsorted(clock[:, j], clock[:, i], side="left")
                    found[:, i] -= sums[at, j] / (group - 1)
    return found
