"""Many clusters stepped in one call: the native batch that environments, training and rules share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.api import GraphBatch, GraphSpec, InvalidActionError, UsageError
from dispatchgym.envs.packing import graph as graphs
from dispatchgym.envs.packing import kernel
from dispatchgym.envs.packing.graph_rows import GraphArrays
from dispatchgym.envs.packing.graph_specs import SPECS
from dispatchgym.envs.packing.instance import WHOLE_GPU, PackingInstance
from dispatchgym.envs.packing.log import Log
from dispatchgym.envs.packing.state import (
    ASIDE,
    GONE,
    QUEUED,
    RUNNING,
    Capacity,
    Mode,
    new_cluster,
    new_problem,
    put_instance,
    with_log_room,
)

GraphName = Literal["pods", "gpus"]
_NO_LINKS = np.empty(0, np.int32)


@dataclass(frozen=True, slots=True)
class Reward:
    """What a decision earns; everything is added up.

    Args:
        placed: for a placed pod of the lowest priority; evicting it takes the same away.
        tier: how many times more a pod of the next higher priority counts.
        eviction, move: cost of one.
        gpu: for a GPU allocated; freed by an eviction, it is taken away. Departures cost nothing.
        fragmentation: cost of one more GPU of expected fragments (FGD's measure).
    """

    placed: float = 0.0
    tier: float = 1.0
    eviction: float = 0.0
    move: float = 0.0
    gpu: float = 0.0
    fragmentation: float = 0.0


PLACED = Reward(placed=1.0, tier=4.0, eviction=0.1, move=0.1)
"""Pods placed, the urgent ones first, with few moves and evictions."""

ALLOCATED = Reward(gpu=1.0)
"""GPUs in use."""


@dataclass(frozen=True, slots=True)
class PackingConfig:
    """What a policy may do and what it earns.

    Args:
        evict: pods of lower priority may be evicted for the pod at hand.
        moves: how many running pods may be picked up in an episode.
        reward: see there.
        fragments: keep FGD's fragmentation up to date, for its metric; a reward for it does so anyway.
    """

    evict: bool = False
    moves: int = 0
    reward: Reward = PLACED
    fragments: bool = False

    def __post_init__(self) -> None:
        if self.moves < 0:
            raise UsageError(f"moves is {self.moves}; it must not be negative")

    @property
    def mode(self) -> Mode:
        r = self.reward
        fragments = self.fragments or r.fragmentation != 0.0
        return Mode(
            self.evict,
            self.moves,
            fragments,
            float(r.placed),
            float(r.tier),
            float(r.eviction),
            float(r.move),
            float(r.gpu),
            float(r.fragmentation),
        )


@dataclass(frozen=True, slots=True)
class Metrics:
    """Where a cluster stands.

    Args:
        placed: pods running or done, one entry a priority, highest first: compare them as tuples.
        pending: pods that have arrived and neither run nor are done.
        moves, evictions: so far.
        utilisation: share of each resource in use, in the instance's order.
        gpu_allocation_pct: GPUs allocated, per cent of the cluster's; 0 without GPUs.
        fragmentation_pct: expected fragments, per cent of the cluster's GPUs; nan if not kept.
        gpu_hours, pending_hours: GPU hours allocated and pod hours spent waiting, so far.
    """

    placed: tuple[int, ...]
    pending: int
    moves: int
    evictions: int
    utilisation: tuple[float, ...]
    gpu_allocation_pct: float
    fragmentation_pct: float
    gpu_hours: float
    pending_hours: float


class PackingBatch:
    """N clusters with arrays for state; every method works on all of them at once.

    Actions are as in `kernel`. Environments that are over stay so, with no legal action, until they are reset.

    Args:
        num_envs: N.
        capacity: the largest instance that will be loaded; memory grows with it.
        config: what is allowed and rewarded.
        graph: "pods" (a node a pod) or "gpus" (a node a GPU with something free).
        envs_per_instance: consecutive environments that share one instance.
    """

    def __init__(
        self,
        num_envs: int,
        capacity: Capacity,
        config: PackingConfig | None = None,
        graph: GraphName = "pods",
        envs_per_instance: int = 1,
    ) -> None:
        if num_envs < 1 or envs_per_instance < 1 or num_envs % envs_per_instance:
            raise UsageError(f"{num_envs} environments cannot share instances in groups of {envs_per_instance}")
        if graph not in SPECS:
            raise UsageError(f"graph is {graph!r}; it must be one of {', '.join(SPECS)}")
        self.num_envs = num_envs
        self.capacity = capacity
        self.spec: GraphSpec = SPECS[graph]
        self.config = config or PackingConfig()
        self.mode = self.config.mode
        self.instances: list[PackingInstance | None] = [None] * (num_envs // envs_per_instance)
        self.problem = new_problem(len(self.instances), capacity)
        self.cluster = new_cluster(num_envs, capacity)
        self.cluster.env["slot"][:] = np.arange(num_envs) // envs_per_instance
        self._cluster_ptr = np.arange(num_envs + 1, dtype=np.int32)
        self._cluster_ptr.setflags(write=False)
        items = max(capacity.pods, capacity.nodes * capacity.gpus)
        self._rows = np.empty(items, np.int32), np.empty(max(capacity.pods, capacity.typical), np.int32)
        self._class_count = np.zeros((2, capacity.pods), np.int64)

    @classmethod
    def of(
        cls,
        instances: Sequence[PackingInstance],
        config: PackingConfig | None = None,
        graph: GraphName = "pods",
        envs_per_instance: int = 1,
    ) -> PackingBatch:
        """A batch that holds exactly these instances, reset and ready."""
        batch = cls(len(instances) * envs_per_instance, Capacity.of(instances), config, graph, envs_per_instance)
        batch.load(range(len(instances)), instances)
        batch.reset()
        return batch

    @property
    def wait_action(self) -> int:
        """The action WAIT."""
        return self.capacity.actions - 1

    @property
    def mask(self) -> npt.NDArray[np.int8]:
        """Legal actions, shape (N, actions). A view: it changes with the next step."""
        return self.cluster.mask

    @property
    def over(self) -> npt.NDArray[np.bool_]:
        """Shape (N,): every pod that has arrived runs, is done, or can only wait for ever."""
        over: npt.NDArray[np.bool_] = self.cluster.env["over"].astype(np.bool_)
        return over

    def load(self, slots: Sequence[int], instances: Sequence[PackingInstance]) -> None:
        """Put instances into slots; their environments must be reset before the next step."""
        for slot, instance in zip(slots, instances, strict=True):
            put_instance(self.problem, self.capacity, slot, instance)
            self.instances[slot] = instance

    def reset(self, which: npt.ArrayLike | None = None) -> None:
        """Start anew all environments, or those flagged in `which`, shape (N,)."""
        flags = np.ones(self.num_envs, np.uint8) if which is None else np.asarray(which, np.uint8)
        for slot in np.unique(self.cluster.env["slot"][flags.astype(bool)]):
            if self.instances[slot] is None:
                raise UsageError(f"instance slot {slot} is empty; call load() before reset()")
        kernel.reset_all(self.problem, self.cluster, self.mode, flags)

    def step(self, actions: npt.ArrayLike) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """Carry out one action in every environment that is not over.

        Args:
            actions: integers, shape (N,); ignored where an environment is over.

        Returns:
            (reward, over), each of shape (N,).

        Raises:
            InvalidActionError: an action is not legal; then no environment has moved.
        """
        chosen = np.ascontiguousarray(actions, np.int64)
        if chosen.shape != (self.num_envs,):
            raise InvalidActionError(f"actions have shape {chosen.shape}, expected ({self.num_envs},)")
        self.make_log_room()
        reward = np.empty(self.num_envs, np.float64)
        over = np.empty(self.num_envs, np.bool_)
        wrong = kernel.step_all(self.problem, self.cluster, self.mode, chosen, reward, over)
        if wrong >= 0:
            raise InvalidActionError(self.illegal(wrong, int(chosen[wrong])))
        return reward, over

    def make_log_room(self) -> None:
        """See to it that one more decision can be logged; compiled loops call it when they stop for that."""
        self.cluster = with_log_room(self.cluster)

    def meaning(self, action: int) -> str:
        """What an action does, for messages: 'bind to node 3, slot 0', 'evict on node 1', 'pick up pod 4', 'WAIT'."""
        nodes, gpus, pods = self.capacity.nodes, self.capacity.gpus, self.capacity.pods
        if action < nodes * gpus:
            return f"bind to node {action // gpus}, slot {action % gpus}"
        if action < nodes * gpus + nodes:
            return f"evict on node {action - nodes * gpus}"
        return f"pick up pod {action - nodes * gpus - nodes}" if action < nodes * gpus + nodes + pods else "WAIT"

    def illegal(self, i: int, action: int) -> str:
        """The message for an action that is not legal in environment i."""
        legal = np.flatnonzero(self.mask[i])
        names = [f"{a} ({self.meaning(int(a))})" for a in legal[:6]] + ["..."] * (len(legal) > 6)
        where = f" in environment {i}" if self.num_envs > 1 else ""
        return f"action {action}{where} is not legal now; legal are: {', '.join(names) or 'none, reset first'}"

    def observe(self) -> GraphBatch:
        """Graphs of all environments as fresh arrays: a stored observation never changes."""
        ptr = np.zeros((5, self.num_envs + 1), np.int32)
        none = {n.name: np.empty((0, len(n.features)), np.float32) for n in self.spec.nodes}
        empty = self.arrays(none, {link.name: _NO_LINKS for link in self.spec.links}, _NO_LINKS, _NO_LINKS)
        graphs.count_all(self.problem, self.cluster, self.is_gpus, empty, ptr)
        node_ptr = dict(zip((n.name for n in self.spec.nodes), [*ptr[:4], self._cluster_ptr], strict=True))
        x = {n.name: np.empty((node_ptr[n.name][-1], len(n.features)), np.float32) for n in self.spec.nodes}
        link = {edge.name: np.empty(node_ptr[edge.source][-1], np.int32) for edge in self.spec.links}
        candidate, action = np.empty((2, ptr[graphs.CANDIDATE, -1]), np.int32)
        out = self.arrays(x, link, candidate, action)
        graphs.write_all(self.problem, self.cluster, self.mode, self.is_gpus, ptr, out)
        return GraphBatch(x, node_ptr, link, candidate, action, ptr[graphs.CANDIDATE])

    @property
    def is_gpus(self) -> bool:
        """It is the graph "gpus"."""
        return self.spec.graph == "gpus"

    def arrays(
        self,
        x: dict[str, npt.NDArray[np.float32]],
        link: dict[str, npt.NDArray[np.int32]],
        candidate: npt.NDArray[np.int32],
        action: npt.NDArray[np.int32],
    ) -> GraphArrays:
        """The named arrays in the order the kernels want them."""
        choice, item, node, kind, cluster = (x[n.name] for n in self.spec.nodes)
        return GraphArrays(
            choice=choice,
            item=item,
            node=node,
            kind=kind,
            cluster=cluster,
            host=link["host"],
            about=link["about"],
            on=link["on"],
            of=link.get("of", _NO_LINKS),
            hand=link["hand"],
            candidate=candidate,
            action=action,
            row=self._rows[0],
            kind_row=self._rows[1],
            class_count=self._class_count,
        )

    def log(self, i: int) -> Log:
        """What has happened in environment i since its reset."""
        return Log.of(self.cluster.log[i, : self.cluster.env["logged"][i]])

    def metrics(self, i: int) -> Metrics:
        """Where environment i stands."""
        cluster, instance = self.cluster, self.instances[self.cluster.env["slot"][i]]
        if instance is None:
            raise UsageError(f"environment {i} has no instance; call load() and reset() first")
        status = cluster.pod["status"][i, : instance.num_pods]
        well = (status == RUNNING) | (status == GONE)
        total = instance.nodes.capacity.sum(axis=0)
        free = cluster.free[i, : instance.num_nodes].sum(axis=0)
        milli = max(1, int(instance.nodes.gpus.sum()) * WHOLE_GPU)
        return Metrics(
            placed=tuple(int((well & (instance.pods.priority == tier)).sum()) for tier in instance.tiers),
            pending=int(((status == QUEUED) | (status == ASIDE)).sum()),
            moves=int(cluster.env["moved"][i]),
            evictions=int(cluster.env["evicted"][i]),
            utilisation=tuple(((total - free) / np.maximum(total, 1)).tolist()),
            gpu_allocation_pct=100.0 * int(cluster.env["gpu_used"][i]) / milli,
            fragmentation_pct=100.0 * float(cluster.env["frag_sum"][i]) / milli
            if self.mode.fragments
            else float("nan"),
            gpu_hours=float(cluster.env["gpu_time"][i]) / 3600.0,
            pending_hours=float(cluster.env["wait_time"][i]) / 3600.0,
        )
