"""Kubernetes objects, as decoded from JSON, to the facts that placement needs.

Reads what the API server sends (and what a scheduler extender is sent) without trusting its form: a field of the
wrong type is a PayloadError that names it, an unknown field is ignored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

from dispatchgym.envs.packing.instance import MAX_AMOUNT, MAX_GPUS, WHOLE_GPU, Taint, Toleration
from dispatchgym.serving.kube.facts import (
    NodeFacts,
    NodeTerm,
    PodFacts,
    PodTerm,
    Port,
    Requirement,
    Rules,
    Selector,
    SpreadTerm,
)
from dispatchgym.serving.kube.fields import (
    Json,
    a_flag,
    a_list,
    a_map,
    a_text,
    an_int,
    an_object,
    objects,
    pairs,
    texts,
    whole,
)
from dispatchgym.serving.kube.quantity import PayloadError, amount

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


def node_facts(node: Any) -> NodeFacts:
    """Read a Node object.

    Raises:
        PayloadError: not a node.
    """
    what = "node"
    meta, spec, status = (a_map(an_object(node, what), key, what) for key in ("metadata", "spec", "status"))
    name = a_text(meta, "name", what)
    if not name:
        raise PayloadError("node without metadata.name")
    what = f"node {name!r:.80}"
    source = "allocatable" if "allocatable" in status else "capacity"
    allocatable = _amounts(a_map(status, source, what), f"{what} {source}")
    labels = pairs(meta, "labels", what)
    max_pods = min(allocatable.pop("pods", DEFAULT_MAX_PODS), 2**31 - 1)
    gpus = min(max((allocatable.get(r, 0) for r in GPU_RESOURCES), default=0), MAX_GPUS)
    return NodeFacts(
        name=name,
        labels=labels,
        taints=tuple(_taint(t, what) for t in a_list(spec, "taints", what)),
        unschedulable=a_flag(spec, "unschedulable", what),
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
    meta, spec, status = (a_map(an_object(pod, what), key, what) for key in ("metadata", "spec", "status"))
    name, namespace = a_text(meta, "name", what), a_text(meta, "namespace", what) or "default"
    if not name:
        raise PayloadError("pod without metadata.name")
    what = f"pod {namespace}/{name}"[:120]
    affinity = a_map(spec, "affinity", what)
    labels, notes = pairs(meta, "labels", what), pairs(meta, "annotations", what)
    requests = _requests(spec, what)
    gpus, milli = _gpus(requests, notes, what)
    owner = next((o for o in objects(meta, "ownerReferences", what) if o.get("controller") is True), {})
    ports = tuple(_ports(spec, what))
    near = tuple(_pod_terms(a_map(affinity, "podAffinity", what), namespace, labels, what))
    return PodFacts(
        uid=a_text(meta, "uid", what) or f"{namespace}/{name}",
        namespace=namespace,
        name=name,
        node=a_text(spec, "nodeName", what),
        priority=an_int(spec, "priority", what, 0),
        requests=requests,
        labels=labels,
        rules=Rules(
            tuple(sorted(pairs(spec, "nodeSelector", what).items())),
            _node_affinity(a_map(affinity, "nodeAffinity", what), what),
            tuple(_tolerations(spec, what)),
        ),
        scheduler=a_text(spec, "schedulerName", what) or "default-scheduler",
        owner=a_text(owner, "uid", what),
        is_done=a_text(status, "phase", what) in ("Succeeded", "Failed"),
        is_leaving=meta.get("deletionTimestamp") is not None,
        is_gated=bool(a_list(spec, "schedulingGates", what)),
        is_unschedulable=any(
            c.get("type") == "PodScheduled" and c.get("status") == "False" and c.get("reason") == "Unschedulable"
            for c in objects(status, "conditions", what)
        ),
        ports=ports,
        affinity=near,
        anti_affinity=tuple(_pod_terms(a_map(affinity, "podAntiAffinity", what), namespace, labels, what)),
        spread=tuple(_spread(spec, labels, what)),
        gpus=gpus,
        gpu_milli=milli,
        gpu_models=tuple(m for m in notes.get(GPU_MODEL, "").split("|") if m) if gpus else (),
        gpu_slots=_slots(notes, gpus),
        nominated=a_text(status, "nominatedNodeName", what),
        created=a_text(meta, "creationTimestamp", what),
        pinned=_pinned(meta, spec, owner, ports, near, what),
    )


def _requests(spec: Json, what: str) -> dict[str, int]:
    """What the scheduler counts: containers, or an init container if that needs more, and the overhead.

    Init containers that restart always run beside everything that starts after them.
    """
    total: dict[str, int] = {}
    for container in objects(spec, "containers", what):
        _add(total, _container(container, what))
    beside: dict[str, int] = {}
    peak: dict[str, int] = {}
    for container in objects(spec, "initContainers", what):
        own = _container(container, what)
        if a_text(container, "restartPolicy", what) == "Always":
            _add(total, own)
            _add(beside, own)
            own = dict(beside)
        else:
            _add(own, beside)
        _at_least(peak, own)
    _at_least(total, peak)
    total |= _container(spec, what)  # amounts for the pod as a whole stand above those of its containers
    _add(total, _amounts(a_map(spec, "overhead", what), f"{what} overhead"))
    return {resource: value for resource, value in total.items() if value}


def _container(container: Json, what: str) -> dict[str, int]:
    """Requests; a limit without a request is one."""
    resources = a_map(container, "resources", what)
    limits = _amounts(a_map(resources, "limits", what), f"{what} limits")
    return limits | _amounts(a_map(resources, "requests", what), f"{what} requests")


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
    milli = whole(notes.get(GPU_MILLI))
    if milli is None or milli == 0:
        return 0, 0
    count = whole(notes.get(GPU_COUNT, "1"))
    if not 0 < milli <= WHOLE_GPU or count is None or count < 1 or (count > 1 and milli < WHOLE_GPU):
        raise PayloadError(f"{what}: {milli}/1000 of {notes.get(GPU_COUNT, '1')!r:.20} GPUs is not a share of one GPU")
    return min(count, 2**31 - 1), milli


def _slots(notes: Mapping[str, str], gpus: int) -> tuple[int, ...]:
    found = [whole(part) for part in notes.get(GPU_INDEX, "").split("-")] if gpus else []
    slots = tuple(s for s in found if s is not None and 0 <= s < MAX_GPUS)
    return slots if len(slots) == len(found) == gpus and len(set(slots)) == gpus else ()


def _ports(spec: Json, what: str) -> Iterator[Port]:
    for container in (*objects(spec, "containers", what), *_sidecars(spec, what)):
        for port in objects(container, "ports", what):
            number = an_int(port, "hostPort", what, 0)
            if number > 0:
                yield Port(
                    a_text(port, "hostIP", what) or "0.0.0.0", a_text(port, "protocol", what) or "TCP", number
                )  # fmt: skip


def _sidecars(spec: Json, what: str) -> Iterator[Json]:
    return (c for c in objects(spec, "initContainers", what) if a_text(c, "restartPolicy", what) == "Always")


def _node_affinity(affinity: Json, what: str) -> tuple[NodeTerm, ...] | None:
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    if required is None:
        return None
    terms = objects(an_object(required, what), "nodeSelectorTerms", what)
    return tuple(
        NodeTerm(
            tuple(_requirement(r, what) for r in objects(term, "matchExpressions", what)),
            tuple(_requirement(r, what) for r in objects(term, "matchFields", what)),
        )
        for term in terms
    )


def _requirement(value: Json, what: str) -> Requirement:
    operator = a_text(value, "operator", what)
    if operator not in ("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"):
        raise PayloadError(f"{what}: operator {operator!r:.40} is not one of In, NotIn, Exists, DoesNotExist, Gt, Lt")
    return Requirement(a_text(value, "key", what), operator, tuple(texts(value, "values", what)))


def _selector(value: Any, what: str, more: Json | None = None, keys: tuple[str, ...] = ()) -> Selector | None:
    """A label selector; `keys` demand the same value as in the labels `more`."""
    if value is None:
        return None
    table = an_object(value, what)
    found = [Requirement(k, "In", (v,)) for k, v in sorted(pairs(table, "matchLabels", what).items())]
    found += [_requirement(r, what) for r in objects(table, "matchExpressions", what)]
    found += [Requirement(key, "In", (more[key],)) for key in keys if more is not None and key in more]
    return Selector(tuple(found))


def _pod_terms(affinity: Json, namespace: str, labels: Json, what: str) -> Iterator[PodTerm]:
    for term in objects(affinity, "requiredDuringSchedulingIgnoredDuringExecution", what):
        named, chosen = texts(term, "namespaces", what), term.get("namespaceSelector")
        same, other = (tuple(texts(term, key, what)) for key in ("matchLabelKeys", "mismatchLabelKeys"))
        selector = _selector(term.get("labelSelector"), what, labels, same)
        if selector is not None:
            unlike = tuple(Requirement(key, "NotIn", (labels[key],)) for key in other if key in labels)
            selector = Selector(selector.requirements + unlike)
        # Labels of namespaces are not watched: a selector of some is taken for one of all.
        spaces = None if chosen is not None else frozenset(named or [namespace])
        yield PodTerm(a_text(term, "topologyKey", what), selector, spaces)


def _spread(spec: Json, labels: Json, what: str) -> Iterator[SpreadTerm]:
    for term in objects(spec, "topologySpreadConstraints", what):
        if a_text(term, "whenUnsatisfiable", what) == "ScheduleAnyway":
            continue
        yield SpreadTerm(
            a_text(term, "topologyKey", what),
            _selector(term.get("labelSelector"), what, labels, tuple(texts(term, "matchLabelKeys", what))),
            max(1, an_int(term, "maxSkew", what, 1)),
            max(1, an_int(term, "minDomains", what, 1)),
            a_text(term, "nodeAffinityPolicy", what) != "Ignore",
            a_text(term, "nodeTaintsPolicy", what) == "Honor",
        )


def _tolerations(spec: Json, what: str) -> Iterator[Toleration]:
    for one in objects(spec, "tolerations", what):
        operator = a_text(one, "operator", what) or "Equal"
        if operator in ("Equal", "Exists"):  # others compare numbers; leaving them out keeps the pod away
            value = None if operator == "Exists" else a_text(one, "value", what)
            key = a_text(one, "key", what)
            if key or value is None:
                yield Toleration(key, value, a_text(one, "effect", what))


def _taint(value: Any, what: str) -> Taint:
    one = an_object(value, what)
    effect = a_text(one, "effect", what)
    for known in get_args(Effect):
        if effect == known:
            return Taint(a_text(one, "key", what), a_text(one, "value", what), known)
    raise PayloadError(f"{what}: taint effect {effect!r:.40} is not NoSchedule, PreferNoSchedule or NoExecute")


def _pinned(meta: Json, spec: Json, owner: Json, ports: tuple[Port, ...], near: tuple[PodTerm, ...], what: str) -> str:
    if "kubernetes.io/config.mirror" in pairs(meta, "annotations", what):
        return "a static pod"
    if not owner:
        return "no controller would create it again"
    kind = a_text(owner, "kind", what)
    if kind == "DaemonSet":
        return "a DaemonSet's pod belongs to its node"
    if ports:
        return "it takes ports of its node"
    if near:
        return "it wants to be near other pods"
    for volume in objects(spec, "volumes", what):
        for local in ("hostPath", "persistentVolumeClaim", "ephemeral", "emptyDir"):
            if local in volume:
                return f"it has a volume of kind {local}"
    return "it has resource claims" if a_list(spec, "resourceClaims", what) else ""
