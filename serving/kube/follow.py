"""Keeps a `ClusterState` true to a cluster that is watched."""

from __future__ import annotations

import logging

from dispatchgym.serving.kube.convert import node_facts, pod_facts
from dispatchgym.serving.kube.extender import Extender
from dispatchgym.serving.kube.facts import NodeFacts, PodFacts
from dispatchgym.serving.kube.quantity import PayloadError
from dispatchgym.serving.kube.scheduler_api import Json, Kind
from dispatchgym.serving.kube.scheduler_watch import Lister, Reflector

log = logging.getLogger(__name__)


class Follower:
    """Where two reflectors put what they see. An object that cannot be read is left out, counted and logged.

    In a dry run the extender decides on every pod that is seen waiting, whether kube-scheduler asks it or not.
    """

    def __init__(self, source: Lister, extender: Extender) -> None:
        self._state = extender.state
        self._decisions = extender.decisions
        self._metrics = extender.metrics
        self._extender = extender
        self._reflectors = [Reflector(source, kind, self) for kind in ("nodes", "pods")]

    @property
    def is_synced(self) -> bool:
        """Nodes and pods have been listed once."""
        return all(reflector.synced.is_set() for reflector in self._reflectors)

    def start(self) -> None:
        for reflector in self._reflectors:
            reflector.start()

    def stop(self) -> None:
        for reflector in self._reflectors:
            reflector.stop()

    def replace(self, kind: Kind, objects: list[Json]) -> None:
        if kind == "nodes":
            nodes = [node for thing in objects if (node := self._node(thing)) is not None]
            self._state.replace(nodes, None)
            return
        pods = [pod for thing in objects if (pod := self._pod(thing)) is not None]
        self._state.replace(None, pods)
        for pod in pods:
            self._saw(pod)

    def change(self, kind: Kind, event: str, thing: Json) -> None:
        if kind == "nodes":
            node = self._node(thing)
            if node is not None and event == "DELETED":
                self._state.drop_node(node.name)
            elif node is not None:
                self._state.put_node(node)
            return
        pod = self._pod(thing)
        if pod is not None and event == "DELETED":
            self._state.drop_pod(pod.uid)
            self._decisions.gone(pod.uid)
        elif pod is not None:
            self._state.put_pod(pod)
            self._saw(pod)

    def _saw(self, pod: PodFacts) -> None:
        self._decisions.saw(pod)
        if self._extender.config.dry_run and pod.uid in self._state.waiting and not pod.is_gated:
            self._extender.watch_over(pod)

    def _node(self, thing: Json) -> NodeFacts | None:
        try:
            return node_facts(thing)
        except PayloadError as error:
            self._leave_out(error)
            return None

    def _pod(self, thing: Json) -> PodFacts | None:
        try:
            return pod_facts(thing)
        except PayloadError as error:
            self._leave_out(error)
            return None

    def _leave_out(self, error: PayloadError) -> None:
        self._metrics.unreadable.inc()
        log.warning("left out: %s", error)
