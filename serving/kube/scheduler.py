"""A second scheduler: pods that name it are placed by a policy and bound through the API server.

One thread decides, pod by pod; a pool binds, so that a slow API server holds up nothing but itself. A pod counts on
its node from the decision on, so consecutive decisions see bindings under way. A binding is repeated until the API
server has answered; refused, the pod goes back to the queue. Only the leader decides and binds.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from dispatchgym.envs.api import UsageError
from dispatchgym.serving.kube.cluster_state import ClusterState
from dispatchgym.serving.kube.convert import node_facts, pod_facts
from dispatchgym.serving.kube.facts import NodeFacts, PodFacts
from dispatchgym.serving.kube.filters import Failure
from dispatchgym.serving.kube.quantity import PayloadError
from dispatchgym.serving.kube.scheduler_api import CONFLICT, NOT_FOUND, TOO_MANY_REQUESTS, ApiError, Json, Kind
from dispatchgym.serving.kube.scheduler_events import Recorder, why_nowhere
from dispatchgym.serving.kube.scheduler_metrics import SchedulerMetrics
from dispatchgym.serving.kube.scheduler_queue import PodQueue
from dispatchgym.serving.kube.scheduler_watch import Lister, Reflector

log = logging.getLogger(__name__)

UNTIL_SEEN_S = 1e9
"""How long a pod counts on the node that was decided: until the API server refuses, or its own event arrives."""
ANSWERED = (400, 403, CONFLICT, NOT_FOUND, 410, 422)
"""Refusals that another try would only repeat; other errors leave it open whether the binding was made."""
LONGEST_REPEAT_S = 2.0
STOP_S = 5.0
"""How long a thread may take to end; one that the interpreter must cut off at exit can take it down with it."""


class Cluster(Lister, Protocol):
    """What a scheduler asks of the API server; `KubeApi` is one."""

    def bind(self, pod: Json, node: str) -> None: ...
    def read_pod(self, pod: Json) -> Json | None: ...


class Advisor(Protocol):
    """Who chooses; `PlacementAdvisor` behind `advised` is one."""

    def choose(self, pod: PodFacts) -> Choice: ...
    def fits(self, pod: PodFacts, node: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class Choice:
    """Where a pod shall go.

    Args:
        node: None if it fits nowhere.
        failed: why each of the other nodes will not do.
        waits: the policy would rather leave it pending.
        by: who chose, for the event.
    """

    node: str | None
    failed: Mapping[str, Failure] = field(default_factory=dict)
    waits: bool = False
    by: str = ""


class Steering(Protocol):
    """A plan under way: pods go where it says, and others wait until it is done."""

    def target(self, pod: PodFacts) -> str | None:
        """The node kept for this pod."""
        ...

    def bound(self, pod: PodFacts, node: str) -> None:
        """The pod has been bound."""
        ...


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    """How the second scheduler behaves.

    Args:
        name: pods with this `spec.schedulerName` are ours.
        bind_workers: bindings under way at a time.
        patience_s: how long a policy may let a pod wait that would fit.
    """

    name: str = "dispatchgym"
    bind_workers: int = 16
    patience_s: float = 30.0

    def __post_init__(self) -> None:
        if not self.name or self.name == "default-scheduler":
            raise UsageError(f"scheduler name {self.name!r} must be neither empty nor the default scheduler's own")
        if self.bind_workers < 1 or self.patience_s < 0:
            raise UsageError(f"bind workers ({self.bind_workers}) must be 1 or more, patience not negative")


@dataclass(slots=True)
class _Mine:
    """A pod of ours without a node."""

    raw: Json
    facts: PodFacts
    since: float
    told: str = ""  # the last complaint, so that it is written once


class Scheduler:
    """Follows a cluster and binds the pods that ask for it.

    Args:
        api: the cluster.
        state: kept up to date here; shared with the advisor.
        advisor: who chooses nodes.
        is_leader: asked before every decision and every binding.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        api: Cluster,
        state: ClusterState,
        advisor: Advisor,
        recorder: Recorder,
        settings: SchedulerSettings | None = None,
        *,
        is_leader: Callable[[], bool] = lambda: True,
        metrics: SchedulerMetrics | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings or SchedulerSettings()
        self.state = state
        self.metrics = metrics or SchedulerMetrics()
        self.queue = PodQueue(clock)
        self.steering: Steering | None = None
        self._api = api
        self._advisor = advisor
        self._recorder = recorder
        self._is_leader = is_leader
        self._clock = clock
        self._mine: dict[str, _Mine] = {}
        self._raw: dict[str, Json] = {}  # bound pods of ours, for evictions
        self._bound: set[str] = set()  # bound by us, which no event has shown yet
        self._lock = threading.RLock()  # of the three above
        self._halt = threading.Event()
        self._pool = ThreadPoolExecutor(self.settings.bind_workers, thread_name_prefix="bind")
        kinds: tuple[Kind, ...] = ("nodes", "pods")
        self._reflectors = [Reflector(api, kind, self) for kind in kinds]
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self.metrics.follow(self)

    # --- life ---

    def start(self) -> None:
        """Begin to watch, and to decide once everything has been listed."""
        for reflector in self._reflectors:
            reflector.start()
        self._thread.start()

    def stop(self) -> None:
        """Decide nothing more; bindings under way are completed or given up."""
        self._halt.set()
        for reflector in self._reflectors:
            reflector.stop()
        for thread in (self._thread, *self._reflectors):
            if thread.is_alive():
                thread.join(STOP_S)
        self._pool.shutdown(cancel_futures=True)

    @property
    def is_synced(self) -> bool:
        """Nodes and pods have been listed."""
        return all(reflector.synced.is_set() for reflector in self._reflectors)

    @property
    def is_leader(self) -> bool:
        return self._is_leader()

    @property
    def may_decide(self) -> bool:
        """It leads, and sees what happens: without eyes it would take a binding whose answer was lost for not made."""
        return self._is_leader() and self.is_synced and all(reflector.is_watching for reflector in self._reflectors)

    @property
    def watch_restarts(self) -> int:
        """Watches and lists that failed."""
        return sum(reflector.breaks for reflector in self._reflectors)

    def raw(self, uid: str) -> Json | None:
        """A pod of ours as the API server last showed it."""
        with self._lock:
            return self._mine[uid].raw if uid in self._mine else self._raw.get(uid)

    # --- what the watches tell ---

    def replace(self, kind: Kind, objects: list[Json]) -> None:
        """These are all nodes or all pods."""
        if kind == "nodes":
            self.state.replace([facts for thing in objects if (facts := self._read(node_facts, thing))], None)
        else:
            pods = {pod.uid: (pod, thing) for thing in objects if (pod := self._read(pod_facts, thing))}
            self.state.replace(None, [pod for pod, _ in pods.values()])
            with self._lock:
                for uid in [uid for uid in (*self._mine, *self._raw) if uid not in pods]:
                    self._forget(uid)
                for pod, thing in pods.values():
                    self._keep(pod, thing)
        self.queue.wake()

    def change(self, kind: Kind, event: str, thing: Json) -> None:
        """A node or pod has come, changed or gone."""
        if kind == "nodes":
            node = self._read(node_facts, thing)
            if node and event == "DELETED":
                self.state.drop_node(node.name)
            elif node and self.state.nodes.get(node.name) != node:
                self.state.put_node(node)
                self.queue.wake()
            return
        pod = self._read(pod_facts, thing)
        if pod is None:
            return
        if event == "DELETED":
            self.state.drop_pod(pod.uid)
            self._forget(pod.uid)
        else:
            self.state.put_pod(pod)
            self._keep(pod, thing)
        if event == "DELETED" or pod.is_done:
            self.queue.wake()

    def _read(self, read: Callable[[Any], Any], thing: Json) -> Any:
        try:
            return read(thing)
        except PayloadError as error:
            self.metrics.unreadable.inc()
            log.error("not understood and left out: %s", error)
            return None

    def _keep(self, pod: PodFacts, thing: Json) -> None:
        """Have the pod in the queue if it waits for us, and nowhere else."""
        with self._lock:
            if pod.scheduler != self.settings.name or pod.is_done or pod.is_leaving:
                self._forget(pod.uid)
            elif pod.node:
                self._forget(pod.uid)
                self._raw[pod.uid] = thing
            elif not pod.is_gated:
                old = self._mine.get(pod.uid)
                if old:
                    old.raw, old.facts = thing, pod
                else:
                    self._mine[pod.uid] = _Mine(thing, pod, self._clock())
                if pod.uid not in self._bound:
                    self.queue.add(pod.uid, pod.priority)

    def _forget(self, uid: str) -> None:
        with self._lock:
            self._bound.discard(uid)
            self._mine.pop(uid, None)
            self._raw.pop(uid, None)
            self.queue.remove(uid)

    # --- deciding ---

    def _run(self) -> None:
        while not self._halt.is_set():
            if not self.may_decide:
                self._halt.wait(0.01)
                continue
            uid = self.queue.pop(0.1)
            if uid is not None and self.may_decide:
                self.decide(uid)
            elif uid is not None:
                self.queue.retry(uid, set_aside=False, failed=False)

    def decide(self, uid: str) -> None:
        """Choose a node for the pod and have it bound, or say why not."""
        with self._lock:
            mine = self._mine.get(uid)
        if mine is None:
            return
        pod = mine.facts
        begin = time.perf_counter()
        choice = self._steer(pod) if self.steering else self._advisor.choose(pod)
        if choice is None:
            self.queue.retry(uid, set_aside=True, failed=False)
            return
        self.metrics.decision_seconds.observe(time.perf_counter() - begin)
        if choice.node is None:
            self.metrics.attempts.labels("unschedulable").inc()
            self._complain(mine, "FailedScheduling", why_nowhere(choice.failed))
            self.queue.retry(uid, set_aside=True)
        elif choice.waits and self._clock() - mine.since < self.settings.patience_s:
            self.metrics.attempts.labels("waits").inc()
            self.queue.retry(uid, set_aside=False)
        else:
            self.state.expect(pod, choice.node, UNTIL_SEEN_S)
            self._pool.submit(self._bind, mine, pod, choice)

    def _steer(self, pod: PodFacts) -> Choice | None:
        """The node that the plan under way keeps for the pod; None while the pod must wait."""
        target = self.steering.target(pod) if self.steering else None
        return Choice(target, by="plan") if target and self._advisor.fits(pod, target) else None

    def _complain(self, mine: _Mine, reason: str, message: str) -> None:
        if mine.told != message:
            mine.told = message
            self._recorder.tell(mine.raw, "Warning", reason, message)

    # --- binding ---

    def _bind(self, mine: _Mine, pod: PodFacts, choice: Choice) -> None:
        assert choice.node is not None
        begin = time.perf_counter()
        try:
            bound = self._bind_until_answered(mine, choice.node)
        except Exception:  # a pod must not stay expected on a node because of our own bug
            log.exception("binding %s failed", pod.title)
            bound = False
        self.metrics.bind_seconds.observe(time.perf_counter() - begin)
        if bound:
            self.metrics.attempts.labels("scheduled").inc()
            with self._lock:
                if pod.uid in self._mine:
                    self._bound.add(pod.uid)
                self.queue.remove(pod.uid)
            if self.steering:
                self.steering.bound(pod, choice.node)
            message = f"Successfully assigned {pod.title} to {choice.node} ({choice.by})"
            self._recorder.tell(mine.raw, "Normal", "Scheduled", message)
        else:
            self._take_back(pod)

    def _bind_until_answered(self, mine: _Mine, node: str) -> bool:
        """Whether the pod is on the node now; no answer is asked for again."""
        pause, unsure = 0.05, False
        while self._is_leader() and not self._halt.is_set():
            try:
                self._api.bind(mine.raw, node)
                return True
            except ApiError as error:
                if error.code in ANSWERED:
                    if unsure and error.code == CONFLICT:  # by whom? perhaps by our own first try
                        return self._is_on(mine.raw, node)
                    self.metrics.attempts.labels("refused").inc()
                    log.warning("%s", error)
                    return False
                unsure = unsure or error.code != TOO_MANY_REQUESTS
                log.warning("%s; asking again in %.2f s", error, pause)
            self._halt.wait(pause)
            pause = min(2 * pause, LONGEST_REPEAT_S)
        return False

    def _is_on(self, raw: Json, node: str) -> bool:
        try:
            found = self._api.read_pod(raw)
        except ApiError:
            return False  # the watch will tell
        return bool(found and found["spec"].get("nodeName") == node)

    def _take_back(self, pod: PodFacts) -> None:
        """The pod is not where it was expected: it waits again, unless its own events say otherwise."""
        with self._lock, self.state.lock:
            mine = self._mine.get(pod.uid)
            seen = self.state.placed.get(pod.uid)
            if seen is not None and seen.expires < math.inf:
                self.state.drop_pod(pod.uid)
            if mine is not None:
                self.state.put_pod(mine.facts)
            self.queue.retry(pod.uid, set_aside=False)
        self.queue.wake()  # its place may do for another

    # --- for plans ---

    def snapshot(self) -> tuple[list[NodeFacts], list[PodFacts], dict[str, str]]:
        """Nodes, pods that run or wait, and uid -> node of those that run, as one consistent picture."""
        with self.state.lock:
            placed = {uid: one.node for uid, one in self.state.placed.items()}
            pods = [one.pod for one in self.state.placed.values()] + list(self.state.waiting.values())
            return list(self.state.nodes.values()), pods, placed
