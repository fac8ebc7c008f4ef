"""Many engines played by a network, choice by choice: forced moves are skipped, finished ones drop out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dispatchgym.envs.llm.backends import Backend
from dispatchgym.envs.llm.batch import ChoicesConfig, EngineBatch, Reward, Room
from dispatchgym.envs.llm.draws import Serving
from dispatchgym.envs.llm.graph import SPEC

T = TypeVar("T")


class EngineRuns:
    """N engines, `rollouts` consecutive ones on each problem, shown to a network as graphs.

    Room is made anew for the problems of every start. They are split into lanes, each worked on by a thread.

    Args:
        num_instances: N / rollouts.
        rollouts: engines on one problem.
        config: how choices are listed.
        reward: what is paid.
        lanes: threads; the largest divisor of `num_instances` up to it is used.
        device: where observations go.
        backend: what runs the steps of the one engine that there is then; None for the problems' profiles.
    """

    spec = SPEC

    def __init__(
        self,
        num_instances: int,
        rollouts: int,
        config: ChoicesConfig,
        reward: Reward,
        lanes: int = 1,
        device: torch.device | str = "cpu",
        backend: Backend | None = None,
    ) -> None:
        self.num_envs = num_instances * rollouts
        assert backend is None or self.num_envs == 1
        self.backend = backend
        self.rollouts = rollouts
        self.config = config
        self.reward = reward
        self.device = torch.device(device)
        self.batches: list[EngineBatch] = []
        self._lanes = max(n for n in range(1, min(lanes, num_instances) + 1) if num_instances % n == 0)
        self._in_lane = self.num_envs // self._lanes
        self._pool = ThreadPoolExecutor(self._lanes) if self._lanes > 1 else None
        self._reference_s = np.ones(self.num_envs)

    def start(self, problems: Sequence[Serving]) -> None:
        """Load one problem a group and go to the first real choice."""
        groups = self._in_lane // self.rollouts
        self._reference_s = np.repeat([p.reference_s for p in problems], self.rollouts)

        def begin(lane: int) -> EngineBatch:
            mine = problems[lane * groups : (lane + 1) * groups]
            batch = EngineBatch(self._in_lane, Room.of(mine), self.config, self.reward)
            for k, problem in enumerate(mine):
                batch.load(k * self.rollouts, problem, self.rollouts)
                if self.backend is not None:
                    batch.run_elsewhere(k, partial(self.backend.executor, workload=problem.workload))
            batch.begin()
            return batch

        self.batches = self._in_all_lanes(begin)

    @property
    def over(self) -> npt.NDArray[np.bool_]:
        """Shape (N,)."""
        return np.concatenate([batch.over for batch in self.batches])

    @property
    def requests(self) -> npt.NDArray[np.int64]:
        """Requests of every problem, shape (N,)."""
        return np.concatenate([batch.requests for batch in self.batches])

    @property
    def now_s(self) -> npt.NDArray[np.float64]:
        """Clocks, shape (N,)."""
        return np.concatenate([batch.now_s for batch in self.batches])

    @property
    def loss(self) -> npt.NDArray[np.float64]:
        """Per cent by which the goodput is below that of meeting all bounds in the reference time, shape (N,)."""
        met = np.concatenate([batch.met for batch in self.batches])
        goodput = met / self.requests * self._reference_s / np.maximum(self.now_s, 1e-9)
        lost: npt.NDArray[np.float64] = 100.0 * (1.0 - goodput)
        return lost

    def step(self, choices: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
        """Carry out choice `choices[i]` of the last observation in every engine that is not over; returns rewards."""

        def move(lane: int) -> npt.NDArray[np.float64]:
            return self.batches[lane].step(choices[lane * self._in_lane : (lane + 1) * self._in_lane])

        return np.concatenate(self._in_all_lanes(move))

    def finish(self) -> npt.NDArray[np.float64]:
        """Let the merit play every engine to its end; returns the rewards on the way, (N,)."""
        return np.concatenate(self._in_all_lanes(lambda lane: self.batches[lane].finish()))

    def observe(self) -> dict[str, Tensor]:
        """Graphs of the engines that are not over, on the device, as `GraphTensors.to_dict`.

        Besides, of all N: "over", bool; "now", their clocks; "discount", of the time since the last decision; and
        "active", int64 numbers of those that are not over.
        """
        parts = self._in_all_lanes(lambda lane: self.batches[lane].observe())
        over = self.over
        active = np.flatnonzero(~over)
        found: dict[str, Tensor] = {}
        offset = {node.name: 0 for node in SPEC.nodes}
        links = []
        ptr = {node.name: [np.zeros(1, np.int64)] for node in SPEC.nodes}
        for part in parts:
            links.append(np.where(part.link["shares"] >= 0, part.link["shares"] + offset["prefix"], -1))
            for name in offset:
                ptr[name].append(part.ptr[name][1:].astype(np.int64) + offset[name])
                offset[name] += int(part.ptr[name][-1])
        for name in ("request", "prefix"):
            found[f"x/{name}"] = self._tensor(np.concatenate([part.x[name] for part in parts]))
            whole = np.concatenate(ptr[name])
            found[f"ptr/{name}"] = self._tensor(whole[np.append(active, self.num_envs)])
        found["x/engine"] = self._tensor(np.concatenate([part.x["engine"] for part in parts])[active])
        found["ptr/engine"] = torch.arange(len(active) + 1, device=self.device)
        found["link/shares"] = self._tensor(np.concatenate(links).astype(np.int64))
        found["candidate"] = torch.arange(offset["request"], device=self.device)
        found["candidate_ptr"] = found["ptr/request"]
        found["active"] = self._tensor(active)
        found["over"] = self._tensor(over)
        found["now"] = self._tensor(self.now_s)
        found["discount"] = self._tensor(np.concatenate([batch.discount for batch in self.batches]))
        return found

    def _tensor(self, array: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def _in_all_lanes(self, work: Callable[[int], T]) -> list[T]:
        return [work(0)] if self._pool is None else list(self._pool.map(work, range(self._lanes)))
