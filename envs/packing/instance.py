"""A packing instance: the nodes of a cluster and the pods that arrive at it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.api import InvalidInstanceError

Column = npt.NDArray[np.integer[Any]]
"""Whole numbers; what is given is kept as the width that each field names."""

FOREVER = np.iinfo(np.int64).max
"""Lifetime of a pod that never leaves."""

MAX_AMOUNT = 2**53
"""Largest amount of a resource and largest time: sums over a cluster stay within int64."""

MAX_GPUS = 32
"""Most GPUs of a node: the slots of a pod are bits of an int64."""

WHOLE_GPU = 1000
"""Thousandths of a GPU in a GPU."""

Operator = Literal["In", "NotIn", "Exists", "DoesNotExist"]


@dataclass(frozen=True, slots=True)
class Taint:
    """A mark on a node that keeps away pods without a matching toleration.

    `effect` "NoSchedule" and "NoExecute" keep pods away; "PreferNoSchedule" only lowers scores.
    """

    key: str
    value: str = ""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] = "NoSchedule"


@dataclass(frozen=True, slots=True)
class Toleration:
    """What a pod tolerates: an empty key means every taint, an empty effect every effect, `value` None any value."""

    key: str = ""
    value: str | None = None
    effect: str = ""

    def tolerates(self, taint: Taint) -> bool:
        return (
            self.key in ("", taint.key)
            and self.effect in ("", taint.effect)
            and (self.value is None or self.value == taint.value)
        )


@dataclass(frozen=True, slots=True)
class Requirement:
    """One condition on a node's labels, as in required node affinity."""

    key: str
    operator: Operator = "In"
    values: tuple[str, ...] = ()

    def holds(self, labels: Mapping[str, str]) -> bool:
        if self.operator == "Exists":
            return self.key in labels
        if self.operator == "DoesNotExist":
            return self.key not in labels
        is_in = labels.get(self.key) in self.values
        return is_in if self.operator == "In" else not is_in


@dataclass(frozen=True, slots=True)
class AntiAffinity:
    """No pod whose labels contain `match` in the same domain (nodes with one value of label `topology`)."""

    topology: str
    match: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Spread:
    """Pods whose labels contain `match` may differ by at most `max_skew` between the domains of `topology`."""

    topology: str
    match: tuple[tuple[str, str], ...]
    max_skew: int = 1


@dataclass(frozen=True, slots=True)
class Workload:
    """What all pods of a ReplicaSet share beside their size: labels and placement rules.

    `models`: GPU models that will do, empty for any; `selector`: labels the node must have; `affinity`: sets of
    requirements of which one must hold completely, empty for none.
    """

    name: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    models: tuple[str, ...] = ()
    selector: tuple[tuple[str, str], ...] = ()
    affinity: tuple[tuple[Requirement, ...], ...] = ()
    tolerations: tuple[Toleration, ...] = ()
    anti_affinity: tuple[AntiAffinity, ...] = ()
    spread: tuple[Spread, ...] = ()

    def has_labels(self, match: tuple[tuple[str, str], ...]) -> bool:
        """The labels contain all of `match`."""
        own = dict(self.labels)
        return all(own.get(key) == value for key, value in match)

    def accepts(self, labels: Mapping[str, str]) -> bool:
        """Selector and affinity allow a node with these labels."""
        if any(labels.get(key) != value for key, value in self.selector):
            return False
        return not self.affinity or any(all(r.holds(labels) for r in term) for term in self.affinity)

    def tolerates(self, taints: Sequence[Taint]) -> bool:
        """Every taint that forbids scheduling is tolerated."""
        return all(t.effect == "PreferNoSchedule" or any(a.tolerates(t) for a in self.tolerations) for t in taints)


