"""The cluster as policies see it: the packing world's arrays, kept equal to a `ClusterState` by small changes.

The filters have been asked before, with everything that Kubernetes knows; so the arrays hold no rules of their own and
the legal actions are written as they are handed in. Memory is in MiB, rounded: for scores, not for what fits.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dispatchgym.envs.packing import holding
from dispatchgym.envs.packing.batch import GraphName, PackingBatch, PackingConfig
from dispatchgym.envs.packing.instance import FOREVER, Nodes, PackingInstance, Pods, Workload
from dispatchgym.envs.packing.state import ASIDE, GONE, QUEUED, Capacity
from dispatchgym.serving.kube.cluster_state import ClusterState, Placed
from dispatchgym.serving.kube.facts import PodFacts

MIB = 2**20
SPARE_PODS = 64


class Mirror:
    """One environment of the packing world that follows a cluster. Not safe for several threads.

    Args:
        state: the cluster.
        graph: which observation its policy reads.
        fragments: keep FGD's fragmentation up to date.
    """

    def __init__(self, state: ClusterState, graph: GraphName = "pods", fragments: bool = False) -> None:
        self.state = state
        self.graph = graph
        self.config = PackingConfig(fragments=fragments)
        self.batch: PackingBatch | None = None
        self.rebuilds = 0
        self._news = state.news()
        self._began = state.clock()
        self._asked = 0
        self._num_rows = 0  # rows up to here have been used

    def ask(self, pod: PodFacts, names: Sequence[str]) -> PackingBatch | None:
        """Bring the arrays up to date and the pod to hand, with these nodes as its choices.

        The batch stays valid until the next call; None if it has nothing to choose from.
        """
        self._sync()
        if self.batch is None:
            return None
        self._put_away()
        row = self._rows.get(pod.uid)
        if row is None:
            if not self._has_room(pod):
                self._rebuild()
            row = self._put(pod, QUEUED)
            self._visitor = pod.uid
        elif pod.uid in self._hosts:  # it runs, or is expected to: what if it had yet to be placed?
            holding.release(self.batch.problem, self.batch.cluster, self.batch.mode, 0, row)
            self._lifted = pod.uid
        batch = self.batch
        nodes = [self._node_rows[name] for name in names if name in self._node_rows]
        actions = self._actions(row, nodes)
        cluster = batch.cluster
        env, status = cluster.env[0], cluster.pod["status"][0]
        status[row] = QUEUED
        batch.problem.allowed[0, batch.problem.pod["workload"][0, row]] = 0
        batch.problem.allowed[0, batch.problem.pod["workload"][0, row], nodes] = 1
        env["hand"], env["lifted"] = row, 0
        env["next_pod"] = self._num_rows
        env["queued"], env["aside"] = (status == QUEUED).sum(), (status == ASIDE).sum()
        env["gpu_asked"] = (batch.problem.pod["gpus"][0] * batch.problem.pod["milli"][0])[status != GONE].sum()
        env["now"] = int(self.state.clock() - self._began)
        env["decisions"] = self._asked
        self._asked += 1
        env["num_options"] = len(actions)
        cluster.options[0, : len(actions)] = actions
        cluster.mask[0, actions] = 1
        return batch if len(actions) > 1 else None

    def rows_of(self, names: Sequence[str]) -> npt.NDArray[np.int64]:
        """The numbers of these nodes; of one that is not known, that of a node which is never offered."""
        assert self.batch is not None
        return np.array([self._node_rows.get(name, len(self._names)) for name in names], np.int64)

    # --- following the cluster ---

    def _sync(self) -> None:
        with self.state.lock:
            self.state.expire()
            anew, changed = self._news.take()
            if anew or self.batch is None or self.batch.capacity.resources != len(self.state.columns):
                self._rebuild_locked()
                return
        self._put_away()
        for uid, what in changed.items():
            self._follow(uid, what)

    def _follow(self, uid: str, what: Placed | PodFacts | None) -> None:
        self._forget(uid)
        pod = what.pod if isinstance(what, Placed) else what
        if pod is None:
            return
        if not self._has_room(pod):
            self._rebuild()
            return
        self._add(what)

    def _add(self, what: Placed | PodFacts | None) -> None:
        if isinstance(what, Placed):
            if what.node in self._node_rows:
                self._run(self._put(what.pod, QUEUED), what)
        elif what is not None:
            self._put(what, ASIDE if what.is_unschedulable else QUEUED)

    def _run(self, row: int, what: Placed) -> None:
        assert self.batch is not None
        node = self._node_rows[what.node]
        slots = sum(1 << slot for slot in what.slots)
        holding.hold(self.batch.problem, self.batch.cluster, self.batch.mode, 0, row, node, slots)
        self.batch.cluster.pod["bound_at"][0, row] = int(self.state.clock() - self._began)
        self._hosts[what.pod.uid] = what

    def _put(self, pod: PodFacts, status: int) -> int:
        """Write the pod into a free row."""
        assert self.batch is not None
        problem, cluster = self.batch.problem, self.batch.cluster
        row = heapq.heappop(self._free_rows)
        self._num_rows = max(self._num_rows, row + 1)
        self._rows[pod.uid] = row
        owner = self._owners.setdefault(pod.owner or pod.uid, len(self._owners))
        if pod.priority not in self._tiers:
            self._tiers.append(pod.priority)
            self._tiers.sort()
            known = problem.pod["priority"][0]
            problem.pod["tier"][0] = np.searchsorted(self._tiers, known).clip(0, len(self._tiers) - 1)
            problem.size["num_tiers"] = len(self._tiers)
        request = self._request(pod)
        key = (*request.tolist(), pod.gpus, pod.gpu_milli, owner)
        if key not in self._kinds:
            self._kinds[key] = self._free_kinds.pop()
            self._members[self._kinds[key]] = set()
        kind = self._kinds[key]
        self._members[kind].add(row)
        self._keys[row] = key
        problem.classes["example"][0, kind] = row
        problem.size["num_classes"] = max(int(problem.size["num_classes"][0]), kind + 1)
        problem.request[0, row] = request
        problem.pod[0, row] = (
            pod.priority, self._tiers.index(pod.priority), pod.gpus, pod.gpu_milli, owner, kind, 0, FOREVER,
        )  # fmt: skip
        cluster.pod["status"][0, row], cluster.pod["host"][0, row] = status, -1
        return row

    def _forget(self, uid: str) -> None:
        row = self._rows.pop(uid, None)
        if row is None or self.batch is None:
            return
        if self._hosts.pop(uid, None) is not None:
            holding.release(self.batch.problem, self.batch.cluster, self.batch.mode, 0, row)
        self.batch.cluster.pod["status"][0, row] = GONE
        heapq.heappush(self._free_rows, row)
        key = self._keys.pop(row)
        kind = self._kinds[key]
        self._members[kind].discard(row)
        if self._members[kind]:
            self.batch.problem.classes["example"][0, kind] = next(iter(self._members[kind]))
        else:
            del self._kinds[key], self._members[kind]
            self._free_kinds.append(kind)

    def _put_away(self) -> None:
        """Undo what the last question did."""
        if self.batch is None:
            return
        env, cluster = self.batch.cluster.env[0], self.batch.cluster
        cluster.mask[0, cluster.options[0, : env["num_options"]]] = 0
        env["num_options"], env["hand"] = 0, -1
        if self._lifted:
            self._run(self._rows[self._lifted], self._hosts[self._lifted])
        if self._visitor:
            self._forget(self._visitor)
        self._lifted = self._visitor = ""

    def _actions(self, row: int, nodes: Sequence[int]) -> npt.NDArray[np.int64]:
        """Bindings, by node and GPU (equally free ones of a node are one choice), and WAIT."""
        assert self.batch is not None
        gpus, wait = self.batch.capacity.gpus, self.batch.wait_action
        pod = self.batch.problem.pod[0, row]
        if pod["gpus"] == 0:
            return np.append(np.sort(np.asarray(nodes, np.int64)) * gpus, wait)
        found = []
        for n in sorted(nodes):
            free = self.batch.cluster.gpu_free[0, n].tolist()
            slots = [g for g, left in enumerate(free) if left >= pod["milli"]]
            if len(slots) >= pod["gpus"]:
                # A slot stands for itself and those behind it, so whole GPUs must be left from there on.
                first = {free[g]: g for g in reversed(slots[: len(slots) - int(pod["gpus"]) + 1])}
                found += sorted(n * gpus + g for g in first.values())
        return np.array([*found, wait], np.int64)

    # --- beginning anew ---

    def _has_room(self, pod: PodFacts) -> bool:
        assert self.batch is not None
        room = self.batch.capacity
        new_owner = (pod.owner or pod.uid) not in self._owners
        resources = self.batch.problem.request.shape[2] == len(self.state.columns)
        known = all(resource in self.state.columns for resource in pod.requests)
        return (
            bool(self._free_rows and self._free_kinds)
            and (not new_owner or len(self._owners) < room.workloads)
            and resources
            and known
        )

    def _rebuild(self) -> None:
        with self.state.lock:
            self._news.take()
            self._rebuild_locked()

    def _rebuild_locked(self) -> None:
        state = self.state
        self.rebuilds += 1
        self.batch = None
        self._visitor = self._lifted = ""
        self._names = list(state.names)
        self._node_rows = {name: n for n, name in enumerate(self._names)}
        if not self._names:
            return
        for pod in (*state.waiting.values(), *(one.pod for one in state.placed.values())):
            state.request(pod)  # makes columns
        self._scale = np.ones(len(state.columns), np.int64)
        self._scale[state.columns["memory"]] = MIB
        instance = self._instance()
        count = len(state.placed) + len(state.waiting)
        own, room = Capacity.of([instance]), count + count // 4 + SPARE_PODS
        size = own._replace(nodes=own.nodes + 1, pods=max(room, own.pods), workloads=room)
        batch = PackingBatch(1, size, self.config, self.graph)
        batch.load([0], [instance])
        batch.reset()
        env = batch.cluster.env[0]
        batch.cluster.mask[0] = 0
        batch.cluster.pod["status"] = GONE
        for name in ("num_options", "queued", "aside", "next_pod", "gpu_asked"):
            env[name] = 0
        env["hand"], env["over"] = -1, 0
        batch.problem.allowed[0] = 1
        batch.problem.size["num_classes"] = 0
        self.batch = batch
        self._rows: dict[str, int] = {}
        self._hosts: dict[str, Placed] = {}
        self._keys: dict[int, tuple[int, ...]] = {}
        self._kinds: dict[tuple[int, ...], int] = {}
        self._members: dict[int, set[int]] = {}
        self._owners: dict[str, int] = {}
        self._tiers: list[int] = []
        self._free_rows = list(range(size.pods))
        self._free_kinds = list(reversed(range(size.pods)))
        self._num_rows = 0
        everything: list[Placed | PodFacts] = [*state.placed.values(), *state.waiting.values()]
        # Pods of a ReplicaSet side by side, as the packing world has them.
        for what in sorted(everything, key=lambda what: what.pod.owner if isinstance(what, Placed) else what.owner):
            self._add(what)

    def _request(self, pod: PodFacts) -> npt.NDArray[np.int64]:
        return _rounded(self.state.request(pod), self._scale)

    def _instance(self) -> PackingInstance:
        """The nodes, and pods as far as the typical requests (FGD) depend on them."""
        state = self.state
        rows = [state.nodes[name] for name in self._names]
        capacity = np.zeros((len(rows), len(state.columns)), np.int64)
        for n, node in enumerate(rows):
            for resource, value in node.allocatable.items():
                capacity[n, state.columns[resource]] = value
        nodes = Nodes(
            _rounded(capacity, self._scale),
            np.array([node.max_pods for node in rows], np.int64),
            np.array([node.gpus for node in rows], np.int64),
            tuple(node.model for node in rows),
            names=tuple(self._names),
        )
        pods = [one.pod for one in state.placed.values()] + list(state.waiting.values())
        resources = tuple(state.columns)
        if not pods or not any(node.gpus for node in rows):
            empty = Pods(np.zeros((1, len(resources)), np.int64))
            return PackingInstance("live", nodes, empty, resources=resources)
        models = list(dict.fromkeys(pod.gpu_models for pod in pods))
        asked = Pods(
            np.stack([self._request(pod) for pod in pods]),
            gpus=np.array([pod.gpus for pod in pods], np.int64),
            gpu_milli=np.array([pod.gpu_milli for pod in pods], np.int64),
            workload=np.array([models.index(pod.gpu_models) for pod in pods], np.int64),
        )
        return PackingInstance("live", nodes, asked, tuple(Workload(models=m) for m in models), resources)


def _rounded(amounts: npt.NDArray[np.int64], scale: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    rounded: npt.NDArray[np.int64] = (amounts + scale // 2) // scale
    return rounded
