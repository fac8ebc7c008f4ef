"""The LLM server when more is asked than it can do, when clients leave, and when something in it fails."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import pytest

from dispatchgym.envs.api import UsageError
from dispatchgym.envs.llm.engine import Engine
from dispatchgym.envs.llm.policy import EngineSpec, EngineView, Plan
from dispatchgym.serving.executor.sampling_params import Sampling
from dispatchgym.serving.llm import schedulers
from dispatchgym.serving.llm.access import RateLimits
from dispatchgym.serving.llm.engine_host import EngineHost
from dispatchgym.serving.llm.frontend import Frontend
from dispatchgym.serving.llm.generation import Generation, Piece, Usage
from dispatchgym.serving.llm.messages import Step, Submit, ToEngine
from dispatchgym.serving.llm.schedulers import Loaded
from dispatchgym.serving.llm.sequences import Limits, UnavailableError, Wanted
from dispatchgym.solvers.llm.vllm import Vllm
from tests.serving.llm.live import Live, eventually, language, letters, serving


def ask(live: Live, prompt: str = "x", tokens: int = 4, **more: Any) -> httpx.Response:
    body = {"model": "letters", "prompt": prompt, "max_tokens": tokens, **more}
    return httpx.post(f"{live.url}/v1/completions", json=body, timeout=120)


@contextmanager
def asking(live: Live, count: int, **body: Any) -> Iterator[list[Any]]:
    """Requests under way, each in a thread; the list holds futures of their answers."""
    with ThreadPoolExecutor(count) as pool:
        yield [pool.submit(ask, live, f"prompt {i}", **body) for i in range(count)]


# --- too much ---


def test_beyond_the_queues_bound_clients_are_told_when_to_come_again() -> None:
    with serving(engine={"max_seqs": 2}, limits=Limits(waiting=3)) as live:
        live.gate.is_open.clear()
        with asking(live, 5) as answers:
            # Two are in the step that the gate holds, as far as the server knows still queued: so three at most.
            assert eventually(lambda: live.frontend.num_waiting == 3)
            assert eventually(lambda: sum(a.done() for a in answers) == 2)
            live.gate.is_open.set()
        found = [a.result() for a in answers]
        refused = [a for a in found if a.status_code == 429]
        assert len(refused) == 2
        assert all(int(a.headers["retry-after"]) >= 1 for a in refused)
        assert refused[0].json()["error"]["type"] == "rate_limit_error"
        assert sorted(a.status_code for a in found) == [200, 200, 200, 429, 429]
        assert eventually(live.idle)
        assert ask(live).status_code == 200


def test_a_request_for_more_than_the_whole_queue_is_not_told_to_come_again() -> None:
    with serving(limits=Limits(waiting=3)) as live:
        answer = ask(live, n=4)
        assert (answer.status_code, "retry-after" in answer.headers) == (400, False)
        assert "4 sequences (prompts times n) are more than 3" in answer.text
        assert ask(live, n=3).status_code == 200


def test_the_queue_is_bounded_in_prompt_tokens_too() -> None:
    with serving(limits=Limits(waiting=100, waiting_tokens=50)) as live:
        live.gate.is_open.clear()
        with asking(live, 1) as first:
            assert eventually(lambda: live.frontend.num_waiting == 1)
            assert ask(live, "y" * 60).status_code == 429
            live.gate.is_open.set()
        assert first[0].result().status_code == 200
        assert ask(live, "y" * 60).status_code == 200  # alone, even more than the bound comes in


def test_a_tenant_beyond_its_rate_is_told_when_to_come_again_and_others_are_not() -> None:
    rates = RateLimits(2, float("inf"), lambda: 0.0)  # time stands still
    with serving(rates=rates) as live:
        assert [ask(live, tenant="a").status_code for _ in range(3)] == [200, 200, 429]
        assert ask(live, tenant="b").status_code == 200
        assert ask(live, tenant="a").headers["retry-after"] == "30"
        assert "tenant a: the rate limit of 2 requests a minute is reached" in ask(live, tenant="a").text


# --- clients that leave, and time that runs out ---


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_blocks(stream: bool) -> None:
    with serving(engine={"step_s": 0.001}) as live:

        async def leave() -> None:
            body = {"model": "letters", "prompt": "x" * 200, "max_tokens": 800, "stream": stream}
            async with (
                httpx.AsyncClient(timeout=120) as client,
                client.stream("POST", f"{live.url}/v1/completions", json=body) as answer,
            ):
                await anext(answer.aiter_lines())

        async def give_up() -> None:
            task = asyncio.create_task(leave())
            while not any(s.generated > 3 for s in live.frontend.sequences):
                await asyncio.sleep(0.002)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        asyncio.run(leave() if stream else give_up())
        assert eventually(live.idle)
        assert live.frontend.last is not None
        assert b'finished_reason="abort"' in live.frontend.metrics.text()


@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_cancels_a_request_that_waits_or_runs(stream: bool) -> None:
    with serving(engine={"max_seqs": 1}) as live:
        live.gate.is_open.clear()
        answer = ask(live, deadline_ms=30, stream=stream)
        if stream:
            assert "deadline_exceeded" in answer.text
            assert "[DONE]" not in answer.text
        else:
            assert (answer.status_code, answer.json()["error"]["code"]) == (408, "deadline_exceeded")
        live.gate.is_open.set()
        assert eventually(live.idle)


def test_schedulers_are_told_of_bounds_less_a_margin(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Submit] = []
    send = EngineHost.send

    def listen(self: EngineHost, message: ToEngine) -> None:
        told.extend([message] if isinstance(message, Submit) else [])
        send(self, message)

    monkeypatch.setattr(EngineHost, "send", listen)
    with serving(limits=Limits(slo_margin=0.25)) as live:
        assert ask(live, ttft_slo_ms=8e6, tpot_slo_ms=400).status_code == 200
    assert told[0].columns["tpot_slo_s"] == pytest.approx(0.3)
    assert told[0].columns["ttft_slo_s"] == pytest.approx(6000)
    with pytest.raises(UsageError, match="--slo-margin 1 must be"):
        Limits(slo_margin=1.0)


def test_bounds_count_from_when_the_server_got_a_request_not_from_when_the_engine_had_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[float, float]] = []
    submit = Engine.submit

    def look(self: Engine, *lengths: int, **more: Any) -> int:
        number = submit(self, *lengths, **more)
        seen.append((time.monotonic(), float(self.state.req["arrival_s"][number])))
        return number

    monkeypatch.setattr(Engine, "submit", look)
    with serving() as live:
        live.gate.is_open.clear()
        with asking(live, 1), ThreadPoolExecutor(1) as second:
            assert eventually(lambda: len(seen) == 1)
            came_s = time.monotonic()
            answer = second.submit(ask, live)
            assert eventually(lambda: live.frontend.num_waiting == 2)
            known_s = time.monotonic()
            time.sleep(0.3)  # in the middle of a step
            live.gate.is_open.set()
            assert answer.result().status_code == 200
    taken_s, arrived_s = seen[1]
    assert came_s <= arrived_s <= known_s <= taken_s - 0.3


def test_first_tokens_are_told_first(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[list[int]] = []
    step = Frontend._step

    def look(self: Frontend, message: Step) -> None:
        steps.append([self._sequences[o.key].generated for o in message.outputs if o.key in self._sequences])
        step(self, message)

    monkeypatch.setattr(Frontend, "_step", look)
    with serving(engine={"step_s": 0.01}) as live, asking(live, 1, max_tokens=100) as answers:
        assert eventually(lambda: len(steps) > 3)
        assert ask(live).status_code == 200
        assert answers[0].result().status_code == 200
    assert any(len(generated) == 2 and generated[0] == 0 for generated in steps)
    assert all(not any(generated[: generated.count(0)]) for generated in steps)


def test_what_comes_while_nobody_looks_is_one_event() -> None:
    with serving() as live:

        async def go() -> tuple[list[Piece], Usage]:
            prompt = np.arange(97, 100, dtype=np.int32)
            wanted = [Wanted(prompt, 4, Sampling(max_new=1))] * 2
            group = live.frontend.submit(wanted, "t", {}, np.inf, np.inf)
            while group.news.qsize() < 8:
                await asyncio.sleep(0.001)
            group.news.put_nowait(UnavailableError("the end"))
            generation = Generation(live.frontend, language(), group, 3, (), None)
            return [piece async for piece in generation], generation.usage

        pieces, usage = asyncio.run_coroutine_threadsafe(go(), live.loop).result(60)
    assert [(piece.index, len(piece.text), piece.reason) for piece in pieces] == [(0, 4, "length"), (1, 4, "length")]
    assert usage.completion == 8


# --- the engine goes down ---


def test_a_crash_fails_what_runs_and_loses_nothing_that_waits() -> None:
    with serving(engine={"max_seqs": 2}) as live:
        live.gate.is_open.clear()
        with asking(live, 6, tokens=50) as answers:
            assert eventually(lambda: live.frontend.num_waiting == 6)
            live.gate.fail_at = live.gate.steps + 4  # two run by then, four wait
            live.gate.is_open.set()
        found = [a.result() for a in answers]
        failed = [a for a in found if a.status_code != 200]
        assert len(failed) == 2
        for answer in failed:
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_lost")
            assert "the engine went down while this request ran" in answer.text
        for i, answer in enumerate(found):
            if answer.status_code == 200:
                assert answer.json()["choices"][0]["text"] == letters(f"prompt {i}", 50)
        assert eventually(live.idle)
        assert b'dispatchgym:engine_restarts_total{model_name="letters"} 1.0' in live.frontend.metrics.text()


def test_an_engine_that_never_gets_anything_done_is_given_up() -> None:
    with serving(limits=Limits(backoff_s=0.0)) as live:
        live.gate.fail_at = 0
        keep_failing = threading.Event()

        def fail_again() -> None:
            while not keep_failing.wait(0.001):
                live.gate.fail_at = 0

        thread = threading.Thread(target=fail_again)
        thread.start()
        try:
            answer = ask(live)
            assert answer.status_code == 503
            assert eventually(lambda: ask(live).status_code == 503 and bool(live.frontend.failed))
        finally:
            keep_failing.set()
            thread.join()
        assert httpx.get(f"{live.url}/healthz").status_code == 503
        assert "in a row" in httpx.get(f"{live.url}/readyz").text


def test_the_engines_process_may_be_killed() -> None:
    """The same with a process of its own, which is killed from outside while it decodes."""
    with serving(in_thread=False, engine={"max_seqs": 1, "step_s": 0.002}) as live:
        with asking(live, 2, tokens=400) as answers:
            assert eventually(lambda: any(s.generated > 3 for s in live.frontend.sequences))
            assert live.frontend.engine_pid is not None
            os.kill(live.frontend.engine_pid, signal.SIGKILL)
        found = sorted(a.result().status_code for a in answers)
        assert found == [200, 503]
        assert eventually(live.idle)


def test_an_engine_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    killed = threading.Event()
    monkeypatch.setattr("dispatchgym.serving.llm.engine_host.EngineHost.kill", lambda self: killed.set())
    with serving(limits=Limits(stall_s=0.2)) as live:
        assert ask(live).status_code == 200
        assert not killed.wait(0.5)  # with nothing to do it may be silent
        live.gate.is_open.clear()
        with asking(live, 1):
            assert killed.wait(60)
            live.gate.is_open.set()


# --- the policy fails ---


class Troubled:
    """Decides as first come, first served; in between, as `trouble` says."""

    name = "troubled"
    oracle = False

    def __init__(self, trouble: Any) -> None:
        self.trouble = trouble
        self.asked = 0
        self.is_live = False

    def reset(self, spec: EngineSpec, seed: int) -> None:
        self.asked = 0

    def decide(self, view: EngineView) -> Plan:
        self.asked += 1
        return self.trouble(self.asked, view) if self.is_live else Plan()


def install(monkeypatch: pytest.MonkeyPatch, **troubles: Any) -> dict[str, Troubled]:
    """Make troubled schedulers known to the server by name."""
    made = {name: Troubled(trouble) for name, trouble in troubles.items()}
    known = schedulers.load_scheduler

    def load(name: str) -> Loaded:
        return Loaded(name, "v1", made[name], Vllm()) if name in made else known(name)

    monkeypatch.setattr("dispatchgym.serving.llm.engine_loop.load_scheduler", load)
    return made


def switch(live: Live, name: str) -> None:
    asyncio.run_coroutine_threadsafe(live.frontend.switch(name), live.loop).result(120)


def _raises(asked: int, view: EngineView) -> Plan:
    if asked % 3 == 0:
        raise RuntimeError("no idea")
    return Plan()


def _nan(asked: int, view: EngineView) -> Any:
    ids = [*view.running.id.tolist(), *view.waiting.id.tolist()]
    return Plan(grants=[(i, float("nan")) for i in ids])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("trouble", "cause"),
    [
        (_raises, "error"),
        (_nan, "malformed"),
        (lambda asked, view: None, "malformed"),
        (lambda asked, view: Plan(wait_until_s=float("nan")), "malformed"),
        (lambda asked, view: Plan(drop=["x"]), "malformed"),  # type: ignore[list-item]
    ],
)
def test_a_policy_that_fails_is_replaced_for_that_decision_and_benched_after_some(
    monkeypatch: pytest.MonkeyPatch, trouble: Any, cause: str
) -> None:
    made = install(monkeypatch, troubled=trouble)
    with serving(most_faults=5) as live:
        switch(live, "troubled")
        made["troubled"].is_live = True
        answer = ask(live, "some prompt", tokens=40)
        assert answer.json()["choices"][0]["text"] == letters("some prompt", 40)
        last = live.frontend.last
        assert last is not None
        assert last.faults[cause] == 5
        assert last.is_benched
        assert last.faults["benched"] > 0
        assert httpx.get(f"{live.url}/status").json()["is_benched"]
        switch(live, "sarathi")
        ask(live)
        assert not live.frontend.last.is_benched  # type: ignore[union-attr]


def test_a_policy_that_stalls_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    hold = threading.Event()

    def stalls(asked: int, view: EngineView) -> Plan:
        if asked == 5:
            hold.wait(120)
        return Plan()

    made = install(monkeypatch, stalls=stalls)
    with serving(most_faults=10**6, budget_s=0.5) as live:
        switch(live, "stalls")
        made["stalls"].is_live = True
        assert ask(live, tokens=30).status_code == 200  # while its fifth decision is still being made
        last = live.frontend.last
        assert last is not None
        assert last.faults["late"] >= 1
        assert last.faults["busy"] > 10
        hold.set()

        def is_asked_again() -> bool:
            before = live.frontend.last.faults["busy"]  # type: ignore[union-attr]
            ask(live, tokens=5)
            return bool(live.frontend.last.faults["busy"] == before)  # type: ignore[union-attr]

        assert eventually(is_asked_again)


def test_an_engine_that_ends_while_a_scheduler_is_being_loaded_rings_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bell's number may be another file's by then."""
    begun, go_on, loaded = threading.Event(), threading.Event(), threading.Event()
    known = schedulers.load_scheduler

    def load(name: str) -> Loaded:
        if name == "vllm":
            return known(name)
        begun.set()
        assert go_on.wait(60)
        loaded.set()
        return Loaded(name, "", Vllm(), Vllm())

    monkeypatch.setattr("dispatchgym.serving.llm.engine_loop.load_scheduler", load)
    with serving() as live:
        asyncio.run_coroutine_threadsafe(live.frontend.switch("slow"), live.loop)
        assert begun.wait(60)
    go_on.set()
    assert loaded.wait(60)
    for thread in threading.enumerate():
        if thread.name == "load scheduler":
            thread.join(60)