@dataclass(frozen=True, slots=True, eq=False)
class Nodes:
    """The machines of a cluster.

    Args:
        capacity: shape (nodes, resources), what pods may ask for in all: milli-CPU, memory MiB, then others.
        max_pods: shape (nodes,), most pods at a time. Default 110, as a kubelet has it.
        gpus: shape (nodes,), GPUs. Default none.
        models: one a node, the GPU model; "" without GPUs. Default none.
        labels, taints: one mapping and one list a node. Default none.
        unschedulable: shape (nodes,), closed to new pods. Default open.
        names: default node-0, node-1, ...
    """

    capacity: Column
    max_pods: Column = field(default_factory=lambda: np.zeros(0, np.int32))
    gpus: Column = field(default_factory=lambda: np.zeros(0, np.int32))
    models: tuple[str, ...] = ()
    labels: tuple[Mapping[str, str], ...] = ()
    taints: tuple[tuple[Taint, ...], ...] = ()
    unschedulable: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "capacity", _table(self.capacity, "node capacities"))
        n = len(self.capacity)
        put(self, "max_pods", _column(self.max_pods, np.int32, 110, n, "max_pods"))
        put(self, "gpus", _column(self.gpus, np.int32, 0, n, "gpus"))
        put(self, "unschedulable", _column(self.unschedulable, np.bool_, False, n, "unschedulable"))
        put(self, "models", tuple(self.models) or ("",) * n)
        put(self, "labels", tuple(dict(x) for x in self.labels) or ({},) * n)
        put(self, "taints", tuple(tuple(x) for x in self.taints) or ((),) * n)
        put(self, "names", tuple(self.names) or tuple(f"node-{i}" for i in range(n)))
        for key in ("models", "labels", "taints", "names"):
            if len(getattr(self, key)) != n:
                raise InvalidInstanceError(f"{len(getattr(self, key))} {key} for {n} nodes")
        if n == 0:
            raise InvalidInstanceError("a cluster needs at least one node")
        if (self.max_pods < 0).any() or (self.gpus < 0).any() or (self.gpus > MAX_GPUS).any():
            raise InvalidInstanceError(f"max_pods must not be negative, and a node has 0 to {MAX_GPUS} GPUs")

    def __len__(self) -> int:
        return len(self.capacity)

    def take(self, order: Sequence[int]) -> Nodes:
        """These nodes, in this order."""
        return Nodes(
            self.capacity[order],
            self.max_pods[order],
            self.gpus[order],
            tuple(self.models[n] for n in order),
            tuple(self.labels[n] for n in order),
            tuple(self.taints[n] for n in order),
            self.unschedulable[order],
            tuple(self.names[n] for n in order),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Pods:
    """Pods in order of arrival.

    Args:
        request: shape (pods, resources), as `Nodes.capacity`.
        priority: shape (pods,), higher is more urgent. Default 0.
        gpus: shape (pods,), GPUs asked for. Default 0.
        gpu_milli: shape (pods,), of each of these GPUs, in 1/1000; below 1000 only of a single GPU. Default
            1000 where GPUs are asked for.
        workload: shape (pods,), index into the instance's workloads. Default 0.
        arrival: shape (pods,), seconds, not falling. Default 0.
        lifetime: shape (pods,), seconds from binding to departure. Default FOREVER.
        names: default pod-0, pod-1, ...
    """

    request: Column
    priority: Column = field(default_factory=lambda: np.zeros(0, np.int32))
    gpus: Column = field(default_factory=lambda: np.zeros(0, np.int32))
    gpu_milli: Column = field(default_factory=lambda: np.zeros(0, np.int32))
    workload: Column = field(default_factory=lambda: np.zeros(0, np.int32))
    arrival: Column = field(default_factory=lambda: np.zeros(0, np.int64))
    lifetime: Column = field(default_factory=lambda: np.zeros(0, np.int64))
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "request", _table(self.request, "pod requests"))
        n = len(self.request)
        for key, dtype, default in (
            ("priority", np.int32, 0),
            ("gpus", np.int32, 0),
            ("workload", np.int32, 0),
            ("arrival", np.int64, 0),
            ("lifetime", np.int64, FOREVER),
        ):
            put(self, key, _column(getattr(self, key), dtype, default, n, key))
        share = np.asarray(self.gpu_milli)
        whole = np.where(self.gpus > 0, WHOLE_GPU, 0)
        put(self, "gpu_milli", _column(share if share.size else whole, np.int32, 0, n, "gpu_milli"))
        put(self, "names", tuple(self.names) or tuple(f"pod-{i}" for i in range(n)))
        self._check()

    def _check(self) -> None:
        n = len(self.request)
        share, life = self.gpu_milli, self.lifetime
        wrong = {
            "asks for a negative number of GPUs": self.gpus < 0,
            "asks for GPUs but for no share of them, or the other way round": (self.gpus > 0) != (share > 0),
            "asks for more than 1000/1000 of a GPU": share > WHOLE_GPU,
            "asks for a share of several GPUs": (self.gpus > 1) & (share != WHOLE_GPU),
            "arrives before time 0 or absurdly late": (self.arrival < 0) | (self.arrival > MAX_AMOUNT),
            "lives for no time at all or absurdly long": (life < 1) | ((life > MAX_AMOUNT) & (life < FOREVER)),
        }
        for what, flags in wrong.items():
            if flags.any():
                raise InvalidInstanceError(f"pod {self.names[int(np.argmax(flags))]!r} {what}")
        if n == 0 or len(self.names) != n:
            raise InvalidInstanceError(f"{len(self.names)} names for {n} pods; at least one pod is needed")
        if (np.diff(self.arrival) < 0).any():
            late = int(np.argmax(np.diff(self.arrival) < 0)) + 1
            raise InvalidInstanceError(f"pod {self.names[late]!r} arrives before the one ahead of it; sort by arrival")

    def __len__(self) -> int:
        return len(self.request)

    def take(self, order: Sequence[int], **changed: Any) -> Pods:
        """These pods, in this order; a pod may occur more than once. `changed` columns replace theirs."""
        columns: dict[str, Any] = {
            key: getattr(self, key)[order]
            for key in ("request", "priority", "gpus", "gpu_milli", "workload", "arrival", "lifetime")
        }
        return Pods(**{**columns, "names": tuple(self.names[p] for p in order), **changed})


