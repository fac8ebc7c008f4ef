"""Which nodes a pod may go to, and what stops it on the others: kube-scheduler's filters.

Not modelled: volumes, resource claims, labels of namespaces. Affinity that is only preferred filters nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from dispatchgym.envs.packing.instance import Taint
from dispatchgym.serving.kube.cluster_state import ClusterState
from dispatchgym.serving.kube.facts import NodeFacts, PodFacts, PodTerm, Rules, SpreadTerm

MOST_RULES = 1000
_UNSCHEDULABLE = Taint("node.kubernetes.io/unschedulable")


class Failure(NamedTuple):
    """Why a node will not do.

    Args:
        filter: as kube-scheduler calls its plug-in; "GpuShare" is ours.
        reason: for people.
        is_final: evicting pods from the node would not help.
    """

    filter: str
    reason: str
    is_final: bool = False


class Feasible(NamedTuple):
    """Nodes that will do, in the order asked for, and what stops the pod on the others."""

    nodes: tuple[str, ...]
    failed: dict[str, Failure]


class Filters:
    """The filters over one cluster; remembers what depends on a node and a pod's rules alone."""

    def __init__(self, state: ClusterState) -> None:
        self.state = state
        self._static: dict[Rules, dict[str, Failure | None]] = {}
        state.on_node_change(self._forget)

    def check(self, pod: PodFacts, names: Sequence[str] | None = None, without: Collection[str] = ()) -> Feasible:
        """Ask every filter about every node.

        Args:
            names: nodes to ask about; default all. Those not known fail.
            without: uids of pods to be taken for gone.
        """
        state = self.state
        with state.lock:
            asked = state.names if names is None else names
            failed: dict[str, Failure] = {}
            left: list[str] = []
            known = self._static_of(pod.rules)
            for name in asked:
                node = state.nodes.get(name)
                if node is None:
                    failed[name] = Failure("NodeName", "node is not known", True)
                    continue
                if name not in known:
                    known[name] = _static_failure(pod.rules, node)
                failure = known[name]
                if failure is None and pod.node and pod.node != name:
                    failure = Failure("NodeName", f"pod is bound to {pod.node}", True)
                if failure is None:
                    left.append(name)
                else:
                    failed[name] = failure
            gone = [state.placed[uid] for uid in without if uid in state.placed]
            uids = {pod.uid, *without}
            if pod.uid in state.placed:
                gone.append(state.placed[pod.uid])
            for ask in (self._resources, self._ports, self._gpu_share, self._spread, self._near_and_far):
                if left:
                    found = ask(pod, left, uids)
                    if found:
                        failed |= found
                        left = [name for name in left if name not in found]
            return Feasible(tuple(left), failed)

    def gpu_share(self, pod: PodFacts, names: Sequence[str]) -> dict[str, Failure]:
        """The one filter that kube-scheduler does not have: shares of GPUs by annotation."""
        with self.state.lock:
            return self._gpu_share(pod, [n for n in names if n in self.state.nodes], {pod.uid})

    def _static_of(self, rules: Rules) -> dict[str, Failure | None]:
        if rules not in self._static and len(self._static) >= MOST_RULES:
            self._static.clear()
        return self._static.setdefault(rules, {})

    def _forget(self, name: str) -> None:
        for known in self._static.values():
            known.pop(name, None)

    def _resources(self, pod: PodFacts, names: list[str], gone: set[str]) -> dict[str, Failure]:
        state = self.state
        request = state.request(pod)
        rows = np.fromiter((state.rows[name] for name in names), np.int64, len(names))
        free, room = state.free[rows], state.room[rows]
        back = {name: i for i, name in enumerate(names)}
        for uid in gone:
            one = state.placed.get(uid)
            if one is not None and one.node in back:
                free[back[one.node]] += state.request(one.pod)
                room[back[one.node]] += 1
        short = (request > free) & (request > 0)
        failed = {}
        for i in np.flatnonzero(short.any(axis=1) | (room < 1)):
            node = state.nodes[names[i]]
            lacks = [
                f"{resource} (asks {request[c]}, free {max(int(free[i, c]), 0)})"
                for resource, c in state.columns.items()
                if short[i, c]
            ] + ["room for one more pod"] * int(room[i] < 1)
            final = any(value > node.allocatable.get(resource, 0) for resource, value in pod.requests.items())
            failed[names[i]] = Failure("NodeResourcesFit", "insufficient " + ", ".join(lacks), final)
        return failed

    def _ports(self, pod: PodFacts, names: list[str], gone: set[str]) -> dict[str, Failure]:
        failed: dict[str, Failure] = {}
        for name in names if pod.ports else ():
            for uid, one in self.state.on_node(name).items():
                taken = [p for p in pod.ports if uid not in gone and any(p.clashes(other) for other in one.pod.ports)]
                if taken:
                    text = f"port {taken[0].number}/{taken[0].protocol} is taken by {one.pod.title}"
                    failed[name] = Failure("NodePorts", text)
                    break
        return failed

    def _gpu_share(self, pod: PodFacts, names: list[str], gone: set[str]) -> dict[str, Failure]:
        failed: dict[str, Failure] = {}
        for name in names if pod.gpus else ():
            node, free = self.state.nodes[name], list(self.state.gpu_free[name])
            if pod.gpu_models and node.model not in pod.gpu_models:
                text = f"GPU model {node.model or 'none'} is not {' or '.join(pod.gpu_models)}"
                failed[name] = Failure("GpuShare", text, True)
                continue
            for uid in gone:
                one = self.state.placed.get(uid)
                for slot in one.slots if one is not None and one.node == name else ():
                    free[slot] += one.pod.gpu_milli if one is not None else 0
            fit = sum(left >= pod.gpu_milli for left in free)
            if fit < pod.gpus:
                text = f"{fit} of {pod.gpus} GPUs with {pod.gpu_milli}/1000 free"
                failed[name] = Failure("GpuShare", text, pod.gpus > len(free))
        return failed

    def _spread(self, pod: PodFacts, names: list[str], gone: set[str]) -> dict[str, Failure]:
        failed: dict[str, Failure] = {}
        for term in pod.spread:
            # A node counts only if it has every topology key that the pod's constraints name.
            inside = [
                name
                for name, node in self.state.nodes.items()
                if all(other.topology in node.labels for other in pod.spread)
                and (not term.honours_affinity or pod.rules.accepts(node))
                and (not term.honours_taints or pod.rules.untolerated(node) is None)
            ]
            count: Counter[str] = Counter({self._domain(name, term.topology): 0 for name in inside})
            for name, number in self._matching(pod.namespace, term, inside, gone):
                count[self._domain(name, term.topology)] += number
            least = min(count.values(), default=0) if len(count) >= term.min_domains else 0
            own = term.selector is not None and term.selector.holds(pod.labels)
            for name in names:
                if name in failed:
                    continue
                if any(other.topology not in self.state.nodes[name].labels for other in pod.spread):
                    failed[name] = Failure("PodTopologySpread", f"no label {term.topology}", True)
                    continue
                skew = count[self._domain(name, term.topology)] + own - least
                if skew > term.max_skew:
                    text = f"skew over {term.topology} would be {skew}, at most {term.max_skew} is allowed"
                    failed[name] = Failure("PodTopologySpread", text)
        return failed

    def _matching(
        self, namespace: str, term: SpreadTerm, inside: Iterable[str], gone: set[str]
    ) -> Iterable[tuple[str, int]]:
        """(node, matching pods there); pods being deleted do not count."""
        if term.selector is None:
            return
        nodes = set(inside)
        for group, per_node in self.state.groups.items():
            if group.namespace == namespace and term.selector.holds(dict(group.labels)):
                yield from ((name, number) for name, number in per_node.items() if name in nodes)
        for one in self.state.placed.values():
            out = one.pod.is_leaving or one.pod.uid in gone
            if out and one.node in nodes and one.pod.namespace == namespace and term.selector.holds(one.pod.labels):
                yield one.node, -1

    def _near_and_far(self, pod: PodFacts, names: list[str], gone: set[str]) -> dict[str, Failure]:
        state = self.state
        failed: dict[str, Failure] = {}
        for term, per_node in state.keep_away.items():  # what runs does not want this pod near
            if not term.matches(pod.namespace, pod.labels):
                continue
            number = Counter(per_node)
            for uid in gone:
                one = state.placed.get(uid)
                if one is not None and term in one.pod.anti_affinity:
                    number[one.node] -= 1
            taken = self._domains(number, term)
            text = f"a pod in the same {term.topology} keeps such pods away"
            self._refuse(failed, names, taken, term, Failure("InterPodAffinity", text))
        for term in pod.anti_affinity:
            taken = self._domains(self._pods_of(term, gone), term)
            text = f"a pod that it keeps away from runs in the same {term.topology}"
            self._refuse(failed, names, taken, term, Failure("InterPodAffinity", text))
        if pod.affinity:
            self._near(pod, names, gone, failed)
        return failed

    def _near(self, pod: PodFacts, names: list[str], gone: set[str], failed: dict[str, Failure]) -> None:
        """Every node must be near pods that match all terms, each in the domain of its own topology.

        The first pod of a group that wants to be near itself may go anywhere with the labels.
        """
        everything = self._pods_of_all(pod.affinity, gone)
        domains = [self._domains(everything, term) for term in pod.affinity]
        is_first = not any(domains) and all(t.matches(pod.namespace, pod.labels) for t in pod.affinity)
        for name in names:
            for term, near in zip(pod.affinity, domains, strict=True):
                domain = self.state.nodes[name].labels.get(term.topology)
                if domain is None:
                    failed[name] = Failure("InterPodAffinity", f"no label {term.topology}", True)
                    break
                if not is_first and domain not in near:
                    text = f"no pod that it wants to be near in the same {term.topology}"
                    failed[name] = Failure("InterPodAffinity", text, True)
                    break

    def _pods_of(self, term: PodTerm, gone: set[str]) -> Counter[str]:
        return self._pods_of_all((term,), gone)

    def _pods_of_all(self, terms: Sequence[PodTerm], gone: set[str]) -> Counter[str]:
        """Node -> pods there that match all the terms."""
        number: Counter[str] = Counter()
        for group, per_node in self.state.groups.items():
            if all(term.matches(group.namespace, dict(group.labels)) for term in terms):
                number.update(per_node)
        for uid in gone:
            one = self.state.placed.get(uid)
            if one is not None and all(t.matches(one.pod.namespace, one.pod.labels) for t in terms):
                number[one.node] -= 1
        return number

    def _domains(self, per_node: Counter[str], term: PodTerm) -> set[str]:
        """Domains of the term's topology with at least one of the pods."""
        nodes = (self.state.nodes.get(name) for name, number in per_node.items() if number > 0)
        return {node.labels[term.topology] for node in nodes if node is not None and term.topology in node.labels}

    def _refuse(
        self, failed: dict[str, Failure], names: list[str], taken: set[str], term: PodTerm, failure: Failure
    ) -> None:
        for name in names if taken else ():
            if self.state.nodes[name].labels.get(term.topology) in taken:
                failed.setdefault(name, failure)

    def _domain(self, name: str, topology: str) -> str:
        return self.state.nodes[name].labels.get(topology, "")


def _static_failure(rules: Rules, node: NodeFacts) -> Failure | None:
    if node.unschedulable and not any(t.tolerates(_UNSCHEDULABLE) for t in rules.tolerations):
        return Failure("NodeUnschedulable", "closed to new pods", True)
    taint = rules.untolerated(node)
    if taint is not None:
        return Failure("TaintToleration", f"taint {taint.key}={taint.value}:{taint.effect} is not tolerated", True)
    if not rules.accepts(node):
        return Failure("NodeAffinity", "node selector or affinity does not accept its labels", True)
    return None
