"""Anything may be sent to the LLM server: it answers with 2xx or 4xx and goes on."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error

from dispatchgym.serving.llm.access import LlmGate, RateLimits
from dispatchgym.serving.llm.admin import SchedulerAdmin
from dispatchgym.serving.llm.asking import Asking
from dispatchgym.serving.llm.engine_loop import Recipe
from dispatchgym.serving.llm.frontend import Frontend
from dispatchgym.serving.llm.metrics import LlmMetrics
from dispatchgym.serving.llm.sequences import Limits
from dispatchgym.serving.llm.server import build_app
from tests.serving.llm.live import Live, eventually, language, serving

ENOUGH = settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with serving() as one:
        yield one
        assert eventually(one.idle)  # whatever was sent: nothing is left behind


def _document() -> dict[str, Any]:
    """The description of the interface, of a server that has no engine."""
    frontend = Frontend(Recipe(""), Limits(), LlmMetrics("letters"), lambda: 0.0)
    rates = RateLimits(1, 1, lambda: 0.0)
    app = build_app(Asking(frontend, language(), "letters", rates), SchedulerAdmin(frontend), LlmGate())

    async def ask() -> Any:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://x") as client:
            return (await client.get("/openapi.json")).json()

    found: dict[str, Any] = asyncio.run(ask())
    return found


schema = schemathesis.openapi.from_dict(_document())


@schema.parametrize()
@ENOUGH
def test_the_described_interface_holds(case: schemathesis.Case, live: Live) -> None:
    if isinstance(case.body, dict) and "model" in case.body:
        case.body["model"] = "letters"  # else only the name would be tested
    answer = case.call(base_url=live.url, timeout=60)
    case.validate_response(answer, checks=[not_a_server_error])


REQUESTS: dict[str, dict[str, Any]] = {
    "/v1/completions": {
        "model": "letters", "prompt": ["abc", "d"], "max_tokens": 3, "n": 2, "temperature": 0.5, "top_p": 0.9,
        "stop": ["q", "zz"], "logprobs": 2, "stream": False, "seed": 7, "ttft_slo_ms": 100.0, "priority": 1,
        "stream_options": {"include_usage": True}, "deadline_ms": 60_000.0,
    },
    "/v1/chat/completions": {
        "model": "letters", "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        "max_completion_tokens": 3, "logprobs": True, "top_logprobs": 3, "session_id": "s",
    },
}  # fmt: skip
_SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5)
    | st.sampled_from(("-1", "1e99", "\x00", "é", "\ud800", "user", "<end>"))
)  # fmt: skip
_ANYTHING = st.recursive(
    _SCALARS, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=4), x, max_size=3), max_leaves=5
)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [p for key, child in inner for p in _paths(child, (*path, key))]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_requests_are_answered_or_refused(live: Live, data: st.DataObject) -> None:
    with httpx.Client(base_url=live.url, timeout=60) as http:
        for path, request in REQUESTS.items():
            damaged = copy.deepcopy(request)
            for _ in range(data.draw(st.integers(1, 2))):
                places = _paths(damaged)
                at: Any = damaged
                *way, last = data.draw(st.sampled_from(places))
                for key in way:
                    at = at[key]
                at[last] = data.draw(_ANYTHING)
            answer = http.post(path, content=json.dumps(damaged))
            assert answer.status_code in (200, 400, 404, 408), answer.text
            if answer.status_code != 200:
                assert answer.json()["error"]["message"]


@ENOUGH
@given(body=st.binary(max_size=60))
def test_bytes_are_refused(live: Live, body: bytes) -> None:
    for path in (*REQUESTS, "/v1/nothing"):
        assert httpx.post(live.url + path, content=body).status_code in (400, 404)


@pytest.mark.parametrize(
    "body",
    [b"[" * 100_000, b'{"model":' * 50_000, b'{"prompt":"\\ud800","model":"letters"}', b'{"max_tokens":' + b"9" * 5000],
)
def test_malformed_bodies_are_refused(live: Live, body: bytes) -> None:
    assert httpx.post(f"{live.url}/v1/completions", content=body).status_code == 400
