"""`dispatchgym serve llm` as people start it: options, the demo, and its end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from dispatchgym.envs.api import DispatchGymError, UsageError
from dispatchgym.serving.executor.byte_tokenizer import END_TOKEN, TOKENS, byte_tokenizer
from dispatchgym.serving.llm import command, service
from dispatchgym.serving.llm.engine_loop import Recipe
from dispatchgym.serving.llm.frontend import Frontend
from dispatchgym.serving.llm.metrics import LlmMetrics
from dispatchgym.serving.llm.model import demo_model
from dispatchgym.serving.llm.options import ServeLlm, check
from dispatchgym.serving.llm.sequences import Limits
from dispatchgym.serving.load.servers import started
from tests.serving.llm.live import eventually

DEMO = ServeLlm(demo=True)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (ServeLlm(), "--model DIR or --demo"),
        (ServeLlm(demo=True, model="x"), "--model DIR or --demo"),
        (ServeLlm(model="/nowhere"), "config.json"),
        (ServeLlm(model="random:9b"), "known are: 1b"),
        (ServeLlm(model="paced:h200-9b"), "did you mean 'h200-8b'"),
        (replace(DEMO, scheduler="sarathy"), "did you mean 'sarathi'"),
        (replace(DEMO, scheduler="mc-sf"), "true output lengths"),
        (replace(DEMO, host="0.0.0.0"), "--api-keys"),
        (replace(DEMO, policy_budget_ms=0), "--policy-budget-ms"),
        (replace(DEMO, bundles=Path("/nowhere")), "--bundles"),
        (replace(DEMO, most_faults=0), "--most-faults"),
        (replace(DEMO, profile="h200-9b"), "did you mean 'h200-8b'"),
        (replace(DEMO, deadline_s=float("nan")), "--deadline-s"),
        (replace(DEMO, drain_s=float("nan")), "--drain-s"),
        (replace(DEMO, audit_log=Path("/nowhere/audit.jsonl")), "--audit-log /nowhere/audit.jsonl: /nowhere is not"),
        (replace(DEMO, record=Path(__file__)), "test_command.py: is not a folder"),
        (replace(DEMO, scheduler="sarathi+chunk=abc"), "chunk=abc is not a whole number"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_loaded(options: ServeLlm, why: str) -> None:
    with pytest.raises(DispatchGymError, match=why):
        check(options)


def test_an_engine_that_cannot_be_built_says_why_and_is_not_tried_again() -> None:
    async def go() -> str:
        recipe = Recipe("tests.serving.llm.engines:build", {"refuse": "no room for the cache"})
        async with Frontend(recipe, Limits(), LlmMetrics("x"), lambda: 0.0, in_thread=True) as frontend:
            await frontend.has_failed.wait()
            return frontend.failed

    assert asyncio.run(go()) == "no room for the cache"
    with pytest.raises(UsageError):
        Limits(waiting=0)


def test_the_demos_model_says_what_its_tokenizer_reads() -> None:
    tokenizer = byte_tokenizer()
    assert (len(tokenizer), tokenizer.eos_token_id) == (TOKENS, END_TOKEN)
    spec = demo_model().spec
    assert (spec.vocabulary, spec.stop) == (TOKENS, (END_TOKEN,))
    larger = byte_tokenizer(300)  # of random weights that say more tokens than there are bytes
    assert len(larger) == 300
    assert len({larger.decode([token]) for token in range(258, 300)}) == 42
    assert larger.encode("hi there") == tokenizer.encode("hi there")


@pytest.mark.parametrize(("drain_s", "signals"), [(0.0, 1), (float("inf"), 2)])
def test_who_is_still_served_when_the_server_ends_is_told_so(
    drain_s: float, signals: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = Recipe("tests.serving.llm.engines:build", {"step_s": 0.02})
    monkeypatch.setattr(service, "recipe_of", lambda options: recipe)

    async def go() -> tuple[int, httpx.Response, list[str]]:
        told: asyncio.Queue[str] = asyncio.Queue()
        monkeypatch.setattr(command, "_tell", told.put_nowait)
        served = asyncio.create_task(command.serve(replace(DEMO, port=0, drain_s=drain_s)))
        url = (await told.get()).split()[-1]
        assert (await told.get()).startswith("ready: ")
        body = {"model": "demo", "prompt": "x", "max_tokens": 1000, "ignore_eos": True}
        async with httpx.AsyncClient(base_url=url, timeout=120) as http:
            whole = asyncio.create_task(http.post("/v1/completions", json=body))
            async with http.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer:
                lines = answer.aiter_lines()
                await anext(lines)
                while (await http.get("/status")).json()["running"] < 2:
                    pass
                for _ in range(signals):
                    os.kill(os.getpid(), signal.SIGTERM)
                rest = [line async for line in lines if line]
            return await served, await whole, rest

    code, whole, rest = asyncio.run(go())
    assert code == 0
    assert (whole.status_code, whole.json()["error"]["message"]) == (503, "the server has ended")
    assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "unavailable"
    assert "Exception in ASGI" not in caplog.text


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[str], str, Path]]:
    """The demo in a process of its own: process, address, folder of what it records."""
    folder = tmp_path_factory.mktemp("record")
    command = [sys.executable, "-m", "dispatchgym", "serve", "llm", "--demo", "--port", "0", "--record", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    url = ""
    for line in process.stderr:
        if line.startswith("listening at "):
            url = line.split()[-1]
        if line.startswith("ready: "):
            break
    assert url, "the demo ended before it was ready"
    yield process, url, folder
    if process.poll() is None:
        process.kill()
    process.wait()
    process.stderr.close()


def test_the_demo_answers_openais_client(demo: tuple[subprocess.Popen[str], str, Path]) -> None:
    with openai.OpenAI(base_url=f"{demo[1]}/v1", api_key="none", max_retries=0) as client:
        ask = {"model": "demo", "prompt": "Once upon a time", "max_tokens": 12, "extra_body": {"ignore_eos": True}}
        greedy = [client.completions.create(**ask, temperature=0) for _ in range(2)]
        assert greedy[0].choices[0].text == greedy[1].choices[0].text
        assert greedy[0].usage is not None
        assert greedy[0].usage.completion_tokens == 12
        drawn = [client.completions.create(**ask, temperature=1, seed=s).choices[0].text for s in (1, 1, 2)]
        assert drawn[0] == drawn[1] != drawn[2]
        two = client.completions.create(**ask, temperature=1, seed=5, n=2, logprobs=2)
        assert two.choices[0].text != two.choices[1].text  # each choice draws for itself
        found = two.choices[0].logprobs
        assert found is not None
        assert len(found.token_logprobs or []) == 12
        assert all(x <= 0 for x in found.token_logprobs or [] if x is not None)
        chat = client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": "hello"}], max_tokens=5, stream=True
        )
        assert list(chat)[-1].choices[0].finish_reason in ("length", "stop")


def test_the_process_that_speaks_http_loads_no_torch(demo: tuple[subprocess.Popen[str], str, Path]) -> None:
    process, url, _ = demo
    assert httpx.get(f"{url}/healthz").text == "ok"
    loaded = Path(f"/proc/{process.pid}/maps")
    if not loaded.exists():
        pytest.skip("this system does not tell what a process has loaded")
    text = loaded.read_text()
    assert "pydantic_core" in text
    assert "libtorch" not in text


def test_told_to_end_it_finishes_what_is_under_way_and_ends_well(
    demo: tuple[subprocess.Popen[str], str, Path],
) -> None:
    process, url, folder = demo
    answers: list[str] = []
    begun = threading.Event()

    def stream() -> None:
        body = {"model": "demo", "prompt": "x" * 50, "max_tokens": 300, "stream": True, "ignore_eos": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=120) as answer:
            for line in answer.iter_lines():
                begun.set()
                answers.append(line)

    thread = threading.Thread(target=stream)
    thread.start()
    assert begun.wait(60)
    process.send_signal(signal.SIGTERM)
    thread.join(120)
    assert process.wait(60) == 0
    assert [line for line in answers if line][-1] == "data: [DONE]"
    last = json.loads([line for line in answers if line.startswith("data: {")][-1][6:])
    assert last["choices"][0]["finish_reason"] == "length"
    assert eventually(lambda: len(list(folder.glob("transitions-*.npz"))) >= 1)  # what was open is written


def test_a_clock_in_place_of_a_model_answers_as_servers_do() -> None:
    async def go() -> list[dict[str, Any]]:
        async with started(["--model", "paced:torch-h200-1b", "--scheduler", "bundle:llm-engine"]) as server:
            body = {"model": "paced-torch-h200-1b", "prompt": "x" * 3000, "max_tokens": 30, "ttft_slo_ms": 1000}
            async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
                answers = await asyncio.gather(*(http.post("/v1/completions", json=body) for _ in range(8)))
            return [answer.json() for answer in answers]

    for answer in asyncio.run(go()):
        assert answer["choices"][0]["text"] == "abcdefghijklmnopqrstuvwxyzabcd"
        assert answer["usage"]["completion_tokens"] == 30