@dataclass(frozen=True, slots=True, eq=False)
class Typical:
    """The request classes a cluster's fragmentation is measured against, shape (classes,) each.

    Source: Weng et al., Beware of Fragmentation, USENIX ATC 2023: the most frequent classes (CPU, GPUs, share,
    models) that make up `PopularShare` of the pods.

    Args:
        cpu: milli-CPU. gpus, gpu_milli: as in Pods. models: allowed models, empty for any.
        share: frequency, sums to 1.
    """

    cpu: Column
    gpus: Column
    gpu_milli: Column
    models: tuple[tuple[str, ...], ...]
    share: npt.NDArray[np.float64]

    @classmethod
    def of(cls, pods: Pods, workloads: Sequence[Workload], popular: float = 0.95) -> Typical:
        """The most frequent classes of `pods`, until they make up `popular` of them; the larger first among equals."""
        count: dict[tuple[int, int, int, str], int] = {}
        for p in range(len(pods)):
            models = "|".join(workloads[pods.workload[p]].models)
            key = (int(pods.request[p, 0]), int(pods.gpu_milli[p]), int(pods.gpus[p]), models)
            count[key] = count.get(key, 0) + 1
        ranked = sorted(count, key=lambda key: (count[key], key), reverse=True)
        seen = np.cumsum([count[key] for key in ranked])
        chosen = ranked[: int(np.searchsorted(seen, popular * len(pods))) + 1]
        number = np.array([count[key] for key in chosen], np.float64)
        cpu, milli, gpus, models_of = zip(*chosen, strict=True)
        return cls(
            np.array(cpu, np.int64),
            np.array(gpus, np.int32),
            np.array(milli, np.int32),
            tuple(tuple(m.split("|")) if m else () for m in models_of),
            number / number.sum(),
        )


