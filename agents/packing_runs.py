"""Many clusters played by a network, shown by shortlists: forced moves are skipped, finished ones drop out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dispatchgym.envs.packing.instance import PackingInstance
from dispatchgym.envs.packing.shortlist import SPECS, ShortlistConfig, Shortlists, ShortName

T = TypeVar("T")


class PackingRuns:
    """N environments, `rollouts` consecutive ones on each instance, shown to a network as graphs.

    Room is made anew for the instances of every start: clusters differ much in size. They are split into lanes, each
    worked on by a thread.

    Args:
        num_instances: N / rollouts.
        rollouts: environments on one instance.
        config: what a policy may do and how its choices are listed.
        graph: which shortlist.
        lanes: threads; the largest divisor of `num_instances` up to it is used.
        device: where observations go.
    """

    def __init__(
        self,
        num_instances: int,
        rollouts: int,
        config: ShortlistConfig,
        graph: ShortName,
        lanes: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        self.num_envs = num_instances * rollouts
        self.rollouts = rollouts
        self.config = config
        self.graph: ShortName = graph
        self.spec = SPECS[graph]
        self.device = torch.device(device)
        self.lists: list[Shortlists] = []
        self._lanes = max(n for n in range(1, min(lanes, num_instances) + 1) if num_instances % n == 0)
        self._in_lane = self.num_envs // self._lanes
        self._pool = ThreadPoolExecutor(self._lanes) if self._lanes > 1 else None
        self._action = np.zeros(0, np.int32)  # of every candidate of the last observation
        self._candidate_ptr = np.zeros(self.num_envs + 1, np.int64)

    def start(self, instances: Sequence[PackingInstance], late: float = 0.0) -> None:
        """Load one instance a group and go to the first real choice, see `Shortlists.begin`."""
        groups = self._in_lane // self.rollouts

        def begin(lane: int) -> Shortlists:
            mine = instances[lane * groups : (lane + 1) * groups]
            lists = Shortlists.of(mine, self.graph, self.config, self.rollouts)
            lists.begin(late)
            return lists

        self.lists = self._in_all_lanes(begin)

    @property
    def over(self) -> npt.NDArray[np.bool_]:
        """Shape (N,)."""
        return np.concatenate([lists.batch.over for lists in self.lists])

    @property
    def loss(self) -> npt.NDArray[np.float64]:
        """Per cent of what is at stake that is not won as things stand, shape (N,); see `Shortlists.loss`."""
        return np.concatenate([lists.loss for lists in self.lists])

    @property
    def stake(self) -> npt.NDArray[np.float64]:
        """The reward if nothing is lost, shape (N,)."""
        return np.concatenate([lists.stake for lists in self.lists])

    def step(self, choices: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
        """Carry out candidate `choices[i]` of the last observation in every environment that is not over."""
        ptr = self._candidate_ptr
        row = np.minimum(ptr[:-1] + choices, max(len(self._action) - 1, 0))
        action = self._action[row] if len(self._action) else np.zeros(self.num_envs, np.int32)
        actions = np.where(ptr[1:] > ptr[:-1], action, -1).astype(np.int64)

        def move(lane: int) -> npt.NDArray[np.float64]:
            return self.lists[lane].step(actions[lane * self._in_lane : (lane + 1) * self._in_lane])

        return np.concatenate(self._in_all_lanes(move))

    def finish(self) -> npt.NDArray[np.float64]:
        """Let the merit play every environment to its end; returns the rewards on the way, (N,)."""
        return np.concatenate(self._in_all_lanes(lambda lane: self.lists[lane].finish()))

    def observe(self) -> dict[str, Tensor]:
        """Graphs of the environments that are not over, on the device, as `GraphTensors.to_dict`.

        Besides: "active", int64 numbers of those environments, and "over", bool of shape (N,).
        """
        parts = self._in_all_lanes(lambda lane: self.lists[lane].observe())
        choice, context = self.spec.candidate, self.spec.context
        over = self.over
        active = np.flatnonzero(~over)
        count = np.concatenate([np.diff(part.candidate_ptr) for part in parts])
        np.cumsum(count, out=self._candidate_ptr[1:])
        self._action = np.concatenate([part.action for part in parts])
        ptr = self._tensor(self._candidate_ptr[np.append(active, self.num_envs)])
        rows = int(self._candidate_ptr[-1])
        return {
            f"x/{choice}": self._tensor(np.concatenate([part.x[choice] for part in parts])),
            f"x/{context}": self._tensor(np.concatenate([part.x[context] for part in parts])[active]),
            f"ptr/{choice}": ptr,
            f"ptr/{context}": torch.arange(len(active) + 1, device=self.device),
            "candidate": torch.arange(rows, device=self.device),
            "candidate_ptr": ptr,
            "active": self._tensor(active),
            "over": self._tensor(over),
        }

    def _tensor(self, array: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def _in_all_lanes(self, work: Callable[[int], T]) -> list[T]:
        return [work(0)] if self._pool is None else list(self._pool.map(work, range(self._lanes)))
