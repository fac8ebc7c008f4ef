"""What training needs from a world: runs of many environments, fresh instances for them, and a fixed set to judge on.

The job shop (`shop_world`) and packing (`packing_world`) are two worlds; nothing else in the learning loop knows which
of them it is in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dispatchgym.agents.policy import GraphNetwork
from dispatchgym.envs.api import GraphSpec

Losses = npt.NDArray[np.float64]


class Runs(Protocol):
    """N environments shown to a network as graphs, all at a time or one after the other; moves without an alternative
    make themselves.

    Attributes:
        num_envs: N.
        spec: what the graphs look like.
    """

    num_envs: int
    spec: GraphSpec

    @property
    def over(self) -> npt.NDArray[np.bool_]:
        """Shape (N,)."""

    def step(self, choices: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
        """Carry out candidate `choices[i]` of the last observation where it is not over; returns rewards, (N,)."""

    def observe(self) -> dict[str, Tensor]:
        """Graphs of those that are to choose, as `GraphTensors.to_dict`.

        Besides: "active", int64 numbers of those environments, and "over", bool of shape (N,).
        """


R = TypeVar("R", bound=Runs)


class Exam(Protocol):
    """A fixed set of instances. Losses are per cent of what is at stake: the less the better, 0 if nothing is lost.

    Attributes:
        groups: of every instance, the group it is averaged with.
        digest: names the set: another one has other figures.
    """

    @property
    def groups(self) -> Sequence[str]: ...
    @property
    def digest(self) -> str: ...

    def by_rule(self, rule: str) -> Losses:
        """What a rule loses on every instance, shape (instances,)."""

    def greedy(self, network: GraphNetwork) -> Losses:
        """What the network loses when it always takes its favourite."""

    def best_of(self, network: GraphNetwork, samples: int) -> Losses:
        """What it loses in the best of so many sampled runs."""


class World(Protocol[R]):
    """How a world is trained in.

    Attributes:
        spec: of its graphs.
        most_choices: candidates of the largest decision.
    """

    @property
    def spec(self) -> GraphSpec: ...
    @property
    def most_choices(self) -> int: ...

    def steps(self, num_envs: int) -> int:
        """Decisions that the longest of so many episodes may need; all of them where they play one after the other."""

    def runs(self, num_instances: int, rollouts: int, lanes: int, device: torch.device | str) -> R:
        """Room for `rollouts` consecutive environments on each of so many instances, stepped by `lanes` threads."""

    def start(self, runs: R, seed: Sequence[int], rollout: int | None = None) -> npt.NDArray[np.float64]:
        """Load fresh instances that depend on the seed alone, and on the number of the rollout where it matters.

        Returns:
            What rewards are multiplied with, shape (N,): returns shall not depend on the size of an instance.
        """

    def finish(self, runs: R) -> npt.NDArray[np.float64]:
        """Let a rule play every environment to its end; returns the rewards on the way, (N,)."""

    def outcome(self, runs: R) -> Mapping[str, npt.NDArray[np.number]]:
        """What is said of an environment that is over, beside its return: name -> shape (N,)."""

    def exam(self, count: int, seed: int, lanes: int) -> Exam:
        """A set of instances that training never draws."""
