"""Anything may be sent to the extender: it answers with 2xx or 4xx and goes on."""

from __future__ import annotations

import asyncio
import copy
import json
import math
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error

from dispatchgym.serving.kube.convert import node_facts, pod_facts
from dispatchgym.serving.kube.extender import Extender, ExtenderConfig
from dispatchgym.serving.kube.policies import RulePolicy
from dispatchgym.serving.kube.server import build_app
from dispatchgym.serving.security import Access, App
from tests.serving.kube.live import extender
from tests.serving.kube.objects import Json, anti_affinity, node, pod


def made(**config: Any) -> Extender:
    """An extender that uses everything it has."""
    one = extender(RulePolicy("best-fit"), ExtenderConfig(recheck=True, **config))
    for name in ("a", "b"):
        one.state.put_node(node_facts(node(name, labels={"zone": "east"})))
    one.state.put_pod(pod_facts(pod("x", on="a", labels={"app": "web"}, affinity=anti_affinity("zone", app="db"))))
    return one


def ask(app: App, method: str, path: str, **request: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)  # an exception that nobody handles comes out here
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.request(method, path, **request)

    return asyncio.run(send())


APP = build_app(made(), Access())
schema = schemathesis.openapi.from_dict(ask(APP, "GET", "/openapi.json").json())


@schema.parametrize()
@settings(max_examples=4)
def test_the_described_interface_holds(case: schemathesis.Case) -> None:
    request = case.as_transport_kwargs(base_url="http://x")
    with httpx.Client(base_url="http://x") as client:
        wanted = client.build_request(
            request["method"], request["url"], params=request.get("params"), json=request.get("json"),
            content=request.get("data"), headers={k: str(v) for k, v in (request.get("headers") or {}).items()},
        )  # fmt: skip
    answer = ask(APP, wanted.method, str(wanted.url), content=wanted.content, headers=wanted.headers)
    assert answer.status_code < 500 or (case.path == "/readyz" and answer.status_code == 503)
    if answer.status_code < 500:
        case.validate_response(schemathesis.Response.from_any(answer), checks=[not_a_server_error])


def test_every_verb_and_its_form_is_described() -> None:
    document = ask(APP, "GET", "/openapi.json").json()
    for verb in ("filter", "prioritize", "preempt", "bind"):
        body = document["paths"][f"/{verb}"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        form = document["components"]["schemas"][body["$ref"].rpartition("/")[2]]
        assert form["properties"]
    assert "NodeNames" in document["components"]["schemas"]["ExtenderArgs"]["properties"]


_SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5)
    | st.sampled_from(("-1", "1e99", "9" * 50, "500m", "\x00", "é", "In", "zone", "NoSchedule"))
)  # fmt: skip
_ANYTHING = st.recursive(
    _SCALARS, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=4), x, max_size=3), max_leaves=6
)
_TERM = {"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "web"}}}
_POD = pod(
    "p",
    labels={"app": "web"},
    annotations={"alibabacloud.com/gpu-milli": "500"},
    tolerations=[{"key": "k", "operator": "Exists"}],
    affinity={
        **anti_affinity("zone", app="web"),
        "podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [_TERM]},
    },
    topologySpreadConstraints=[{**_TERM, "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule"}],
)
_REQUESTS: dict[str, Json] = {
    "filter": {"Pod": _POD, "Nodes": {"items": [node("a"), node("b")]}, "NodeNames": None},
    "prioritize": {"Pod": _POD, "Nodes": {"items": [node("a"), node("c")]}},
    "preempt": {"Pod": _POD, "NodeNameToVictims": {"a": {"Pods": [pod("x")], "NumPDBViolations": 0}}},
    "bind": {"PodName": "p", "PodNamespace": "s", "PodUID": "u", "Node": "a"},
    "explain": {"Pod": _POD},
}


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [p for key, child in inner for p in _paths(child, (*path, key))]


_APPS = {watches: build_app(made(watches=watches), Access()) for watches in (True, False)}


@pytest.mark.parametrize("watches", [True, False])
@settings(max_examples=25)
@given(data=st.data())
def test_damaged_requests_are_answered_or_refused(watches: bool, data: st.DataObject) -> None:
    app = _APPS[watches]
    for verb, request in _REQUESTS.items():
        damaged = copy.deepcopy(request)
        for _ in range(data.draw(st.integers(1, 2))):
            path = data.draw(st.sampled_from(_paths(damaged)))
            at: Any = damaged
            for key in path[:-1]:
                at = at[key]
            at[path[-1]] = data.draw(_ANYTHING)
        answer = ask(app, "POST", f"/{verb}", content=json.dumps(damaged))
        assert answer.status_code in (200, 400)
        found = json.loads(answer.content, parse_constant=lambda c: pytest.fail(f"{c} in an answer"))
        if verb == "prioritize" and answer.status_code == 200:
            assert all(isinstance(one["Score"], int) and 0 <= one["Score"] <= 10 for one in found)
        if verb == "explain" and answer.status_code == 200:
            assert all(math.isfinite(one["score"]) for one in found["feasible"])


@settings(max_examples=15)
@given(body=st.binary(max_size=60), kind=st.sampled_from(("application/json", "text/plain", "")))
def test_bytes_are_refused(body: bytes, kind: str) -> None:
    for verb in _REQUESTS:
        assert ask(APP, "POST", f"/{verb}", content=body, headers={"content-type": kind}).status_code == 400
