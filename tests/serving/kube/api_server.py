"""A small Kubernetes API server in this process: real HTTP, so that the official client and ours work unmodified.

It holds what a scheduler touches: nodes, pods, bindings, evictions held back by disruption budgets, leases, events,
priority classes; lists, and watches with resource versions, field selectors, bookmarks and 410 Gone. There is no
kubelet: a bound pod is marked running, a deleted one is gone at once. `replaces=True` plays the ReplicaSet
controller: an evicted or deleted pod with a controller comes back under a new name.

Faults are asked for: `stop()` and `start()` restart it on the same port with everything it stored, `compact()`
forgets the history (the next watch that resumes gets 410), `drop_watches()` cuts the streams, `fail(...)` answers
chosen requests with an error, and `before` holds functions that run between a request's arrival and its handling.
"""

from __future__ import annotations

import copy
import itertools
import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer

from tests.serving.kube.api_handler import KINDS, Handler, Json, Key, Refusal


@dataclass
class Change:
    version: int
    key: Key
    before: Json | None
    after: Json | None


@dataclass
class Fault:
    method: str
    path: re.Pattern[str]
    code: int
    left: int


@dataclass
class ApiServer:
    """`url` is where it listens; the store may be read and written directly through its methods, from any thread."""

    replaces: bool = False
    port: int = 0
    objects: dict[Key, Json] = field(default_factory=dict)
    history: list[Change] = field(default_factory=list)
    version: int = 0
    oldest: int = 0
    requests: list[tuple[str, str, Json]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    before: list[Callable[[str, str, Json], None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.epoch = 0  # watches of an older epoch end
        self.uids = itertools.count(1)
        self._http: ThreadingHTTPServer | None = None
        self.sockets: set[socket.socket] = set()

    # -- life -----------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> ApiServer:
        server = self

        class Bound(Handler):
            api = server

        class Http(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True
            request_queue_size = 128

        self._http = Http(("127.0.0.1", self.port), Bound)
        self.port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True, name="api-server").start()
        return self

    def stop(self) -> None:
        """Close the port and cut every connection; what is stored stays."""
        http, self._http = self._http, None
        if http is not None:
            http.shutdown()
            http.server_close()
        with self.changed:
            self.epoch += 1
            for connection in self.sockets:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self.changed.notify_all()

    def drop_watches(self) -> None:
        """End all streams, as a proxy's time limit does."""
        with self.changed:
            self.epoch += 1
            self.changed.notify_all()

    def compact(self) -> None:
        """Forget the history: a watch from an earlier version is answered with 410."""
        with self.changed:
            self.version += 1  # nobody can hold this one
            self.history.clear()
            self.oldest = self.version

    def fail(self, method: str, path: str, code: int, times: int = 1) -> None:
        """Answer the next `times` requests whose path matches with an error."""
        self.faults.append(Fault(method, re.compile(path), code, times))

    def sent(self, method: str, path: str) -> list[Json]:
        """Bodies of the requests that arrived so far."""
        wanted = re.compile(path)
        return [body for m, p, body in list(self.requests) if m == method and wanted.search(p)]

    def wait(self, condition: Callable[[ApiServer], bool], timeout_s: float = 10.0) -> bool:
        """True as soon as `condition(self)` holds, False if it does not in time.

        Asked again at every change, and from time to time: it may be about somebody who watches the server.
        """
        end = time.monotonic() + timeout_s
        with self.changed:
            while not condition(self):
                if time.monotonic() > end:
                    return False
                self.changed.wait(0.02)
        return True

    # -- the store ------------------------------------------------------------------------------------------------

    def get(self, resource: str, name: str, namespace: str = "") -> Json | None:
        with self.changed:
            return self.objects.get((resource, namespace, name))

    def all(self, resource: str) -> list[Json]:
        with self.changed:
            return [o for (kind, _, _), o in self.objects.items() if kind == resource]

    def hosts(self) -> dict[str, str]:
        """Pod name -> node of all bound pods."""
        return {p["metadata"]["name"]: p["spec"]["nodeName"] for p in self.all("pods") if p["spec"].get("nodeName")}

    def create(self, resource: str, body: Json, namespace: str = "") -> Json:
        body = copy.deepcopy(body)
        meta = body.setdefault("metadata", {})
        if "name" not in meta and "generateName" in meta:
            meta["name"] = f"{meta['generateName']}{next(self.uids):05d}"
        key = (resource, namespace, meta["name"])
        with self.changed:
            if key in self.objects:
                raise Refusal(409, "AlreadyExists", f'{resource} "{meta["name"]}" already exists')
            meta["uid"] = f"uid-{next(self.uids)}"
            meta["creationTimestamp"] = _now()
            if namespace:
                meta["namespace"] = namespace
            body["apiVersion"], body["kind"] = KINDS[resource]
            if resource == "pods":
                body.setdefault("status", {}).setdefault("phase", "Pending")
                body["spec"].setdefault("schedulerName", "default-scheduler")
            self.store(key, body)
            return body

    def update(self, resource: str, name: str, change: Callable[[Json], None], namespace: str = "") -> Json:
        """Apply `change` to a copy and store that."""
        with self.changed:
            old = self.existing((resource, namespace, name))
            new = copy.deepcopy(old)
            change(new)
            self.store((resource, namespace, name), new)
            return new

    def delete(self, resource: str, name: str, namespace: str = "") -> Json:
        with self.changed:
            key = (resource, namespace, name)
            gone = self.existing(key)
            self.store(key, None)
            if resource == "pods" and self.replaces:
                self._replace(gone)
            return gone

    def existing(self, key: Key) -> Json:
        if key not in self.objects:
            raise Refusal(404, "NotFound", f'{key[0]} "{key[2]}" not found')
        return self.objects[key]

    def store(self, key: Key, new: Json | None) -> None:
        old = self.objects.get(key)
        self.version += 1
        if new is None:
            assert old is not None
            del self.objects[key]
            old = copy.deepcopy(old)
            old["metadata"]["resourceVersion"] = str(self.version)
        else:
            new["metadata"]["resourceVersion"] = str(self.version)
            self.objects[key] = new
        self.history.append(Change(self.version, key, old, new))
        if key[0] in ("pods", "poddisruptionbudgets"):
            self._count_budgets()
        self.changed.notify_all()

    def _replace(self, gone: Json) -> None:
        """What a ReplicaSet controller does when one of its pods has gone."""
        owners = [o for o in gone["metadata"].get("ownerReferences", []) if o.get("controller")]
        if not owners:
            return
        spec = {k: v for k, v in gone["spec"].items() if k != "nodeName"}
        kept = {k: v for k, v in gone["metadata"].items() if k in ("labels", "annotations", "ownerReferences")}
        body = {"metadata": {"generateName": f"{owners[0]['name']}-", **kept}, "spec": spec}
        self.create("pods", body, gone["metadata"]["namespace"])

    def _count_budgets(self) -> None:
        """status.disruptionsAllowed of every budget, as the disruption controller keeps it."""
        for key, budget in list(self.objects.items()):
            if key[0] != "poddisruptionbudgets":
                continue
            healthy = sum(
                1
                for (kind, space, _), pod in self.objects.items()
                if kind == "pods" and space == key[1] and _selects(budget, pod) and pod["spec"].get("nodeName")
            )
            allowed = max(0, healthy - int(budget["spec"].get("minAvailable", 0)))
            if budget.get("status", {}).get("disruptionsAllowed") != allowed:
                new = copy.deepcopy(budget)
                new["status"] = {"disruptionsAllowed": allowed, "currentHealthy": healthy}
                self.store(key, new)

    # -- pods -----------------------------------------------------------------------------------------------------

    def bind(self, namespace: str, name: str, body: Json) -> Json:
        with self.changed:
            pod = self.existing(("pods", namespace, name))
            asked = body.get("metadata", {}).get("uid")
            if asked and asked != pod["metadata"]["uid"]:
                raise Refusal(409, "Conflict", f"the UID in the precondition ({asked}) does not match the pod's")
            if pod["metadata"].get("deletionTimestamp"):
                raise Refusal(409, "Conflict", f"pod {name} is being deleted, cannot be assigned to a host")
            if pod["spec"].get("nodeName"):
                raise Refusal(409, "Conflict", f"pod {name} is already assigned to node {pod['spec']['nodeName']}")

            def assign(new: Json) -> None:
                new["spec"]["nodeName"] = body["target"]["name"]
                new["status"] = {"phase": "Running", "conditions": [{"type": "PodScheduled", "status": "True"}]}

            self.update("pods", name, assign, namespace)
            return {"kind": "Status", "apiVersion": "v1", "status": "Success", "code": 201}

    def evict(self, namespace: str, name: str, body: Json) -> Json:
        with self.changed:
            pod = self.existing(("pods", namespace, name))
            for budget in self.all("poddisruptionbudgets"):
                guards = budget["metadata"]["namespace"] == namespace and _selects(budget, pod)
                if guards and not budget.get("status", {}).get("disruptionsAllowed"):
                    raise Refusal(429, "TooManyRequests", "Cannot evict pod: it would violate a disruption budget")
            if not body.get("deleteOptions", {}).get("dryRun"):
                self.delete("pods", name, namespace)
            return {"kind": "Status", "apiVersion": "v1", "status": "Success", "code": 201}


def _selects(budget: Json, pod: Json) -> bool:
    wanted = budget["spec"]["selector"]["matchLabels"]
    labels = pod["metadata"].get("labels", {})
    return all(labels.get(k) == v for k, v in wanted.items())


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