@dataclass(frozen=True, slots=True, eq=False)
class PackingInstance:
    """A cluster and the pods that arrive at it.

    Args:
        name: what results call it.
        nodes, pods: see there; with the same resources.
        workloads: what `pods.workload` points at. Default one without any rule.
        resources: names of the columns of requests and capacities, the first two CPU and memory.
        typical: what fragmentation is measured against; default the frequent classes of `pods`.

    Raises:
        InvalidInstanceError: parts that do not go together.
    """

    name: str
    nodes: Nodes
    pods: Pods
    workloads: tuple[Workload, ...] = (Workload(),)
    resources: tuple[str, ...] = ("cpu", "memory")
    typical: Typical = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        def refuse(what: str) -> InvalidInstanceError:
            return InvalidInstanceError(f"instance {self.name!r}: {what}")

        for what, table in (("nodes", self.nodes.capacity), ("pods", self.pods.request)):
            if table.shape[1] != len(self.resources):
                raise refuse(f"{what} have {table.shape[1]} resources, but {len(self.resources)} are named")
        if len(self.resources) < 2:
            raise refuse("resources must begin with CPU and memory")
        outside = (self.pods.workload < 0) | (self.pods.workload >= len(self.workloads))
        if outside.any():
            p = int(np.argmax(outside))
            raise refuse(f"pod {self.pods.names[p]!r} names workload {self.pods.workload[p]} of {len(self.workloads)}")
        for one in self.workloads:
            if any(s.max_skew < 1 for s in one.spread):
                raise refuse(f"workload {one.name!r} has a spread with max_skew below 1")
        if self.typical is None:
            object.__setattr__(self, "typical", Typical.of(self.pods, self.workloads))

    @property
    def num_nodes(self) -> int:
        return len(self.nodes)

    @property
    def num_pods(self) -> int:
        return len(self.pods)

    @property
    def size(self) -> str:
        """Nodes x pods, as groups of instances are named: '8x64'."""
        return f"{self.num_nodes}x{self.num_pods}"

    @property
    def tiers(self) -> npt.NDArray[np.int32]:
        """The priorities that occur, highest first."""
        return np.unique(self.pods.priority)[::-1].astype(np.int32)

    @property
    def digest(self) -> str:
        """sha256 of everything but the names: the same problem has the same digest."""
        h = hashlib.sha256()
        nodes, pods = self.nodes, self.pods
        for a in (nodes.capacity, nodes.max_pods, nodes.gpus, nodes.unschedulable, pods.request, pods.priority):
            h.update(np.ascontiguousarray(a, np.int64).tobytes() + b"|")
        for a in (pods.gpus, pods.gpu_milli, pods.workload, pods.arrival, pods.lifetime):
            h.update(np.ascontiguousarray(a, np.int64).tobytes() + b"|")
        labels = [sorted(x.items()) for x in nodes.labels]
        rules = [(w.labels, w.models, w.selector, w.affinity, w.tolerations, w.anti_affinity, w.spread)
                 for w in self.workloads]  # fmt: skip
        h.update(repr((nodes.models, labels, nodes.taints, rules)).encode())
        return h.hexdigest()


def _table(value: npt.ArrayLike, what: str) -> npt.NDArray[np.int64]:
    """A read-only (rows, resources) copy of whole, non-negative amounts."""
    wide = np.asarray(value)
    if wide.ndim != 2 or wide.dtype.kind not in "iu":
        raise InvalidInstanceError(f"{what} must be a table of whole numbers, rows by resources")
    if wide.size and (wide.min() < 0 or wide.max() > MAX_AMOUNT):
        raise InvalidInstanceError(f"{what} must lie between 0 and {MAX_AMOUNT}")
    table = wide.astype(np.int64)
    table.setflags(write=False)
    return table


def _column(
    value: npt.ArrayLike, dtype: type[np.generic], default: int | bool, rows: int, what: str
) -> npt.NDArray[np.generic]:
    """A read-only copy of `value`, one entry a row; `default` where nothing is given."""
    given = np.asarray(value)
    if not given.size:
        given = np.full(rows, default)
    if given.shape != (rows,) or given.dtype.kind not in "iub":
        raise InvalidInstanceError(f"{what} must be {rows} whole numbers, got shape {given.shape} of {given.dtype}")
    column = given.astype(dtype)
    if (column != given).any():
        raise InvalidInstanceError(f"{what} holds a number that does not fit {np.dtype(dtype).name}")
    column.setflags(write=False)
    return column
