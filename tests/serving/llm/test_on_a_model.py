"""The live engine over a real, tiny model on the CPU: what it says, and what it finds in its prefix cache."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from dispatchgym.serving.executor.sampling_params import Sampling
from dispatchgym.serving.llm.engine_loop import Recipe
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
