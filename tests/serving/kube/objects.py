"""Kubernetes objects for tests: written out, and drawn by Hypothesis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from dispatchgym.envs.packing.batch import PackingBatch
from dispatchgym.serving.kube.policies import Scores

Json = dict[str, Any]
ZONES = ("east", "west")


def node(name: str, cpu: str = "4", memory: str = "8Gi", pods: str = "110", **more: Any) -> Json:
    """`labels`, `taints`, `unschedulable` and further resources go where they belong."""
    labels, spec = more.pop("labels", {}), {k: more.pop(k) for k in ("taints", "unschedulable") if k in more}
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **labels}},
        "spec": spec,
        "status": {"allocatable": {"cpu": cpu, "memory": memory, "pods": pods, **more}},
    }


def pod(name: str, cpu: str = "500m", memory: str = "1Gi", on: str = "", **more: Any) -> Json:
    """`labels`, `annotations`, `owner`, `phase` and `requests` go where they belong, everything else into the spec."""
    meta: Json = {"name": name, "namespace": more.pop("namespace", "shop"), "uid": f"uid-{name}"}
    meta |= {key: more.pop(key) for key in ("labels", "annotations") if key in more}
    if owner := more.pop("owner", ""):
        meta["ownerReferences"] = [{"kind": "ReplicaSet", "name": owner, "uid": owner, "controller": True}]
    status = {"phase": more.pop("phase")} if "phase" in more else {}
    requests = {"cpu": cpu, "memory": memory, **more.pop("requests", {})}
    spec = {"containers": [{"name": "c", "resources": {"requests": requests}}], **more}
    return {"metadata": meta, "spec": spec | ({"nodeName": on} if on else {}), "status": status}


def anti_affinity(topology: str, **match: str) -> Json:
    """A required term that keeps pods with these labels out of the domain."""
    term = {"topologyKey": topology, "labelSelector": {"matchLabels": match}}
    return {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}


class Says:
    """A policy that gives every node what `score(node number)` says; for what a policy does to its surroundings."""

    graph: Any = "pods"
    fragments = False

    def __init__(self, score: Callable[[int], float], name: str = "says") -> None:
        self.name = name
        self.score = score

    def scores(self, batch: PackingBatch) -> Scores:
        actions = batch.cluster.options[0, : int(batch.cluster.env["num_options"][0])].astype(np.int64)
        actions = actions[actions != batch.wait_action]
        return actions, np.array([self.score(int(a) // batch.capacity.gpus) for a in actions])


# --- drawn ---

_TAINTS = st.lists(
    st.fixed_dictionaries(
        {"key": st.sampled_from(("gpu", "old")), "effect": st.sampled_from(("NoSchedule", "PreferNoSchedule"))}
    ),
    max_size=1,
)


@st.composite
def nodes(draw: st.DrawFn, name: str) -> Json:
    labels = {}
    if draw(st.integers(0, 4)):
        labels["zone"] = draw(st.sampled_from(ZONES))
    if draw(st.booleans()):
        labels["disk"] = draw(st.sampled_from(("ssd", "hdd")))
    return node(
        name,
        draw(st.sampled_from(("1", "2", "2500m"))),
        draw(st.sampled_from(("2Gi", "4Gi", "3G"))),
        draw(st.sampled_from(("2", "5", "110"))),
        labels=labels,
        taints=draw(_TAINTS),
        unschedulable=draw(st.integers(0, 7)) == 0,
    )


@st.composite
def pods(draw: st.DrawFn, name: str, on: tuple[str, ...] = ("",)) -> Json:
    app = draw(st.sampled_from(("web", "db")))
    more: Json = {"labels": {"app": app}, "owner": f"rs-{app}", "namespace": draw(st.sampled_from(("shop", "lab")))}
    kind = draw(st.integers(0, 9))
    if kind == 0:
        more["affinity"] = anti_affinity(draw(st.sampled_from(("zone", "kubernetes.io/hostname"))), app=app)
    elif kind == 1:
        more["topologySpreadConstraints"] = [
            {
                "topologyKey": "zone",
                "maxSkew": draw(st.integers(1, 2)),
                "whenUnsatisfiable": "DoNotSchedule",
                "labelSelector": {"matchLabels": {"app": app}},
            }
        ]
    elif kind == 2:
        more["nodeSelector"] = {"disk": "ssd"}
    elif kind == 3:
        term = {"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": draw(st.sampled_from(("web", "db")))}}}
        more["affinity"] = {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    elif kind == 4:
        more["tolerations"] = [{"operator": "Exists"}]
    elif kind == 5:
        more["containers"] = [
            {"resources": {"requests": {"cpu": "100m"}}, "ports": [{"hostPort": draw(st.sampled_from((80, 443)))}]}
        ]
    more["priority"] = draw(st.integers(0, 2))
    cpu, memory = draw(st.sampled_from(("100m", "0.5", "1"))), draw(st.sampled_from(("1Gi", "500M", "100Mi")))
    return pod(name, cpu, memory, draw(st.sampled_from(on)), **more)


@st.composite
def clusters(draw: st.DrawFn) -> tuple[list[Json], list[Json]]:
    """Some nodes, and pods on them."""
    names = tuple(f"n{i}" for i in range(draw(st.integers(1, 5))))
    running = [draw(pods(f"r{i}", names)) for i in range(draw(st.integers(0, 10)))]
    return [draw(nodes(name)) for name in names], running
