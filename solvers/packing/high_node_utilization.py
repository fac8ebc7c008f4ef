"""high-node-utilization: empty the nodes that are hardly used, as the Kubernetes descheduler does.

Source: kubernetes-sigs/descheduler, HighNodeUtilization. Nodes at or below every threshold are sources, the other
open nodes targets. Least used source first, its pods by rising priority, as long as the targets have some of every
resource left. Nothing happens if there is no source or no target (descheduler issue 725).

Departure: the descheduler evicts and the scheduler places again, anywhere. Here a pod goes to the target that fits
and that kube-scheduler's MostAllocated scores highest (the lowest number among equals), and stays where none fits; so
one pass never makes things worse.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.packing.instance import PackingInstance
from dispatchgym.envs.packing.log import Event
from dispatchgym.solvers.packing.most_allocated import resource_score
from dispatchgym.solvers.packing.plan import Hosts, Plan, check_hosts, check_modelled, filters


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Per cent of a node's CPU, memory and pods asked for; 100 leaves one out of account."""

    cpu: float = 20.0
    memory: float = 20.0
    pods: float = 20.0

    def __post_init__(self) -> None:
        for name in ("cpu", "memory", "pods"):
            if not 0.0 <= getattr(self, name) <= 100.0:
                raise UsageError(f"threshold {name} is {getattr(self, name)}; it must be 0 to 100 per cent")


@dataclass(frozen=True, slots=True)
class Compaction:
    """What one pass does.

    Args:
        plan: before and after.
        steps: (pod, from, to), each of which the filters allow when its turn comes.
        emptied: nodes that held a pod before and hold none after.
    """

    plan: Plan
    steps: tuple[tuple[int, int, int], ...]
    emptied: tuple[int, ...]

    def events(self, time: int) -> list[Event]:
        """The steps as log entries, to come after those that led to the placement."""
        return [Event(time, "move", pod, to, (), origin) for pod, origin, to in self.steps]


def compact(instance: PackingInstance, now: Hosts, thresholds: Thresholds | None = None) -> Compaction:
    """One pass over a cluster.

    Args:
        now: pod -> node of all that runs.

    Raises:
        UsageError: GPUs or topology spread.
        InvalidScheduleError: `now` breaks a capacity or a filter.
    """
    check_modelled(instance)
    check_hosts(instance, now)
    cluster = _Cluster(instance, now)
    limit = thresholds or Thresholds()
    use = cluster.use()
    low = (use <= np.array([limit.cpu, limit.memory, limit.pods])).all(axis=1)
    targets = np.flatnonzero(~low & ~instance.nodes.unschedulable).tolist()
    steps: list[tuple[int, int, int]] = []
    for source in sorted(np.flatnonzero(low).tolist(), key=lambda n: (use[n].sum(), n)):
        pods = [p for p, n in cluster.hosts.items() if n == source]
        for pod in sorted(pods, key=lambda p: (instance.pods.priority[p], p)):
            if not cluster.has_some_left(targets):
                break
            fitting = [n for n in targets if cluster.fits(pod, n)]
            if fitting:
                best = max(fitting, key=lambda n: (cluster.fullness(pod, n), -n))
                cluster.move(pod, best)
                steps.append((pod, source, best))
    emptied = sorted(set(now.values()) - set(cluster.hosts.values()))
    return Compaction(Plan(dict(now), cluster.hosts), tuple(steps), tuple(emptied))


class _Cluster:
    """What is free where, and what fits."""

    def __init__(self, instance: PackingInstance, now: Hosts) -> None:
        self.instance = instance
        self.hosts = dict(now)
        self.filters = filters(instance)
        self.free = instance.nodes.capacity.copy()
        self.room = instance.nodes.max_pods.astype(np.int64)
        for pod, node in now.items():
            self._take(pod, node, 1)

    def _take(self, pod: int, node: int, sign: int) -> None:
        self.free[node] -= sign * self.instance.pods.request[pod]
        self.room[node] -= sign

    def move(self, pod: int, node: int) -> None:
        self._take(pod, self.hosts[pod], -1)
        self._take(pod, node, 1)
        self.hosts[pod] = node

    def use(self) -> np.ndarray:
        """Per cent of CPU, memory and pods asked for, float64 (nodes, 3); 0 of what a node has none of."""
        total = np.column_stack([self.instance.nodes.capacity[:, :2], self.instance.nodes.max_pods])
        free = np.column_stack([self.free[:, :2], self.room])
        share: np.ndarray = 100.0 * (total - free) / np.maximum(total, 1)
        return share

    def has_some_left(self, targets: list[int]) -> bool:
        """The targets together have some CPU and memory and room for a pod."""
        return bool((self.free[targets, :2].sum(axis=0) > 0).all() and self.room[targets].sum() > 0)

    def fullness(self, pod: int, node: int) -> int:
        """MostAllocated with the pod there, 0 to 100."""
        capacity = self.instance.nodes.capacity[node]
        asked = capacity - self.free[node] + self.instance.pods.request[pod]
        return sum(resource_score(int(asked[r]), int(capacity[r])) for r in range(2)) // 2

    def fits(self, pod: int, node: int) -> bool:
        """The pod may run on the node beside what runs there now."""
        problem, workload = self.filters, self.instance.pods.workload
        mine = workload[pod]
        if not problem.allowed[0, mine, node] or self.room[node] < 1:
            return False
        if (self.instance.pods.request[pod] > self.free[node]).any():
            return False
        for t in range(int(problem.size[0]["num_anti"])):
            domain, owner, match = problem.anti_domain[0, t], problem.anti_owner[0, t], problem.anti_match[0, t]
            if domain[node] < 0:
                continue
            others = [workload[q] for q, n in self.hosts.items() if q != pod and domain[n] == domain[node]]
            if any((owner[mine] and match[other]) or (owner[other] and match[mine]) for other in others):
                return False
        return True
