"""Arrays of a batch of clusters: what the problems are, and where each run stands.

`i` counts environments, `k` instance slots, `n` nodes, `p` pods, `r` resources, `g` GPUs of a node, `w` workloads.
Amounts are int64 in the instance's own units, GPU shares in 1/1000, times in seconds. Everything is padded to the
largest instance of the batch.

Constants of this file are baked into @compiled functions: naming these here makes their cache notice a change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.api import InvalidInstanceError
from dispatchgym.envs.packing.instance import WHOLE_GPU, AntiAffinity, Nodes, PackingInstance, Spread, Workload

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I8 = npt.NDArray[np.int8]
U8 = npt.NDArray[np.uint8]

FUTURE, QUEUED, ASIDE, RUNNING, GONE = range(5)  # status of a pod
BIND, MOVE, EVICT, DEPART = range(4)  # kinds of log rows
KIND_COLUMN, POD_COLUMN = 1, 2  # of the log: time, kind, pod, node, slots, cause


class Mode(NamedTuple):
    """What is allowed and what is rewarded; plain numbers because kernels read it."""

    evict: bool
    moves: int  # moves allowed in an episode
    fragments: bool  # keep the fragmentation up to date
    placed: float  # reward of a placed pod of the lowest tier
    tier: float  # factor from one tier to the next
    eviction: float  # cost
    move: float  # cost
    gpu: float  # reward of an allocated GPU
    fragmentation: float  # cost of one more GPU of expected fragments


SIZE = np.dtype(
    [
        ("num_nodes", np.int64),
        ("num_pods", np.int64),
        ("num_anti", np.int64),  # anti-affinity terms
        ("num_spread", np.int64),  # spread terms, one a workload and rule
        ("num_typical", np.int64),
        ("num_classes", np.int64),
        ("num_tiers", np.int64),
        ("total_milli", np.int64),  # GPU thousandths of the cluster
    ]
)
NODE = np.dtype([("max_pods", np.int64), ("gpus", np.int64), ("model", np.int64)])  # GPU model, -1 none
POD = np.dtype(
    [
        ("priority", np.int64),
        ("tier", np.int64),  # rank of the priority, 0 the lowest
        ("gpus", np.int64),
        ("milli", np.int64),  # of each GPU
        ("workload", np.int64),
        ("kind", np.int64),  # request class
        ("arrival", np.int64),
        ("lifetime", np.int64),
    ]
)
SPREAD = np.dtype([("domains", np.int64), ("owner", np.int64), ("skew", np.int64)])
TYPICAL = np.dtype(
    [
        ("cpu", np.int64),
        ("gpus", np.int64),
        ("milli", np.int64),
        ("models", np.uint64),  # bit set, 0 any
        ("share", np.float64),
    ]
)
CLASS = np.dtype([("example", np.int64), ("share", np.float64)])  # a pod of the class; of all pods


class Problem(NamedTuple):
    """Read-only side, one row an instance slot; several environments may share a slot.

    Records instead of an array a quantity: what compiled functions hand each other stays short.
    """

    size: Any  # (slots,) of SIZE
    node: Any  # (slots, nodes) of NODE
    pod: Any  # (slots, pods) of POD
    spread: Any  # (slots, terms) of SPREAD
    typical: Any  # (slots, typical) of TYPICAL
    classes: Any  # (slots, pods) of CLASS
    capacity: I64  # (slots, nodes, resources)
    request: I64  # (slots, pods, resources)
    allowed: U8  # (slots, workloads, nodes): filters that do not depend on what runs
    anti_domain: I32  # (slots, terms, nodes): -1 without the label
    anti_owner: U8  # (slots, terms, workloads): the workload has the term
    anti_match: U8  # (slots, terms, workloads): the workload is what the term keeps away
    spread_domain: I32  # (slots, terms, nodes): -1 without the label or outside the owner's selector
    spread_match: U8  # (slots, terms, workloads)


ENV_STATE = np.dtype(
    [
        ("slot", np.int64),  # instance slot
        ("queued", np.int64),  # pods in the queue
        ("num_options", np.int64),
        ("hand", np.int64),  # pod at hand, -1 none
        ("lifted", np.int64),  # 1 while a running pod has been picked up
        ("origin", np.int64),  # the node it comes from
        ("origin_slots", np.int64),
        ("next_pod", np.int64),  # first pod that has not arrived
        ("running", np.int64),
        ("aside", np.int64),  # pods that fitted nowhere or were told to wait
        ("moves_left", np.int64),
        ("over", np.int64),
        ("logged", np.int64),
        ("now", np.int64),
        ("ticks", np.int64),  # stamps given out
        ("decisions", np.int64),
        ("moved", np.int64),
        ("evicted", np.int64),
        ("gpu_used", np.int64),  # thousandths
        ("gpu_asked", np.int64),  # by all pods that have arrived
        ("frag_sum", np.float64),  # thousandths
        ("gpu_time", np.float64),  # GPU seconds allocated
        ("wait_time", np.float64),  # pod seconds pending
    ]
)
NODE_STATE = np.dtype([("room", np.int64), ("head", np.int64), ("frag", np.float64)])  # pods that may come; first pod
POD_STATE = np.dtype(
    [
        ("status", np.int64),
        ("host", np.int64),  # node, -1 none
        ("after", np.int64),  # next pod on the same node
        ("before", np.int64),  # previous one
        ("slots", np.int64),  # bit set of GPUs
        ("stamp", np.int64),  # place in the queue
        ("bound_at", np.int64),
        ("leaves", np.int64),  # departure of a running pod
        ("declined", np.int64),  # 1 if it was set aside though it had a choice
    ]
)
DOMAIN_STATE = np.dtype([("anti_match", np.int64), ("anti_owner", np.int64), ("spread", np.int64)])  # pods there


class Cluster(NamedTuple):
    """Mutable side, one row an environment."""

    env: Any  # (envs,) of ENV_STATE
    node: Any  # (envs, nodes) of NODE_STATE
    pod: Any  # (envs, pods) of POD_STATE
    domain: Any  # (envs, terms, domains) of DOMAIN_STATE
    free: I64  # (envs, nodes, resources)
    gpu_free: I64  # (envs, nodes, gpus): thousandths
    queue: I64  # (envs, pods): pods that wait for a decision, in no order
    mask: I8  # (envs, actions)
    options: I64  # (envs, actions): the legal actions, packed
    log: I64  # (envs, rows, 6): what happened: time, kind, pod, node, slots, cause
    trial: I64  # (gpus,): scratch
    victims: I64  # (2, pods): scratch, pods and their slots


class Capacity(NamedTuple):
    """Largest instance that fits a batch."""

    nodes: int
    pods: int
    resources: int = 2
    gpus: int = 1
    workloads: int = 1
    terms: int = 0
    domains: int = 0
    typical: int = 1

    @classmethod
    def of(cls, instances: Sequence[PackingInstance]) -> Capacity:
        return cls(*(max(column) for column in zip(*map(_size, instances), strict=True)))

    @property
    def actions(self) -> int:
        return self.nodes * self.gpus + self.nodes + self.pods + 1


def _size(instance: PackingInstance) -> tuple[int, ...]:
    terms = _anti_terms(instance), _spread_terms(instance)
    keys = {t.topology for t in terms[0]} | {t.topology for _, t in terms[1]}
    domains = (len({x[key] for x in instance.nodes.labels if key in x}) for key in keys)
    return (
        instance.num_nodes,
        instance.num_pods,
        len(instance.resources),
        max(1, int(instance.nodes.gpus.max())),
        len(instance.workloads),
        max(len(terms[0]), len(terms[1])),
        max(domains, default=0),
        len(instance.typical.cpu),
    )


def _anti_terms(instance: PackingInstance) -> list[AntiAffinity]:
    return list(dict.fromkeys(t for w in instance.workloads for t in w.anti_affinity))


def _spread_terms(instance: PackingInstance) -> list[tuple[int, Spread]]:
    return [(w, t) for w, workload in enumerate(instance.workloads) for t in workload.spread]


def new_problem(slots: int, size: Capacity) -> Problem:
    def zeros(dtype: npt.DTypeLike, *shape: int) -> npt.NDArray[Any]:
        return np.zeros((slots, *shape), dtype)

    return Problem(
        size=zeros(SIZE),
        node=zeros(NODE, size.nodes),
        pod=zeros(POD, size.pods),
        spread=zeros(SPREAD, size.terms),
        typical=zeros(TYPICAL, size.typical),
        classes=zeros(CLASS, size.pods),
        capacity=zeros(np.int64, size.nodes, size.resources),
        request=zeros(np.int64, size.pods, size.resources),
        allowed=zeros(np.uint8, size.workloads, size.nodes),
        anti_domain=zeros(np.int32, size.terms, size.nodes),
        anti_owner=zeros(np.uint8, size.terms, size.workloads),
        anti_match=zeros(np.uint8, size.terms, size.workloads),
        spread_domain=zeros(np.int32, size.terms, size.nodes),
        spread_match=zeros(np.uint8, size.terms, size.workloads),
    )


def put_instance(problem: Problem, size: Capacity, k: int, instance: PackingInstance) -> None:
    """Fill slot k of a problem made for `size`.

    Raises:
        InvalidInstanceError: it does not fit.
    """
    own = Capacity.of([instance])
    if any(need > have for need, have in zip(own, size, strict=True)) or own.resources != size.resources:
        raise InvalidInstanceError(f"instance {instance.name!r} needs {own}, the room is {size}; raise the capacity")
    nodes, pods, workloads = instance.nodes, instance.pods, instance.workloads
    n, p, w = len(nodes), len(pods), len(workloads)
    models = sorted({m for m in nodes.models if m})
    if len(models) > 63:
        raise InvalidInstanceError(
            f"instance {instance.name!r} has {len(models)} GPU models; at most 63 are told apart"
        )
    for array in problem:
        array[k] = 0
    anti, spread, typical = _anti_terms(instance), _spread_terms(instance), instance.typical

    one = problem.size[k]
    one["num_nodes"], one["num_pods"], one["num_typical"] = n, p, len(typical.cpu)
    one["num_anti"], one["num_spread"] = len(anti), len(spread)
    one["total_milli"] = int(nodes.gpus.sum()) * WHOLE_GPU

    node = problem.node[k, :n]
    node["max_pods"], node["gpus"] = nodes.max_pods, nodes.gpus
    node["model"] = [models.index(m) if m else -1 for m in nodes.models]
    problem.capacity[k, :n] = nodes.capacity

    pod = problem.pod[k, :p]
    for name in ("priority", "gpus", "workload", "arrival", "lifetime"):
        pod[name] = getattr(pods, name)
    pod["milli"] = pods.gpu_milli
    pod["tier"] = np.unique(pods.priority, return_inverse=True)[1]
    one["num_tiers"] = pod["tier"].max() + 1
    problem.request[k, :p] = pods.request

    rows = np.column_stack([pods.request, pods.gpus, pods.gpu_milli, pods.workload])
    _, example, kind, count = np.unique(rows, axis=0, return_index=True, return_inverse=True, return_counts=True)
    pod["kind"] = kind.ravel()
    one["num_classes"] = len(count)
    problem.classes["example"][k, : len(count)] = example
    problem.classes["share"][k, : len(count)] = count / p

    rows_of: dict[object, npt.NDArray[np.bool_]] = {}
    for c, workload in enumerate(workloads):
        alike = workload.models, workload.selector, workload.affinity, workload.tolerations
        if alike not in rows_of:
            rows_of[alike] = _allowed(workload, nodes)
        problem.allowed[k, c, :n] = rows_of[alike]
    for t, term in enumerate(anti):
        problem.anti_domain[k, t, :n] = _domains(term.topology, nodes)[0]
        problem.anti_owner[k, t, :w] = [term in workload.anti_affinity for workload in workloads]
        problem.anti_match[k, t, :w] = [workload.has_labels(term.match) for workload in workloads]
    for t, (owner, rule) in enumerate(spread):
        inside = [workloads[owner].accepts(labels) for labels in nodes.labels]
        problem.spread_domain[k, t, :n], domains = _domains(rule.topology, nodes, inside)
        problem.spread[k, t] = domains, owner, rule.max_skew
        problem.spread_match[k, t, :w] = [workload.has_labels(rule.match) for workload in workloads]
    asked = problem.typical[k, : len(typical.cpu)]
    asked["cpu"], asked["gpus"], asked["milli"] = typical.cpu, typical.gpus, typical.gpu_milli
    asked["models"] = [_model_bits(allowed, models) for allowed in typical.models]
    asked["share"] = typical.share


def _allowed(workload: Workload, nodes: Nodes) -> npt.NDArray[np.bool_]:
    """Which nodes pass the filters that do not depend on what runs, shape (nodes,)."""
    return np.array(
        [
            not nodes.unschedulable[x]
            and workload.tolerates(nodes.taints[x])
            and workload.accepts(nodes.labels[x])
            and (not workload.models or nodes.models[x] in workload.models)
            for x in range(len(nodes))
        ]
    )


def _domains(topology: str, nodes: Nodes, inside: Sequence[bool] | None = None) -> tuple[I32, int]:
    """The domain of every node, -1 without the label or not `inside`; and how many domains there are."""
    values = [labels.get(topology) if inside is None or inside[n] else None for n, labels in enumerate(nodes.labels)]
    known = sorted({v for v in values if v is not None})
    return np.array([-1 if v is None else known.index(v) for v in values], np.int32), len(known)


def _model_bits(allowed: Sequence[str], models: Sequence[str]) -> int:
    """Bit set of allowed GPU models; 0 for any, bit 63 alone where the cluster has none of them."""
    if not allowed:
        return 0
    return sum(1 << models.index(m) for m in allowed if m in models) or 1 << 63


def new_cluster(envs: int, size: Capacity) -> Cluster:
    def zeros(dtype: npt.DTypeLike, *shape: int) -> npt.NDArray[Any]:
        return np.zeros((envs, *shape), dtype)

    env = zeros(ENV_STATE)
    env["over"], env["hand"] = 1, -1
    return Cluster(
        env=env,
        node=zeros(NODE_STATE, size.nodes),
        pod=zeros(POD_STATE, size.pods),
        domain=zeros(DOMAIN_STATE, size.terms, size.domains),
        free=zeros(np.int64, size.nodes, size.resources),
        gpu_free=zeros(np.int64, size.nodes, size.gpus),
        queue=zeros(np.int64, size.pods),
        mask=zeros(np.int8, size.actions),
        options=zeros(np.int64, size.actions),
        log=zeros(np.int64, 4 * size.pods + LOG_MARGIN, 6),
        trial=np.zeros(size.gpus, np.int64),
        victims=np.zeros((2, size.pods), np.int64),
    )


LOG_MARGIN = 8


def with_log_room(cluster: Cluster) -> Cluster:
    """`cluster`, with a longer log if one more decision might fill it: it moves every pod at most twice."""
    rows, pods = cluster.log.shape[1], cluster.pod.shape[1]
    if int(cluster.env["logged"].max()) + 2 * pods + LOG_MARGIN <= rows:
        return cluster
    longer = np.zeros((len(cluster.log), 2 * rows, cluster.log.shape[2]), np.int64)
    longer[:, :rows] = cluster.log
    return cluster._replace(log=longer)
