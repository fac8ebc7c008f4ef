"""Many shops played by a network: forced moves are skipped, finished shops drop out of the observation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dispatchgym.agents.forced_moves import step_to_choice
from dispatchgym.envs.compiled import compiled
from dispatchgym.envs.jobshop import graph as graphs
from dispatchgym.envs.jobshop.batch import GraphName, ShopBatch, ShopConfig
from dispatchgym.envs.jobshop.instance import Instance
from dispatchgym.envs.jobshop.kernel import is_over, step
from dispatchgym.envs.jobshop.priority import choose
from dispatchgym.envs.jobshop.scenario import Scenario
from dispatchgym.envs.jobshop.schedule import Schedule
from dispatchgym.envs.jobshop.state import F64, Capacity, Mode, Problem, Shop
from dispatchgym.solvers.jobshop.rules import rule_code

T = TypeVar("T")

LANES_A_THREAD = 4
"""With look-ahead, so that no thread waits long for the slowest lane."""

ROW_KINDS = ("op", "job", "machine", "candidate")
"""What the rows of the kernels' offset array count."""


@compiled
def _finish(
    problem: Problem, shop: Shop, mode: Mode, rule: int, state: npt.NDArray[np.uint64], priority: F64, reward: F64
) -> None:
    """Play every environment that is not over to its end with a rule; adds up the rewards."""
    for i in range(len(shop.slot)):
        reward[i] = 0.0
        while not is_over(shop, i):
            action = choose(problem, shop, i, rule, len(shop.next_op[i]), 0.0, state, priority)  # no cap
            reward[i] += step(problem, shop, mode, i, action)


class _Room:
    """Arrays of one type side by side in one block, so that they travel to the device in one copy."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, device: torch.device) -> None:
        sizes = [math.prod(shape) for shape in shapes.values()]
        self.shapes = shapes
        self.sizes = sizes
        self.device = device
        self.block = torch.empty(sum(sizes), dtype=dtype, pin_memory=device.type == "cuda")
        self.arrays = {name: part.numpy() for name, part in self._split(self.block).items()}

    def on_device(self, dtype: torch.dtype) -> dict[str, Tensor]:
        return self._split(self.block.to(self.device, non_blocking=True).to(dtype))

    def _split(self, block: Tensor) -> dict[str, Tensor]:
        parts = torch.split(block, self.sizes)
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}


def _count(_: int, batch: ShopBatch) -> npt.NDArray[np.int32]:
    """Offsets of a lane's rows, shape (kinds, environments + 1)."""
    ptr = np.zeros((len(ROW_KINDS), batch.num_envs + 1), np.int32)
    graphs.count_all(batch.problem, batch.shop, ptr)
    return ptr


