"""The manifests: what they allow is what the code does, what they start is what the command understands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

import dispatchgym.serving.kube
from dispatchgym.serving.kube import command
from dispatchgym.serving.kube.scheduler_api import Kind, KubeApi
from tests.serving.kube.api_server import ApiServer
from tests.serving.kube.live import eventually, extender, serving
from tests.serving.kube.objects import Json, Says, node, pod

FOLDER = Path(dispatchgym.serving.kube.__file__).parent / "manifests"
OURS = ("rbac.yaml", "rbac-bind.yaml", "dry-run.yaml", "trial-scheduler.yaml", "extender.yaml", "scheduler-config.yaml")
PATH = re.compile(
    r"^/api/v1(?:/namespaces/[^/]+)?/(?P<resource>\w+)(?P<name>/[^/?]+)?(?:/(?P<sub>\w+))?(?:\?(?P<query>.*))?$"
)


def documents(file: str) -> list[Json]:
    found: list[Json] = list(yaml.safe_load_all((FOLDER / file).read_text()))
    return found


def of_kind(kind: str, *files: str) -> list[Json]:
    return [d for file in files or OURS for d in documents(file) if d["kind"] == kind]


def allowed(file: str) -> set[tuple[str, str]]:
    """(verb, resource) that the file's ClusterRole grants; wildcards stand for themselves."""
    (role,) = of_kind("ClusterRole", file)
    assert all(rule["apiGroups"] == [""] for rule in role["rules"])
    return {(verb, resource) for rule in role["rules"] for verb in rule["verbs"] for resource in rule["resources"]}


class Noted:
    """`KubeApi`, noting which of its requests list and which watch: the API server sees a GET of one path in both."""

    def __init__(self, server: ApiServer) -> None:
        self.server = server
        self.api = KubeApi.connect(url=server.url)
        self.seen: set[tuple[str, str]] = set()

    def list_all(self, kind: Kind) -> Any:
        self.seen.add(("list", kind))
        return self.api.list_all(kind)

    def watch(self, kind: Kind, version: str, **options: Any) -> Any:
        self.seen.add(("watch", kind))
        return self.api.watch(kind, version, **options)

    def bind(self, pod: Json, node: str) -> None:
        self.api.bind(pod, node)

    @property
    def done(self) -> set[tuple[str, str]]:
        """(verb, resource) of every request that the API server has got, in the words of RBAC."""
        found = set(self.seen)
        for method, path, _ in self.server.requests:
            match = PATH.match(path)
            assert match is not None, path
            resource = match["resource"] + (f"/{match['sub']}" if match["sub"] else "")
            if method != "GET" or match["name"] or ("list", resource) not in found:
                found.add(({"POST": "create", "GET": "get"}.get(method, method), resource))
        return found


def test_the_rights_are_exactly_the_calls(server: ApiServer) -> None:
    server.create("nodes", node("a"))
    server.create("pods", pod("p"), "shop")
    server.requests.clear()
    api = Noted(server)
    made = extender(Says(lambda n: 0.0), binder=api)
    with serving(made, source=api) as live, httpx.Client(base_url=live.url) as client:
        assert eventually(lambda: client.get("/readyz").status_code == 200)
        assert eventually(lambda: {("watch", "pods"), ("watch", "nodes")} <= api.done)
        asked = {"Pod": pod("p"), "NodeNames": ["a"]}
        for verb in ("filter", "prioritize", "explain"):
            assert client.post(f"/{verb}", json=asked).status_code == 200
        assert api.done == allowed("rbac.yaml")
        uid = server.get("pods", "p", "shop")["metadata"]["uid"]  # type: ignore[index]
        bound = client.post("/bind", json={"PodName": "p", "PodNamespace": "shop", "PodUID": uid, "Node": "a"})
        assert bound.json() == {"Error": ""}
        assert api.done == allowed("rbac.yaml") | allowed("rbac-bind.yaml")


def containers(kind: str = "Deployment") -> Iterator[tuple[Json, Json]]:
    for deployment in of_kind(kind):
        spec = deployment["spec"]["template"]["spec"]
        yield from ((spec, container) for container in spec["containers"])


def test_what_they_start_is_understood(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("tls.crt", "tls.key", "ca.crt"):
        (tmp_path / name).touch()
    started = 0
    for _, container in containers():
        if container["name"] != "extender":
            continue
        serve, kube, *arguments = container["args"]
        assert (serve, kube) == ("serve", "kube")
        options = command._parser().parse_args([a.replace("/tls/", f"{tmp_path}/") for a in arguments])
        command._check_reach(options, command._access(options))
        assert options.in_cluster
        assert not options.bind
        started += 1
    assert started == 3


def test_every_container_is_locked_down() -> None:
    for spec, container in containers():
        own = container["securityContext"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert own["allowPrivilegeEscalation"] is False
        assert own["readOnlyRootFilesystem"] is True
        assert own["capabilities"] == {"drop": ["ALL"]}
        named = {v["name"] for v in spec["volumes"]}
        assert {m["name"] for m in container["volumeMounts"]} <= named


def scheduler_configs() -> dict[str, Json]:
    (trial,) = of_kind("ConfigMap", "trial-scheduler.yaml")
    (own,) = documents("scheduler-config.yaml")
    return {"trial": yaml.safe_load(trial["data"]["config.yaml"]), "own": own}


@pytest.mark.parametrize("name", ["trial", "own"])
def test_a_scheduler_goes_on_without_the_extender(name: str) -> None:
    config = scheduler_configs()[name]
    assert config["apiVersion"] == "kubescheduler.config.k8s.io/v1"
    (told,) = config["extenders"]
    assert told["ignorable"] is True
    assert told["nodeCacheCapable"] is True
    assert int(told["httpTimeout"].removesuffix("ms")) <= 1000
    # One step of the score outweighs everything that kube-scheduler's own plug-ins (weights 3+2+2+2+1+1+1) can say.
    assert 10 * told["weight"] > 100 * 12
    assert (told["filterVerb"], told["prioritizeVerb"]) == ("filter", "prioritize")
    assert not {"bindVerb", "preemptVerb"} & set(told)


def test_they_talk_to_each_other() -> None:
    trial, own = scheduler_configs()["trial"]["extenders"][0], scheduler_configs()["own"]["extenders"][0]
    assert trial["urlPrefix"] == f"http://127.0.0.1:{command.PORT}"
    (service,) = of_kind("Service", "extender.yaml")
    meta = service["metadata"]
    assert own["urlPrefix"] == f"https://{meta['name']}.{meta['namespace']}.svc"
    assert own["enableHTTPS"] is True
    (deployment,) = of_kind("Deployment", "extender.yaml")
    template = deployment["spec"]["template"]
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    (container,) = template["spec"]["containers"]
    assert container["ports"][0]["name"] == service["spec"]["ports"][0]["targetPort"]
    assert f"--port={container['ports'][0]['containerPort']}" in container["args"]
    accounts = {a["metadata"]["name"] for a in of_kind("ServiceAccount")}
    assert {spec["serviceAccountName"] for spec, _ in containers()} <= accounts


def test_bound_rights_belong_to_known_accounts_and_roles() -> None:
    roles: set[Any] = {r["metadata"]["name"] for r in of_kind("ClusterRole")}
    accounts = {(a["metadata"]["namespace"], a["metadata"]["name"]) for a in of_kind("ServiceAccount")}
    for binding in of_kind("ClusterRoleBinding"):
        name = binding["roleRef"]["name"]
        assert name in roles or name.startswith("system:")
        assert all((s["namespace"], s["name"]) in accounts for s in binding["subjects"])
