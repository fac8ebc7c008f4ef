"""Kubernetes objects, as decoded from JSON, to the facts that placement needs.

Reads what the API server sends (and what a scheduler extender is sent) without trusting its form: a field of the
wrong type is a PayloadError that names it, an unknown field is ignored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from dispatchgym.envs.packing.instance import MAX_AMOUNT, MAX_GPUS, WHOLE_GPU, Taint, Toleration
from dispatchgym.serving.kube.quantity import PayloadError, amount

Json = Mapping[str, Any]
Pairs = tuple[tuple[str, str], ...]
Effect = Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]

GPU_RESOURCES = ("nvidia.com/gpu", "amd.com/gpu", "alibabacloud.com/gpu-count")
"""Extended resources that count whole GPUs of a node."""
GPU_MILLI, GPU_COUNT, GPU_INDEX, GPU_MODEL = (
    "alibabacloud.com/gpu-milli",
    "alibabacloud.com/gpu-count",
    "alibabacloud.com/gpu-index",
    "alibabacloud.com/gpu-card-model",
)
"""Annotations of pods that share a GPU, as the openb traces have them: thousandths of each, GPUs, "0-2", "T4|V100"."""
GPU_MODEL_LABELS = (GPU_MODEL, "nvidia.com/gpu.product")
DEFAULT_MAX_PODS = 110
LONGEST_NAME = 253


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
        number, bound = _whole(own), _whole(self.values[0] if len(self.values) == 1 else None)
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


def node_facts(node: Any) -> NodeFacts:
    """Read a Node object.

    Raises:
        PayloadError: not a node.
    """
    what = "node"
    meta, spec, status = (_map(_object(node, what), key, what) for key in ("metadata", "spec", "status"))
    name = _text(meta, "name", what)
    if not name:
        raise PayloadError("node without metadata.name")
    what = f"node {name!r:.80}"
    source = "allocatable" if "allocatable" in status else "capacity"
    allocatable = _amounts(_map(status, source, what), f"{what} {source}")
    labels = _pairs(meta, "labels", what)
    max_pods = min(allocatable.pop("pods", DEFAULT_MAX_PODS), 2**31 - 1)
    gpus = min(max((allocatable.get(r, 0) for r in GPU_RESOURCES), default=0), MAX_GPUS)
    return NodeFacts(
        name=name,
        labels=labels,
        taints=tuple(_taint(t, what) for t in _list(spec, "taints", what)),
        unschedulable=_flag(spec, "unschedulable", what),
        allocatable=allocatable,
        max_pods=max_pods,
        gpus=gpus,
        model=next((labels[key] for key in GPU_MODEL_LABELS if key in labels), "") if gpus else "",
    )


def pod_facts(pod: Any) -> PodFacts:
    """Read a Pod object.

    Raises:
        PayloadError: not a pod.
    """
    what = "pod"
    meta, spec, status = (_map(_object(pod, what), key, what) for key in ("metadata", "spec", "status"))
    name, namespace = _text(meta, "name", what), _text(meta, "namespace", what) or "default"
    if not name:
        raise PayloadError("pod without metadata.name")
    what = f"pod {namespace}/{name}"[:120]
    affinity = _map(spec, "affinity", what)
    labels, notes = _pairs(meta, "labels", what), _pairs(meta, "annotations", what)
    requests = _requests(spec, what)
    gpus, milli = _gpus(requests, notes, what)
    owner = next((o for o in _objects(meta, "ownerReferences", what) if o.get("controller") is True), {})
    ports = tuple(_ports(spec, what))
    near = tuple(_pod_terms(_map(affinity, "podAffinity", what), namespace, labels, what))
    return PodFacts(
        uid=_text(meta, "uid", what) or f"{namespace}/{name}",
        namespace=namespace,
        name=name,
        node=_text(spec, "nodeName", what),
        priority=_int(spec, "priority", what, 0),
        requests=requests,
        labels=labels,
        rules=Rules(
            tuple(sorted(_pairs(spec, "nodeSelector", what).items())),
            _node_affinity(_map(affinity, "nodeAffinity", what), what),
            tuple(_tolerations(spec, what)),
        ),
        scheduler=_text(spec, "schedulerName", what) or "default-scheduler",
        owner=_text(owner, "uid", what),
        is_done=_text(status, "phase", what) in ("Succeeded", "Failed"),
        is_leaving=meta.get("deletionTimestamp") is not None,
        is_gated=bool(_list(spec, "schedulingGates", what)),
        is_unschedulable=any(
            c.get("type") == "PodScheduled" and c.get("status") == "False" and c.get("reason") == "Unschedulable"
            for c in _objects(status, "conditions", what)
        ),
        ports=ports,
        affinity=near,
        anti_affinity=tuple(_pod_terms(_map(affinity, "podAntiAffinity", what), namespace, labels, what)),
        spread=tuple(_spread(spec, labels, what)),
        gpus=gpus,
        gpu_milli=milli,
        gpu_models=tuple(m for m in notes.get(GPU_MODEL, "").split("|") if m) if gpus else (),
        gpu_slots=_slots(notes, gpus),
        nominated=_text(status, "nominatedNodeName", what),
        created=_text(meta, "creationTimestamp", what),
        pinned=_pinned(meta, spec, owner, ports, near, what),
    )


# --- parts of a pod ---


def _requests(spec: Json, what: str) -> dict[str, int]:
    """What the scheduler counts: containers, or an init container if that needs more, and the overhead.

    Init containers that restart always run beside everything that starts after them.
    """
    total: dict[str, int] = {}
    for container in _objects(spec, "containers", what):
        _add(total, _container(container, what))
    beside: dict[str, int] = {}
    peak: dict[str, int] = {}
    for container in _objects(spec, "initContainers", what):
        own = _container(container, what)
        if _text(container, "restartPolicy", what) == "Always":
            _add(total, own)
            _add(beside, own)
            own = dict(beside)
        else:
            _add(own, beside)
        _at_least(peak, own)
    _at_least(total, peak)
    total |= _container(spec, what)  # amounts for the pod as a whole stand above those of its containers
    _add(total, _amounts(_map(spec, "overhead", what), f"{what} overhead"))
    return {resource: value for resource, value in total.items() if value}


def _container(container: Json, what: str) -> dict[str, int]:
    """Requests; a limit without a request is one."""
    resources = _map(container, "resources", what)
    limits = _amounts(_map(resources, "limits", what), f"{what} limits")
    return limits | _amounts(_map(resources, "requests", what), f"{what} requests")


def _add(total: dict[str, int], more: Mapping[str, int]) -> None:
    for resource, value in more.items():
        total[resource] = min(total.get(resource, 0) + value, MAX_AMOUNT)


def _at_least(total: dict[str, int], other: Mapping[str, int]) -> None:
    for resource, value in other.items():
        total[resource] = max(total.get(resource, 0), value)


def _amounts(table: Json, what: str) -> dict[str, int]:
    found = {}
    for resource, value in table.items():
        try:
            found[resource] = amount(value, thousandths=resource == "cpu")
        except PayloadError as error:
            raise PayloadError(f"{what}: {resource:.80}: {error}") from None
    return found


def _gpus(requests: Mapping[str, int], notes: Mapping[str, str], what: str) -> tuple[int, int]:
    """GPUs and thousandths of each: whole ones by resource, else shares by annotation."""
    gpus = max((requests.get(resource, 0) for resource in GPU_RESOURCES), default=0)
    if gpus:
        return min(gpus, 2**31 - 1), WHOLE_GPU
    milli = _whole(notes.get(GPU_MILLI))
    if milli is None or milli == 0:
        return 0, 0
    count = _whole(notes.get(GPU_COUNT, "1"))
    if not 0 < milli <= WHOLE_GPU or count is None or count < 1 or (count > 1 and milli < WHOLE_GPU):
        raise PayloadError(f"{what}: {milli}/1000 of {notes.get(GPU_COUNT, '1')!r:.20} GPUs is not a share of one GPU")
    return min(count, 2**31 - 1), milli


def _slots(notes: Mapping[str, str], gpus: int) -> tuple[int, ...]:
    found = [_whole(part) for part in notes.get(GPU_INDEX, "").split("-")] if gpus else []
    slots = tuple(s for s in found if s is not None and 0 <= s < MAX_GPUS)
    return slots if len(slots) == len(found) == gpus and len(set(slots)) == gpus else ()


def _ports(spec: Json, what: str) -> Iterator[Port]:
    for container in (*_objects(spec, "containers", what), *_sidecars(spec, what)):
        for port in _objects(container, "ports", what):
            number = _int(port, "hostPort", what, 0)
            if number > 0:
                yield Port(
                    _text(port, "hostIP", what) or "0.0.0.0", _text(port, "protocol", what) or "TCP", number
                )  # fmt: skip


def _sidecars(spec: Json, what: str) -> Iterator[Json]:
    return (c for c in _objects(spec, "initContainers", what) if _text(c, "restartPolicy", what) == "Always")


def _node_affinity(affinity: Json, what: str) -> tuple[NodeTerm, ...] | None:
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    if required is None:
        return None
    terms = _objects(_object(required, what), "nodeSelectorTerms", what)
    return tuple(
        NodeTerm(
            tuple(_requirement(r, what) for r in _objects(term, "matchExpressions", what)),
            tuple(_requirement(r, what) for r in _objects(term, "matchFields", what)),
        )
        for term in terms
    )


def _requirement(value: Json, what: str) -> Requirement:
    operator = _text(value, "operator", what)
    if operator not in ("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"):
        raise PayloadError(f"{what}: operator {operator!r:.40} is not one of In, NotIn, Exists, DoesNotExist, Gt, Lt")
    return Requirement(_text(value, "key", what), operator, tuple(_texts(value, "values", what)))


def _selector(value: Any, what: str, more: Json | None = None, keys: tuple[str, ...] = ()) -> Selector | None:
    """A label selector; `keys` demand the same value as in the labels `more`."""
    if value is None:
        return None
    table = _object(value, what)
    found = [Requirement(k, "In", (v,)) for k, v in sorted(_pairs(table, "matchLabels", what).items())]
    found += [_requirement(r, what) for r in _objects(table, "matchExpressions", what)]
    found += [Requirement(key, "In", (more[key],)) for key in keys if more is not None and key in more]
    return Selector(tuple(found))


def _pod_terms(affinity: Json, namespace: str, labels: Json, what: str) -> Iterator[PodTerm]:
    for term in _objects(affinity, "requiredDuringSchedulingIgnoredDuringExecution", what):
        named, chosen = _texts(term, "namespaces", what), term.get("namespaceSelector")
        same, other = (tuple(_texts(term, key, what)) for key in ("matchLabelKeys", "mismatchLabelKeys"))
        selector = _selector(term.get("labelSelector"), what, labels, same)
        if selector is not None:
            unlike = tuple(Requirement(key, "NotIn", (labels[key],)) for key in other if key in labels)
            selector = Selector(selector.requirements + unlike)
        # Labels of namespaces are not watched: a selector of some is taken for one of all.
        spaces = None if chosen is not None else frozenset(named or [namespace])
        yield PodTerm(_text(term, "topologyKey", what), selector, spaces)


def _spread(spec: Json, labels: Json, what: str) -> Iterator[SpreadTerm]:
    for term in _objects(spec, "topologySpreadConstraints", what):
        if _text(term, "whenUnsatisfiable", what) == "ScheduleAnyway":
            continue
        yield SpreadTerm(
            _text(term, "topologyKey", what),
            _selector(term.get("labelSelector"), what, labels, tuple(_texts(term, "matchLabelKeys", what))),
            max(1, _int(term, "maxSkew", what, 1)),
            max(1, _int(term, "minDomains", what, 1)),
            _text(term, "nodeAffinityPolicy", what) != "Ignore",
            _text(term, "nodeTaintsPolicy", what) == "Honor",
        )


def _tolerations(spec: Json, what: str) -> Iterator[Toleration]:
    for one in _objects(spec, "tolerations", what):
        operator = _text(one, "operator", what) or "Equal"
        if operator in ("Equal", "Exists"):  # others compare numbers; leaving them out keeps the pod away
            value = None if operator == "Exists" else _text(one, "value", what)
            key = _text(one, "key", what)
            if key or value is None:
                yield Toleration(key, value, _text(one, "effect", what))


def _taint(value: Any, what: str) -> Taint:
    one = _object(value, what)
    effect = _text(one, "effect", what)
    for known in get_args(Effect):
        if effect == known:
            return Taint(_text(one, "key", what), _text(one, "value", what), known)
    raise PayloadError(f"{what}: taint effect {effect!r:.40} is not NoSchedule, PreferNoSchedule or NoExecute")


def _pinned(meta: Json, spec: Json, owner: Json, ports: tuple[Port, ...], near: tuple[PodTerm, ...], what: str) -> str:
    if "kubernetes.io/config.mirror" in _pairs(meta, "annotations", what):
        return "a static pod"
    if not owner:
        return "no controller would create it again"
    kind = _text(owner, "kind", what)
    if kind == "DaemonSet":
        return "a DaemonSet's pod belongs to its node"
    if ports:
        return "it takes ports of its node"
    if near:
        return "it wants to be near other pods"
    for volume in _objects(spec, "volumes", what):
        for local in ("hostPath", "persistentVolumeClaim", "ephemeral", "emptyDir"):
            if local in volume:
                return f"it has a volume of kind {local}"
    return "it has resource claims" if _list(spec, "resourceClaims", what) else ""


# --- fields ---


def _object(value: Any, what: str) -> Json:
    if not isinstance(value, dict):
        raise PayloadError(f"{what}: {value!r:.60} is not an object")
    return value


def _map(parent: Json, key: str, what: str) -> Json:
    value = parent.get(key)
    return {} if value is None else _object(value, f"{what}: {key}")


def _list(parent: Json, key: str, what: str) -> list[Any]:
    value = parent.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise PayloadError(f"{what}: {key} is {value!r:.60}, not a list")
    return value


def _objects(parent: Json, key: str, what: str) -> list[Json]:
    return [_object(value, f"{what}: {key}") for value in _list(parent, key, what)]


def _texts(parent: Json, key: str, what: str) -> list[str]:
    values = _list(parent, key, what)
    if not all(isinstance(value, str) for value in values):
        raise PayloadError(f"{what}: {key} is {values!r:.60}, not a list of texts")
    return values


def _text(parent: Json, key: str, what: str) -> str:
    value = parent.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise PayloadError(f"{what}: {key} is {value!r:.60}, not text")
    is_name = key in ("name", "namespace", "nodeName", "uid")
    if is_name and not (len(value) <= LONGEST_NAME and value.isascii() and value.isprintable()):
        raise PayloadError(f"{what}: {key} {value!r:.60} is not up to {LONGEST_NAME} printable ASCII characters")
    return value


def _flag(parent: Json, key: str, what: str) -> bool:
    value = parent.get(key)
    if value is not None and not isinstance(value, bool):
        raise PayloadError(f"{what}: {key} is {value!r:.60}, neither true nor false")
    return bool(value)


def _int(parent: Json, key: str, what: str, default: int) -> int:
    value = parent.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**31) <= value < 2**31:
        raise PayloadError(f"{what}: {key} is {value!r:.60}, not a whole number of 32 bits")
    return value


def _pairs(parent: Json, key: str, what: str) -> dict[str, str]:
    table = _map(parent, key, what)
    if not all(isinstance(value, str) for value in table.values()):
        raise PayloadError(f"{what}: {key} holds a value that is not text")
    return dict(table)


def _whole(text: str | None) -> int | None:
    """A decimal whole number of at most 18 digits, None for anything else."""
    if text is None or len(text) > 19:
        return None
    digits = text.removeprefix("-")
    return int(text) if digits.isascii() and digits.isdigit() else None
