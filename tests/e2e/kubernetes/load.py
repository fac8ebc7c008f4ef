"""Nodes, pods and a pair of eyes for end-to-end runs: what a cluster's users and its controllers would do."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.e2e.kubernetes.control_plane import TOKEN

Json = dict[str, Any]
CREATORS = 8
MIB = 2**20


@dataclass(frozen=True)
class Wish:
    """A pod of the sequence: cpu in milli-CPU, memory in MiB."""

    name: str
    cpu: int
    memory: int


def wishes(number: int, seed: int) -> list[Wish]:
    """ReplicaSets of 1 to 4 pods, 100 to 1000 milli-CPU and MiB, as the generator of 'Priority Matters' draws them."""
    rng = random.Random(seed)
    found: list[Wish] = []
    while len(found) < number:
        cpu, memory = rng.randint(100, 1000), rng.randint(100, 1000)
        found += [Wish(f"pod-{len(found) + i:04d}", cpu, memory) for i in range(rng.randint(1, 4))]
    return found[:number]


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of them lie; the nearest rank."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))] if ranked else float("nan")


@dataclass
class Seen:
    """What the watch showed of the pods, by name; times are monotonic seconds."""

    node: dict[str, str] = field(default_factory=dict)
    at: dict[str, float] = field(default_factory=dict)
    again: list[str] = field(default_factory=list)  # pods that changed their node: must stay empty
    gone: set[str] = field(default_factory=set)


class Cluster:
    """A client of the API server that does not mind its restarts."""

    def __init__(self, url: str) -> None:
        # verify=False: a server on loopback that this run started, with a certificate it made for itself
        self.http = httpx.Client(
            base_url=url, verify=False, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30,
            limits=httpx.Limits(max_connections=64, max_keepalive_connections=64),
        )  # fmt: skip
        self.created: dict[str, float] = {}
        self.retries = 0
        self.seen = Seen()
        self._changed = threading.Condition()
        self._halt = threading.Event()
        self._watcher: threading.Thread | None = None

    def ask(self, method: str, path: str, body: Json | None = None, *, kind: str = "application/json") -> Json:
        """The answer; asked again until the API server gives one."""
        for pause in (0.05, 0.1, 0.2, *[0.5] * 120):
            try:
                answer = self.http.request(
                    method, path, content=json.dumps(body) if body is not None else None, headers={"Content-Type": kind}
                )
            except httpx.HTTPError:
                answer = None
            if answer is not None and answer.status_code < 500 and answer.status_code != 429:
                break
            self.retries += 1
            time.sleep(pause)
        assert answer is not None, f"{method} {path}: the API server never answered"
        if answer.status_code == 409 and method == "POST":
            return {}  # an earlier try got through, and its answer was lost
        if answer.status_code == 404 and method == "DELETE":
            return {}
        assert answer.status_code < 300, f"{method} {path}: {answer.status_code} {answer.text[:300]}"
        return dict(answer.json())

    def add_nodes(self, number: int, cpu: int, memory_gi: int) -> None:
        size = {"cpu": str(cpu), "memory": f"{memory_gi}Gi", "pods": "110"}
        for i in range(number):
            name = f"node-{i:03d}"
            body = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}
            self.ask("POST", "/api/v1/nodes", body)
            status = {"capacity": size, "allocatable": size, "conditions": [{"type": "Ready", "status": "True"}]}
            self.ask("PATCH", f"/api/v1/nodes/{name}/status", {"status": status}, kind="application/merge-patch+json")

    def create(self, wish: Wish, scheduler: str, *, owner: str = "", priority_class: str = "") -> None:
        meta: Json = {"name": wish.name, "labels": {"app": owner or "load"}}
        if owner:
            meta["ownerReferences"] = [
                {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": f"rs-{owner}", "controller": True}
            ]
        amounts = {"cpu": f"{wish.cpu}m", "memory": f"{wish.memory}Mi"}
        spec: Json = {
            "schedulerName": scheduler,
            "terminationGracePeriodSeconds": 0,  # there is no kubelet to confirm an end
            "containers": [{"name": "c", "image": "none", "resources": {"requests": amounts}}],
        }
        if priority_class:
            spec["priorityClassName"] = priority_class
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}
        self.created[wish.name] = time.monotonic()
        self.ask("POST", "/api/v1/namespaces/default/pods", body)

    def create_all(
        self, sequence: Sequence[Wish], scheduler: str, *, meanwhile: Callable[[int], None] = lambda i: None
    ):
        """By several threads at once; `meanwhile(i)` is called before the i-th."""

        def one(numbered: tuple[int, Wish]) -> None:
            meanwhile(numbered[0])
            self.create(numbered[1], scheduler)

        with ThreadPoolExecutor(CREATORS) as pool:
            list(pool.map(one, enumerate(sequence)))

    def clear(self) -> None:
        """Delete all pods and forget them."""
        self.stop_watching()
        while True:
            items = self.ask("GET", "/api/v1/namespaces/default/pods")["items"]
            if not items:
                break
            with ThreadPoolExecutor(CREATORS) as pool:
                names = [item["metadata"]["name"] for item in items]
                list(
                    pool.map(
                        lambda n: self.ask("DELETE", f"/api/v1/namespaces/default/pods/{n}?gracePeriodSeconds=0"), names
                    )
                )
        self.created.clear()
        self.seen = Seen()

    def pods(self) -> list[Json]:
        return list(self.ask("GET", "/api/v1/namespaces/default/pods")["items"])

    # -- eyes --

    def watch(self) -> None:
        """Begin to note when and where pods are bound."""
        version = self._look()
        self._halt = threading.Event()
        self._watcher = threading.Thread(target=self._watch, args=(version, self._halt), daemon=True)
        self._watcher.start()

    def stop_watching(self) -> None:
        self._halt.set()
        if self._watcher:
            self._watcher.join(10)
            self._watcher = None

    def _watch(self, version: str, halt: threading.Event) -> None:
        while not halt.is_set():
            with suppress(httpx.HTTPError):
                version = self._follow(version or self._look(), halt)
                continue
            time.sleep(0.1)

    def _follow(self, version: str, halt: threading.Event) -> str:
        """One watch, to its end; returns the version to go on from, "" if everything must be listed anew."""
        query = {"watch": "true", "resourceVersion": version, "allowWatchBookmarks": "true", "timeoutSeconds": "5"}
        with self.http.stream("GET", "/api/v1/namespaces/default/pods", params=query) as stream:
            for line in stream.iter_lines():
                event = json.loads(line)
                thing = event["object"]
                if event["type"] == "ERROR":  # 410 Gone, as after every restart of the API server
                    return ""
                version = thing["metadata"]["resourceVersion"]
                self._note(event["type"], thing)
                if halt.is_set():
                    break
        return version

    def _look(self) -> str:
        listing = self.ask("GET", "/api/v1/namespaces/default/pods")
        for thing in listing["items"]:
            self._note("ADDED", thing)
        version: str = listing["metadata"]["resourceVersion"]
        return version

    def _note(self, kind: str, thing: Json) -> None:
        name, node = thing["metadata"].get("name", ""), thing.get("spec", {}).get("nodeName", "")
        with self._changed:
            if kind == "DELETED":
                self.seen.gone.add(name)
            elif node and name not in self.seen.node:
                self.seen.node[name], self.seen.at[name] = node, time.monotonic()
            elif node and self.seen.node[name] != node:
                self.seen.again.append(name)
            self._changed.notify_all()

    def wait_bound(self, names: Sequence[str], timeout_s: float = 120.0) -> list[str]:
        """Names that were not bound in time."""
        with self._changed:
            self._changed.wait_for(lambda: all(name in self.seen.node for name in names), timeout_s)
            return [name for name in names if name not in self.seen.node]
