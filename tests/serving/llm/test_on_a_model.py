"""The live engine over a real, tiny model on the CPU: what it says, what its cache finds, how it pauses."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from dispatchgym.serving.executor.model import Decoder
from dispatchgym.serving.executor.sampling_params import Sampling
from dispatchgym.serving.llm.engine_loop import EngineLoop, Recipe
from dispatchgym.serving.llm.frontend import Frontend
from dispatchgym.serving.llm.messages import Output
from dispatchgym.serving.llm.metrics import LlmMetrics
from dispatchgym.serving.llm.sequences import Group, Limits, Wanted

I32 = npt.NDArray[np.int32]
COLUMNS = {"priority": 0, "tenant": 0, "session": -1, "program": -1}


class Served:
    """A frontend over an engine of the tiny model, in a thread of this process."""

    def __init__(self, scheduler: str = "vllm", **arguments: Any) -> None:
        recipe = Recipe("tests.serving.llm.engines:build_tiny", arguments, scheduler, budget_s=60.0)
        self.frontend = Frontend(recipe, Limits(), LlmMetrics("tiny"), time.monotonic, in_thread=True)

    def run(self, client: Coroutine[Any, Any, Any]) -> Any:
        """What the client returns; afterwards every block is free."""

        async def all_of_it() -> Any:
            async with self.frontend:
                await self.frontend.has_settled.wait()
                found = await asyncio.wait_for(client, 120)
                while self.frontend.last is None or self.frontend.last.free_blocks != self.frontend.ready.kv_blocks:  # type: ignore[union-attr]
                    await asyncio.sleep(0.002)
                return found

        return asyncio.run(all_of_it())

    def ask(self, prompt: I32, tokens: int, ttft_slo_s: float = np.inf, **sampling: Any) -> Group:
        wanted = Wanted(prompt, tokens, Sampling(tokens, **sampling))
        return self.frontend.submit([wanted], "", COLUMNS, ttft_slo_s, np.inf)

    async def text(self, prompt: I32, tokens: int, **more: Any) -> tuple[list[int], int]:
        """What is said to a prompt, and how many of its tokens were cached."""
        return await whole(self.ask(prompt, tokens, **more))


async def whole(group: Group) -> tuple[list[int], int]:
    said: list[int] = []
    while True:
        news = await group.news.get()
        if not isinstance(news, tuple):
            raise news
        output: Output = news[1]
        said += output.tokens
        if output.reason:
            return said, output.cached


def prompts(seed: int, *lengths: int) -> list[I32]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, n).astype(np.int32) for n in lengths]


async def chat(served: Served, seed: int, turns: int) -> list[tuple[list[int], int]]:
    """Turns of a conversation, each prompt the last one, its answer, and something new."""
    rng = np.random.default_rng(seed)
    text, found = prompts(seed, int(rng.integers(3, 60)))[0], []
    for _ in range(turns):
        said, cached = await served.text(text, int(rng.integers(5, 50)))
        found.append((said, cached))
        text = np.concatenate([text, np.array(said, np.int32), rng.integers(0, 256, 9).astype(np.int32)])
    return found


@pytest.mark.parametrize("executor", ["plain", "late"])
def test_the_next_turn_finds_the_answer_and_says_what_it_would_without_the_cache(executor: str) -> None:
    with_cache, without = Served(executor=executor), Served(executor=executor, prefix_caching=False)
    found = with_cache.run(chat(with_cache, 3, 4))
    plain = without.run(chat(without, 3, 4))
    assert [said for said, _ in found] == [said for said, _ in plain]
    assert [cached for _, cached in plain] == [0] * 4
    rng = np.random.default_rng(3)
    prompt, wanted = int(rng.integers(3, 60)), [0]
    for said, _ in found[:-1]:
        known = prompt + len(said)
        wanted.append((known - 1) // 16 * 16)  # of the last token, nothing has been computed
        prompt = known + 9
    assert [cached for _, cached in found] == wanted


@pytest.mark.parametrize("executor", ["plain", "late"])
def test_many_chats_in_a_small_pool_say_what_they_would_alone(executor: str) -> None:
    """So few blocks that requests are preempted; others leave in the middle."""

    async def all_at_once(served: Served) -> Any:
        async def leave(seed: int) -> None:
            for prompt in prompts(seed, *range(10, 60, 8)):
                group = served.ask(prompt, 60)
                for _ in range(seed % 5 + 1):
                    await group.news.get()
                served.frontend.cancel(group)

        chats = [chat(served, seed, 4) for seed in range(8)]
        found = await asyncio.gather(*chats, *(leave(seed) for seed in range(4)))
        return found[:8]

    small = Served(executor=executor, kv_blocks=48, max_len=400)
    found = small.run(all_at_once(small))
    assert small.frontend.last is not None
    assert small.frontend.last.preemptions > 0
    assert sum(cached for turns in found for _, cached in turns) > 0
    alone = Served(prefix_caching=False)

    async def one_by_one() -> Any:
        return [await chat(alone, seed, 4) for seed in range(8)]

    plain = alone.run(one_by_one())
    assert [[said for said, _ in turns] for turns in found] == [[said for said, _ in turns] for turns in plain]


def test_a_request_that_was_preempted_does_not_count_what_it_finds_again_as_cached() -> None:
    served = Served(kv_blocks=12, max_len=190)

    async def crowd() -> Any:
        return await asyncio.gather(*(served.text(prompt, 60) for prompt in prompts(1, 40, 41, 42, 43)))

    found = served.run(crowd())
    assert served.frontend.last is not None
    assert served.frontend.last.preemptions > 0
    assert [cached for _, cached in found] == [0] * 4


# --- arrivals in the middle of a step ---


class Pauses:
    """Lets a test ask something in the middle of the first interruptible step, and counts segments run.

    Attributes:
        begun: the step is at its first segment boundary, where it stays until a request has come.
        segments: that passes over `LONG` tokens have run.
    """

    LONG = 400

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = threading.Event()
        self.segments: list[int] = []
        look, run = EngineLoop._has_arrived, Decoder.run_segment

        def has_arrived(loop: EngineLoop) -> bool:
            if not self.begun.is_set():
                self.begun.set()
                while not look(loop):
                    assert loop._connection.poll(60)
            return look(loop)

        def run_segment(decoder: Decoder, segment: int, hidden: Any, inputs: Any) -> None:
            if len(inputs.host.ids) == self.LONG:
                self.segments.append(segment)
            run(decoder, segment, hidden, inputs)

        monkeypatch.setattr(EngineLoop, "_has_arrived", has_arrived)
        monkeypatch.setattr(Decoder, "run_segment", run_segment)

    async def in_the_middle(self) -> None:
        assert await asyncio.to_thread(self.begun.wait, 60)


def interruptions(served: Served) -> int:
    lines = served.frontend.metrics.text().decode().splitlines()
    (line,) = [line for line in lines if line.startswith("dispatchgym:steps_interrupted_total")]
    return int(float(line.split()[-1]))


def plainly(*asked: tuple[I32, int]) -> list[list[int]]:
    """What is said under a scheduler that interrupts nothing."""
    served = Served()

    async def one_by_one() -> Any:
        return [(await served.text(*each))[0] for each in asked]

    found: list[list[int]] = served.run(one_by_one())
    assert interruptions(served) == 0
    return found


@pytest.mark.parametrize("executor", ["plain", "late"])
@pytest.mark.parametrize("scheduler", ["flow-prefill", "bundle:llm-engine"])
def test_an_urgent_request_stops_a_long_prompt_in_the_middle_which_then_goes_on(
    monkeypatch: pytest.MonkeyPatch, scheduler: str, executor: str
) -> None:
    long, urgent = prompts(5, Pauses.LONG, 30)
    pauses = Pauses(monkeypatch)
    served = Served(scheduler, executor=executor)

    async def both() -> Any:
        patient = served.ask(long, 20, 1000.0)
        await pauses.in_the_middle()
        hasty = served.ask(urgent, 20, 0.01 if scheduler.startswith("bundle") else 100.0)
        found = await asyncio.gather(whole(patient), whole(hasty))
        return found, patient.sequences[0], hasty.sequences[0]

    found, patient, hasty = served.run(both())
    assert interruptions(served) == 1
    assert hasty.first_s < patient.first_s or scheduler.startswith("bundle")
    assert pauses.segments == [0, 1, 2, 3]  # nothing of the long prompt has been run twice
    assert served.frontend.metrics.composition["prefill_tokens"] == len(long) + len(urgent)
    assert [said for said, _ in found] == plainly((long, 20), (urgent, 20))


def test_a_stopped_prompt_may_be_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    long, urgent = prompts(6, Pauses.LONG, 30)
    pauses = Pauses(monkeypatch)
    served = Served("flow-prefill")

    async def leave() -> Any:
        patient = served.ask(long, 20, 1000.0)
        await pauses.in_the_middle()
        served.frontend.cancel(patient)
        said = await served.text(urgent, 20, ttft_slo_s=100.0)
        return [said[0], (await served.text(long, 20))[0]]

    found = served.run(leave())
    assert interruptions(served) == 1
    assert pauses.segments == [0, 0, 1, 2, 3]
    assert found == plainly((urgent, 20), (long, 20))


def test_another_scheduler_goes_on_with_what_was_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    long, urgent = prompts(7, Pauses.LONG, 30)
    pauses = Pauses(monkeypatch)
    served = Served("flow-prefill")

    async def switch() -> Any:
        patient = served.ask(long, 20, 1000.0)
        await pauses.in_the_middle()
        hasty = served.ask(urgent, 40, 100.0)
        await served.frontend.switch("vllm")
        return await asyncio.gather(whole(patient), whole(hasty))

    found = served.run(switch())
    assert [said for said, _ in found] == plainly((long, 20), (urgent, 40))
    assert interruptions(served) == 1


@pytest.mark.parametrize("scheduler", ["flow-prefill", "bundle:llm-engine"])
def test_prompts_that_come_at_any_time_say_what_they_would_alone(scheduler: str) -> None:
    rng = np.random.default_rng(8)
    asked = [(prompt, 12) for prompt in prompts(8, *rng.integers(200, 900, 12).tolist())]
    served = Served(scheduler, executor="late")

    async def crowd() -> Any:
        groups = []
        for prompt, count in asked:
            groups.append(served.ask(prompt, count, float(rng.uniform(0.01, 10))))
            await asyncio.sleep(0.01 * rng.random())
        return await asyncio.gather(*(whole(group) for group in groups))

    assert [said for said, _ in served.run(crowd())] == plainly(*asked)
