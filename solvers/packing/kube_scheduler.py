"""kube-scheduler: the default scheduler of Kubernetes, decision by decision.

Source: kubernetes/kubernetes, pkg/scheduler. The queue (PrioritySort) and the filters are the environment's own;
here are node sampling, the score plug-ins, ties and DefaultPreemption. What the instances do not have adds the
same to every node and is left out: preferred affinity, soft topology spread, image locality. Not modelled either:
back-off times, pod disruption budgets, asynchronous binding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.compiled import compiled, inlined
from dispatchgym.envs.packing.batch import PackingBatch, PackingConfig
from dispatchgym.envs.packing.instance import PackingInstance
from dispatchgym.envs.packing.kernel import step
from dispatchgym.envs.packing.state import F64, I64, Cluster, Mode, Problem
from dispatchgym.envs.packing.victims import choose_victims
from dispatchgym.envs.registry import unknown_name
from dispatchgym.solvers.packing import least_allocated, most_allocated, requested_to_capacity
from dispatchgym.solvers.packing.random_node import noise
from dispatchgym.solvers.packing.rules import Rollout

Strategy = Literal["least-allocated", "most-allocated", "requested-to-capacity"]
Balanced = Literal["level", "change", "off"]
Ties = Literal["random", "first"]

DEFAULT_REQUEST = np.array([100, 200], np.int64)
"""Milli-CPU and MiB that the fit score takes a pod without requests to need."""

_STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
_BALANCED: tuple[Balanced, ...] = get_args(Balanced)
_LEAST, _MOST, _RATIO = range(3)
_LEVEL, _CHANGE, _OFF = range(3)


@dataclass(frozen=True, slots=True)
class Settings:
    """How the scheduler is configured; the defaults are those of Kubernetes.

    Args:
        strategy: of NodeResourcesFit, over CPU and memory alike.
        shape: of "requested-to-capacity": (use in per cent, score 0 to 10), by rising use.
        balanced: NodeResourcesBalancedAllocation. "level" scores how alike the shares in use will be (up to about
            Kubernetes 1.34), "change" how much the pod evens them out (newer), "off" does not score.
        fit_weight, balanced_weight, taint_weight: of the plug-ins.
        percentage: of nodes to find and score in clusters of 100 nodes and more; 0 adapts to the size.
        ties: among the best a seeded uniform draw, or the first node (as when results must repeat).
    """

    strategy: Strategy = "least-allocated"
    shape: tuple[tuple[int, int], ...] = requested_to_capacity.BIN_PACKING
    balanced: Balanced = "level"
    fit_weight: int = 1
    balanced_weight: int = 1
    taint_weight: int = 3
    percentage: int = 0
    ties: Ties = "random"

    def __post_init__(self) -> None:
        for kind, value, known in (
            ("strategy", self.strategy, _STRATEGIES),
            ("balanced", self.balanced, _BALANCED),
            ("ties", self.ties, get_args(Ties)),
        ):
            if value not in known:
                raise unknown_name(kind, value, known)
        uses = [use for use, _ in self.shape]
        if not uses or uses != sorted(set(uses)) or uses[0] < 0 or uses[-1] > 100:
            raise UsageError(f"shape {self.shape} must name uses from 0 to 100 per cent, each above the one before")
        if any(not 0 <= score <= 10 for _, score in self.shape):
            raise UsageError(f"shape {self.shape} must name scores from 0 to 10")
        if not 0 <= self.percentage <= 100:
            raise UsageError(f"percentage is {self.percentage}; it must be 0 to 100")
        if min(self.fit_weight, self.balanced_weight, self.taint_weight) < 0:
            raise UsageError("weights must not be negative")

    @property
    def numbers(self) -> tuple[int, ...]:
        """Strategy, balanced, their weights, the taints' weight, percentage, ties: as the kernel reads them."""
        return (
            _STRATEGIES.index(self.strategy),
            _BALANCED.index(self.balanced),
            self.fit_weight,
            self.balanced_weight,
            self.taint_weight,
            self.percentage,
            int(self.ties == "random"),
        )


