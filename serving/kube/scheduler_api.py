"""What a scheduler asks of a Kubernetes API server, as plain JSON through the official client.

Objects stay dictionaries: the client's typed models cost a millisecond a pod to build, and the reply to a Binding
cannot be built at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any, Literal

import urllib3
from kubernetes import client, config

from dispatchgym.envs.api import DispatchGymError, UsageError

Json = dict[str, Any]
Kind = Literal["nodes", "pods"]

WATCH_S = 240
"""How long the server keeps a watch open; then it is resumed from where it stood."""
REQUEST_S = 15.0
GONE, CONFLICT, NOT_FOUND, TOO_MANY_REQUESTS = 410, 409, 404, 429


class ApiError(DispatchGymError, RuntimeError):
    """The API server refused, or did not answer; `code` is the HTTP status, 0 without one."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


@contextmanager
def _told_plainly(what: str) -> Iterator[None]:
    try:
        yield
    except client.ApiException as error:
        raise ApiError(f"{what}: {error.status} {_message(error)}", int(error.status or 0)) from None
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise ApiError(f"{what}: {type(error).__name__}, the API server does not answer") from None
    except json.JSONDecodeError as error:
        raise ApiError(f"{what}: the answer is not JSON ({error})") from None


def _message(error: client.ApiException) -> str:
    with suppress(ValueError, TypeError, AttributeError):
        return str(json.loads(error.body or "")["message"])
    return str(error.reason)


def _load_kubeconfig(path: str | None, context: str | None, settings: client.Configuration) -> None:
    config.load_kube_config(path, context, client_configuration=settings)  # type: ignore[no-untyped-call]


