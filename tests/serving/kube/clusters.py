"""Nodes and pods as JSON, and schedulers of several kinds, for the tests of the second scheduler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dispatchgym.serving.kube.cluster_state import ClusterState
from dispatchgym.serving.kube.facts import PodFacts
from dispatchgym.serving.kube.filters import Filters
from dispatchgym.serving.kube.scheduler import Choice, Scheduler, SchedulerSettings
from dispatchgym.serving.kube.scheduler_api import KubeApi
from dispatchgym.serving.kube.scheduler_events import Recorder
from tests.serving.kube.api_server import ApiServer

Json = dict[str, Any]


def node(name: str, cpu: int = 4, memory_gi: int = 64, **labels: str) -> Json:
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **labels}},
        "spec": {},
        "status": {"allocatable": {"cpu": str(cpu), "memory": f"{memory_gi}Gi", "pods": "110"}},
    }


def pod(
    name: str,
    cpu: str = "1",
    memory: str = "1Gi",
    *,
    priority: int = 0,
    owner: str = "",
    scheduler: str = "dispatchgym",
    labels: Json | None = None,
    **spec: Any,
) -> Json:
    meta: Json = {"name": name, "labels": labels or {}}
    if owner:
        meta["ownerReferences"] = [
            {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": f"rs-{owner}", "controller": True}
        ]
    container = {"name": "c", "image": "none", "resources": {"requests": {"cpu": cpu, "memory": memory}}}
    return {
        "metadata": meta,
        "spec": {"schedulerName": scheduler, "priority": priority, "containers": [container], **spec},
    }


class FirstByName:
    """The first node by name that the filters allow: a policy whose answers are plain to foretell."""

    def __init__(self, state: ClusterState) -> None:
        self._filters = Filters(state)
        self.before: Callable[[PodFacts], None] = lambda pod: None

    def choose(self, pod: PodFacts) -> Choice:
        self.before(pod)
        found = self._filters.check(pod)
        return Choice(min(found.nodes, default=None), found.failed, by="first")

    def fits(self, pod: PodFacts, node: str) -> bool:
        return bool(self._filters.check(pod, [node]).nodes)


@contextmanager
def running(server: ApiServer, **options: Any) -> Iterator[Scheduler]:
    """A scheduler with `FirstByName` against the server; `options` as `Scheduler` has them."""
    api = KubeApi.connect(url=server.url)
    state = ClusterState()
    recorder = Recorder(api, "dispatchgym", "test")
    chooser = FirstByName(state)
    scheduler = Scheduler(api, state, chooser, recorder, SchedulerSettings(bind_workers=4), **options)
    recorder.start()
    scheduler.start()
    try:
        yield scheduler
    finally:
        scheduler.stop()
        recorder.stop()


def all_bound(server: ApiServer) -> bool:
    """Every pod has a node."""
    return all(p["spec"].get("nodeName") for p in server.all("pods"))
