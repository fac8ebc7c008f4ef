"""`dispatchgym serve kube-scheduler` as its users start it, and the rights that its manifest asks for."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
import tyro
import yaml

import dispatchgym.serving.kube as package
from dispatchgym.cli import main
from dispatchgym.serving.kube.scheduler_command import KubeScheduler, serve
from dispatchgym.serving.kube.scheduler_lease import LeaseSettings
from dispatchgym.serving.kube.scheduler_repack import RepackSettings
from tests.e2e.kubernetes.control_plane import free_port
from tests.serving.kube.api_handler import PATH
from tests.serving.kube.api_server import ApiServer
from tests.serving.kube.clusters import all_bound, node, pod

Json = dict[str, Any]
MANIFEST = Path(package.__path__[0]) / "manifests" / "second-scheduler.yaml"


def objects() -> list[Json]:
    return list(yaml.safe_load_all(MANIFEST.read_text(encoding="utf-8")))


def rights() -> set[tuple[str, str, str]]:
    """(verb, group, resource) of all roles of the manifest."""
    return {
        (verb, group, resource)
        for thing in objects()
        for rule in thing.get("rules", ())
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


def asked(method: str, path: str) -> set[tuple[str, str, str]]:
    """The rights that a request needs; a GET of a collection may be a list or a watch."""
    if path.rstrip("/") == "/apis/policy":
        return set()  # discovery is everybody's
    found = PATH.match(path)
    assert found, path
    resource = found["resource"] + (f"/{found['sub']}" if found["sub"] else "")
    verbs = {"POST": ["create"], "PUT": ["update"], "PATCH": ["patch"], "DELETE": ["delete"], "GET": ["get"]}[method]
    if method == "GET" and not found["name"]:
        verbs = ["list"] if resource == "poddisruptionbudgets" else ["list", "watch"]
    return {(verb, found["group"] or "", resource) for verb in verbs}


def test_the_manifest_grants_what_is_used_and_nothing_else(server: ApiServer) -> None:
    """A whole life: elected, binding, a lost answer, a pod that fits nowhere, a plan, the lease released."""
    server.replaces = True
    for name in ("a", "b"):
        server.create("nodes", node(name, cpu=4))
    for name, where in (("small-1", "a"), ("small-2", "b")):
        server.create("pods", pod(name, "1", owner=name), "default")
        server.bind("default", name, {"target": {"name": where}})
    server.fail("POST", "/binding$", 500)
    server.create("pods", pod("big", "4", owner="big"), "default")
    stop, port = threading.Event(), free_port()
    options = KubeScheduler(
        policy="first-fit", api_server=server.url, port=port, repack_s=0.2, allow_evictions=True, planner="repair",
        repack=RepackSettings(retry_s=0.05), lease=LeaseSettings(duration_s=3, renew_deadline_s=2, retry_s=0.1),
    )  # fmt: skip
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(serve(options, stop)))
    thread.start()
    try:
        assert server.wait(all_bound, 60)
        taken = server.hosts()["big"]
        assert [name for name, where in server.hosts().items() if where == taken] == ["big"]
        assert httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
        text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        assert 'dispatchgym_scheduler_evictions_total{result="done"} 1.0' in text
        assert "dispatchgym_scheduler_is_leader 1.0" in text
        server.fail("POST", "/binding$", 409)
        server.fail("POST", "/binding$", 500)
        server.create("pods", pod("last", "1"), "default")
        assert server.wait(all_bound, 60)
    finally:
        stop.set()
        thread.join(30)
    assert codes == [0]
    lease = server.get("leases", "dispatchgym", "kube-system")
    assert lease is not None
    assert lease["spec"]["holderIdentity"] == "", "a clean stop gives the lease back"
    used = set().union(*(asked(method, path) for method, path, _ in server.requests))
    assert used <= rights(), f"the manifest lacks {used - rights()}"
    assert rights() - used <= {("get", "", "pods")}, "and grants nothing else; pods are read after a lost answer alone"


def test_the_manifests_arguments_are_understood() -> None:
    deployment = next(thing for thing in objects() if thing["kind"] == "Deployment")
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    assert container["args"][:2] == ["serve", "kube-scheduler"]
    options = tyro.cli(KubeScheduler, args=container["args"][2:])
    assert (options.lease.namespace, options.allow_evictions) == (deployment["metadata"]["namespace"], False)
    lease_role = next(thing for thing in objects() if thing["kind"] == "Role")
    assert lease_role["rules"][1]["resourceNames"] == [options.lease.name]
    assert lease_role["metadata"]["namespace"] == options.lease.namespace


def test_plan_prints_and_ends_without_a_binding(server: ApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        server.create("nodes", node(name, cpu=4))
    for name, where in (("small-1", "a"), ("small-2", "b")):
        server.create("pods", pod(name, "1", owner=name), "default")
        server.bind("default", name, {"target": {"name": where}})
    server.create("pods", pod("big", "4"), "default")
    server.requests.clear()
    assert serve(KubeScheduler(policy="first-fit", api_server=server.url, plan=True), threading.Event()) == 0
    assert re.match(r"plan \(proven best\): 1 pods bound, 1 moved, 0 evicted", capsys.readouterr().out)
    assert {method for method, _, _ in server.requests} == {"GET"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--policy", "best-fitt"], "did you mean 'best-fit'"),
        (["--kubeconfig", "/nowhere/config"], "no cluster"),
        (["--plan", "--allow-evictions"], "leave it out"),
        (["--scheduler-name", "default-scheduler", "--api-server", "http://127.0.0.1:1"], "default scheduler"),
        (["--repack-s", "-1"], "not negative"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "kube-scheduler", *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert says in error[0]
