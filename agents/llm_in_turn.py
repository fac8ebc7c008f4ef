"""Engines whose steps run on a real executor, which one of them has to itself: they are played one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dispatchgym.agents.llm_runs import EngineRuns
from dispatchgym.envs.llm.backends import Backend
from dispatchgym.envs.llm.batch import ChoicesConfig, Reward
from dispatchgym.envs.llm.draws import Serving
from dispatchgym.envs.llm.graph import SPEC


class EnginesInTurn:
    """N engines as `EngineRuns` has them, of which the first that is not over is shown alone.

    The rollouts of a problem follow one another, so that a device that grows slower does so for all of them.

    Args:
        backend: what runs the steps, and says how long they take.
        steps: decisions after which an engine is played to its end by the merit.
        Other arguments: as of `EngineRuns`.
    """

    spec = SPEC

    def __init__(
        self,
        num_instances: int,
        rollouts: int,
        config: ChoicesConfig,
        reward: Reward,
        device: torch.device | str,
        backend: Backend,
        steps: float = np.inf,
    ) -> None:
        self.num_envs = num_instances * rollouts
        self.rollouts = rollouts
        self.config = config
        self.reward = reward
        self.device = device
        self.backend = backend
        self.steps = steps
        self._problems: list[Serving] = []
        self._begun: list[EngineRuns] = []  # of one engine each; the last is at play
        self._decisions = 0  # of it

    def start(self, problems: Sequence[Serving]) -> None:
        """Take one problem a group and go to the first real choice of the first engine."""
        self._problems = [problem for problem in problems for _ in range(self.rollouts)]
        self._begun = []
        self._go_on()

    @property
    def over(self) -> npt.NDArray[np.bool_]:
        """Shape (N,)."""
        return np.array([*(runs.over[0] for runs in self._begun), *self._ahead * [False]])

    @property
    def requests(self) -> npt.NDArray[np.int64]:
        """Requests of every problem, shape (N,)."""
        return np.array([len(problem.workload) for problem in self._problems])

    @property
    def loss(self) -> npt.NDArray[np.float64]:
        """As of `EngineRuns`, NaN of engines that have not begun, shape (N,)."""
        return np.array([*(runs.loss[0] for runs in self._begun), *self._ahead * [np.nan]])

    def step(self, choices: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
        """Carry out the choice of the engine at play; returns rewards, shape (N,)."""
        reward = np.zeros(self.num_envs)
        at = len(self._begun) - 1
        reward[at] = self._begun[at].step(choices[at : at + 1])[0]
        self._decisions += 1
        if self._decisions == self.steps:
            reward[at] += self._begun[at].finish()[0]
        self._go_on()
        return reward

    def finish(self) -> npt.NDArray[np.float64]:
        """Let the merit play every engine to its end; returns the rewards on the way, (N,)."""
        reward = np.zeros(self.num_envs)
        while not self.over.all():
            reward[len(self._begun) - 1] = self._begun[-1].finish()[0]
            self._go_on()
        return reward

    def observe(self) -> dict[str, Tensor]:
        """The graph of the engine at play, and the rest as of `EngineRuns`; clocks that have not begun stand at 0."""
        found, at = self._begun[-1].observe(), len(self._begun) - 1
        discount = np.ones(self.num_envs)
        discount[at] = found["discount"].item()
        now_s = np.array([*(runs.now_s[0] for runs in self._begun), *self._ahead * [0.0]])
        of_all = {"over": self.over, "now": now_s, "discount": discount}
        found |= {name: torch.from_numpy(array).to(self.device) for name, array in of_all.items()}
        found["active"] = found["active"] + at
        return found

    @property
    def _ahead(self) -> int:
        """Engines that have not begun."""
        return self.num_envs - len(self._begun)

    def _go_on(self) -> None:
        """Begin the next engine if the one at play is over."""
        while self._ahead and (not self._begun or self._begun[-1].over[0]):
            runs = EngineRuns(1, 1, self.config, self.reward, device=self.device, backend=self.backend)
            runs.start([self._problems[len(self._begun)]])
            self._begun.append(runs)
            self._decisions = 0
