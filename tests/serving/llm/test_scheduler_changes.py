"""Another scheduler takes over while requests run: nothing is lost, and the way back stays open."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest

from dispatchgym.serving.llm.access import LlmGate
from dispatchgym.serving.llm.sequences import Limits
from tests.serving.llm.live import Live, eventually, letters, serving

TOKEN = "an-administrators-token"


def test_changing_the_scheduler_under_200_streams_drops_nothing() -> None:
    names = ["sarathi", "past-future", "laps", "vtc", "mlfq", "sglang", "edf", "vllm"]

    async def stream(client: httpx.AsyncClient, url: str, i: int) -> str:
        body = {"model": "letters", "prompt": f"prompt {i}", "max_tokens": 30, "stream": True, "tenant": f"t{i % 3}"}
        text = ""
        async with client.stream("POST", f"{url}/v1/completions", json=body) as answer:
            assert answer.status_code == 200
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    text += "".join(c["text"] for c in json.loads(line[6:])["choices"])
        return text

    async def everything(live: Live) -> list[str]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=300, limits=limits) as client:
            streams = [asyncio.create_task(stream(client, live.url, i)) for i in range(200)]
            for name in names:
                switched = asyncio.run_coroutine_threadsafe(live.frontend.switch(name), live.loop)
                await asyncio.wrap_future(switched)
            assert not all(task.done() for task in streams)  # the last change, too, came while they ran
            live.gate.slow.clear()
            return await asyncio.gather(*streams)

    with serving(engine={"max_seqs": 64, "kv_blocks": 96}, limits=Limits(waiting=1000)) as live:
        live.gate.slow.set()
        found = asyncio.run(everything(live))
        assert found == [letters(f"prompt {i}", 30) for i in range(200)]
        assert live.frontend.history == ["vllm", *names]
        assert eventually(live.idle)
        assert live.frontend.last is not None
        assert not live.frontend.last.faults


@pytest.fixture
def gate(tmp_path: Path) -> LlmGate:
    path = tmp_path / "admin"
    path.write_text(TOKEN)
    return LlmGate(admin_token_file=path)


def test_the_administrator_lists_switches_and_rolls_back(
    gate: LlmGate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dispatchgym.audit")
    journal = tmp_path / "audit.jsonl"
    headers = {"authorization": f"Bearer {TOKEN}"}
    with (
        serving(access=gate, admin={"journal": journal}) as live,
        httpx.Client(base_url=live.url, headers=headers, timeout=120) as http,
    ):

        def post(path: str = "", **body: Any) -> httpx.Response:
            return http.post(f"/admin/scheduler{path}", json=body)

        assert "sarathi" in http.get("/admin/scheduler").json()["rules"]
        assert post("/rollback").status_code == 400
        assert post(scheduler="sarathi").json() == {"scheduler": "sarathi", "version": "", "before": "vllm"}
        assert post(scheduler="past-future+reserve=0.1").status_code == 200
        assert http.get("/admin/scheduler").json()["history"] == ["vllm", "sarathi", "past-future+reserve=0.1"]
        assert post("/rollback").json()["scheduler"] == "sarathi"
        assert post("/rollback").json()["scheduler"] == "vllm"
        assert http.get("/admin/scheduler").json()["history"] == ["vllm"]
        for wrong in ("sarathy", "mc-sf", "bundle:../secrets", "bundle:packing-gpu", "vllm+colour=2"):
            answer = post(scheduler=wrong)
            assert answer.status_code == 400, wrong
        assert "did you mean 'sarathi'" in post(scheduler="sarathy").json()["error"]["message"]
        assert "true output lengths" in post(scheduler="mc-sf").json()["error"]["message"]
        assert http.get("/admin/scheduler").json()["scheduler"] == "vllm"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert [(line["action"], line["to"]) for line in lines if "error" not in line] == [
        ("switch", "sarathi"), ("switch", "past-future+reserve=0.1"), ("roll back", "sarathi"), ("roll back", "vllm"),
    ]  # fmt: skip
    assert sum("error" in line for line in lines) == 7
    assert all(line["by"] == "127.0.0.1" and line["at"] for line in lines)
    assert TOKEN not in caplog.text + journal.read_text()


def test_without_its_token_nobody_administers(gate: LlmGate) -> None:
    with serving(access=gate) as live, httpx.Client(base_url=live.url) as http:
        for headers in ({}, {"authorization": f"Bearer {TOKEN}x"}, {"authorization": f"Basic {TOKEN}"}):
            assert http.get("/admin/scheduler", headers=headers).status_code == 401
            assert http.post("/admin/scheduler", headers=headers, json={"scheduler": "vllm"}).status_code == 401
        assert http.post("/v1/completions", json={"model": "letters", "prompt": "x"}).status_code == 200
    with serving() as live:  # no token file: nobody at all
        assert httpx.get(f"{live.url}/admin/scheduler", headers={"authorization": "Bearer"}).status_code == 401


def test_a_restarted_engine_goes_on_under_the_scheduler_of_the_moment() -> None:
    with serving() as live:
        asyncio.run_coroutine_threadsafe(live.frontend.switch("sarathi"), live.loop).result(120)
        live.gate.fail_at = 0
        body = {"model": "letters", "prompt": "x"}
        assert httpx.post(f"{live.url}/v1/completions", json=body, timeout=120).status_code == 200  # it was queued
        assert live.frontend.ready is not None
        assert live.frontend.ready.scheduler == "sarathi"


def test_an_engine_that_is_down_is_asked_again_and_not_blamed_on_the_administrator(gate: LlmGate) -> None:
    with serving(access=gate) as live:
        live.loop.call_soon_threadsafe(setattr, live.frontend, "is_up", False)
        headers = {"authorization": f"Bearer {TOKEN}"}
        answer = httpx.post(f"{live.url}/admin/scheduler", headers=headers, json={"scheduler": "sarathi"})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert "ask again" in answer.json()["error"]["message"]
