"""Random instances: the generator of 'Priority Matters' and clusters with every kind of filter."""

from __future__ import annotations

import numpy as np

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.packing.instance import (
    AntiAffinity,
    Nodes,
    PackingInstance,
    Pods,
    Requirement,
    Spread,
    Taint,
    Toleration,
    Workload,
)


def priority_matters(
    num_nodes: int, pods_per_node: int, priorities: int, usage: float, seed: int, *, name: str | None = None
) -> PackingInstance:
    """An instance as in 'Priority Matters' (Christensen, Giallorenzo, Mauro, arXiv 2511.08373).

    ReplicaSets are drawn one after another until there are `num_nodes` x `pods_per_node` pods: size uniform in 1..4
    (the last one cut), milli-CPU and memory MB uniform in 100..1000, priority uniform in 1..`priorities`, higher
    the more urgent. Nodes are alike: per resource the larger of the largest pod and
    ceil(ceil(total / usage) / nodes). A ReplicaSet's pods arrive together, one ReplicaSet a second.

    Departures: the priority's law and the random numbers are ours; the paper names neither.

    Raises:
        UsageError: a size or usage that cannot be.
    """
    if num_nodes < 1 or pods_per_node < 1 or priorities < 1:
        raise UsageError(
            f"{num_nodes} nodes, {pods_per_node} pods per node, {priorities} priorities: each must be >= 1"
        )
    if not 0.0 < usage <= 100.0:
        raise UsageError(f"usage is {usage}; it must be a positive share such as 0.95")
    rng = np.random.default_rng(seed)
    want = num_nodes * pods_per_node
    sets: list[tuple[int, int, int, int]] = []
    left = want
    while left:
        size = min(int(rng.integers(1, 4, endpoint=True)), left)
        cpu, memory = rng.integers(100, 1000, 2, endpoint=True).tolist()
        sets.append((size, cpu, memory, int(rng.integers(1, priorities, endpoint=True))))
        left -= size
    size, cpu, memory, priority = np.array(sets, np.int64).T
    of = np.repeat(np.arange(len(sets)), size)
    request = np.column_stack([cpu, memory])[of]
    total = request.sum(axis=0)
    capacity = np.maximum(request.max(axis=0), np.ceil(np.ceil(total / usage) / num_nodes)).astype(np.int64)
    number = np.concatenate([np.arange(s) for s in size])
    return PackingInstance(
        name or f"pm-{num_nodes}x{pods_per_node}-p{priorities}-u{usage:.2f}-seed{seed}",
        Nodes(np.tile(capacity, (num_nodes, 1))),
        Pods(
            request,
            priority=priority[of],
            workload=of,
            arrival=of,
            names=tuple(f"rs-{s}-{k}" for s, k in zip(of, number, strict=True)),
        ),
        tuple(Workload(f"rs-{s}", labels=(("app", f"rs-{s}"),)) for s in range(len(sets))),
    )


def random_cluster(
    rng: np.random.Generator,
    num_nodes: int,
    num_pods: int,
    *,
    gpus: bool = False,
    rules: bool = True,
    departures: bool = False,
    priorities: int = 3,
) -> PackingInstance:
    """A small heterogeneous cluster whose pods have every kind of rule, for tests and for trying things out.

    Args:
        gpus: nodes with 0 to 4 GPUs of two models, pods that ask for shares and for whole ones.
        rules: taints, selectors, affinity, anti-affinity, topology spread, closed nodes, an extended resource.
        departures: pods leave after 1 to 20 seconds; they arrive one a second.
        priorities: priorities are drawn from 0 .. priorities - 1.
    """
    zones = tuple(f"zone-{z}" for z in range(2))
    labels = tuple({"zone": zones[int(rng.integers(2))], "host": f"h{n}", "disk": ("ssd", "hdd")[int(rng.integers(2))]}
                   for n in range(num_nodes))  # fmt: skip
    if rules:  # a node may lack the label
        labels = tuple(x if rng.random() < 0.9 else {"host": x["host"]} for x in labels)
    taints = tuple((Taint("dedicated", "batch"),) if rules and rng.random() < 0.2 else () for _ in range(num_nodes))
    models = tuple(("A", "B")[int(rng.integers(2))] if gpus else "" for _ in range(num_nodes))
    count = rng.integers(0, 5, num_nodes) if gpus else np.zeros(num_nodes, np.int64)
    nodes = Nodes(
        np.column_stack([rng.integers(1000, 4001, (num_nodes, 2)), rng.integers(0, 3, num_nodes)]),
        max_pods=rng.integers(2, 12, num_nodes),
        gpus=count,
        models=tuple(m if c else "" for m, c in zip(models, count, strict=True)),
        labels=labels,
        taints=taints,
        unschedulable=(rng.random(num_nodes) < 0.1) if rules else np.zeros(num_nodes, np.bool_),
    )
    workloads = tuple(_workload(rng, w, gpus) if rules else Workload(f"w{w}") for w in range(4))
    asked = rng.integers(0, 3, num_pods) if gpus else np.zeros(num_pods, np.int64)
    share = np.where(asked == 1, rng.choice([250, 500, 700, 1000], num_pods), np.where(asked > 1, 1000, 0))
    return PackingInstance(
        f"random-{num_nodes}x{num_pods}",
        nodes,
        Pods(
            np.column_stack([rng.integers(100, 1001, (num_pods, 2)), rng.random(num_pods) < 0.2]).astype(np.int64),
            priority=rng.integers(0, priorities, num_pods),
            gpus=asked,
            gpu_milli=share,
            workload=rng.integers(0, len(workloads), num_pods),
            arrival=np.arange(num_pods) if departures else np.sort(rng.integers(0, 4, num_pods)),
            lifetime=rng.integers(1, 21, num_pods) if departures else np.zeros(0, np.int64),
        ),
        workloads,
        ("cpu", "memory", "example.com/device"),
    )


def _workload(rng: np.random.Generator, number: int, gpus: bool) -> Workload:
    app = (("app", f"a{number % 3}"),)

    def maybe(share: float) -> bool:
        return bool(rng.random() < share)

    return Workload(
        f"w{number}",
        labels=(*app, ("team", "x" if maybe(0.5) else "y")),
        models=("A",) if gpus and maybe(0.3) else (),
        selector=(("disk", "ssd"),) if maybe(0.2) else (),
        affinity=((Requirement("zone", "In", ("zone-0",)),), (Requirement("disk", "NotIn", ("hdd",)),))
        if maybe(0.2)
        else (),
        tolerations=(Toleration("dedicated"),) if maybe(0.5) else (),
        anti_affinity=(AntiAffinity("host", app),) if maybe(0.3) else (),
        spread=(Spread("zone", app, int(rng.integers(1, 3))),) if maybe(0.3) else (),
    )
