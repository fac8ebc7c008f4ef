"""A live cluster as a packing instance: what solvers that plan for all pods at once work on.

Part of the instance is what may be moved or is yet to be placed. Pods that must stay where they are count as capacity
that is not there; where they keep others away, the nodes are closed to those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from dispatchgym.envs.packing.instance import AntiAffinity, Nodes, PackingInstance, Pods, Workload
from dispatchgym.serving.kube.cluster_state import ClusterState
from dispatchgym.serving.kube.facts import PodFacts, PodTerm
from dispatchgym.serving.kube.filters import Filters

MIB = 2**20


@dataclass(frozen=True, slots=True, eq=False)
class LiveInstance:
    """An instance and what its numbers stand for.

    Args:
        instance: cpu in milli-CPU, memory in MiB, requests rounded up and capacities down.
        nodes: names, by number.
        pods: by number.
        hosts: pod -> node of those that run.
    """

    instance: PackingInstance
    nodes: tuple[str, ...]
    pods: tuple[PodFacts, ...]
    hosts: Mapping[int, int]


def packing_instance(
    state: ClusterState, filters: Filters, name: str = "live", *, fixed: Callable[[PodFacts], str] = lambda pod: ""
) -> LiveInstance | None:
    """The cluster as it stands; None if it has no node or no pod that could be planned for.

    Args:
        fixed: why a pod is none of the planner's business, beside what `why_fixed` knows; "" if it is.
    """
    with state.lock:
        running = [
            one
            for one in state.placed.values()
            if one.node in state.nodes and not why_fixed(one.pod) and not fixed(one.pod)
        ]
        pending = [
            pod for pod in state.waiting.values() if not pod.is_gated and not _why_not_modelled(pod) and not fixed(pod)
        ]
        pods = [one.pod for one in running] + pending
        if not state.nodes or not pods:
            return None
        rows = {node: n for n, node in enumerate(state.names)}
        hosts = {p: rows[one.node] for p, one in enumerate(running)}

        request = np.stack([state.request(pod) for pod in pods])
        capacity, room = state.free.copy(), state.room.copy()
        for p, n in hosts.items():
            capacity[n] += request[p]
            room[n] += 1
        scale = np.ones(len(state.columns), np.int64)
        scale[state.columns["memory"]] = MIB
        request = -(-request // scale)
        capacity = capacity.clip(0) // scale
        held = np.zeros_like(capacity)
        for p, n in hosts.items():
            held[n] += request[p]

        terms = list(dict.fromkeys(term for pod in pods for term in pod.anti_affinity))
        workloads, labels = _workloads(pods, terms, state, filters, hosts)
        nodes = Nodes(
            np.maximum(capacity, held),  # what runs now fits, however it was rounded
            room.clip(0),
            labels=tuple(
                {t.topology: v for t in terms if (v := state.nodes[node].labels.get(t.topology)) is not None}
                | dict.fromkeys(labels[n], "1")
                for n, node in enumerate(state.names)
            ),
            names=tuple(state.names),
        )
        known = list(dict.fromkeys(workloads))
        asked = Pods(
            request,
            np.array([pod.priority for pod in pods], np.int64),
            workload=np.array([known.index(w) for w in workloads], np.int64),
            names=tuple(pod.title for pod in pods),
        )
        instance = PackingInstance(name, nodes, asked, tuple(known), tuple(state.columns))
        return LiveInstance(instance, tuple(state.names), tuple(pods), hosts)


def why_fixed(pod: PodFacts) -> str:
    """Why a plan must leave a running pod where it is, "" if it may move it."""
    return "it is being deleted" if pod.is_leaving else pod.pinned or _why_not_modelled(pod)


def _why_not_modelled(pod: PodFacts) -> str:
    if pod.spread:
        return "it has topology spread, which plans do not cover"
    if pod.affinity:
        return "it wants to be near other pods, which plans do not cover"
    if pod.gpus:
        return "it has GPUs, which plans do not cover"
    return "it takes ports of its node" if pod.ports else ""


def _workloads(
    pods: list[PodFacts], terms: list[PodTerm], state: ClusterState, filters: Filters, hosts: Mapping[int, int]
) -> tuple[list[Workload], list[set[str]]]:
    """One workload a pod, equal for equal rules; and for every node the labels that say which may go there."""
    movable = [pods[p].uid for p in hosts]
    closed: dict[object, tuple[str, set[str]]] = {}
    labels: list[set[str]] = [set() for _ in state.names]
    found = []
    for p, pod in enumerate(pods):
        own = tuple(f"matches-{t}" for t, term in enumerate(terms) if term.matches(pod.namespace, pod.labels))
        key = (pod.rules, pod.anti_affinity, own, pod.namespace, tuple(sorted(pod.labels.items())))
        if key not in closed:
            free = PodFacts(
                pod.uid, pod.namespace, pod.name, "", 0, {}, pod.labels, pod.rules, anti_affinity=pod.anti_affinity
            )
            fit = filters.check(free, without=movable)
            full = {node for node, failure in fit.failed.items() if failure.filter != "NodeResourcesFit"}
            closed[key] = f"allowed-{len(closed)}", set(state.names) - full
        mark, allowed = closed[key]
        for n, node in enumerate(state.names):
            if node in allowed or hosts.get(p) == n:
                labels[n].add(mark)
        found.append(
            Workload(
                labels=tuple((label, "1") for label in own),
                selector=((mark, "1"),),
                anti_affinity=tuple(_kept_away(pod, terms)),
            )
        )
    return found, labels


def _kept_away(pod: PodFacts, terms: list[PodTerm]) -> Iterator[AntiAffinity]:
    for t, term in enumerate(terms):
        if term in pod.anti_affinity:
            yield AntiAffinity(term.topology, ((f"matches-{t}", "1"),))
