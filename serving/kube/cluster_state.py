"""What we know of a cluster: its nodes, the pods on them and the pods that wait, kept up to date by events.

One `ClusterState` is shared by the thread that watches and those that decide; whoever reads several things that must
agree holds `lock`. Amounts are exact (milli-CPU, bytes, whole units).
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.packing.instance import WHOLE_GPU
from dispatchgym.serving.kube.facts import NodeFacts, PodFacts, PodTerm

EXPECTED_FOR_S = 5.0
"""How long a placement that we expect counts without having been seen."""
MOST_NEWS = 20_000


class Group(NamedTuple):
    """Pods that label selectors cannot tell apart."""

    namespace: str
    labels: tuple[tuple[str, str], ...]


class Placed(NamedTuple):
    """A pod that holds a place, and the GPUs that it has there."""

    pod: PodFacts
    node: str
    slots: tuple[int, ...]
    expires: float  # monotonic time until which it is merely expected, inf for one that has been seen


class News:
    """What has changed since it was last taken, for one reader; of several changes to a thing the last."""

    def __init__(self) -> None:
        self.nodes = True  # a node has come, gone or changed: read everything anew
        self.pods: dict[str, Placed | PodFacts | None] = {}

    def take(self) -> tuple[bool, dict[str, Placed | PodFacts | None]]:
        """Whether to read everything anew, and else uid -> where it runs, how it waits, or None if it is gone."""
        found = self.nodes, self.pods
        self.nodes, self.pods = False, {}
        return found

    def add(self, uid: str, what: Placed | PodFacts | None) -> None:
        if not self.nodes:
            self.pods[uid] = what
            if len(self.pods) > MOST_NEWS:
                self.nodes, self.pods = True, {}


class ClusterState:
    """Nodes and pods by name and uid.

    Attributes:
        lock: reentrant; every method takes it.
        nodes: name -> facts.
        placed: uid -> pods that hold a place on a node, known or not.
        waiting: uid -> pods without a node that are neither done nor leaving.
        rows: node name -> its row in `free` and `room`.
        columns: resource -> its column in `free`.
        free: int64 (nodes, resources), allocatable minus requested.
        room: int64 (nodes,), pods that may still come.
        groups: group -> node -> pods of it there.
        keep_away: required anti-affinity term -> node -> pods there that have it.
        version: grows with every change.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.lock = threading.RLock()
        self.clock = clock
        self.nodes: dict[str, NodeFacts] = {}
        self.placed: dict[str, Placed] = {}
        self.waiting: dict[str, PodFacts] = {}
        self.rows: dict[str, int] = {}
        self.names: list[str] = []
        self.columns: dict[str, int] = {"cpu": 0, "memory": 1}
        self.free: npt.NDArray[np.int64] = np.zeros((0, 2), np.int64)
        self.room: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self.groups: defaultdict[Group, Counter[str]] = defaultdict(Counter)
        self.keep_away: defaultdict[PodTerm, Counter[str]] = defaultdict(Counter)
        self.gpu_free: dict[str, list[int]] = {}
        self.version = 0
        self._on_node: defaultdict[str, dict[str, Placed]] = defaultdict(dict)
        self._expected: dict[str, tuple[float, bool]] = {}  # until when, and whether it was known to wait
        self._news: list[News] = []
        self._forget_static: list[Callable[[str], None]] = []

    # --- events ---

    def put_node(self, node: NodeFacts) -> None:
        """A node has come or changed."""
        with self.lock:
            if self.nodes.get(node.name) == node:
                return
            self._node_changed(node.name)
            if node.name not in self.nodes:
                self.rows[node.name] = len(self.names)
                self.names.append(node.name)
                self.free = np.vstack([self.free, np.zeros((1, self.free.shape[1]), np.int64)])
                self.room = np.append(self.room, 0)
            self.nodes[node.name] = node
            self._count(node)

    def drop_node(self, name: str) -> None:
        """A node is gone; its pods stay known until their own events say otherwise."""
        with self.lock:
            if name not in self.nodes:
                return
            self._node_changed(name)
            row = self.rows[name]
            del self.nodes[name], self.gpu_free[name], self.names[row]
            self.free, self.room = np.delete(self.free, row, 0), np.delete(self.room, row)
            self.rows = {known: n for n, known in enumerate(self.names)}

    def put_pod(self, pod: PodFacts) -> None:
        """A pod has come or changed."""
        with self.lock:
            old = self.placed.get(pod.uid)
            if not pod.node and old is not None and old.expires < np.inf and not (pod.is_done or pod.is_leaving):
                self._expected[pod.uid] = old.expires, True
                return  # what we expect of it has only not been seen yet
            if pod.is_done or (pod.is_leaving and not pod.node):
                self.drop_pod(pod.uid)
            elif pod.node:
                self._place(pod, pod.node, np.inf)
            elif self.waiting.get(pod.uid) != pod:
                self.drop_pod(pod.uid)
                self.waiting[pod.uid] = pod
                self._changed(pod.uid, pod)

    def drop_pod(self, uid: str) -> None:
        """A pod is gone."""
        with self.lock:
            if self.waiting.pop(uid, None) is not None:
                self._changed(uid, None)
            if uid in self.placed:
                self._remove(uid)
                self._changed(uid, None)

    def expect(self, pod: PodFacts, node: str, for_s: float = EXPECTED_FOR_S) -> None:
        """Count the pod on the node from now on: it has been, or most likely will be, bound there.

        Its own event replaces this; without one the pod is what it was before after `for_s` seconds.
        """
        with self.lock:
            seen = self.placed.get(pod.uid)
            if seen is None or seen.expires < np.inf:
                waited = self._expected.get(pod.uid, (0.0, pod.uid in self.waiting))[1]
                until = self.clock() + for_s
                self._place(pod, node, until)
                self._expected[pod.uid] = until, waited

    def expire(self) -> None:
        """Take back what was expected and has not been seen in time."""
        with self.lock:
            now = self.clock()
            for uid in [uid for uid, (until, _) in self._expected.items() if until <= now]:
                pod, waited = self.placed[uid].pod, self._expected[uid][1]
                self.drop_pod(uid)
                if waited:
                    self.put_pod(pod)

    def replace(self, nodes: Iterable[NodeFacts] | None, pods: Iterable[PodFacts] | None) -> None:
        """What a fresh listing of all nodes, all pods or both says; what it does not name is gone."""
        with self.lock:
            if nodes is not None:
                listed = {node.name: node for node in nodes}
                for name in [name for name in self.nodes if name not in listed]:
                    self.drop_node(name)
                for node in listed.values():
                    self.put_node(node)
            if pods is not None:
                known = {pod.uid: pod for pod in pods}
                for uid in [uid for uid in (*self.placed, *self.waiting) if uid not in known]:
                    self.drop_pod(uid)
                for pod in known.values():
                    self.put_pod(pod)

    # --- reading ---

    def news(self) -> News:
        """A feed of changes for one reader; the first thing it says is to read everything."""
        with self.lock:
            self._news.append(News())
            return self._news[-1]

    def on_node(self, name: str) -> Mapping[str, Placed]:
        """uid -> pods that hold a place on the node."""
        return self._on_node.get(name, {})

    def find_pod(self, namespace: str, name: str) -> PodFacts | None:
        """The pod of that name, whether it waits or runs."""
        with self.lock:
            for pod in (*self.waiting.values(), *(p.pod for p in self.placed.values())):
                if pod.name == name and pod.namespace == namespace:
                    return pod
        return None

    def request(self, pod: PodFacts) -> npt.NDArray[np.int64]:
        """The pod's requests in the order of `columns`; makes columns for resources not seen before."""
        for resource in pod.requests:
            self._column(resource)
        row = np.zeros(len(self.columns), np.int64)
        for resource, value in pod.requests.items():
            row[self.columns[resource]] = value
        return row

    def on_node_change(self, forget: Callable[[str], None]) -> None:
        """Have `forget(name)` called whenever a node comes, goes or changes."""
        self._forget_static.append(forget)

    # --- inside ---

    def _column(self, resource: str) -> int:
        if resource not in self.columns:
            self.columns[resource] = len(self.columns)
            self.free = np.hstack([self.free, np.zeros((len(self.free), 1), np.int64)])
        return self.columns[resource]

    def _count(self, node: NodeFacts) -> None:
        """Set the node's row to what its allocatable and its pods say."""
        for resource in node.allocatable:
            self._column(resource)
        row = self.rows[node.name]
        self.free[row] = 0
        for resource, value in node.allocatable.items():
            self.free[row, self.columns[resource]] = value
        self.room[row] = node.max_pods
        self.gpu_free[node.name] = [WHOLE_GPU] * node.gpus
        for uid, one in list(self._on_node.get(node.name, {}).items()):
            slots = self._slots(one.pod, node.name)
            self.placed[uid] = self._on_node[node.name][uid] = one._replace(slots=slots)
            self._take(self.placed[uid], 1)

    def _slots(self, pod: PodFacts, node: str) -> tuple[int, ...]:
        """GPUs for a pod: those that its annotation names, else the fullest that have the share."""
        free = self.gpu_free.get(node, [])
        if not pod.gpus or (pod.gpu_slots and max(pod.gpu_slots) < len(free)):
            return pod.gpu_slots
        order = sorted((g for g, left in enumerate(free) if left >= pod.gpu_milli), key=lambda g: (free[g], g))
        return tuple(order[: pod.gpus])

    def _take(self, one: Placed, sign: int) -> None:
        """Take (1) or give back (-1) what a pod holds of its node."""
        row = self.rows.get(one.node)
        if row is None:
            return
        need = self.request(one.pod)  # first: it may add columns to `free`
        self.free[row] -= sign * need
        self.room[row] -= sign
        for slot in one.slots:
            self.gpu_free[one.node][slot] -= sign * one.pod.gpu_milli

    def _place(self, pod: PodFacts, node: str, expires: float) -> None:
        old = self.placed.get(pod.uid)
        if old is not None and old.pod == pod and old.node == node and old.expires == expires:
            return
        self.waiting.pop(pod.uid, None)
        if old is not None:
            self._remove(pod.uid)
        one = Placed(pod, node, self._slots(pod, node) if node in self.nodes else (), expires)
        self.placed[pod.uid] = self._on_node[node][pod.uid] = one
        self._take(one, 1)
        self.groups[_group(pod)][node] += 1
        for term in pod.anti_affinity:
            self.keep_away[term][node] += 1
        self._changed(pod.uid, one)

    def _remove(self, uid: str) -> None:
        one = self.placed.pop(uid)
        self._expected.pop(uid, None)
        del self._on_node[one.node][uid]
        if not self._on_node[one.node]:
            del self._on_node[one.node]
        self._take(one, -1)
        _uncount(self.groups, _group(one.pod), one.node)
        for term in one.pod.anti_affinity:
            _uncount(self.keep_away, term, one.node)

    def _node_changed(self, name: str) -> None:
        self.version += 1
        for news in self._news:
            news.nodes, news.pods = True, {}
        for forget in self._forget_static:
            forget(name)

    def _changed(self, uid: str, what: Placed | PodFacts | None) -> None:
        self.version += 1
        for news in self._news:
            news.add(uid, what)


def _group(pod: PodFacts) -> Group:
    return Group(pod.namespace, tuple(sorted(pod.labels.items())))


def _uncount(table: defaultdict[Any, Counter[str]], key: Any, node: str) -> None:
    table[key][node] -= 1
    if not table[key][node]:
        del table[key][node]
    if not table[key]:
        del table[key]