class KubeApi:
    """One cluster. Safe to use from several threads.

    Args:
        api_client: the official client, configured.
    """

    def __init__(self, api_client: Any) -> None:
        self._core = client.CoreV1Api(api_client)
        self._leases = client.CoordinationV1Api(api_client)
        self._groups = client.PolicyApi(api_client)
        self._custom = client.CustomObjectsApi(api_client)
        self.url = str(api_client.configuration.host)

    @classmethod
    def connect(
        cls, *, url: str = "", token: str = "", kubeconfig: str = "", context: str = "", connections: int = 32
    ) -> KubeApi:
        """A cluster by address, else by the service account of the pod this runs in, else by a kubeconfig file.

        Raises:
            UsageError: none of them is there.
        """
        settings = client.Configuration()
        if url:
            settings.host = url
            if token:
                settings.api_key["authorization"] = f"Bearer {token}"
        else:
            try:
                if kubeconfig or context:
                    raise config.ConfigException("a kubeconfig was asked for")
                config.load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call]
            except config.ConfigException:
                try:
                    _load_kubeconfig(kubeconfig or None, context or None, settings)
                except (config.ConfigException, OSError) as error:
                    raise UsageError(
                        f"no cluster: {error}; name one with --api-server or --kubeconfig, or run inside it"
                    ) from None
        settings.connection_pool_maxsize = connections
        return cls(client.ApiClient(settings))

    def list_all(self, kind: Kind) -> tuple[list[Json], str]:
        """All objects, and the resource version to watch from."""
        call = self._core.list_node if kind == "nodes" else self._core.list_pod_for_all_namespaces
        answer = self._ask(f"list {kind}", call, _request_timeout=4 * REQUEST_S)
        # Inside a list, objects do not say what they are.
        return list(answer["items"]), str(answer["metadata"]["resourceVersion"])

    def watch(self, kind: Kind, version: str, *, opened: Callable[[Any], None]) -> Iterator[Json]:
        """Events after `version`, {type, object}, until the server ends the stream.

        `opened` gets the response before the first event, so that another thread can shut it down.

        Raises:
            ApiError: code 410 if `version` is too old to resume from.
        """
        call: Any = self._core.list_node if kind == "nodes" else self._core.list_pod_for_all_namespaces
        with _told_plainly(f"watch {kind}"):
            response = call(
                watch=True,
                resource_version=version,
                allow_watch_bookmarks=True,
                timeout_seconds=WATCH_S,
                _preload_content=False,
                _request_timeout=(REQUEST_S, WATCH_S + REQUEST_S),
            )
            opened(response)
            try:
                for line in response:
                    event: Json = json.loads(line)
                    if event["type"] == "ERROR":
                        status = event["object"]
                        raise ApiError(f"watch {kind}: {status.get('message')}", int(status.get("code") or 0))
                    yield event
            finally:
                response.close()

    def read_pod(self, pod: Json) -> Json | None:
        """The pod as it is now; None if it is gone, or another one has its name."""
        meta = pod["metadata"]
        try:
            found = self._ask(f"read {name_of(pod)}", self._core.read_namespaced_pod, meta["name"], meta["namespace"])
        except ApiError as error:
            if error.code == NOT_FOUND:
                return None
            raise
        return found if found["metadata"]["uid"] == meta["uid"] else None

    def bind(self, pod: Json, node: str) -> None:
        """Assign a pod to a node; refused with 409 if it has one already, or if it is another pod of that name."""
        meta = pod["metadata"]
        body = {
            "metadata": {"name": meta["name"], "namespace": meta["namespace"], "uid": meta["uid"]},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        }
        self._ask(
            f"bind {name_of(pod)}", self._core.create_namespaced_pod_binding, meta["name"], meta["namespace"], body
        )

    def evict(self, pod: Json) -> None:
        """Delete a pod as far as its disruption budgets allow it; refused with 429 where they do not."""
        meta = pod["metadata"]
        body = {
            "apiVersion": f"policy/{self._policy_version}",
            "kind": "Eviction",
            "metadata": {"name": meta["name"], "namespace": meta["namespace"]},
            "deleteOptions": {"preconditions": {"uid": meta["uid"]}},
        }
        self._ask(
            f"evict {name_of(pod)}", self._core.create_namespaced_pod_eviction, meta["name"], meta["namespace"], body
        )

    def budgets(self) -> list[Json]:
        """All PodDisruptionBudgets."""
        answer = self._ask(
            "list poddisruptionbudgets",
            self._custom.list_cluster_custom_object,
            "policy",
            self._policy_version,
            "poddisruptionbudgets",
        )
        return list(answer["items"])

    @cached_property
    def _policy_version(self) -> str:
        answer = self._ask("read API group policy", self._groups.get_api_group)
        return "v1" if any(v["version"] == "v1" for v in answer["versions"]) else "v1beta1"

    def set_condition(self, pod: Json, condition: Json) -> None:
        """Write one condition of a pod's status."""
        meta = pod["metadata"]
        patch = {"metadata": {"uid": meta["uid"]}, "status": {"conditions": [condition]}}
        self._ask(
            f"patch {name_of(pod)}",
            self._core.patch_namespaced_pod_status,
            meta["name"],
            meta["namespace"],
            patch,
            _content_type="application/strategic-merge-patch+json",
        )

    def write_event(self, event: Json) -> None:
        namespace = event["metadata"]["namespace"]
        self._ask("write an event", self._core.create_namespaced_event, namespace, event)

    def read_lease(self, namespace: str, name: str) -> Json | None:
        """The lease; None if there is none."""
        try:
            return self._ask(f"read lease {name}", self._leases.read_namespaced_lease, name, namespace)
        except ApiError as error:
            if error.code == NOT_FOUND:
                return None
            raise

    def write_lease(self, namespace: str, lease: Json) -> Json:
        """Create the lease, or replace the one of the same resource version; 409 if somebody was faster."""
        name = lease["metadata"]["name"]
        if "resourceVersion" in lease["metadata"]:
            return self._ask(f"renew lease {name}", self._leases.replace_namespaced_lease, name, namespace, lease)
        return self._ask(f"create lease {name}", self._leases.create_namespaced_lease, namespace, lease)

    def _ask(self, what: str, call: Callable[..., Any], *args: Any, **options: Any) -> Json:
        options.setdefault("_request_timeout", REQUEST_S)
        with _told_plainly(what):
            answer: Json = json.loads(call(*args, **options, _preload_content=False).data)
            return answer


def name_of(pod: Json) -> str:
    """namespace/name."""
    return f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
