"""What placement needs to know of nodes and pods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from dispatchgym.envs.packing.instance import Taint, Toleration
from dispatchgym.serving.kube.fields import whole

Pairs = tuple[tuple[str, str], ...]


class Requirement(NamedTuple):
    """One condition on labels; `operator` In, NotIn, Exists, DoesNotExist, and on nodes also Gt, Lt."""

    key: str
    operator: str
    values: tuple[str, ...]

    def holds(self, labels: Mapping[str, str]) -> bool:
        own = labels.get(self.key)
        if self.operator == "In":
            return own is not None and own in self.values
        if self.operator == "NotIn":
            return own is None or own not in self.values
        if self.operator == "Exists":
            return own is not None
        if self.operator == "DoesNotExist":
            return own is None
        number, bound = whole(own), whole(self.values[0] if len(self.values) == 1 else None)
        if number is None or bound is None:
            return False
        return number > bound if self.operator == "Gt" else number < bound


class Selector(NamedTuple):
    """Conditions that all must hold; without any it holds for all labels."""

    requirements: tuple[Requirement, ...]

    def holds(self, labels: Mapping[str, str]) -> bool:
        return all(r.holds(labels) for r in self.requirements)


class NodeTerm(NamedTuple):
    """One alternative of required node affinity; an empty one accepts no node."""

    labels: tuple[Requirement, ...]
    names: tuple[Requirement, ...]

    def holds(self, labels: Mapping[str, str], name: str) -> bool:
        if not self.labels and not self.names:
            return False
        return all(r.holds(labels) for r in self.labels) and all(r.holds({"metadata.name": name}) for r in self.names)


class PodTerm(NamedTuple):
    """A required (anti-)affinity term: pods of `namespaces` that `selector` matches, by domain of `topology`.

    `selector` None matches no pod, `namespaces` None is every namespace.
    """

    topology: str
    selector: Selector | None
    namespaces: frozenset[str] | None

    def matches(self, namespace: str, labels: Mapping[str, str]) -> bool:
        if self.selector is None or (self.namespaces is not None and namespace not in self.namespaces):
            return False
        return self.selector.holds(labels)


class SpreadTerm(NamedTuple):
    """A hard topology spread constraint (DoNotSchedule); pods of the same namespace count."""

    topology: str
    selector: Selector | None
    max_skew: int
    min_domains: int
    honours_affinity: bool
    honours_taints: bool


class Port(NamedTuple):
    """A port of the node that a pod takes; address "0.0.0.0" is every address."""

    address: str
    protocol: str
    number: int

    def clashes(self, other: Port) -> bool:
        same = self.number == other.number and self.protocol == other.protocol
        return same and (self.address == other.address or "0.0.0.0" in (self.address, other.address))


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What placement needs to know of a node.

    Args:
        allocatable: resource -> amount: milli-CPU, bytes, whole units of others.
        max_pods: pods at a time.
        gpus, model: GPUs that the resources in GPU_RESOURCES count, and their model.
    """

    name: str
    labels: Mapping[str, str]
    taints: tuple[Taint, ...]
    unschedulable: bool
    allocatable: Mapping[str, int]
    max_pods: int
    gpus: int = 0
    model: str = ""


class Rules(NamedTuple):
    """A pod's rules about the node itself, whatever runs there: pods with equal rules are filtered once."""

    selector: Pairs
    affinity: tuple[NodeTerm, ...] | None
    tolerations: tuple[Toleration, ...]

    def accepts(self, node: NodeFacts) -> bool:
        """Selector and required affinity allow the node."""
        if any(node.labels.get(key) != value for key, value in self.selector):
            return False
        return self.affinity is None or any(term.holds(node.labels, node.name) for term in self.affinity)

    def untolerated(self, node: NodeFacts) -> Taint | None:
        """The first taint that keeps the pod away."""
        for taint in node.taints:
            if taint.effect != "PreferNoSchedule" and not any(t.tolerates(taint) for t in self.tolerations):
                return taint
        return None


@dataclass(frozen=True, slots=True)
class PodFacts:
    """What placement needs to know of a pod.

    Args:
        uid: "namespace/name" if the object has none.
        node: where it is bound, "" for nowhere.
        is_done: Succeeded or Failed: it holds nothing any more.
        is_leaving: being deleted; it holds what it has until it is gone.
        requests: resource -> amount, as `NodeFacts.allocatable`.
        owner: uid of the controller, "" without; what its pods share.
        gpus, gpu_milli: GPUs, and thousandths of each; 0 without.
        gpu_slots: GPUs that it was given, as far as its annotations say.
        created: creation time as written, for queues.
        pinned: why a descheduler must let it be, "" if it may be moved.
    """

    uid: str
    namespace: str
    name: str
    node: str
    priority: int
    requests: Mapping[str, int]
    labels: Mapping[str, str]
    rules: Rules
    scheduler: str = "default-scheduler"
    owner: str = ""
    is_done: bool = False
    is_leaving: bool = False
    is_gated: bool = False
    is_unschedulable: bool = False
    ports: tuple[Port, ...] = ()
    affinity: tuple[PodTerm, ...] = ()
    anti_affinity: tuple[PodTerm, ...] = ()
    spread: tuple[SpreadTerm, ...] = ()
    gpus: int = 0
    gpu_milli: int = 0
    gpu_models: tuple[str, ...] = ()
    gpu_slots: tuple[int, ...] = ()
    nominated: str = ""
    created: str = ""
    pinned: str = ""

    @property
    def title(self) -> str:
        """What messages call it: namespace/name."""
        return f"{self.namespace}/{self.name}"