MOST_ALLOCATED = Settings(strategy="most-allocated")
REQUESTED_TO_CAPACITY = Settings(strategy="requested-to-capacity")


def play(batch: PackingBatch, settings: Settings | None = None, seed: int = 0) -> np.ndarray:
    """Play all environments of a batch from where they stand to their end.

    Pods are evicted (DefaultPreemption) where `PackingConfig.evict` allows it.

    Args:
        seed: of the ties and of the node that preemption starts from; environment i draws with seed + i.

    Returns:
        Sums of the rewards, float64 (N,).
    """
    chosen = settings or Settings()
    shape = np.array([(use, 10 * score) for use, score in chosen.shape], np.int64)
    avoided = _avoided(batch)
    start = np.zeros(batch.num_envs, np.int64)
    seeds = np.arange(batch.num_envs, dtype=np.int64) + seed
    reward = np.zeros(batch.num_envs)
    rank = np.empty(batch.capacity.nodes, np.int64)
    margin = 2 * batch.capacity.pods + 8
    batch.make_log_room()
    while not _play(
        batch.problem, batch.cluster, batch.mode, np.array(chosen.numbers, np.int64), shape, DEFAULT_REQUEST,
        avoided, start, seeds, rank, reward, margin,
    ):  # fmt: skip
        batch.make_log_room()
    return reward


def rollout(
    instance: PackingInstance,
    settings: Settings | None = None,
    config: PackingConfig | None = None,
    *,
    seed: int = 0,
) -> Rollout:
    """One run on one instance; by default pods may be evicted."""
    batch = PackingBatch.of([instance], config or PackingConfig(evict=True))
    reward = float(play(batch, settings, seed)[0])
    return Rollout(batch.metrics(0), batch.log(0), int(batch.cluster.env["decisions"][0]), reward)


def scores(batch: PackingBatch, i: int = 0, settings: Settings | None = None) -> tuple[I64, F64]:
    """The legal bindings of environment i and what the score plug-ins give each node, taints left out.

    Returns:
        (actions, scores), each of shape (bindings,); GPUs of one node score alike.
    """
    chosen = settings or Settings()
    shape = np.array([(use, 10 * score) for use, score in chosen.shape], np.int64)
    binds = batch.capacity.nodes * batch.capacity.gpus
    actions = batch.cluster.options[i, : int(batch.cluster.env["num_options"][i])].astype(np.int64)
    actions = actions[actions < binds]
    out = np.empty(len(actions))
    _scores(batch.problem, batch.cluster, i, np.array(chosen.numbers, np.int64), shape, DEFAULT_REQUEST, actions, out)
    return actions, out


@compiled
def _scores(
    problem: Problem, cluster: Cluster, i: int, settings: I64, shape: I64, default: I64, actions: I64, out: F64
) -> None:
    p, gpus = cluster.env[i].hand, cluster.gpu_free.shape[2]
    for c in range(len(actions)):
        n = actions[c] // gpus
        value = settings[2] * fit_score(problem, cluster, i, p, n, settings[0], shape, default)
        if settings[1] != _OFF:
            value += settings[3] * balanced_score(problem, cluster, i, p, n, settings[1])
        out[c] = value


def _avoided(batch: PackingBatch) -> np.ndarray:
    """PreferNoSchedule taints of each node that each workload does not tolerate, int64 (slots, workloads, nodes)."""
    count = np.zeros(batch.problem.allowed.shape, np.int64)
    for k, instance in enumerate(batch.instances):
        if instance is None:
            continue
        for n, taints in enumerate(instance.nodes.taints):
            soft = [taint for taint in taints if taint.effect == "PreferNoSchedule"]
            for w, workload in enumerate(instance.workloads if soft else ()):
                count[k, w, n] = sum(not any(t.tolerates(x) for t in workload.tolerations) for x in soft)
    return count


