"""What the small API server understands and says over HTTP: paths, selectors, patches, lists, watches, errors."""

from __future__ import annotations

import copy
import json
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from tests.serving.kube.api_server import ApiServer

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


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection out of `api`, watches included."""

    api: ApiServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def setup(self) -> None:
        super().setup()
        with self.api.changed:
            self.api.sockets.add(self.connection)

    def finish(self) -> None:
        with self.api.changed:
            self.api.sockets.discard(self.connection)
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
            self.epoch = self.api.epoch  # streams are cut that were asked for before, begun or not
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
                return api.existing((resource, space, name))
            items = [o for key, o in api.objects.items() if self.selected(key, o, resource, space, query)]
            return {
                "kind": KINDS[resource][1] + "List",
                "apiVersion": KINDS[resource][0],
                "metadata": {"resourceVersion": str(api.version)},
                "items": items,
            }

    def put(self, resource: str, name: str, space: str, body: Json) -> Json:
        with self.api.changed:
            old = self.api.existing((resource, space, name))
            version = body["metadata"].get("resourceVersion")
            if version and version != old["metadata"]["resourceVersion"]:
                raise Refusal(409, "Conflict", f'{resource} "{name}": the object has been modified')
            new = {**copy.deepcopy(body), "metadata": {**old["metadata"], **body["metadata"]}}
            self.api.store((resource, space, name), new)
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
            seen = int(query.get("resourceVersion") or api.version)
        while True:
            with api.changed:
                if seen < api.oldest:
                    gone = Refusal(410, "Expired", f"too old resource version: {seen} ({api.oldest})")
                    yield {"type": "ERROR", "object": gone.status}
                    return
                fresh = [change for change in api.history if change.version > seen]
                if not fresh:
                    left = end - time.monotonic()
                    if left <= 0 or api.epoch != self.epoch or not api.changed.wait(left):
                        return
                    if api.epoch != self.epoch:
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
