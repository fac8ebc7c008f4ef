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
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Json = dict[str, Any]
Key = tuple[str, str, str]  # resource, namespace, name

KINDS = {
    "pods": ("v1", "Pod"),
    "nodes": ("v1", "Node"),
    "events": ("v1", "Event"),
    "leases": ("coordination.k8s.io/v1", "Lease"),
    "poddisruptionbudgets": ("policy/v1", "PodDisruptionBudget"),
    "priorityclasses": ("scheduling.k8s.io/v1", "PriorityClass"),
}
PATH = re.compile(
    r"^/(?:api/v1|apis/(?P<group>[^/]+)/(?P<version>[^/]+))"
    r"(?:/namespaces/(?P<namespace>[^/]+))?/(?P<resource>[a-z]+)(?:/(?P<name>[^/]+))?(?:/(?P<sub>[a-z]+))?$"
)


class Refusal(Exception):
    """Answered as a Kubernetes Status."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "code": code,
            "reason": reason,
            "message": message,
        }


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
        self._sockets: set[socket.socket] = set()

    # -- life -----------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> ApiServer:
        server = self

        class Handler(_Handler):
            api = server

        class Http(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True
            request_queue_size = 128

        self._http = Http(("127.0.0.1", self.port), Handler)
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
            for connection in self._sockets:
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
            self._put(key, body)
            return body

    def update(self, resource: str, name: str, change: Callable[[Json], None], namespace: str = "") -> Json:
        """Apply `change` to a copy and store that."""
        with self.changed:
            old = self._existing((resource, namespace, name))
            new = copy.deepcopy(old)
            change(new)
            self._put((resource, namespace, name), new)
            return new

    def delete(self, resource: str, name: str, namespace: str = "") -> Json:
        with self.changed:
            key = (resource, namespace, name)
            gone = self._existing(key)
            self._put(key, None)
            if resource == "pods" and self.replaces:
                self._replace(gone)
            return gone

    def _existing(self, key: Key) -> Json:
        if key not in self.objects:
            raise Refusal(404, "NotFound", f'{key[0]} "{key[2]}" not found')
        return self.objects[key]

    def _put(self, key: Key, new: Json | None) -> None:
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
                self._put(key, new)

    # -- pods -----------------------------------------------------------------------------------------------------

    def bind(self, namespace: str, name: str, body: Json) -> Json:
        with self.changed:
            pod = self._existing(("pods", namespace, name))
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
            pod = self._existing(("pods", namespace, name))
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


def _field(thing: Json, path: str) -> str:
    value: Any = thing
    for part in path.split("."):
        value = value.get(part, "") if isinstance(value, dict) else ""
    return str(value)


def _matches(thing: Json | None, selector: str, labels: str) -> bool:
    if thing is None:
        return False
    own = thing["metadata"].get("labels", {})
    for term in filter(None, labels.split(",")):
        key, _, value = term.partition("=")
        if own.get(key) != value.lstrip("="):
            return False
    for term in filter(None, selector.split(",")):
        path, equal, value = re.split(r"(!=|==|=)", term, maxsplit=1)
        if (_field(thing, path) == value) != (equal != "!="):
            return False
    return True


def _merge(target: Json, patch: Json) -> None:
    """A JSON merge patch; lists of things with a `type` (conditions) are merged by it, as the strategic patch does."""
    for key, value in patch.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        elif value is None:
            target.pop(key, None)
        elif isinstance(value, list) and value and isinstance(value[0], dict) and "type" in value[0]:
            kinds = {item["type"] for item in value}
            target[key] = [item for item in target.get(key) or [] if item["type"] not in kinds] + value
        else:
            target[key] = value


class _Handler(BaseHTTPRequestHandler):
    api: ApiServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def setup(self) -> None:
        super().setup()
        with self.api.changed:
            self.api._sockets.add(self.connection)

    def finish(self) -> None:
        with self.api.changed:
            self.api._sockets.discard(self.connection)
        with suppress(OSError):
            super().finish()

    def handle(self) -> None:
        with suppress(OSError):
            super().handle()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        sent = self.rfile.read(length)
        if len(sent) < length:
            return  # cut in the middle by `stop`
        body = json.loads(sent) if sent else {}
        url = urlsplit(self.path)
        query = {k: v[-1] for k, v in parse_qs(url.query).items()}
        with self.api.changed:
            self.api.requests.append((self.command, url.path, body))
            hooks = list(self.api.before)
            self.api.changed.notify_all()
        try:
            for hook in hooks:
                hook(self.command, url.path, body)
            self.inject_fault(url.path)
            if self.command == "GET" and query.get("watch") in ("true", "True", "1"):
                self.watch(url.path, query)
            else:
                self.reply(
                    200 if self.command in ("GET", "PUT", "PATCH", "DELETE") else 201, self.act(url.path, query, body)
                )
        except Refusal as refused:
            self.reply(refused.status["code"], refused.status)

    def inject_fault(self, path: str) -> None:
        with self.api.changed:
            for fault in self.api.faults:
                if fault.left and fault.method == self.command and fault.path.search(path):
                    fault.left -= 1
                    raise Refusal(fault.code, "InternalError", "asked for by the test")

    def reply(self, code: int, body: Json) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()

    def act(self, path: str, query: Json, body: Json) -> Json:
        api = self.api
        if path.rstrip("/") == "/apis/policy":
            version = {"groupVersion": "policy/v1", "version": "v1"}
            return {"kind": "APIGroup", "name": "policy", "versions": [version], "preferredVersion": version}
        found = PATH.match(path)
        if not found or found["resource"] not in (*KINDS, "bindings"):
            raise Refusal(404, "NotFound", f"the server could not find the requested resource: {path}")
        resource, name, space, sub = found["resource"], found["name"], found["namespace"] or "", found["sub"]
        if self.command == "POST" and (sub == "binding" or resource == "bindings"):
            return api.bind(space, name or body["metadata"]["name"], body)
        if self.command == "POST" and sub == "eviction":
            return api.evict(space, name, body)
        if self.command == "POST":
            return api.create(resource, body, space)
        if self.command == "DELETE":
            return api.delete(resource, name, space)
        if self.command == "PATCH":
            return api.update(resource, name, lambda thing: _merge(thing, body), space)
        if self.command == "PUT":
            return self.put(resource, name, space, body)
        with api.changed:
            if name:
                return api._existing((resource, space, name))
            items = [o for key, o in api.objects.items() if self.selected(key, o, resource, space, query)]
            return {
                "kind": KINDS[resource][1] + "List",
                "apiVersion": KINDS[resource][0],
                "metadata": {"resourceVersion": str(api.version)},
                "items": items,
            }

    def put(self, resource: str, name: str, space: str, body: Json) -> Json:
        with self.api.changed:
            old = self.api._existing((resource, space, name))
            version = body["metadata"].get("resourceVersion")
            if version and version != old["metadata"]["resourceVersion"]:
                raise Refusal(409, "Conflict", f'{resource} "{name}": the object has been modified')
            new = {**copy.deepcopy(body), "metadata": {**old["metadata"], **body["metadata"]}}
            self.api._put((resource, space, name), new)
            return new

    @staticmethod
    def selected(key: Key, thing: Json | None, resource: str, space: str, query: Json) -> bool:
        right = key[0] == resource and space in ("", key[1])
        return right and _matches(thing, query.get("fieldSelector", ""), query.get("labelSelector", ""))

    def watch(self, path: str, query: Json) -> None:
        found = PATH.match(path)
        assert found, path
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.flush()
        for event in self.events(found["resource"], found["namespace"] or "", query):
            data = json.dumps(event).encode() + b"\n"
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def events(self, resource: str, space: str, query: Json) -> Iterator[Json]:
        """What changed after the version asked for, in order, until the time is over or the streams are cut."""
        api = self.api
        end = time.monotonic() + float(query.get("timeoutSeconds", 300))
        with api.changed:
            epoch, seen = api.epoch, int(query.get("resourceVersion") or api.version)
        while True:
            with api.changed:
                if seen < api.oldest:
                    gone = Refusal(410, "Expired", f"too old resource version: {seen} ({api.oldest})")
                    yield {"type": "ERROR", "object": gone.status}
                    return
                fresh = [change for change in api.history if change.version > seen]
                if not fresh:
                    left = end - time.monotonic()
                    if left <= 0 or api.epoch != epoch or not api.changed.wait(left):
                        return
                    if api.epoch != epoch:
                        return
                    continue
                seen = fresh[-1].version
            quiet = True
            for change in fresh:
                had = self.selected(change.key, change.before, resource, space, query)
                has = self.selected(change.key, change.after, resource, space, query)
                if had or has:
                    quiet = False
                    kind = "MODIFIED" if had and has else "ADDED" if has else "DELETED"
                    yield {"type": kind, "object": change.after if has else change.after or change.before}
            if quiet and query.get("allowWatchBookmarks") in ("true", "True"):
                name = KINDS[resource][1]
                yield {"type": "BOOKMARK", "object": {"kind": name, "metadata": {"resourceVersion": str(seen)}}}