@compiled
def _play(
    problem: Problem,
    cluster: Cluster,
    mode: Mode,
    settings: I64,
    shape: I64,
    default: I64,
    avoided: I64,
    start: I64,
    seeds: I64,
    rank: I64,
    reward: F64,
    margin: int,
) -> bool:
    """Play until all are over; False if the log must grow first."""
    for i in range(len(seeds)):
        while cluster.env[i].over == 0:
            if cluster.env[i].logged + margin > cluster.log.shape[1]:
                return False
            key = seeds[i] + cluster.env[i].decisions * 1_000_003
            action = pick_node(problem, cluster, i, settings, shape, default, avoided, start, rank, key)
            if action < 0:
                action = pick_victims(problem, cluster, i, settings[6], key)
            if action < 0:
                action = cluster.mask.shape[1] - 1
            reward[i] += step(problem, cluster, mode, i, action)
    return True


@inlined
def nodes_to_find(nodes: int, percentage: int) -> int:
    """How many nodes that fit are enough: all below 100 nodes, else a share of them, at least 100."""
    if nodes < 100:
        return nodes
    share = percentage if percentage > 0 else max(5, 50 - nodes // 125)
    return max(100, nodes * share // 100)


@compiled
def pick_node(
    problem: Problem,
    cluster: Cluster,
    i: int,
    settings: I64,
    shape: I64,
    default: I64,
    avoided: I64,
    start: I64,
    rank: I64,
    key: int,
) -> int:
    """The binding with the highest score among the nodes sampled; -1 if the pod fits nowhere.

    `rank` is scratch: afterwards the first legal action of each node, -1 for none.
    """
    k, p = cluster.env[i].slot, cluster.env[i].hand
    nodes, gpus = cluster.gpu_free.shape[1], cluster.gpu_free.shape[2]
    count = problem.size[k].num_nodes
    w = problem.pod[k, p].workload
    for n in range(count):
        rank[n] = -1
    for c in range(cluster.env[i].num_options - 1, -1, -1):
        if cluster.options[i, c] < nodes * gpus:
            rank[cluster.options[i, c] // gpus] = c
    enough = nodes_to_find(count, settings[5])
    found = scanned = most_avoided = 0
    while scanned < count and found < enough:
        n = (start[i] + scanned) % count
        if rank[n] >= 0:
            found += 1
            most_avoided = max(most_avoided, avoided[k, w, n])
        scanned += 1
    best, highest = -1, -1
    luck = 0.0
    for s in range(scanned):
        n = (start[i] + s) % count
        if rank[n] < 0:
            continue
        taint = 100 if most_avoided == 0 else 100 - avoided[k, w, n] * 100 // most_avoided
        value = settings[4] * taint
        value += settings[2] * fit_score(problem, cluster, i, p, n, settings[0], shape, default)
        if settings[1] != _OFF:
            value += settings[3] * balanced_score(problem, cluster, i, p, n, settings[1])
        draw = noise(key, n) if settings[6] == 1 else -float(n)
        if value > highest or (value == highest and draw > luck):
            best, highest, luck = n, value, draw
    start[i] = (start[i] + scanned) % count
    if best < 0:
        return -1
    action, least = -1, 0  # the fullest GPU of the node that fits
    for c in range(rank[best], cluster.env[i].num_options):
        option = cluster.options[i, c]
        if option >= (best + 1) * gpus:
            break
        free = cluster.gpu_free[i, best, option % gpus]
        if action < 0 or free < least:
            action, least = option, free
    return action


@inlined
def fit_score(
    problem: Problem, cluster: Cluster, i: int, p: int, n: int, strategy: int, shape: I64, default: I64
) -> int:
    """NodeResourcesFit: the mean over CPU and memory, 0 to 100; pods without a request count with the default."""
    k = cluster.env[i].slot
    total = counted = 0
    for r in range(2):
        capacity = problem.capacity[k, n, r]
        own = problem.request[k, p, r]
        used = capacity - cluster.free[i, n, r] + (own if own > 0 else default[r])
        q = cluster.node[i, n].head
        while q >= 0:
            if problem.request[k, q, r] == 0:
                used += default[r]
            q = cluster.pod[i, q].after
        if strategy == _LEAST:
            total += least_allocated.resource_score(used, capacity)
            counted += 1
        elif strategy == _MOST:
            total += most_allocated.resource_score(used, capacity)
            counted += 1
        else:
            value = requested_to_capacity.resource_score(used, capacity, shape)
            if value > 0:
                total += value
                counted += 1
    if counted == 0:
        return 0
    if strategy == _RATIO:  # rounded, the others are cut
        return (2 * total + counted) // (2 * counted)
    return total // counted


@inlined
def evenness(cpu: float, memory: float) -> int:
    """0 to 100: how alike two shares in use are, each cut off at 1."""
    return int((1.0 - abs(min(cpu, 1.0) - min(memory, 1.0)) / 2.0) * 100.0)


@inlined
def balanced_score(problem: Problem, cluster: Cluster, i: int, p: int, n: int, form: int) -> int:
    """NodeResourcesBalancedAllocation over CPU and memory; 0 for a pod that asks for neither."""
    k = cluster.env[i].slot
    own_cpu, own_memory = problem.request[k, p, 0], problem.request[k, p, 1]
    if own_cpu == 0 and own_memory == 0:
        return 0
    cpu, memory = max(problem.capacity[k, n, 0], 1), max(problem.capacity[k, n, 1], 1)
    used_cpu, used_memory = cpu - cluster.free[i, n, 0], memory - cluster.free[i, n, 1]
    after = evenness((used_cpu + own_cpu) / cpu, (used_memory + own_memory) / memory)
    if form == _LEVEL:
        return after
    return 50 + (50 + after - evenness(used_cpu / cpu, used_memory / memory)) // 2


@compiled
def pick_victims(problem: Problem, cluster: Cluster, i: int, draws: int, key: int) -> int:
    """DefaultPreemption: the eviction with the least harm; -1 if none is legal.

    Candidates are taken in node order, with `draws` from a random node on, at most the larger of 10 % of the nodes
    and 100.
    Least harm: lowest highest priority among the victims; least sum of their priorities (each counted from the
    lowest possible one, so that more victims weigh more); fewest victims; latest start of the earliest started
    among the most urgent victims; first candidate.
    """
    k, p = cluster.env[i].slot, cluster.env[i].hand
    nodes, gpus = cluster.gpu_free.shape[1], cluster.gpu_free.shape[2]
    count = problem.size[k].num_nodes
    limit = max(count // 10, 100)
    offset = int(noise(key, -2) * count) if draws == 1 else 0
    best = -1
    least_top = least_sum = fewest = latest = 0
    for s in range(count):
        n = (offset + s) % count
        if limit == 0 or cluster.mask[i, nodes * gpus + n] == 0:
            continue
        limit -= 1
        victims = choose_victims(problem, cluster, i, p, n)
        top = problem.pod[k, cluster.victims[0, 0]].priority
        total = 0
        since = cluster.pod[i, cluster.victims[0, 0]].bound_at
        for v in range(victims):
            q = cluster.victims[0, v]
            total += problem.pod[k, q].priority + 2**31
            if problem.pod[k, q].priority == top:
                since = min(since, cluster.pod[i, q].bound_at)
        better = best < 0 or top < least_top
        if not better and top == least_top:
            better = total < least_sum
            if not better and total == least_sum:
                better = victims < fewest or (victims == fewest and since > latest)
        if better:
            best, least_top, least_sum, fewest, latest = n, top, total, victims, since
    return -1 if best < 0 else nodes * gpus + best