class ShopRuns:
    """N environments, `rollouts` consecutive ones on each instance, shown to a network as graphs.

    The environments are split into lanes, each a `ShopBatch`, and worked on by as many threads. With look-ahead
    there are more lanes than threads: how long a lane takes differs much, and who is done early takes another.

    Args:
        num_instances: N / rollouts.
        rollouts: environments on one instance.
        capacity: the largest instance that will be loaded.
        config: which shop.
        graph: which graph, "jobs", "ops" or "pilot".
        lanes: threads; without look-ahead the largest divisor of `num_instances` up to it is used.
        device: where observations go.
    """

    def __init__(
        self,
        num_instances: int,
        rollouts: int,
        capacity: Capacity,
        config: ShopConfig,
        graph: str = "jobs",
        lanes: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        threads = min(lanes, num_instances)
        most = LANES_A_THREAD * threads if graph == "pilot" and threads > 1 else threads
        lanes = max(n for n in range(1, min(most, num_instances) + 1) if num_instances % n == 0)
        self.num_envs = num_instances * rollouts
        self.rollouts = rollouts
        self.config = config
        self.device = torch.device(device)
        self.batches = [
            ShopBatch(self.num_envs // lanes, capacity, config, cast(GraphName, graph), rollouts) for _ in range(lanes)
        ]
        self.spec = self.batches[0].spec
        self._pool = ThreadPoolExecutor(min(threads, lanes)) if lanes > 1 else None
        self._in_lane = self.num_envs // lanes
        self._action = np.zeros(0, np.int32)  # of every candidate of the last observation
        self._candidate_ptr = np.zeros(self.num_envs + 1, np.int32)

    @classmethod
    def of(
        cls,
        instances: Sequence[Instance],
        config: ShopConfig,
        graph: str = "jobs",
        rollouts: int = 1,
        scenarios: Sequence[Scenario] | None = None,
        lanes: int = 1,
        device: torch.device | str = "cpu",
    ) -> ShopRuns:
        """Runs of exactly these instances (and one scenario an instance), ready to be observed."""
        runs = cls(len(instances), rollouts, Capacity.of(instances), config, graph, lanes, device)
        runs.start(instances, scenarios)
        return runs

    @property
    def over(self) -> npt.NDArray[np.bool_]:
        """Shape (N,)."""
        return np.concatenate([batch.over for batch in self.batches])

    @property
    def makespan(self) -> npt.NDArray[np.int64]:
        """Shape (N,); final where over."""
        return np.concatenate([batch.makespan for batch in self.batches])

    @property
    def bound(self) -> npt.NDArray[np.int64]:
        """Lower bound of the makespan as it stands, shape (N,)."""
        return np.concatenate([batch.shop.bound for batch in self.batches])

    @property
    def decisions(self) -> npt.NDArray[np.int64]:
        """Actions so far, forced ones included, shape (N,)."""
        return np.concatenate([batch.shop.decisions for batch in self.batches])

    def schedule(self, i: int) -> Schedule:
        """The finished schedule of environment i."""
        return self.batches[i // self._in_lane].schedule(i % self._in_lane)

    def start(
        self, instances: Sequence[Instance], scenarios: Sequence[Scenario] | None = None
    ) -> npt.NDArray[np.int64]:
        """Load one instance (and scenario) a group and play the forced moves; returns the initial bounds, (N,)."""
        groups = self._in_lane // self.rollouts

        def begin(lane: int, batch: ShopBatch) -> npt.NDArray[np.int64]:
            mine = slice(lane * groups, (lane + 1) * groups)
            batch.load(range(groups), instances[mine])
            if scenarios is not None:
                batch.load_scenarios(range(batch.num_envs), [s for s in scenarios[mine] for _ in range(self.rollouts)])
            batch.reset()
            bound = batch.shop.bound.copy()
            none = np.full(batch.num_envs, -1, np.int64)
            step_to_choice(batch.problem, batch.shop, batch.mode, none, np.empty(batch.num_envs))
            return bound

        return np.concatenate(self._in_all_lanes(begin))

    def step(self, choices: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
        """Carry out candidate `choices[i]` of the last observation in every environment that is not over.

        Returns:
            Rewards in time units, forced moves included, shape (N,).
        """
        ptr = self._candidate_ptr
        row = np.minimum(ptr[:-1] + choices, max(len(self._action) - 1, 0))
        action = self._action[row] if len(self._action) else np.zeros(self.num_envs, np.int32)
        actions = np.where(ptr[1:] > ptr[:-1], action, -1).astype(np.int64)

        def move(lane: int, batch: ShopBatch) -> npt.NDArray[np.float64]:
            reward = np.empty(batch.num_envs)
            mine = actions[lane * self._in_lane : (lane + 1) * self._in_lane]
            step_to_choice(batch.problem, batch.shop, batch.mode, mine, reward)
            return reward

        return np.concatenate(self._in_all_lanes(move))

    def finish(self, rule: str) -> npt.NDArray[np.float64]:
        """Let a rule play every environment to its end; returns the rewards on the way, time units, (N,)."""

        def play(_: int, batch: ShopBatch) -> npt.NDArray[np.float64]:
            reward = np.empty(batch.num_envs)
            priority, state = np.empty(batch.capacity.jobs), np.zeros(1, np.uint64)
            _finish(batch.problem, batch.shop, batch.mode, rule_code(rule), state, priority, reward)
            return reward

        return np.concatenate(self._in_all_lanes(play))

    def observe(self) -> dict[str, Tensor]:
        """Graphs of the environments that are not over, on the device, as `GraphTensors.to_dict`.

        Besides: "active", int64 numbers of those environments, and "over", bool of shape (N,).
        """
        parts = self._in_all_lanes(_count)
        last = np.cumsum([part[:, -1] for part in parts], axis=0, dtype=np.int32)
        for part, before in zip(parts[1:], last[:-1], strict=True):
            part += before[:, None]
        whole = np.concatenate([parts[0][:, :1], *(part[:, 1:] for part in parts)], axis=1)
        ptr = dict(zip(ROW_KINDS, whole, strict=True))
        ptr[self.spec.context] = np.arange(self.num_envs + 1, dtype=np.int32)
        over = self.over
        active = np.flatnonzero(~over)
        kept = np.append(active, self.num_envs)  # environments that are over have no rows but the context's
        rows = {name: int(p[-1]) for name, p in ptr.items()}
        numbers = _Room(
            {f"x/{n.name}": (rows[n.name], len(n.features)) for n in self.spec.nodes}, torch.float32, self.device
        )
        indices = _Room(
            {f"link/{edge.name}": (rows[edge.source],) for edge in self.spec.links}
            | {"candidate": (rows["candidate"],), "candidate_ptr": (len(kept),), "active": (len(active),)}
            | {f"ptr/{n.name}": (len(kept),) for n in self.spec.nodes},
            torch.int32,
            self.device,
        )
        arrays = {n.name: numbers.arrays[f"x/{n.name}"] for n in self.spec.nodes}
        links = {edge.name: indices.arrays[f"link/{edge.name}"] for edge in self.spec.links}
        action = np.empty(rows["candidate"], np.int32)

        def write(lane: int, batch: ShopBatch) -> None:
            mine = slice(lane * self._in_lane, (lane + 1) * self._in_lane)
            # the kernel writes context rows by environment number, all others at their offsets
            context = {self.spec.context: arrays[self.spec.context][mine]}
            out = batch.arrays({**arrays, **context}, links, indices.arrays["candidate"], action)
            batch.write(parts[lane], out)

        self._in_all_lanes(write)
        self._action, self._candidate_ptr = action, ptr["candidate"]
        indices.arrays["active"][:] = active
        indices.arrays["candidate_ptr"][:] = ptr["candidate"][kept]
        for node in self.spec.nodes:
            is_context = node.name == self.spec.context
            indices.arrays[f"ptr/{node.name}"][:] = np.arange(len(kept)) if is_context else ptr[node.name][kept]
        obs = numbers.on_device(torch.float32) | indices.on_device(torch.int64)
        context = f"x/{self.spec.context}"
        if len(active) < self.num_envs:
            obs[context] = obs[context].index_select(0, obs["active"])
        return obs | {"over": torch.from_numpy(over).to(self.device)}

    def _in_all_lanes(self, work: Callable[[int, ShopBatch], T]) -> list[T]:
        if self._pool is None:
            return [work(0, self.batches[0])]
        return list(self._pool.map(work, range(len(self.batches)), self.batches))
